"""Holes to learn from, by the published recipe (TencentARC/BrushNet 0f9d9e5, ``train_brushnet.py``)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brushbench.masks import inverted, opening, random_brush_hole, uneven_disc
from brushbench.training.brushdata import TrainingPicture
from brushbench.types import Hole

__all__ = ["HOLES", "blob", "draw_hole", "stream_rng"]

OPENED, INVERTED = 0.3, 0.5  # shares of the published recipe
HOLES = 1  # purpose of the random numbers of a hole


def draw_hole(picture: TrainingPicture, masks: str, blobs: float, rng: np.random.Generator) -> Hole:
    """Draw a hole for a picture.

    Where the crop left none of the picture's masks, and where opening a mask would leave nothing of it, the published
    script trains on an empty or full hole; here a brush hole and the mask itself are taken.

    Args:
        picture: at its final size.
        masks: ``segmentation`` | ``random``.
        blobs: see :class:`BrushNetRecipe`.
        rng: the random numbers of this picture alone.

    Returns:
        Bool (H, W), True = repaint; neither empty nor full.
    """
    height, width = picture.image.shape[:2]
    usable = [mask for mask in picture.masks if mask.any() and not mask.all()]
    if masks == "random" or not usable:
        return random_brush_hole(int(rng.integers(2**63)), height, width)
    hole = usable[int(rng.integers(len(usable)))]
    kind, turn = rng.random(2)
    if kind < blobs:
        hole = blob(hole, picture.masks, rng)
    elif kind < blobs + (1 - blobs) * OPENED:
        opened = opening(hole)
        hole = opened if opened.any() else hole
    return inverted(hole) if turn < INVERTED else hole


def blob(mask: Hole, others: npt.NDArray[np.bool_], rng: np.random.Generator) -> Hole:
    """Return an uneven disc that covers a mask with a margin and touches no other mask; the mask itself if that is all.

    The manner of the larger holes of the benchmark ``shapes``: what someone scribbles who does not follow an outline.
    """
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    y, x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    reach = float(np.hypot(rows - y, columns - x).max())
    grow, shift = rng.random(2)
    down, right = np.mgrid[0:height, 0:width]
    radius = min(height, width) / 32 + reach * (1.1 + 0.3 * grow)
    disc = uneven_disc(down - y, right - x, radius, 2 * np.pi * shift)
    for other in others:
        if not (other & mask).any():
            disc &= ~other
    hole: Hole = disc | mask
    return mask if hole.all() else hole


def stream_rng(*key: int) -> np.random.Generator:
    """Return the random numbers of one place in the stream and one purpose."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
