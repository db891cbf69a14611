"""Boundary: against a loop over pixels, identity, seams, the ring's width, and what has no border."""

from __future__ import annotations

import numpy as np
import pytest

from brushbench.metrics.boundary import Boundary, ring, ring_width
from brushbench.types import Sample, Unscored


def sample(image, hole):
    return Sample("x", image, hole, "a picture", "inside", {})


def blank_hole(side, top=0, bottom=0, left=0, right=0):
    hole = np.zeros((side, side), dtype=bool)
    hole[top:bottom, left:right] = True
    return hole


def naive(picture, reference, hole, width):
    """Visit every pair of neighbouring pixels."""
    height, breadth = hole.shape

    def near(row, column):
        for i in range(max(0, row - width), min(height, row + width + 1)):
            for j in range(max(0, column - width), min(breadth, column + width + 1)):
                if hole[i, j] != hole[row, column]:
                    return True
        return False

    a, b = picture.astype(float) / 255, reference.astype(float) / 255
    errors = []
    for row in range(height):
        for column in range(breadth):
            for down, right in ((1, 0), (0, 1)):
                i, j = row + down, column + right
                if i < height and j < breadth and near(row, column) and near(i, j):
                    errors += list(np.abs((a[i, j] - a[row, column]) - (b[i, j] - b[row, column])))
    return np.mean(errors)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_loop_over_pixels(seed):
    rng = np.random.default_rng(seed)
    reference, picture = rng.integers(0, 256, (2, 20, 23, 3), dtype=np.uint8)
    hole = np.kron(rng.random((4, 5)) < 0.4, np.ones((5, 5))).astype(bool)[:20, :23]
    score = Boundary()([picture], [sample(reference, hole)])[0]
    assert score == pytest.approx(naive(picture, reference, hole, 1), rel=1e-12)


def test_wider_ring_agrees_with_a_loop_over_pixels():
    rng = np.random.default_rng(9)
    reference, picture = rng.integers(0, 256, (2, 128, 130, 3), dtype=np.uint8)
    hole = np.zeros((128, 130), dtype=bool)
    hole[30:40, 50:62] = True
    assert ring_width(128, 130) == 2
    score = Boundary()([picture], [sample(reference, hole)])[0]
    assert score == pytest.approx(naive(picture, reference, hole, 2), rel=1e-12)


def test_identical_pictures_and_a_constant_shift_cost_nothing():
    image = np.random.default_rng(1).integers(0, 200, (64, 64, 3), dtype=np.uint8)
    hole = blank_hole(64, 10, 30, 12, 40)
    assert Boundary()([image, image + 20], [sample(image, hole)] * 2) == [0.0, pytest.approx(0.0, abs=1e-15)]


def test_a_seam_costs_and_a_larger_seam_costs_more_and_far_away_is_free():
    image = np.full((64, 64, 3), 100, dtype=np.uint8)
    hole = blank_hole(64, 16, 48, 16, 48)
    pictures = []
    for step in (10, 40):
        picture = image.copy()
        picture[hole] += step
        pictures.append(picture)
    deep = image.copy()
    deep[28:36, 28:36] = 255
    small, large, free = Boundary()([*pictures, deep], [sample(image, hole)] * 3)
    assert 0 < small < large == pytest.approx(4 * small)
    assert free == 0


@pytest.mark.parametrize(("side", "width"), [(32, 1), (64, 1), (128, 2), (512, 8), (1024, 16)])
def test_width_follows_the_side_and_has_a_minimum(side, width):
    assert ring_width(side, side + 7) == width


def test_ring_lies_on_both_sides_and_not_at_the_edge_of_the_picture():
    zone = ring(blank_hole(16, 0, 8, 0, 8), 1)
    expected = blank_hole(16, 0, 9, 0, 9)
    expected[:7, :7] = False
    assert np.array_equal(zone, expected)


def test_without_a_border_or_of_another_size_there_is_no_score():
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    for hole in (np.zeros((16, 16), bool), np.ones((16, 16), bool)):
        assert isinstance(Boundary()([image], [sample(image, hole)])[0], Unscored)
    score = Boundary()([np.zeros((8, 8, 3), np.uint8)], [sample(image, blank_hole(16, 2, 5, 2, 5))])[0]
    assert isinstance(score, Unscored)
    assert "8x8" in score.reason
