"""One reader for picture files: as every viewer shows them, against Pillow and OpenCV as oracles."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import time
import zlib
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from PIL import ImageFile as PillowFile

from brushbench.benchmarks.holes import MaskFile
from brushbench.errors import UnusableError, UsageError
from brushbench.files import decode_text, read_bytes, regular_file
from brushbench.masks import hole_from_alpha, hole_from_white
from brushbench.pictures import FORMATS, ImageFile, encode_png, read_picture

ORIENTATION = 0x0112
RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    lossless = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 95}}
    image.save(buffer, form, **lossless.get(form, {}), **options)
    return buffer.getvalue()


def read(data: bytes) -> np.ndarray:
    return ImageFile(Path("memory")).decode(data)


# As every viewer shows them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_a_picture_lying_on_its_side_is_turned_upright_in_every_format(
    tmp_path: Path, form: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "x.bin"
    path.write_bytes(encoded(Image.fromarray(PIXELS), form, exif=exif))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_picture(path), expected)
    assert ImageFile(path).size() == expected.shape[:2] == ((7, 5) if orientation < 5 else (5, 7))
    if form == "JPEG":
        np.testing.assert_array_equal(read_picture(path), cv2.imread(str(path))[:, :, ::-1])


def test_a_mask_lying_on_its_side_is_turned_like_its_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    hole = np.zeros((7, 5), dtype=bool)
    hole[:2] = True
    Image.fromarray(hole.astype(np.uint8) * 255).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").draw(5, 7), np.rot90(hole, -1))


def test_an_orientation_behind_the_pixels_or_in_xmp_counts_as_well(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG", pnginfo=info))
    assert ImageFile(path).size() == read_picture(path).shape[:2] == (5, 7)


@pytest.mark.parametrize("text", ["zTXt", "iTXt", "tEXt"])
def test_a_text_of_two_megabytes_in_a_png_is_no_bomb(tmp_path: Path, text: str) -> None:
    info = PngImagePlugin.PngInfo()
    if text == "iTXt":
        info.add_itxt("workflow", "x" * 2_000_000, zip=True)
    else:
        info.add_text("workflow", "x" * 2_000_000, zip=text == "zTXt")
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path, pnginfo=info, icc_profile=bytes(2_000_000))
    assert ImageFile(path).size() == (7, 5)
    np.testing.assert_array_equal(read_picture(path), PIXELS)
    hole = PIXELS[:, :, 0] >= 128
    Image.fromarray(hole.astype(np.uint8) * 255).save(path, pnginfo=info)
    np.testing.assert_array_equal(MaskFile(path).draw(7, 5), hole)


def test_sixteen_bit_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40).astype(np.uint16).reshape(4, 10)
    for name in ("x.png", "x.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        np.testing.assert_array_equal(read_picture(tmp_path / name)[:, :, 1], (ramp // 257).astype(np.uint8))
        np.testing.assert_array_equal(MaskFile(tmp_path / name).draw(4, 10), ramp // 257 >= 128)
    cv2.imwrite(str(tmp_path / "rgb.png"), np.dstack([ramp] * 3))
    assert abs(read_picture(tmp_path / "rgb.png")[:, :, 0].astype(int) - ramp // 257).max() <= 1


def test_a_palette_counts_by_its_colours_and_not_by_its_numbers(tmp_path: Path) -> None:
    marked = np.zeros((6, 8), dtype=np.uint8)
    marked[2:4] = 1
    picture = Image.fromarray(marked, "P")
    picture.putpalette([250, 250, 250, 10, 20, 30])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(MaskFile(tmp_path / "p.png").draw(6, 8), marked == 0)
    assert read_picture(tmp_path / "p.png")[2, 0].tolist() == [10, 20, 30]


# The alpha of masks ---------------------------------------------------------------------------------------------------


def transparent_masks() -> dict[str, Image.Image]:
    hole = np.zeros((7, 5), dtype=bool)
    hole[2:4, 1:4] = True
    kept = np.where(hole, 0, 255).astype(np.uint8)
    palette = Image.fromarray(hole.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 1
    grey = Image.fromarray(np.where(hole, 9, 200).astype(np.uint8))
    grey.info["transparency"] = 9
    return {
        "photo": Image.fromarray(np.dstack([PIXELS, kept])),
        "grey": Image.merge("LA", (Image.new("L", (5, 7), 30), Image.fromarray(kept))),
        "palette": palette,
        "colour key": grey,
    }


@pytest.mark.parametrize("kind", transparent_masks())
def test_a_transparent_hole_is_read_on_request_and_never_passed_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.png"
    mask = transparent_masks()[kind]
    mask.save(path, **({"transparency": mask.info["transparency"]} if "transparency" in mask.info else {}))
    hole = np.zeros((7, 5), dtype=bool)
    hole[2:4, 1:4] = True
    with pytest.raises(UnusableError, match=r"m\.png: 17\.1% of its pixels are transparent.*option masks to alpha"):
        MaskFile(path).draw(7, 5)
    np.testing.assert_array_equal(MaskFile(path, "alpha").draw(7, 5), hole)  # the remedy works


def test_an_opaque_mask_with_an_alpha_channel_is_an_ordinary_mask(tmp_path: Path) -> None:
    hole = PIXELS[:, :, 0] >= 128
    Image.fromarray(hole.astype(np.uint8) * 255).convert("RGBA").save(tmp_path / "m.png")
    np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").draw(7, 5), hole)
    with pytest.raises(UnusableError, match=r"every pixel is opaque.*set the option masks to white"):
        MaskFile(tmp_path / "m.png", "alpha").draw(7, 5)


# Only pictures, only files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["EPS", "PDF", "GIF", "PPM", "ICO", "TGA", "PCX", "SGI"])
def test_a_format_that_is_not_ours_is_refused_whatever_its_suffix(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process(*args: object, **options: object) -> None:
        raise AssertionError("a picture started a process")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    monkeypatch.setattr(os, "system", no_process)
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path, form)
    with pytest.raises(UnusableError, match=f"cannot be decoded.*{', '.join(FORMATS)}"):
        read_picture(path)
    with pytest.raises(UnusableError, match="cannot be decoded"):
        MaskFile(path).draw(7, 5)


def special(folder: Path, kind: str) -> Path:
    path = folder / "x.png"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        os.chdir(folder)  # the names of sockets are short
        socket.socket(socket.AF_UNIX).bind("x.png")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to":
        path.symlink_to(folder / "gone.png")
    elif kind == "cannot be opened":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    "kind", ["a named pipe", "a socket", "a folder", "a device", "a link to", "cannot be opened", "is missing"]
)
def test_what_is_no_regular_file_is_refused_by_name_and_never_opened(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path, kind)
    start = time.perf_counter()
    readers = (regular_file, read_bytes, read_picture)
    for use in (
        *(partial(reader, path) for reader in readers),
        partial(MaskFile(path).draw, 7, 5),
        ImageFile(path).size,
    ):
        with pytest.raises(UnusableError, match=rf"x\.png.*{kind}"):
            use()
    assert time.perf_counter() - start < 2


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), PIXELS)


# Limits ---------------------------------------------------------------------------------------------------------------


def png_of_zeros(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_gigantic_picture_of_zeros_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "zeros.png"
    path.write_bytes(png_of_zeros(8192))
    start = time.perf_counter()
    with pytest.raises(UnusableError, match=r"8192 x 8192, more than 16777216 pixels.*BRUSHBENCH_MAX_PIXELS"):
        read_picture(path)
    assert time.perf_counter() - start < 1
    path.write_bytes(png_of_zeros(128))
    monkeypatch.setenv("BRUSHBENCH_MAX_PIXELS", "16383")
    with pytest.raises(UnusableError, match="128 x 128, more than 16383 pixels"):
        read_picture(path)
    monkeypatch.setenv("BRUSHBENCH_MAX_PIXELS", "16384")  # the remedy that the message names
    assert read_picture(path).shape == (128, 128, 3)


def test_a_gigantic_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path)
    size = path.stat().st_size
    monkeypatch.setenv("BRUSHBENCH_MAX_BYTES", str(size - 1))
    with pytest.raises(UnusableError, match=f"larger than {size - 1} bytes.*BRUSHBENCH_MAX_BYTES"):
        read_picture(path)
    monkeypatch.setenv("BRUSHBENCH_MAX_BYTES", str(size))
    np.testing.assert_array_equal(read_picture(path), PIXELS)


@pytest.mark.parametrize("text", ["0", "-5", "many", "1e9", "٣", "9" * 5000])
def test_a_limit_that_is_no_number_is_a_usage_error(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    monkeypatch.setenv("BRUSHBENCH_MAX_PIXELS", text)
    with pytest.raises(UsageError, match="is no positive whole number"):
        read_picture(tmp_path / "x.png")


def test_a_cut_picture_is_not_whole_though_a_method_told_pillow_so(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
    PillowFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with pytest.raises(UnusableError, match="cannot be decoded"):
            read(whole[: len(whole) // 2])
        assert PillowFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        PillowFile.LOAD_TRUNCATED_IMAGES = False


# Against Pillow and OpenCV --------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def pictures(draw) -> tuple[bytes, str]:
    height, width = draw(sizes)
    mode = draw(st.sampled_from(["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"]))
    form = draw(st.sampled_from([f for f in ("PNG", "WEBP", "TIFF", "BMP", "JPEG") if mode in SAVED[f]]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8)).convert(mode)
    options = {}
    if form != "BMP" and draw(st.booleans()):
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = draw(st.integers(1, 8))
    return encoded(image, form, **options), mode


SAVED = {
    "PNG": ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"),
    "TIFF": ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "I;16"),
    "WEBP": ("RGB", "RGBA", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "JPEG": ("RGB", "L", "CMYK"),
}


def shown(image: Image.Image) -> np.ndarray:
    """The oracle: what a viewer shows on white, by floating-point arithmetic."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        return np.repeat((np.asarray(upright, dtype=float) / 257)[:, :, None], 3, axis=2)
    rgba = np.asarray(upright.convert("RGBA"), dtype=float)
    alpha = rgba[:, :, 3:] / 255
    return rgba[:, :, :3] * alpha + 255 * (1 - alpha)


@given(pictures())
@settings(max_examples=150, deadline=None)
def test_every_picture_is_read_as_a_viewer_shows_it(made: tuple[bytes, str]) -> None:
    data, _ = made
    with Image.open(io.BytesIO(data)) as image:
        expected = shown(image)
    got = read(data)
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert abs(got - expected).max() <= 1


@given(pictures())
@settings(max_examples=100, deadline=None)
def test_opaque_pictures_are_what_opencv_reads(made: tuple[bytes, str]) -> None:
    data, mode = made
    if mode in ("RGBA", "LA", "CMYK", "I;16") or data[:2] in (b"II", b"MM"):  # read otherwise there, or not turned
        return
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(ORIENTATION, 1) != 1
        if image.has_transparency_data:
            return
    if turned and not data.startswith(b"\xff\xd8"):
        return  # OpenCV turns JPEGs; older releases nothing else
    expected = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert abs(read(data).astype(int) - expected).max() <= (4 if data.startswith((b"\xff\xd8", b"RIFF")) else 0)


@given(pictures(), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_every_mask_is_its_luma_or_its_alpha(made: tuple[bytes, str], threshold: int) -> None:
    data, _ = made
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        alpha = np.asarray(upright.convert("RGBA"))[:, :, 3] if upright.has_transparency_data else np.array([255])
        if alpha.min() < 255:
            with pytest.raises(ValueError, match="transparent"):
                hole_from_white(image)
            np.testing.assert_array_equal(hole_from_alpha(image, threshold), alpha < threshold)
            return
        rgb = shown(image)
        luma = rgb @ [0.299, 0.587, 0.114]
        got = hole_from_white(image, threshold)
        clear = abs(luma - threshold) > 1.5
        np.testing.assert_array_equal(got[clear], (luma >= threshold)[clear])


@given(pictures(), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_picture_is_one_sentence_and_never_another_error(
    made: tuple[bytes, str], data: st.DataObject
) -> None:
    content = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for damaged in (bytes(content), cut):
        try:
            picture = read(damaged)
        except UnusableError:
            continue
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3


# Text -----------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), max_size=30))
@settings(max_examples=100, deadline=None)
def test_text_of_every_marked_encoding_is_read_right(text: str) -> None:
    marked = [text.encode("utf-8"), text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-32")]
    marked += [b"\xfe\xff" + text.encode("utf-16-be"), b"\x00\x00\xfe\xff" + text.encode("utf-32-be")]
    assert [decode_text(data, "x") for data in marked] == [text] * 6


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a café".encode("cp1252"), r"the file is not UTF-8 \(byte 0xe9 at place 5\)"),
        ("a café".encode("utf-16-le"), "the file is not UTF-8|holds the character NUL"),
        ("a red fox".encode("utf-16-le"), "holds the character NUL"),
        ("a red fox".encode("utf-16")[:-1], "the file is not UTF-16"),
        (b"\xef\xbb\xbf\xff", "the file is not UTF-8"),
        (b"cut \xf0\x9f", "the file is not UTF-8"),
        (b"\xed\xa0\xbd", "the file is not UTF-8"),
    ],
)
def test_text_of_another_encoding_is_named_and_not_replaced(data: bytes, words: str) -> None:
    with pytest.raises(UnusableError, match=words):
        decode_text(data, "caption: the file")


# Writing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (64, 96, 3)])
def test_a_written_picture_is_read_back_pixel_for_pixel(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    picture = np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)
    for written in (picture, picture[:, ::-1], np.asfortranarray(picture)):
        (tmp_path / "a.png").write_bytes(encode_png(written))
        assert np.array_equal(read_picture(tmp_path / "a.png"), written)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_rgb_picture_is_not_written(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        encode_png(wrong)
