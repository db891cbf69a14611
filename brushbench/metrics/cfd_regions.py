"""The regions that CFD compares: masks, which of them count, and what lies around a part of the hole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brushbench.metrics.removal import box_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brushbench.types import Hole, Picture

__all__ = ["distinct", "next_to", "on_white", "sorted_by", "widened"]

LARGEST_IOU, LARGEST_SHARE = 0.8, 0.9  # of a mask with one that is kept


def distinct(masks: Sequence[Hole]) -> list[Hole]:
    """Return masks (H, W), largest first, without those that repeat a kept one or lie in it."""
    kept: list[tuple[Hole, int]] = []
    for mask in sorted(masks, key=np.sum, reverse=True):
        area = int(mask.sum())
        for other, size in kept:
            shared = int((mask & other).sum())
            if shared and (shared / (area + size - shared) > LARGEST_IOU or shared / area > LARGEST_SHARE):
                break
        else:
            kept.append((mask, area))
    return [mask for mask, _ in kept]


def widened(part: Hole, published: bool) -> Hole:
    """Return the box of a mask, widened by a third of its sides on each of them, as a mask.

    Args:
        part: bool (H, W), with at least one True.
        published: the box's last row and column are one further, as Pillow draws rectangles, and a side below three
            pixels is not widened.
    """
    edges = []
    for side, length in zip(box_of(part), part.shape, strict=True):
        more = (side.stop - side.start) // 3
        more = more if published else max(more, 1)
        edges.append(slice(max(0, side.start - more), min(length, side.stop + more) + int(published)))
    box = np.zeros(part.shape, dtype=bool)
    box[tuple(edges)] = True
    return box


def sorted_by(part: Hole, masks: Sequence[Hole]) -> tuple[list[Hole], list[Hole]]:
    """Return the masks that lie inside a part of the hole, and those that cross its border, cut to it."""
    inside: list[Hole] = []
    crossing: list[Hole] = []
    for mask in masks:
        cut = mask & part
        if cut.any():
            (inside if np.array_equal(cut, mask) else crossing).append(cut)
    return inside, crossing


def next_to(mask: Hole, others: Sequence[Hole]) -> Hole:
    """Return the union of those masks that touch a mask dilated three times by 5x5."""
    import cv2

    grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8), iterations=3) > 0
    union = np.zeros(mask.shape, dtype=bool)
    for other in others:
        if (grown & other).any():
            union |= other
    return union


def on_white(picture: Picture, mask: Hole) -> tuple[Picture, Hole]:
    """Return the box of a mask: the image, white outside the mask, and the mask."""
    box = box_of(mask)
    return np.where(mask[..., None], picture, np.uint8(255))[box], mask[box]
