"""How visible the hole's border is, measured in the image alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench.features import digest
from brushbench.metrics.base import BaseMetric, at_reference_size
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Hole, Picture, Region, Sample, Score

    Floats = npt.NDArray[np.float64]

__all__ = ["Seam", "SeamDifference", "SeamLevels", "border_steps", "coherent_step"]

LEVEL = 1 / 255  # one grey level, added to both sides of the ratio
LEAST_PAIRS = 32  # pairs of pixels across a contour
CHUNK = 1024  # places whose distances to all others are held at once
NO_BORDER = Unscored(f"the hole's border has fewer than {LEAST_PAIRS} pairs of pixels across it")
CAVEAT = (
    "sees the border, not the content; where the hole follows an object's outline the reference itself scores high, "
    "and a shift that lowers the object's contrast scores better"
)


class Seam(BaseMetric):
    """log2 of the step across the hole's border over the steps beside it; 0: like its neighbourhood, lower is better.

    Needs no reference. With F the image in 0..1, s = min(H, W) / 512, o = max(2, round(2 s)) and sigma = 8 s:

    * C(k), the step over the contour of the hole grown (k = +o) or shrunk (k = -o) by OpenCV's ellipse of side 2 o + 1:
      see :func:`coherent_step`.
    * q = max(C(+o), min(C(-o), 2 C(+o))), what the neighbourhood shows. The step inside counts at most twice, so that a
      hole full of noise does not hide its own border.
    * seam = log2((C(0) + 1/255) / (q + 1/255)).

    A step of b grey levels on flat ground is log2(1 + b), whatever the hole's shape. At 256x256 values spread twice as
    much as at 512x512. ``Unscored`` where a contour has fewer than 32 pairs of pixels.
    """

    name = "seam"
    higher_is_better = False
    region: Region = "boundary"
    shown = False  # tables show the difference from the reference's own seam
    caveats: ClassVar[Mapping[str, str]] = {"standard": CAVEAT}

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:
        return [self._one(picture, sample, features) for picture, sample in zip(pictures, samples, strict=True)]

    def _one(self, picture: Picture, sample: Sample, features: Features | None) -> Score:
        sized = at_reference_size(picture, sample, self.protocol)
        if isinstance(sized, Unscored):
            return sized
        at_border, beside = shared_steps(sized, sample.hole, features)
        return NO_BORDER if math.isnan(at_border) else self._value(at_border, beside, sample, features)

    def _value(self, at_border: float, beside: float, sample: Sample, features: Features | None) -> Score:  # noqa: ARG002
        return ratio(at_border, beside)


class SeamLevels(Seam):
    """255 sqrt(max(0, C(0)² - q²)) of :class:`Seam`: the step across the border in grey levels; lower is better."""

    name = "seam_levels"

    def _value(self, at_border: float, beside: float, sample: Sample, features: Features | None) -> Score:  # noqa: ARG002
        return 255 * math.sqrt(max(0.0, at_border**2 - beside**2))


class SeamDifference(Seam):
    """Seam of the image less the seam of its reference at the same border: what tables show of ``seam``.

    On holes that follow an outline the reference has a seam of its own; the difference is what the method added.
    """

    name = "seam_difference"
    shown = True
    caveats: ClassVar[Mapping[str, str]] = {"standard": "the reference's own seam is taken off"}

    def _value(self, at_border: float, beside: float, sample: Sample, features: Features | None) -> Score:
        own = shared_steps(sample.image, sample.hole, features)
        return ratio(at_border, beside) - ratio(*own)


def ratio(at_border: float, beside: float) -> float:
    """Return log2 of one step over another, one grey level added to each."""
    return math.log2((at_border + LEVEL) / (beside + LEVEL))


def shared_steps(picture: Picture, hole: Hole, features: Features | None) -> tuple[float, float]:
    """Return :func:`border_steps`, computed once for the metrics that share ``features``."""
    if features is None:
        return border_steps(picture, hole)
    steps = features.images("seam", picture, lambda: np.array([border_steps(picture, hole)]), digest(hole))
    return float(steps[0, 0]), float(steps[0, 1])


def border_steps(picture: Picture, hole: Hole) -> tuple[float, float]:
    """Return the step across the hole's border and that of the contours beside it: C(0) and q of :class:`Seam`.

    Args:
        picture: uint8 (H, W, 3) RGB.
        hole: bool (H, W).

    Returns:
        Both in 0..1; NaN where the border, or the contour outside it, has too few pairs.
    """
    import cv2

    scale = min(hole.shape) / 512
    offset = max(2, round(2 * scale))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * offset + 1, 2 * offset + 1))
    mask = hole.astype(np.uint8)
    grown = cv2.dilate(mask, kernel) > 0
    shrunk = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    image = picture.astype(np.float64) / 255
    (border, pairs), (outside, pairs_outside), (inside, _) = (
        coherent_step(image, contour, 8 * scale) for contour in (hole, np.asarray(grown), np.asarray(shrunk))
    )
    if min(pairs, pairs_outside) < LEAST_PAIRS:
        return math.nan, math.nan
    return border, max(outside, min(inside, 2 * outside))


def coherent_step(image: Floats, mask: Hole, sigma: float) -> tuple[float, int]:
    """Return the root mean square of the step over a mask's contour that neighbouring pixels share, and their number.

    For every pair of 4-neighbours, p1 outside and q1 inside, with p2 and q2 one pixel further on the same sides, the
    step is e = (q1 - p1) - ((p1 - p2) + (q2 - q1)) / 2: what a slope on both sides does not explain. Each e is replaced
    by the mean over all pairs, weighted by a Gaussian of the distance between their p1, so that texture cancels out and
    a seam does not.

    Args:
        image: float64 (H, W, 3) in 0..1.
        mask: bool (H, W).
        sigma: of the Gaussian, in pixels.
    """
    from scipy.spatial.distance import cdist

    total, count = np.zeros(image.shape), np.zeros(mask.shape)
    for axis, turned in ((0, False), (0, True), (1, False), (1, True)):
        # A view in which the four pixels of a pair follow each other in the first axis, p2 first
        def view(array: npt.NDArray[Any], axis: int = axis, turned: bool = turned) -> npt.NDArray[Any]:
            moved = np.moveaxis(array, axis, 0)
            return moved[::-1] if turned else moved

        length = mask.shape[axis]
        m, f = view(mask), view(image)
        found = ~m[: length - 3] & ~m[1 : length - 2] & m[2 : length - 1] & m[3:]
        p2, p1, q1, q2 = f[: length - 3], f[1 : length - 2], f[2 : length - 1], f[3:]
        step = (q1 - p1) - 0.5 * ((p1 - p2) + (q2 - q1))
        view(total)[1 : length - 2][found] += step[found]
        view(count)[1 : length - 2][found] += 1
    pairs = int(count.sum())
    if not pairs:
        return 0.0, 0
    places, counts, steps = np.argwhere(count > 0) / sigma, count[count > 0], total[count > 0]
    means = np.empty_like(steps)
    for start in range(0, len(places), CHUNK):
        near = places[start : start + CHUNK]
        weights = np.exp(-0.5 * cdist(near, places, "sqeuclidean"))
        means[start : start + CHUNK] = (weights @ steps) / (weights @ counts)[:, None]
    return math.sqrt(float((counts[:, None] * np.square(means)).sum()) / (3 * pairs)), pairs
