"""Pictures of a report: thumbnails, hole overlays and originals, under names of our own.

::

    thumbs/012/001234-ref.webp    the reference                 full/012/001234-ref.png
    thumbs/012/001234-hole.webp   the hole drawn over it        full/012/001234-hole.png    its share in blending
    thumbs/012/001234-m0.webp     a method's picture            full/012/001234-m0.png      as the method returned it
    thumbs/012/001234-m0b.webp    the same, blended

The number is the row of the gallery. Memory does not grow with the number of rows: rows are drawn one by one, by a pool
that holds at most a few at a time.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brushbench.types import Hole, Picture

__all__ = ["Drawing", "GeneratedPicture", "draw_all", "file_stem", "hole_overlay"]

WEBP_QUALITY = 82
SMALL = 96  # longest side, pixels, up to which a thumbnail is lossless
HOLE_TINT = (220, 38, 127)  # magenta of the IBM palette, which colour-blind readers tell from photographs


@dataclass(frozen=True)
class GeneratedPicture:
    """One method's picture of one row.

    Attributes:
        key: the method's key in the report, ``m0``.
        file: where the run keeps it.
        sha256: of its pixels, as the run recorded it.
        blended: whether the run scored its blended variant too.
    """

    key: str
    file: Path
    sha256: str
    blended: bool


@dataclass(frozen=True)
class Drawing:
    """What one row of the gallery needs.

    Attributes:
        row: number of the row.
        image: uint8 (H, W, 3) RGB, the reference.
        hole: bool (H, W), True = repaint.
        pictures: of every method that has one.
    """

    row: int
    image: Picture
    hole: Hole
    pictures: tuple[GeneratedPicture, ...]


def file_stem(row: int) -> str:
    """Return the part of a file's path that names a row: a folder per hundred rows keeps folders small."""
    return f"{row // 100:03d}/{row:06d}"


def draw_all(
    drawings: Iterable[Drawing], out: Path, side: int, originals: bool, jobs: int, quality: int | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Draw every row's files; yield (row, problems by method key) in order.

    Args:
        drawings: the rows; consumed a few at a time.
        out: the report's folder.
        side: longest side of a thumbnail, pixels; smaller pictures are not enlarged.
        originals: whether full-size pictures are written too.
        jobs: processes.
        quality: of the thumbnails' WebP, 1..100; None: 82, and lossless up to 96 pixels.
    """
    if jobs <= 1:
        for drawing in drawings:
            yield drawing.row, _draw(drawing, out, side, originals, quality)
        return
    with ProcessPoolExecutor(jobs) as pool:
        waiting: deque[tuple[int, Future[dict[str, str]]]] = deque()
        for drawing in drawings:
            waiting.append((drawing.row, pool.submit(_draw, drawing, out, side, originals, quality)))
            if len(waiting) >= 4 * jobs:
                row, done = waiting.popleft()
                yield row, done.result()
        for row, done in waiting:
            yield row, done.result()


def _draw(drawing: Drawing, out: Path, side: int, originals: bool, quality: int | None) -> dict[str, str]:
    """Write one row's files and return why a method's picture could not be shown, by its key."""
    stem = file_stem(drawing.row)
    thumbs, full = out / "thumbs" / stem, out / "full" / stem
    thumbs.parent.mkdir(parents=True, exist_ok=True)
    share = _blending_share(drawing.hole)
    reference = _shrink(drawing.image, side)
    _write_webp(thumbs, "ref", reference, quality)
    _write_webp(thumbs, "hole", _shrink(hole_overlay(drawing.image, drawing.hole), side), quality)
    if originals:
        full.parent.mkdir(parents=True, exist_ok=True)
        _write_png(full, "ref", drawing.image)
        _write_png(full, "hole", np.dstack([np.full((*share.shape, 3), 255, np.uint8), share]))  # white, alpha = share
    small_share = (_shrink(share, side).astype(np.float32) / 255.0)[..., None]
    problems = {}
    for picture in drawing.pictures:
        pixels = _read(picture)
        if isinstance(pixels, str):
            problems[picture.key] = pixels
            continue
        thumb = _shrink(pixels, side)
        _write_webp(thumbs, picture.key, thumb, quality)
        if picture.blended and thumb.shape == reference.shape:
            mixed = reference * (1 - small_share) + thumb * small_share
            _write_webp(thumbs, f"{picture.key}b", mixed.astype(np.uint8), quality)
        if originals:
            _link_or_copy(picture.file, full.with_name(f"{full.name}-{picture.key}.png"))
    return problems


def _read(picture: GeneratedPicture) -> Picture | str:
    """Read a run's PNG, or return the reason why it is not shown."""
    import cv2

    from brushbench.records import pixel_sha256

    try:
        data = picture.file.read_bytes()
    except OSError:
        return "the picture is not in the run's folder"
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "the picture is not a PNG"
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        return "the picture cannot be read"
    pixels: Picture = np.ascontiguousarray(decoded[..., ::-1])
    return pixels if pixel_sha256(pixels) == picture.sha256 else "the picture was changed after it was made"


def _blending_share(hole: Hole) -> npt.NDArray[np.uint8]:
    """Return the share of the generated picture in the blended one, uint8 (H, W), 255 = all of it."""
    from brushnet.blending import blur_share

    return np.round(blur_share(hole) * 255).astype(np.uint8)


def hole_overlay(image: Picture, hole: Hole) -> Picture:
    """Return the picture with its hole tinted and outlined."""
    import cv2

    shown = image.copy()
    shown[hole] = (0.45 * shown[hole] + 0.55 * np.array(HOLE_TINT)).astype(np.uint8)
    border = cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~hole
    shown[border] = 255
    return shown


def _shrink(pixels: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    import cv2

    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _write_webp(stem: Path, part: str, pixels: Picture, quality: int | None) -> None:
    """Write a thumbnail by WebP's quickest method; without a quality, a small one is lossless."""
    from PIL import Image

    lossless = quality is None and max(pixels.shape[:2]) <= SMALL
    file = stem.with_name(f"{stem.name}-{part}.webp")
    Image.fromarray(pixels).save(file, "WEBP", quality=quality or WEBP_QUALITY, lossless=lossless, method=1)


def _write_png(stem: Path, part: str, pixels: npt.NDArray[np.uint8]) -> None:
    """Write RGB or RGBA; for RGB Huffman coding alone is a third quicker, and no larger on photographs."""
    import cv2

    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    strategy = cv2.IMWRITE_PNG_STRATEGY_DEFAULT if pixels.shape[2] == 4 else cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy]
    _, data = cv2.imencode(".png", cv2.cvtColor(pixels, order), options)
    stem.with_name(f"{stem.name}-{part}.png").write_bytes(data.tobytes())


def _link_or_copy(source: Path, target: Path) -> None:
    """Put a run's picture into the report without taking its space twice, where the file system can."""
    target.unlink(missing_ok=True)
    attempts: tuple[Callable[[Path, Path], object], ...] = (os.link, shutil.copyfile)
    for attempt in attempts:
        try:
            attempt(source, target)
        except OSError:
            if attempt is attempts[-1]:
                raise
        else:
            return
