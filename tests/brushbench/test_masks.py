"""Foreign masks: against oracles that walk pixel by pixel, and against what the published formats say."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brushbench import masks
from brushbench.errors import BrushbenchError, UnknownNameError
from tests.reference import naive_opening, naive_rle

NAIVE = {
    "brushbench": {"first": 1, "columns": False},
    "brushdata": {"first": 1, "columns": True},
    "pie": {"first": 0, "columns": False},
}


@st.composite
def holes(draw: st.DrawFn) -> np.ndarray:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return np.array(bits, dtype=bool).reshape(height, width)


conventions = st.sampled_from(sorted(NAIVE))


def test_the_conventions_are_the_three_published_ones() -> None:
    assert set(masks.CONVENTIONS) == set(NAIVE)


@given(holes(), conventions)
@settings(max_examples=80, deadline=None)
def test_rle_agrees_with_a_walk_over_the_pixels(hole: np.ndarray, convention: str) -> None:
    pairs = masks.encode_rle(hole, convention)
    assert pairs == naive_rle.encode(hole, **NAIVE[convention])
    assert all(type(number) is int for number in pairs)
    decoded = masks.decode_rle(pairs, *hole.shape, convention)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, naive_rle.decode(pairs, *hole.shape, **NAIVE[convention]))
    np.testing.assert_array_equal(decoded, hole)
    assert masks.count_rle(pairs, *hole.shape, convention) == hole.sum()


@given(holes(), conventions, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_runs_and_their_cuts_do_not_matter(hole: np.ndarray, convention: str, random) -> None:
    pairs = masks.encode_rle(hole, convention)
    single = [(start + k, 1) for start, length in zip(pairs[::2], pairs[1::2], strict=True) for k in range(length)]
    random.shuffle(single)
    shuffled = [number for run in [*single, (1, 0)] for number in run]  # and a run of length 0
    np.testing.assert_array_equal(masks.decode_rle(shuffled, *hole.shape, convention), hole)


def test_each_convention_reads_the_same_numbers_its_own_way() -> None:
    pairs = [2, 3]  # on a picture of 2 rows and 4 columns
    expected = {
        "brushbench": [[0, 1, 1, 1], [0, 0, 0, 0]],
        "brushdata": [[0, 1, 0, 0], [1, 1, 0, 0]],
        "pie": [[0, 0, 1, 1], [1, 0, 0, 0]],
    }
    for convention, hole in expected.items():
        np.testing.assert_array_equal(masks.decode_rle(pairs, 2, 4, convention), np.array(hole, dtype=bool))


@pytest.mark.parametrize("convention", sorted(NAIVE))
def test_first_and_last_pixel_are_in_range(convention: str) -> None:
    first = NAIVE[convention]["first"]
    hole = masks.decode_rle([first, 1, first + 5, 1], 2, 3, convention)
    assert hole[0, 0]
    assert hole[1, 2]
    assert hole.sum() == 2
    assert masks.decode_rle([first, 6], 2, 3, convention).all()
    assert not masks.decode_rle([], 2, 3, convention).any()


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([1, 2, 3], "odd length 3"),
        ([-1, 2], "negative"),
        ([2, -1], "negative"),
        ([0, 1], "out of range"),
        ([12, 2], "out of range"),
        ([13, 1], "out of range"),
        ([2**70, 1], "out of range"),
        ([1, 2**70], "out of range"),
        ([1, 3, 3, 2], "overlap: pixel 3"),
        ([5, 4, 1, 12], "overlap: pixel 5"),
        ([1.0, 2], "1.0 at place 0"),
        ([1, True], "True at place 1"),
        ([1, "2"], "'2' at place 1"),
        ([[1, 2]], r"\[1, 2\] at place 0"),
        (None, "NoneType"),
        ("1 2", "str"),
        ({"counts": [1]}, "dict"),
        (7, "int"),
    ],
)
def test_bad_run_lengths_are_refused_in_plain_words(pairs: object, words: str) -> None:
    for read in (masks.decode_rle, masks.count_rle):
        with pytest.raises(masks.MaskError, match=words) as caught:
            read(pairs, 3, 4, "brushbench")  # type: ignore[arg-type]
        assert isinstance(caught.value, BrushbenchError)
        assert isinstance(caught.value, ValueError)


def test_numpy_integers_are_integers() -> None:
    np.testing.assert_array_equal(
        masks.decode_rle(np.array([2, 3]), 2, 4, "pie"), masks.decode_rle([np.int64(2), np.int32(3)], 2, 4, "pie")
    )


def test_an_unknown_convention_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'brushbench'"):
        masks.decode_rle([1, 2], 3, 4, "brushbenhc")
    with pytest.raises(UnknownNameError):
        masks.encode_rle(np.zeros((2, 2), dtype=bool), "coco")


# Polarity -------------------------------------------------------------------------------------------------------------


@given(holes())
@settings(max_examples=50, deadline=None)
def test_every_way_out_has_its_way_back(hole: np.ndarray) -> None:
    for back, there in [
        (masks.hole_from_white, masks.hole_to_white),
        (masks.hole_from_black, lambda hole: masks.hole_to_white(~hole)),
        (masks.inverted, masks.inverted),
    ]:
        np.testing.assert_array_equal(back(there(hole)), hole)


def test_polarity_is_what_the_name_says() -> None:
    hole = np.array([[True, False]])
    assert masks.hole_to_white(hole).tolist() == [[255, 0]]
    assert masks.hole_to_white(hole).dtype == np.uint8


def test_white_begins_at_128() -> None:
    levels = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    expected = [[False, False, True, True]]
    assert masks.hole_from_white(levels).tolist() == expected
    assert masks.hole_from_white(levels[:, :, None]).tolist() == expected
    assert masks.hole_from_white(np.repeat(levels[:, :, None], 3, axis=2)).tolist() == expected
    assert masks.hole_from_black(levels).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_mask_pictures_of_every_mode_give_the_same_hole(mode: str) -> None:
    hole = np.zeros((6, 9), dtype=bool)
    hole[2:5, 3:7] = True
    white = masks.hole_to_white(hole)
    picture = Image.fromarray(white.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(white).convert(mode)
    assert picture.mode == mode
    np.testing.assert_array_equal(masks.hole_from_white(picture), hole)


def test_blacked_pictures_forgive_jpeg_but_not_dark_grey() -> None:
    picture = np.array([[[0, 0, 0], [4, 5, 5], [5, 5, 5], [255, 0, 0]]], dtype=np.uint8)
    assert masks.hole_from_blacked(picture).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: masks.hole_from_white(np.zeros((2, 2), dtype=np.float32)),
        lambda: masks.hole_from_white(np.zeros((2, 2, 2), dtype=np.uint8)),
        lambda: masks.hole_from_blacked(np.zeros((2, 2), dtype=np.uint8)),
        lambda: masks.hole_to_white(np.zeros((2, 2), dtype=np.uint8)),
        lambda: masks.encode_rle(np.zeros(4, dtype=bool), "pie"),
        lambda: masks.opening(np.zeros((2, 2), dtype=bool), side=0),
    ],
)
def test_wrong_arrays_are_refused(call) -> None:
    with pytest.raises(masks.MaskError, match=r"expected"):
        call()


# Brush strokes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "height", "width", "digest"),
    [
        (0, 512, 512, "f6e13dbdabcfffd4"),
        (1, 512, 512, "b4cbfcda57a3dc98"),
        (2**63 - 1, 512, 512, "cb4ae6ffef2c2fe1"),
        (0, 64, 64, "89c4e60a348d9687"),
        (7, 48, 80, "d403d32f9db77638"),
    ],
)
def test_recorded_brush_holes_stay_what_they_are(seed: int, height: int, width: int, digest: str) -> None:
    hole = masks.random_brush_hole(seed, height, width)
    assert hashlib.sha256(np.packbits(hole).tobytes()).hexdigest()[:16] == digest


@given(st.integers(0, 2**63 - 1), st.integers(8, 96), st.integers(8, 96))
@settings(max_examples=60, deadline=None)
def test_brush_holes_cover_5_to_60_percent_at_any_size(seed: int, height: int, width: int) -> None:
    hole = masks.random_brush_hole(seed, height, width)
    assert hole.shape == (height, width)
    assert hole.dtype == np.bool_
    assert 0.05 <= hole.mean() <= 0.60
    np.testing.assert_array_equal(hole, masks.random_brush_hole(seed, height, width))


def test_brush_holes_leave_the_global_generator_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = masks.random_brush_hole(5, 64, 64)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    np.testing.assert_array_equal(masks.random_brush_hole(5, 64, 64), first)


def test_the_brush_scales_with_the_side() -> None:
    """A quarter of the size covers about the same share: the published 128 px are for 512 px."""
    shares = [np.mean([masks.random_brush_hole(seed, side, side).mean() for seed in range(120)]) for side in (64, 256)]
    assert shares[0] == pytest.approx(shares[1], abs=0.05)
    assert 0.12 < shares[1] < 0.35


def test_a_segment_is_every_pixel_within_half_the_brush() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        (x0, x1), (y0, y1) = rng.integers(0, 30, 2).tolist(), rng.integers(0, 20, 2).tolist()
        brush = int(rng.integers(1, 12))
        hole = np.zeros((20, 30), dtype=bool)
        masks._paint_segment(hole, (x0, y0), (x1, y1), brush)
        expected = np.zeros_like(hole)
        start, end = np.array([x0, y0], float), np.array([x1, y1], float)
        for y, x in np.ndindex(20, 30):
            pixel, along = np.array([x, y], float), end - start
            t = np.clip((pixel - start) @ along / (along @ along), 0, 1) if along.any() else 0.0
            expected[y, x] = np.linalg.norm(pixel - start - t * along) <= brush / 2 + 1e-9
        np.testing.assert_array_equal(hole, expected)


@pytest.mark.parametrize(("seed", "height", "width"), [(-1, 64, 64), (0, 7, 64), (0, 64, 0)])
def test_impossible_brush_holes_are_refused(seed: int, height: int, width: int) -> None:
    with pytest.raises(masks.MaskError, match="cannot draw a brush hole"):
        masks.random_brush_hole(seed, height, width)


# The training recipe --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "square"), [(512, 8), (192, 3), (64, 1), (16, 1)])
def test_opening_agrees_with_a_walk_over_the_pixels(side: int, square: int) -> None:
    rng = np.random.default_rng(1)
    region = np.zeros((26, 31), dtype=bool)
    for _ in range(6):
        top, left = rng.integers(0, 18, 2)
        region[top : top + rng.integers(3, 14), left : left + rng.integers(3, 14)] = True
    np.testing.assert_array_equal(masks.opening(region, side), naive_opening.opening(region, square))


def test_opening_keeps_a_large_square_and_drops_a_thin_line() -> None:
    region = np.zeros((64, 64), dtype=bool)
    region[10:40, 10:40] = True
    region[50:53, :] = True
    opened = masks.opening(region, side=512)
    assert opened.sum() == 30 * 30  # the square, one pixel further down and right
    assert not opened[50:53].any()
    np.testing.assert_array_equal(masks.opening(region), region)  # 8 px at 512 px are 1 px at 64 px


def test_masks_load_no_torch() -> None:
    code = "import sys, brushbench.masks; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
