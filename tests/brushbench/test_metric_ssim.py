"""SSIM against scikit-image and against the formula, window by window."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from brushbench.errors import UsageError
from brushbench.metrics.ssim import SSIM
from brushbench.types import Unscored
from tests.reference import naive_metrics
from tests.reference.metric_folders import make_sample


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    ramp = np.linspace(0, 200, 20 * 22).reshape(20, 22, 1) + np.array([0, 20, 40])
    reference = ramp.astype(np.uint8)
    picture = np.clip(ramp + rng.normal(0, 15, ramp.shape), 0, 255).astype(np.uint8)
    return picture, reference, rng.random(ramp.shape[:2]) < 0.3


def test_equals_the_formula_with_the_hole_filled(case):
    picture, reference, hole = case
    filled = np.where(hole[..., None], reference, picture)
    expected = naive_metrics.ssim(filled, reference, ~hole)
    assert SSIM()([picture], [make_sample(reference, hole)]) == pytest.approx([expected], abs=1e-9)


def test_without_a_hole_equals_scikit_image(case):
    picture, reference, _ = case
    _, full = structural_similarity(
        reference, picture, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, full=True
    )
    assert SSIM()([picture], [make_sample(reference)]) == pytest.approx([full.mean()], abs=1e-9)


@pytest.mark.parametrize("kind", ["noise", "inverted", "flat against flat", "one level apart", "white and black"])
def test_equals_scikit_image_to_a_billionth_on_hard_pictures(kind: str) -> None:
    rng = np.random.default_rng(11)
    reference = rng.integers(0, 256, (37, 61, 3), dtype=np.uint8)
    white = np.full_like(reference, 255)
    pairs = {
        "noise": (np.clip(reference + rng.normal(0, 9, reference.shape), 0, 255).astype(np.uint8), reference),
        "inverted": (255 - reference, reference),
        "flat against flat": (white // 2, white // 3),
        "one level apart": (white, white - 1),
        "white and black": (white, white * 0),
    }
    picture, reference = pairs[kind]
    hole = np.zeros(reference.shape[:2], dtype=bool)
    hole[5:20, 10:50] = True
    filled = np.where(hole[..., None], reference, picture)
    _, full = structural_similarity(
        reference.astype(float), filled.astype(float), data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, channel_axis=-1, full=True,
    )  # fmt: skip
    assert SSIM()([picture], [make_sample(reference, hole)]) == pytest.approx([full[~hole].mean()], abs=1e-9)


def test_kept_pixels_that_are_equal_score_one_exactly(case):
    picture, reference, hole = case
    same = np.where(hole[..., None], picture, reference)
    assert SSIM()([same], [make_sample(reference, hole)]) == [1.0]


def test_identity_symmetry_and_order(case):
    picture, reference, hole = case
    assert SSIM()([reference], [make_sample(reference, hole)]) == [pytest.approx(1.0)]
    there, back = SSIM()([picture, reference], [make_sample(reference), make_sample(picture)])
    assert there == pytest.approx(back, abs=1e-12)
    worse = np.clip(reference + np.random.default_rng(0).normal(0, 60, reference.shape), 0, 255).astype(np.uint8)
    good, bad = SSIM()([picture, worse], [make_sample(reference)] * 2)
    assert good > bad


def test_the_hole_does_not_count(case):
    picture, reference, hole = case
    other = picture.copy()
    other[hole] = 0
    sample = make_sample(reference, hole)
    assert SSIM()([other], [sample]) == SSIM()([picture], [sample])


def test_unscored_and_misuse(case):
    picture, reference, _ = case
    everything = np.ones(reference.shape[:2], dtype=bool)
    small = reference[:8]
    scores = SSIM()(
        [picture, small, picture[:15]], [make_sample(reference, everything), make_sample(small), make_sample(reference)]
    )
    assert [type(score) for score in scores] == [Unscored] * 3
    assert "nothing kept" in scores[0].reason
    assert "11x11" in scores[1].reason
    assert "22x15" in scores[2].reason
    with pytest.raises(UsageError, match="It has standard"):
        SSIM("brushnet-paper")
