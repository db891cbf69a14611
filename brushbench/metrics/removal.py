"""What metrics of removed objects have in common: they compare the hole with what lies around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.masks import MaskError, tight_box
from brushbench.metrics.base import NOTHING_KEPT, ModelMetric, at_reference_size
from brushbench.types import Unscored

if TYPE_CHECKING:
    import numpy.typing as npt

    from brushbench.types import Hole, Picture, Region, Sample

    Floats = npt.NDArray[np.float64]

__all__ = ["RemovalMetric", "box_of", "cells_of", "cosine"]


class RemovalMetric(ModelMetric):
    """A metric of the hole; computed only where it is named."""

    region: Region = "hole"
    auto_protocols: ClassVar[tuple[str, ...]] = ()
    needs_kept: ClassVar[bool] = True  # whether it compares with kept pixels

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        if fault := super()._fault(picture, sample):
            return fault
        if not sample.hole.any():
            return Unscored("there is no hole")
        if self.needs_kept and sample.hole.all():
            return NOTHING_KEPT
        sized = at_reference_size(picture, sample, self.protocol)
        return sized if isinstance(sized, Unscored) else None


def box_of(mask: Hole) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box that holds a mask."""
    box = tight_box(mask)
    if box is None:
        raise MaskError("the mask marks no pixel, expected at least one")
    return box


def cells_of(mask: Hole, shape: tuple[int, int], steps: tuple[float, float]) -> Floats:
    """Return the weights of a grid's cells for a mask: 1 where the mask holds a cell's centre, else 0.

    A mask that holds no centre counts with its number of pixels in each cell, so that nothing is too small.

    Args:
        mask: bool (H, W), with at least one True.
        shape: rows and columns of the grid, which starts in the mask's first corner.
        steps: height and width of a cell in pixels of the mask.

    Returns:
        float64 of that shape.
    """
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * step, side - 1).astype(int)
        for n, step, side in zip(shape, steps, mask.shape, strict=True)
    )
    held = mask[np.ix_(rows, columns)]
    if held.any():
        return held.astype(np.float64)
    places = [
        np.minimum((where + 0.5) / step, n - 1).astype(int)
        for where, step, n in zip(np.nonzero(mask), steps, shape, strict=True)
    ]
    counts = np.zeros(shape)
    np.add.at(counts, tuple(places), 1)
    return counts


def cosine(one: Floats, other: Floats) -> float:
    """Return the cosine of the angle between two vectors."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
