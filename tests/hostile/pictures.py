"""Files that are no pictures, or bad ones, in every place where a picture is read."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from tests.hostile.corpus import Hostile, good_folder

PIXELS = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
Maker = Callable[[Path], None]


def encoded(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"", bits: int = 8, colours: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(pixels)) if pixels else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def holding(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data) and None


def linked(target: str) -> Maker:
    return lambda path: path.symlink_to(target)


def socketed(path: Path) -> None:
    folder = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(folder)


SCORED = (
    "text", "a PNG cut in half", "EPS under another name", "8,192 x 8,192 of zeros", "a named pipe", "a socket",
    "a folder", "/dev/zero", "a link to nothing", "a link to itself",
)  # fmt: skip
NOT_DECODED = "cannot be decoded"
WHOLE = {form: encoded(form) for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")}
# name: how the file is made, and what is said of it
FILES: dict[str, tuple[Maker, str]] = {
    "nothing in it": (holding(b""), NOT_DECODED),
    "text": (holding(b"<html>404</html>"), NOT_DECODED),
    "a Git LFS pointer": (holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), NOT_DECODED),
    "a PNG's first bytes": (holding(WHOLE["PNG"][:8]), NOT_DECODED),
    "a PNG without pixels": (holding(png(32, 24)), NOT_DECODED),
    "a PNG 0 pixels wide": (holding(png(0, 24, b"x")), NOT_DECODED),
    **{f"a {form} cut in half": (holding(data[: len(data) // 2]), NOT_DECODED) for form, data in WHOLE.items()},
    **{
        f"{form} under another name": (holding(encoded(form)), NOT_DECODED)
        for form in ("EPS", "PDF", "GIF", "PPM", "ICO", "TGA", "PCX")
    },
    "floating-point pixels": (holding(encoded("TIFF", Image.new("F", (32, 24)))), "floating-point"),
    "a header of 100,000 x 100,000": (holding(png(10**5, 10**5, b"x")), "larger than Pillow opens"),
    "a header of 2^31 x 2^31": (holding(png(2**31 - 1, 2**31 - 1, b"x")), "larger than Pillow opens|cannot be decoded"),
    "8,192 x 8,192 of zeros": (holding(png(8192, 8192, bytes(1025 * 8192), 1, 0)), "8192 x 8192, more than 16777216"),
    "a named pipe": (os.mkfifo, "is a named pipe, expected a file"),
    "a socket": (socketed, "is a socket, expected a file"),
    "a folder": (Path.mkdir, "is a folder, expected a file"),
    "/dev/zero": (linked("/dev/zero"), "is a device, expected a file"),
    "/dev/stdin": (linked("/dev/tty"), "is a device, expected a file|cannot be"),
    "/dev/urandom": (linked("/dev/urandom"), "is a device, expected a file"),
    "a link to nothing": (linked("gone.png"), "is a link to gone.png, which does not exist"),
    "a link to itself": (linked("bad.png"), "cannot be opened"),
}


def place(root: Path, file: Maker, where: str, command: Callable[[Path], list[str]]) -> list[str]:
    path = good_folder(root / "d") / where / "bad.png"
    path.unlink()
    file(path)
    return command(root)


def check(root: Path) -> list[str]:
    return ["data", "check", str(root / "d")]


def generate(root: Path) -> list[str]:
    return ["generate", "-m", "copy", "--bench", str(root / "d"), "--out", str(root / "runs")]


def skip_bad(root: Path) -> list[str]:
    return [*generate(root), "--skip-bad"]


def inpaint(root: Path) -> list[str]:
    pair = [str(root / "d" / kind / "bad.png") for kind in ("images", "masks")]
    return ["inpaint", *pair, "-m", "copy", "-o", str(root / "out.png")]


def inputs() -> Iterator[Hostile]:
    for name, (file, says) in FILES.items():
        for where, kind in (("images", "picture"), ("masks", "mask")):
            put = partial(place, file=file, where=where)
            yield Hostile(f"data check: a {kind} that is {name}", partial(put, command=check), 5, f"bad: bad: .*{says}")
            yield Hostile(f"inpaint: a {kind} that is {name}", partial(put, command=inpaint), 5, f"(?i)error: .*{says}")
        put = partial(place, file=file, where="images")
        yield Hostile(f"--skip-bad: {name}", partial(put, command=skip_bad), 0, "Bad records left out: 1 .*1 ok")


def scored(root: Path, file: Maker) -> list[str]:
    good_folder(root / "d")
    (root / "mine").mkdir()
    file(root / "mine" / "bad.png")
    Image.fromarray(PIXELS).save(root / "mine" / "good.png")
    made = ["score", "--images", str(root / "mine"), "--bench", str(root / "d"), "--name", "mine"]
    return [*made, "--metrics", "psnr", "--variants", "raw", "--out", str(root / "runs")]


def one_wide(root: Path) -> list[str]:
    good_folder(root / "d", masks=False)
    Image.fromarray(PIXELS[:, :1]).save(root / "d" / "images" / "bad.png")
    return generate(root)


def other_size(root: Path) -> list[str]:
    good_folder(root / "d")
    Image.fromarray(PIXELS[:, :, 0]).resize((64, 48)).save(root / "d" / "masks" / "bad.png")
    return generate(root)


def resized(root: Path) -> list[str]:
    good_folder(root / "d")
    hole = Image.open(root / "d" / "masks" / "bad.png")
    hole.resize((64, 48)).save(root / "d" / "masks" / "bad.png")
    return ["generate", "-m", "copy", "--bench", f"{root / 'd'},resize_masks=true", "--out", str(root / "runs")]


def mask_of(pixels: np.ndarray, root: Path) -> list[str]:
    good_folder(root / "d")
    Image.fromarray(pixels).save(root / "d" / "masks" / "bad.png")
    return generate(root)


def text_bomb(root: Path) -> list[str]:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 8_000_000, zip=True)
    path = good_folder(root / "d") / "images" / "bad.png"
    path.write_bytes(encoded("PNG", pnginfo=info))
    return check(root)


def inpaint_alpha(root: Path, options: tuple[str, ...]) -> list[str]:
    mask_of(CLEAR, root)
    return [*inpaint(root), *options]


CLEAR = np.dstack([PIXELS, np.where(PIXELS[:, :, 0] > 99, 255, 0).astype(np.uint8)])
INPUTS = [
    *inputs(),
    *(Hostile(f"score --images: {name}", partial(scored, file=FILES[name][0]), 3, "1 failed") for name in SCORED),
    Hostile("a PNG whose text is 8 MB", text_bomb, 0, "bad records: 0"),
    Hostile("a picture 1 pixel wide", one_wide, 5, "Record 'bad': the picture is 24 x 1 .*too small for a brush hole"),
    Hostile("a mask of another size", other_size, 5, "Record 'bad': the mask .* is 48 x 64, .*resize_masks=true"),
    Hostile("a mask of another size, as the message says", resized, 0, "2 ok"),
    Hostile("a mask with alpha", partial(mask_of, CLEAR), 5, "Record 'bad': .*transparent.*option masks to alpha"),
    Hostile("inpaint: a mask with alpha", partial(inpaint_alpha, options=()), 5, "transparent.*option masks to alpha"),
    Hostile("inpaint: as that message says", partial(inpaint_alpha, options=("--masks", "alpha")), 0, "Wrote"),
    Hostile("inpaint: another reading", partial(inpaint_alpha, options=("--masks", "green")), 2, "reading of masks"),
    Hostile("an empty mask", partial(mask_of, PIXELS[:, :, 0] * 0), 5, "'bad': the hole is empty"),
    Hostile("a mask of ones", partial(mask_of, PIXELS[:, :, 0] * 0 + 1), 5, "hole is empty .*levels are 1 to 1 of 255"),
    Hostile("a full mask", partial(mask_of, PIXELS[:, :, 0] * 0 + 255), 5, "'bad': the hole is the whole picture"),
]
