"""Pictures and masks in every form that files and libraries give, against Pillow, OpenCV and brushbench.pictures."""

from __future__ import annotations

import io
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from brushbench import masks, pictures
from brushnet.conditioning import masked_pixels
from brushnet.pictures import split_pictures

SIDES = st.integers(1, 12)
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I;16", "I;16B", "I")
TURNS = st.sampled_from([None, 1, 2, 3, 4, 5, 6, 7, 8])


def rgb(item: Image.Image | torch.Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of one picture as the pipelines go on with it."""
    if isinstance(item, torch.Tensor):
        return (item[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return np.asarray(item.convert("RGB"))


@st.composite
def pil_pictures(draw: st.DrawFn) -> Image.Image:
    """A PIL picture of any mode, perhaps with a transparent colour, perhaps turned by EXIF."""
    mode = draw(st.sampled_from(MODES))
    height, width = draw(SIDES), draw(SIDES)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if mode.startswith("I"):
        levels = rng.integers(0, 65536, (height, width))
        picture = Image.fromarray(levels.astype(np.int32 if mode == "I" else ">u2" if mode == "I;16B" else "<u2"))
    elif mode in ("P", "PA"):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).quantize(8)
        if mode == "PA":
            picture = picture.convert("PA")
        elif draw(st.booleans()):
            picture.info["transparency"] = draw(st.sampled_from([0, 3, bytes(rng.integers(0, 256, 8, dtype=np.uint8))]))
    else:
        layers = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        layers[..., :3] = layers[..., :1] if draw(st.booleans()) else layers[..., :3]
        picture = Image.fromarray(layers).convert("RGBA" if mode in ("RGBa", "RGBA", "LA", "La") else "RGB")
        picture = picture.convert("LA").convert("La") if mode == "La" else picture.convert(mode)
    if (turn := draw(TURNS)) is not None:
        picture.getexif()[0x0112] = turn
    return picture


@given(picture=pil_pictures())
@settings(max_examples=150, deadline=None)
def test_a_pil_picture_is_read_as_the_toolkit_reads_files(picture: Image.Image) -> None:
    expected = pictures.to_rgb(ImageOps.exif_transpose(picture).convert("LA") if picture.mode == "La" else picture)
    (item,) = split_pictures(picture, "image")
    assert isinstance(item, Image.Image)
    np.testing.assert_array_equal(rgb(item), expected)
    (again,) = split_pictures(item, "image")
    np.testing.assert_array_equal(rgb(again), expected)


@given(picture=pil_pictures())
@settings(max_examples=150, deadline=None)
def test_a_pil_mask_is_a_hole_where_the_toolkit_sees_one_or_is_refused_as_there(picture: Image.Image) -> None:
    mask = ImageOps.exif_transpose(picture).convert("LA") if picture.mode == "La" else picture
    try:
        expected = masks.hole_from_white(mask)
    except masks.MaskError:
        with pytest.raises(ValueError, match="mask's pixels are transparent"):
            split_pictures(picture, "mask")
        return
    colours = pictures.to_rgb(mask)
    assume(np.ptp(colours, axis=2).max() == 0)  # of colours the published rule takes the mean, the toolkit the luma
    assume(colours.max() > 1)
    _, keep = masked_pixels(np.zeros_like(colours), picture, 1)
    np.testing.assert_array_equal(keep[0, 0].numpy() == 0, expected)


@given(
    levels=arrays.arrays(np.uint16, st.tuples(SIDES, SIDES), elements=st.integers(0, 65535)),
    suffix=st.sampled_from([".png", ".tiff"]),
)
@settings(max_examples=50, deadline=None)
def test_16_bit_pictures_were_clipped_to_white(levels: np.ndarray, suffix: str) -> None:
    _, data = cv2.imencode(suffix, levels)
    expected = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)  # OpenCV scales too, and rounds
    with Image.open(io.BytesIO(data.tobytes())) as picture:
        (item,) = split_pictures(picture, "image")
        assert np.abs(rgb(item)[..., 0].astype(int) - expected).max() <= 1
        np.testing.assert_array_equal(rgb(item)[..., 0], levels // 257)
    three = np.repeat(levels[..., None], 3, axis=2)
    for form in (three, three.astype(">u2"), torch.from_numpy(three.copy()).permute(2, 0, 1)):
        np.testing.assert_array_equal(rgb(split_pictures(form, "image")[0]), rgb(item))


@given(
    picture=arrays.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"]),
    noise=st.floats(-9e-7, 9e-7),
)
@settings(max_examples=80, deadline=None)
def test_floats_of_any_width_and_order_are_the_same_picture(picture: np.ndarray, dtype: object, noise: float) -> None:
    array = (picture / 255).astype(dtype)
    if np.dtype(dtype).itemsize > 2:
        array = array + np.dtype(dtype).type(noise)
    (item,) = split_pictures(array, "image")
    assert isinstance(item, torch.Tensor)
    assert 0 <= float(item.min()) <= float(item.max()) <= 1
    np.testing.assert_array_equal(rgb(item), picture)
    assert torch.equal(split_pictures(array[::-1][::-1], "image")[0], item)


HOLE = np.zeros((6, 8), bool)
HOLE[2:4, 3:7] = True
ZERO_AND_ONE = {
    "uint8 array": HOLE.astype(np.uint8),
    "int64 array": HOLE.astype(np.int64),
    "uint16 array": HOLE.astype(np.uint16),
    "uint8 HWC": np.repeat(HOLE[..., None].astype(np.uint8), 3, axis=2),
    "uint8 tensor": torch.from_numpy(HOLE.astype(np.uint8)),
    "PIL L": Image.fromarray(HOLE.astype(np.uint8)),
    "PIL 16 bit": Image.fromarray(HOLE.astype(np.uint16)),
    "PIL RGB": Image.fromarray(HOLE.astype(np.uint8)).convert("RGB"),
}


@pytest.mark.parametrize("form", ZERO_AND_ONE)
def test_a_mask_of_zeros_and_ones_repainted_nothing(form: str) -> None:
    _, keep = masked_pixels(np.zeros((6, 8, 3), np.uint8), ZERO_AND_ONE[form], 1)
    np.testing.assert_array_equal(keep[0, 0].numpy() == 0, HOLE)


def test_a_16_bit_mask_with_a_dark_background_repainted_everything() -> None:
    mask = np.where(HOLE, 65535, 6000).astype(np.uint16)
    for form in (Image.fromarray(mask), mask, torch.from_numpy(mask)):
        _, keep = masked_pixels(np.zeros((6, 8, 3), np.uint8), form, 1)
        np.testing.assert_array_equal(keep[0, 0].numpy() == 0, HOLE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_a_photo_with_a_transparent_hole_was_repainted_by_its_colours(mode: str) -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).convert("RGBA")
    photo.putalpha(Image.fromarray((~HOLE).astype(np.uint8) * 255))
    mask = photo if mode == "RGBA" else photo.convert(mode)
    if mode == "P":
        mask = Image.fromarray(HOLE.astype(np.uint8)).convert("P")
        mask.info["transparency"] = 1
    blank = np.zeros((6, 8, 3), np.uint8)
    if mode != "PA":  # Pillow's conversion to PA makes everything opaque
        with pytest.raises(ValueError, match=r"16.7% of the mask's pixels are transparent.*ImageOps.invert") as caught:
            masked_pixels(blank, mask, 1)
        assert 'mask.convert("RGBA").getchannel("A")' in str(caught.value)
    advised = ImageOps.invert(photo.convert("RGBA").getchannel("A"))
    _, keep = masked_pixels(blank, advised, 1)
    np.testing.assert_array_equal(keep[0, 0].numpy() == 0, HOLE)


def test_an_opaque_alpha_is_no_hindrance() -> None:
    mask = Image.fromarray(HOLE).convert("RGBA")
    _, keep = masked_pixels(np.zeros((6, 8, 3), np.uint8), mask, 1)
    np.testing.assert_array_equal(keep[0, 0].numpy() == 0, HOLE)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photo_that_lies_on_its_side_was_painted_lying(turn: int) -> None:
    upright = np.random.default_rng(1).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[turn]
    stored = Image.fromarray(upright)
    stored.getexif()[0x0112] = back
    stored = ImageOps.exif_transpose(stored)  # what a camera stores, so that turning it shows the photo upright
    stored.getexif()[0x0112] = turn
    (item,) = split_pictures(stored, "image")
    np.testing.assert_array_equal(rgb(item), upright)


class Unconvertible:
    """No picture of any kind."""


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.array([["a"]]), TypeError, "image has dtype <U1"),
        (np.zeros((4, 4, 3), complex), TypeError, "image has dtype complex128"),
        (np.full((4, 4, 3), None), TypeError, "image has dtype object"),
        (np.zeros((4, 4, 3), "datetime64[s]"), TypeError, "image has dtype datetime64"),
        (torch.zeros(3, 4, 4, dtype=torch.complex64), TypeError, "complex64; expected dense"),
        (torch.zeros(3, 4, 4).to_sparse(), TypeError, "sparse"),
        (torch.zeros(3, 4, 4, device="meta"), TypeError, "expected dense"),
        (np.full((4, 4, 3), 1.00001, np.float64), ValueError, r"values in \[1.00001, 1.00001\]"),
        (np.full((4, 4, 3), 1e300), ValueError, "values in"),
        (np.full((4, 4, 3), -0.01), ValueError, r"values in \[-0.01, -0.01\]"),
        (np.full((4, 4, 3), 255, np.int32), ValueError, r"values in \[255, 255\]; expected uint8"),
        (torch.full((3, 4, 4), float("inf")), ValueError, "values in"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, "image has shape"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "no empty side"),
        (Image.new("RGB", (0, 4)), ValueError, "image is 4x0 pixels; expected no empty side"),
        (Image.new("F", (4, 4)), ValueError, "of floats .mode F."),
        (Image.new("I", (4, 4), 70000), ValueError, r"levels in \[70000, 70000\]; expected 8 or 16 bit"),
        (Image.new("I", (4, 4), -1), ValueError, r"levels in \[-1, -1\]"),
        (Unconvertible(), TypeError, "image is a Unconvertible; expected a PIL picture"),
        ([None], TypeError, "image is a NoneType"),
        ({"image": 1}, TypeError, "image is a dict"),
        (b"\x89PNG", TypeError, "image is a bytes"),
    ],
)
def test_what_is_no_picture_gets_one_sentence(value: object, error: type[Exception], words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(error, match=words) as caught:
            split_pictures(value, "image")  # type: ignore[arg-type]
    assert len(str(caught.value)) < 400
