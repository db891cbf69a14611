"""Picture files to arrays, as every viewer shows them: one reader for references, masks, results and run folders.

Only the formats of :data:`FORMATS` are opened, whatever a file is called, and sizes are checked before anything is
decoded. Imports no torch.
"""

from __future__ import annotations

import io
import struct
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import ImageFile as PillowFile

from brushbench.errors import BrushbenchError, UnusableError
from brushbench.files import limit, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brushbench.types import Picture

__all__ = [
    "FORMATS",
    "SUFFIXES",
    "ImageFile",
    "encode_png",
    "grey_levels",
    "open_picture",
    "read_picture",
    "to_rgb",
    "transparent",
]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, struct.error)
PNG_START = b"\x89PNG\r\n\x1a\n"
# What a PNG says besides its pixels. Pillow takes one of 2 MB (a workflow of ComfyUI, a colour profile) for a bomb.
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that say which side is up
ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageFile:
    """A JPEG, PNG, WebP, BMP or TIFF file, brought to RGB as :func:`to_rgb` does."""

    path: Path

    def data(self) -> bytes:
        """Return the file's bytes; see :func:`brushbench.files.read_bytes`."""
        return read_bytes(self.path, "picture")

    def size(self) -> tuple[int, int]:
        """Return (height, width) of the upright picture, from the file's header."""
        data = self.data()
        with open_picture(data, f"picture {self.path}") as picture:
            width, height = picture.size
            # Pillow gives the size of a TIFF upright; in a PNG it looks for the orientation behind the pixels as well.
            told = picture.format in ("JPEG", "MPO", "WEBP") or any(
                mark in data for mark in (b"eXIf", *PNG_ORIENTATION)
            )
            turned = told and picture.format != "TIFF" and picture.getexif().get(ORIENTATION) in (5, 6, 7, 8)
            return (width, height) if turned else (height, width)

    def decode(self, data: bytes) -> Picture:
        """Return uint8 (H, W, 3) RGB from the file's bytes."""
        with open_picture(data, f"picture {self.path}") as picture:
            return to_rgb(picture)


def read_picture(path: Path | str) -> Picture:
    """Return the picture of a file, uint8 (H, W, 3) RGB, upright.

    Raises:
        UnusableError: it is missing, no regular file, of none of the :data:`FORMATS`, damaged, or too large
            (``BRUSHBENCH_MAX_PIXELS``, ``BRUSHBENCH_MAX_BYTES``).
    """
    file = ImageFile(Path(path))
    return file.decode(file.data())


def encode_png(picture: Picture) -> bytes:
    """Return a picture, uint8 (H, W, 3) RGB, as a PNG: a tenth larger than Pillow's, in a quarter of its time.

    Raises:
        ValueError: other pixels, or none.
    """
    import cv2

    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
        raise ValueError(f"got {picture.dtype} {picture.shape}, expected uint8 (H, W, 3)")
    turned = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".png", turned, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


@contextmanager
def open_picture(data: bytes, name: str) -> Iterator[Image.Image]:
    """Open a picture's header; what goes wrong there, or while decoding inside the block, is an UnusableError.

    Args:
        data: the encoded picture.
        name: what messages call it, such as ``picture a.png``.
    """
    most = limit("BRUSHBENCH_MAX_PIXELS")
    try:
        # A method may have set Pillow's flag for its own files; a cut picture of a benchmark is not to pass as whole.
        truncated, PillowFile.LOAD_TRUNCATED_IMAGES = PillowFile.LOAD_TRUNCATED_IMAGES, False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below speaks for itself; the rest is about metadata
            with Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS) as picture:
                if picture.width * picture.height > most:
                    raise UnusableError(
                        f"the {name} is {picture.height} x {picture.width}, more than {most} pixels",
                        "Replace it by a smaller one, or set BRUSHBENCH_MAX_PIXELS to allow it",
                    )
                yield picture
    except BrushbenchError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableError(
            f"the {name} is larger than Pillow opens ({error})", "Replace it by a smaller one"
        ) from None
    except DECODING_ERRORS as error:
        reason = "it is of no such format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnusableError(
            f"the {name} cannot be decoded ({reason})", f"Replace it by an intact {', '.join(FORMATS)} file"
        ) from None
    finally:
        PillowFile.LOAD_TRUNCATED_IMAGES = truncated


def _without_texts(data: bytes) -> bytes:
    """Return a PNG without its texts and colour profile, but for those that say its orientation; others as they are."""
    if not data.startswith(PNG_START):
        return data
    kept, place = [PNG_START], len(PNG_START)
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end, kind = place + 12 + length, data[place + 4 : place + 8]
        if kind not in PNG_TEXT or data.startswith(PNG_ORIENTATION, place + 8):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def to_rgb(picture: Image.Image) -> Picture:
    """Return uint8 (H, W, 3) RGB of a Pillow picture.

    It is turned upright as its EXIF orientation says, whatever its format. Grey is repeated, 16 bit are scaled to 8,
    palettes are looked up, and what is transparent shows white.

    Raises:
        ValueError: pixels that are not 8 or 16 bit.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        grey = grey_levels(upright)
        if isinstance(hidden := upright.info.get("transparency"), int):
            grey[np.asarray(upright) == hidden] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bit")
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def grey_levels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Return uint8 (H, W): the luma of a Pillow picture, upright; 16 bit are scaled to 8.

    Raises:
        ValueError: pixels that are not 8 or 16 bit.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # Pillow's own conversion of 16 bit clips instead of scaling
        levels = np.asarray(picture, dtype=np.int64)
        if levels.size and (levels.min() < 0 or levels.max() > 65535):
            raise ValueError(f"its levels reach from {levels.min()} to {levels.max()}, expected 8 or 16 bit")
        return (levels // 257).astype(np.uint8)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bit")
    return np.asarray(picture.convert("RGB").convert("L"))


def transparent(picture: Image.Image) -> npt.NDArray[np.uint8] | None:
    """Return the alpha of a Pillow picture, upright uint8 (H, W), 0 = transparent; None where every pixel is opaque."""
    picture = ImageOps.exif_transpose(picture)
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I"):
        hidden = picture.info.get("transparency")
        alpha = np.where(np.asarray(picture) == hidden, np.uint8(0), np.uint8(255))
    else:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return None if alpha.size == 0 or alpha.min() == 255 else alpha
