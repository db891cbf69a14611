"""PSNR and MSE against the formula read pixel by pixel, and the published fault kept as it is."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from brushbench.errors import UsageError
from brushbench.metrics.mse import MSE
from brushbench.metrics.psnr import PSNR
from brushbench.types import Unscored
from tests.reference import naive_metrics
from tests.reference.metric_folders import make_sample

SIZE = (24, 31)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    reference = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    picture = np.clip(reference.astype(int) + rng.integers(-40, 40, (*SIZE, 3)), 0, 255).astype(np.uint8)
    return picture, reference, rng.random(SIZE) < 0.4


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_scores_equal_the_formula(case, protocol):
    picture, reference, hole = case
    expected = naive_metrics.mse(picture, reference, ~hole, per_pixel=protocol == "brushnet-paper")
    sample = make_sample(reference, hole)
    assert MSE(protocol)([picture], [sample]) == pytest.approx([expected], rel=1e-6)
    assert PSNR(protocol)([picture], [sample]) == pytest.approx([naive_metrics.psnr(expected)], abs=1e-5)


def test_published_arithmetic_is_not_repaired(case):
    """MSE is per pixel, not per value; PSNR is 4.771 dB low; identical pictures count as 1000 dB."""
    picture, reference, hole = case
    sample = make_sample(reference, hole)
    [right], [published] = MSE("standard")([picture], [sample]), MSE("brushnet-paper")([picture], [sample])
    assert published / right == pytest.approx(3.0, abs=1e-5)
    [right], [published] = PSNR("standard")([picture], [sample]), PSNR("brushnet-paper")([picture], [sample])
    assert right - published == pytest.approx(10 * math.log10(3), abs=1e-5)
    assert round(right - published, 3) == 4.771
    assert PSNR("brushnet-paper")([reference], [sample]) == [1000.0]
    assert MSE("brushnet-paper")([reference], [sample]) == [0.0]


@pytest.mark.parametrize("levels", [(0, 255), (0, 1), (128, 131)])
def test_the_sums_are_exact_bit_for_bit_however_large(levels: tuple[int, int]) -> None:
    """Scores of earlier releases stay what they were."""
    rng = np.random.default_rng(2)
    reference, picture = np.full((700, 900, 3), levels[0], np.uint8), np.full((700, 900, 3), levels[1], np.uint8)
    picture[rng.random(picture.shape) < 0.1] = levels[0]
    sample = make_sample(reference, rng.random((700, 900)) < 0.3)
    kept, of = picture[sample.keep], reference[sample.keep]
    squares = int(np.square(kept.astype(np.int64) - of.astype(np.int64)).sum())
    assert MSE()([picture], [sample]) == [squares / (kept.size * 255**2)]
    scale = np.float32(255)
    published = np.square(kept.astype(np.float32) / scale - of.astype(np.float32) / scale).sum(dtype=np.float64)
    assert MSE("brushnet-paper")([picture], [sample]) == [published / len(kept)]


def test_a_published_error_below_the_threshold_counts_as_perfect():
    reference = np.zeros((600, 600, 3), dtype=np.uint8)
    almost = reference.copy()
    almost[0, 0, 0] = 1  # 1 / 255^2 / 360000 pixels = 4.3e-11
    sample = make_sample(reference)
    assert PSNR("brushnet-paper")([almost], [sample]) == [1000.0]
    assert math.isfinite(PSNR("standard")([almost], [sample])[0])


def test_identical_pictures_are_infinitely_good(case):
    _, reference, hole = case
    sample = make_sample(reference, hole)
    assert PSNR()([reference], [sample]) == [math.inf]
    assert MSE()([reference], [sample]) == [0.0]


@pytest.mark.parametrize("metric", [PSNR, MSE])
@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_the_hole_does_not_count(case, metric, protocol):
    picture, reference, hole = case
    other = picture.copy()
    other[hole] = 255 - other[hole]
    sample = make_sample(reference, hole)
    assert metric(protocol)([other], [sample]) == metric(protocol)([picture], [sample])


@pytest.mark.parametrize("metric", [PSNR, MSE])
@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_nothing_kept_is_unscored(case, metric, protocol):
    picture, reference, _ = case
    [score] = metric(protocol)([picture], [make_sample(reference, np.ones(SIZE, dtype=bool))])
    assert isinstance(score, Unscored)
    assert "nothing kept" in score.reason


def test_another_size_is_refused_or_resized_as_published(case):
    picture, reference, hole = case
    sample = make_sample(reference, hole)
    larger = np.kron(picture, np.ones((2, 2, 1), dtype=np.uint8))
    [refused] = MSE("standard")([larger], [sample])
    assert refused == Unscored("the picture is 62x48, the reference 31x24")
    assert isinstance(MSE("brushnet-paper")([larger], [sample])[0], float)


def test_bad_pictures_do_not_disturb_their_neighbours(case):
    picture, reference, hole = case
    sample = make_sample(reference, hole)
    bad = [picture.astype(np.float32), picture[..., 0], np.zeros((0, 0, 3), dtype=np.uint8), None]
    scores = MSE()([picture, *bad, picture], [sample] * 6)
    assert scores[0] == scores[5] == MSE()([picture], [sample])[0]
    assert all(isinstance(score, Unscored) for score in scores[1:5])
    assert "float32" in scores[1].reason


def test_misuse_says_what_is_right(case):
    picture, reference, _ = case
    with pytest.raises(UsageError, match="standard, brushnet-paper"):
        PSNR("paper")
    with pytest.raises(UsageError, match="1 pictures and 2 samples"):
        PSNR()([picture], [make_sample(reference)] * 2)


def test_pixel_metrics_need_no_torch():
    modules = ", ".join(f"brushbench.metrics.{name}" for name in ("psnr", "mse", "ssim", "lpips"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
