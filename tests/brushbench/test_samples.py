"""What a sample takes: a picture that is uint8 RGB, a hole that is bool; all else is converted exactly or refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from brushbench.benchmarks.base import HoleSource, ImageFile, LazyBenchmark, Record
from brushbench.errors import BadRecordError, UnusableError
from brushbench.types import Sample

HEIGHT, WIDTH = 12, 20
HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[3:9, 5:15] = True
IMAGE = np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "hole",
    [
        HOLE,
        HOLE.astype(np.uint8),
        HOLE.astype(np.uint8) * 255,
        HOLE.astype(np.int64),
        HOLE.astype(np.int8),
        HOLE.astype(np.float32),
        HOLE.astype(np.float64) * 255,
        np.asfortranarray(HOLE),
    ],
    ids=lambda hole: f"{hole.dtype} {hole.max()}",
)
def test_a_hole_of_integers_never_picks_rows_and_shows_the_truth(hole: np.ndarray) -> None:
    sample = Sample("a", IMAGE, hole, "x", "inside")
    assert sample.hole.dtype == np.bool_
    np.testing.assert_array_equal(sample.hole, HOLE)
    request = sample.request(1)
    assert (request.image[HOLE] == 127).all(), "the truth leaks"
    np.testing.assert_array_equal(request.image[~HOLE], IMAGE[~HOLE])
    np.testing.assert_array_equal(sample.keep, ~HOLE)


@pytest.mark.parametrize(
    ("hole", "words"),
    [
        (HOLE[:-1], r"bool \(11, 20\), expected a bool array \(12, 20\)"),
        (HOLE.T, r"bool \(20, 12\)"),
        (HOLE[:, :, None], r"bool \(12, 20, 1\)"),
        (np.dstack([HOLE] * 3), r"bool \(12, 20, 3\)"),
        (HOLE.astype(np.uint8) * 128, "uint8 with values up to 128"),
        (np.where(HOLE, 200, 30).astype(np.uint8), "uint8 with values up to 200"),
        (np.where(HOLE, 1, np.where(np.roll(HOLE, 9, axis=1), 255, 0)), "int64 with values up to 255"),
        (np.where(HOLE, -1, 0), "int64 with values"),
        (np.where(HOLE, 0.7, 0.0), "float64 with values"),
        (np.where(HOLE, np.nan, 0.0), "float64 with values"),
        (HOLE.astype(complex), "complex128"),
        (HOLE.astype(object), "object"),
        (np.ma.masked_array(HOLE, ~HOLE), r"numpy\.ma"),
        (HOLE.tolist(), "builtins.list"),
        (Image.fromarray(HOLE), r"PIL\.Image"),
        (None, "NoneType"),
    ],
)
def test_a_hole_that_may_mean_anything_is_refused(hole: object, words: str) -> None:
    with pytest.raises(UnusableError, match=words):
        Sample("a", IMAGE, hole, "x", "inside")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (IMAGE.astype(np.float32) / 255, "float32"),
        (IMAGE.astype(np.int64), "int64"),
        (IMAGE[:, :, 0], r"uint8 \(12, 20\)"),
        (np.dstack([IMAGE, IMAGE[:, :, :1]]), r"uint8 \(12, 20, 4\)"),
        (np.moveaxis(IMAGE, 2, 0), r"uint8 \(3, 12, 20\)"),
        (np.zeros((0, 20, 3), dtype=np.uint8), r"uint8 \(0, 20, 3\)"),
        (Image.fromarray(IMAGE), r"PIL\.Image"),
        (IMAGE.tolist(), "list"),
    ],
)
def test_a_picture_that_is_no_uint8_rgb_is_refused_and_not_scored(image: object, words: str) -> None:
    with pytest.raises(UnusableError, match=words):
        Sample("a", image, HOLE, "x", "inside")  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"id": 7}, {"prompt": None}, {"split": ("inside",)}])
def test_names_and_captions_are_text(changes: dict) -> None:
    fields = {"id": "a", "prompt": "x", "split": "inside", **changes}
    with pytest.raises(UnusableError, match=f"[Tt]he sample's {next(iter(changes))} is a .*, expected text"):
        Sample(image=IMAGE, hole=HOLE, **fields)


class Drawn(HoleSource):
    def __init__(self, drawn: np.ndarray) -> None:
        self.drawn = drawn

    def draw(self, height: int, width: int) -> np.ndarray:
        return self.drawn

    def fingerprint(self) -> bytes:
        return self.drawn.tobytes()


def test_a_hole_source_of_ones_own_may_return_what_opencv_reads(tmp_path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")

    def made(drawn: np.ndarray) -> LazyBenchmark:
        record = Record("a", "x", ImageFile(tmp_path / "a.png"), {"inside": Drawn(drawn)})
        return LazyBenchmark("mine", [record], splits=("inside",))

    np.testing.assert_array_equal(made(HOLE.astype(np.uint8) * 255)[0].hole, HOLE)
    with pytest.raises(BadRecordError, match="'a': the hole is uint8 with values up to 128"):
        made(HOLE.astype(np.uint8) * 128)
    with pytest.raises(BadRecordError, match=r"'a': the hole is bool \(11, 20\)"):
        made(HOLE[1:])
