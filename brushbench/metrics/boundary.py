"""How well the repainted part meets the kept part: the error of the picture's gradient in a ring around the border."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.base import BaseMetric, at_reference_size
from brushbench.types import Hole, Picture, Region, Sample, Score, Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from brushbench.features import Features

__all__ = ["Boundary", "gradient_error", "ring", "ring_width"]

WIDTH_AT_512 = 8  # pixels on each side of the border at a side of 512
LEAST_WIDTH = 1  # pixels on each side


class Boundary(BaseMetric):
    """Mean absolute error of the gradient in a ring around the hole's border; 0 for identical pictures.

    The gradient is the forward difference of RGB in [0, 1] to the right and downwards. Judged are the pairs of
    neighbouring pixels that both lie in the ring, every pair and channel with the same weight. The ring holds the
    pixels whose distance to the border, along rows and columns (chessboard distance), is at most ``width`` on either
    side; ``width`` = max(1, round(8 * min(H, W) / 512)) pixels. The picture's own edge is no border.

    A visible seam is a gradient that the reference does not have; a blurred one lacks a gradient that it has. A
    constant shift of the whole picture costs nothing: brightness is for the other metrics.
    """

    name = "boundary"
    higher_is_better = False
    region: Region = "boundary"
    display = ("x10³", 1e3)
    auto_protocols: ClassVar[tuple[str, ...]] = ()  # `seam` took its place
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "compares with the reference's own texture, so a smooth or grey fill beats good new content"
    }

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        return [self._one(picture, sample) for picture, sample in zip(pictures, samples, strict=True)]

    def _one(self, picture: Picture, sample: Sample) -> Score:
        sized = at_reference_size(picture, sample, self.protocol)
        if isinstance(sized, Unscored):
            return sized
        zone = ring(sample.hole, ring_width(*sample.hole.shape))
        if not zone.any():
            return Unscored("the hole has no border: it is empty or the whole picture")
        return gradient_error(sized, sample.image, zone)


def ring_width(height: int, width: int) -> int:
    """Return how many pixels on each side of the border belong to the ring."""
    return max(LEAST_WIDTH, round(WIDTH_AT_512 * min(height, width) / 512))


def ring(hole: Hole, width: int) -> Hole:
    """Return bool (H, W): pixels within ``width`` of the other side of the hole's border, in chessboard distance."""
    grown, keep_grown = hole, ~hole
    for _ in range(width):
        grown, keep_grown = _grow(grown), _grow(keep_grown)
    return grown & keep_grown


def _grow(region: Hole) -> Hole:
    """Add the eight neighbours; nothing comes in over the picture's edge."""
    height, width = region.shape
    padded = np.pad(region, 1)
    grown = np.zeros_like(region)
    for row in range(3):
        for column in range(3):
            grown |= padded[row : row + height, column : column + width]
    return grown


def gradient_error(picture: Picture, reference: Picture, zone: Hole) -> float:
    """Return the mean absolute difference of forward differences over neighbouring pixels that both lie in the zone.

    Args:
        picture: uint8 (H, W, 3) RGB.
        reference: uint8 (H, W, 3) RGB.
        zone: bool (H, W), with at least one pair of neighbours.
    """
    error = (picture.astype(np.float64) - reference.astype(np.float64)) / 255.0
    total, count = 0.0, 0
    for axis in (0, 1):
        both = np.take(zone, range(1, zone.shape[axis]), axis) & np.take(zone, range(zone.shape[axis] - 1), axis)
        total += float(np.abs(np.diff(error, axis=axis)[both]).sum())
        count += 3 * int(both.sum())
    return total / count
