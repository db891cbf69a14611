"""The seam: exact cases, a loop over pixels as oracle, and what it must see on photographs."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

import brushbench
from brushbench.evaluation import choose_columns
from brushbench.evaluation.damages import blended
from brushbench.features import Features
from brushbench.leaderboard import make_tables
from brushbench.metrics.seam import Seam, SeamDifference, SeamLevels
from brushbench.types import Sample, Unscored


def seam(picture, hole, kind=Seam):
    return kind()([picture], [Sample("s", picture, hole, "x", "inside")])[0]


def disc(side=128, radius=30):
    rows, columns = np.mgrid[:side, :side]
    return (rows - side / 2) ** 2 + (columns - side / 2 + 3) ** 2 < radius**2


def half_plane(side=128):
    return np.broadcast_to(np.arange(side) >= side // 2, (side, side)).copy()


def ramp(side=128):
    return np.repeat(np.broadcast_to(np.arange(side, dtype=np.uint8), (side, side))[..., None], 3, axis=2)


def blob(side, seed):
    coarse = (np.random.default_rng(seed).random((4, 4)) * 255).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) > 128


# A loop over pixels ---------------------------------------------------------------------------------------------------


def naive_contour(image, mask, sigma):
    """METRICS2 section 7, pair by pair."""
    height, width = mask.shape
    pairs = []
    for row in range(height):
        for column in range(width):
            for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                places = [(row + down * k, column + right * k) for k in (-1, 0, 1, 2)]
                if not all(0 <= i < height and 0 <= j < width for i, j in places):
                    continue
                if [bool(mask[place]) for place in places] != [False, False, True, True]:
                    continue
                p2, p1, q1, q2 = (image[place] for place in places)
                pairs.append(((row, column), (q1 - p1) - ((p1 - p2) + (q2 - q1)) / 2))
    if not pairs:
        return 0.0, 0
    squares = []
    for (row, column), _ in pairs:
        weights = [math.exp(-((row - i) ** 2 + (column - j) ** 2) / (2 * sigma**2)) for (i, j), _ in pairs]
        mean = sum(w * e for w, (_, e) in zip(weights, pairs, strict=True)) / sum(weights)
        squares += list(mean**2)
    return math.sqrt(np.mean(squares)), len(pairs)


def naive(picture, hole):
    scale = min(hole.shape) / 512
    offset = max(2, round(2 * scale))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * offset + 1, 2 * offset + 1))
    grown, shrunk = hole.copy(), hole.copy()
    reach = [(i - offset, j - offset) for i, j in np.argwhere(kernel)]
    for row in range(hole.shape[0]):
        for column in range(hole.shape[1]):
            around = [(row + i, column + j) for i, j in reach]
            inside = [hole[p] for p in around if 0 <= p[0] < hole.shape[0] and 0 <= p[1] < hole.shape[1]]
            grown[row, column], shrunk[row, column] = any(inside), all(inside)
    image = picture / 255
    (c, n), (out, n_out), (inner, _) = (naive_contour(image, m, 8 * scale) for m in (hole, grown, shrunk))
    if min(n, n_out) < 32:
        return None
    q = max(out, min(inner, 2 * out))
    return math.log2((c + 1 / 255) / (q + 1 / 255)), 255 * math.sqrt(max(0, c**2 - q**2))


@pytest.mark.parametrize(("side", "seed"), [(40, 0), (48, 1), (56, 3)])
def test_agrees_with_a_loop_over_pixels(side, seed):
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (side + 5, side))
    hole = np.pad(blob(side, seed), ((0, 0), (2, 3)))
    picture[hole] = np.clip(picture[hole].astype(int) + rng.integers(-9, 25, (int(hole.sum()), 3)), 0, 255)
    expected = naive(picture, hole)
    assert expected is not None
    assert seam(picture, hole) == pytest.approx(expected[0], abs=1e-9)
    assert seam(picture, hole, SeamLevels) == pytest.approx(expected[1], abs=1e-9)


# Exact cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [disc(), half_plane(), blob(128, 5)], ids=["disc", "half plane", "blob"])
@pytest.mark.parametrize("ground", [np.full((128, 128, 3), 60, np.uint8), ramp()], ids=["flat", "ramp"])
@pytest.mark.parametrize("levels", [0, 1, 8, 100])
def test_a_step_of_b_levels_is_log2_of_1_plus_b(hole, ground, levels):
    picture = ground.copy()
    picture[hole] += levels
    assert seam(picture, hole) == pytest.approx(math.log2(1 + levels), abs=1e-9)
    assert seam(picture, hole, SeamLevels) == pytest.approx(levels, abs=1e-9)


def test_a_step_in_one_channel_and_a_darker_hole():
    hole, picture = disc(), np.full((128, 128, 3), 100, dtype=np.uint8)
    red = picture.copy()
    red[hole, 0] += 12
    assert seam(red, hole, SeamLevels) == pytest.approx(12 / math.sqrt(3))
    dark = picture.copy()
    dark[hole] -= 8
    assert seam(dark, hole) == pytest.approx(math.log2(9))


def test_white_noise_has_no_seam_and_noise_in_the_hole_does_not_hide_its_border():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert abs(seam(noise, disc(256, 70))) < 0.5
    filled = np.full((256, 256, 3), 90, dtype=np.uint8)
    hole = disc(256, 70)
    filled[hole] = noise[hole]
    assert seam(filled, hole) > 1


def test_few_pairs_and_another_size_are_unscored():
    picture = np.full((64, 64, 3), 90, dtype=np.uint8)
    small, none = np.zeros((2, 64, 64), dtype=bool)
    small[30:33, 30:33] = True
    for hole in (small, none, ~none):
        assert "fewer than 32 pairs" in seam(picture, hole).reason
    thin = np.zeros((64, 64), dtype=bool)
    thin[30:33] = True  # nothing is left of it two pixels inside
    stepped = picture.copy()
    stepped[thin] += 8
    assert seam(stepped, thin) == pytest.approx(math.log2(9))
    other = Sample("s", picture[:32], thin[:32], "x", "inside")
    assert isinstance(Seam()([picture], [other])[0], Unscored)


def test_the_difference_takes_the_references_own_seam_off_and_shares_it():
    hole, image = disc(), np.full((128, 128, 3), 100, dtype=np.uint8)
    image[hole] += 7  # an object whose outline the hole follows
    picture = image.copy()
    picture[hole] += 8
    sample, store = Sample("s", image, hole, "x", "inside"), Features()
    metrics = (Seam(), SeamLevels(), SeamDifference())
    values = [metric([picture], [sample], store)[0] for metric in metrics]
    assert values == pytest.approx([4.0, 15.0, 1.0])
    assert store.computed["image"] == 2  # the picture once and its reference once
    assert SeamDifference()([image], [sample], store) == [0.0]


# Photographs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs():
    """Strokes that follow no outline, on photographs of one size, each with the next one's content."""
    samples = [sample for sample in brushbench.load_benchmark("photos", "brush", 9) if sample.image.shape[0] == 512]
    chosen = [sample for sample in samples if sample.id in ("chelsea", "coffee", "rocket", "coins")]
    return [(sample, chosen[i - 1].image) for i, sample in enumerate(chosen)]


def seams(sample, content):
    """Return the seam of the reference, of a bias of 16 levels, a hard paste, a grey fill and blended content."""
    image, hole = sample.image, sample.hole
    shifted = np.where(hole[..., None], np.clip(image.astype(int) + 16, 0, 255), image).astype(np.uint8)
    pasted = np.where(hole[..., None], content, image)
    grey = np.where(hole[..., None], np.uint8(127), image)
    return Seam()([image, shifted, pasted, grey, blended(sample, content)], [sample] * 5)


def test_photographs_are_ordered_as_people_would(photographs):
    """``boundary`` put a grey fill before blended content here."""
    assert len(photographs) >= 3
    for sample, content in photographs:
        own, biased, hard, flat, poisson = seams(sample, content)
        assert biased > own + 0.5, sample.id
        assert poisson < own + 0.2, sample.id
        assert hard > 2, sample.id
        assert flat > poisson + 1, sample.id


# METRICS2, section 7: on an object's outline the reference itself scores high, and a bias that lowers the object's
# contrast scores better. The holes of `inside` and `outside` are such outlines. `camera`'s reference scores high too
# where strokes cross the coat. 25 of 33 keep the threshold of a bias, 32 those of blending and of a paste, 33 that of a
# grey fill: `reports/audit-photos.md`.
BIAS_IS_HIDDEN = {
    ("brush", "camera"), ("inside", "astronaut"), ("inside", "camera"), ("inside", "china"), ("inside", "grace_hopper"),
    ("outside", "coffee"), ("outside", "flower"), ("outside", "grace_hopper"),
}  # fmt: skip
BLENDING_SHOWS = {("outside", "rocket")}  # the rocket's thin outline is the whole border
FOLLOWS_AN_OUTLINE = {("outside", "astronaut")}


@pytest.mark.slow
def test_every_photograph_with_every_hole_keeps_the_thresholds_but_those_listed():
    missed = {"bias": set(), "blended": set(), "paste": set(), "grey": set()}
    for split in ("brush", "inside", "outside"):
        samples = list(brushbench.load_benchmark("photos", split))
        assert len(samples) == 11
        for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
            own, biased, hard, flat, poisson = seams(sample, other.image)
            wrong = {"bias": biased < own + 0.5, "blended": poisson > own + 0.2, "paste": hard <= 2,
                     "grey": flat < poisson + 1}  # fmt: skip
            for name, is_wrong in wrong.items():
                if is_wrong:
                    missed[name].add((split, sample.id))
    assert missed["bias"] == BIAS_IS_HIDDEN
    assert missed["blended"] == BLENDING_SHOWS
    assert missed["paste"] == FOLLOWS_AN_OUTLINE
    assert not missed["grey"]


def test_tables_show_the_difference_and_not_the_raw_seam(tmp_path):
    auto = {name for name, _ in choose_columns("auto")}
    assert {"seam", "seam_levels", "seam_difference"} <= auto
    assert "boundary" not in auto
    names = "seam,seam_levels,seam_difference,boundary"
    run = brushbench.evaluate("telea", "shapes", split="inside", limit=2, out=tmp_path, metrics=names)
    [table] = make_tables([run])
    assert [column.metric for column in table.columns] == ["boundary", "seam_difference"]
    [named] = make_tables([run], metrics=["seam"])
    assert [column.metric for column in named.columns] == ["seam"]
