"""Run lengths one pixel at a time, as the published descriptions put them."""

from __future__ import annotations

import numpy as np


def decode(pairs: list[int], height: int, width: int, *, first: int, columns: bool) -> np.ndarray:
    """Walk along rows (or down columns), counting pixels from ``first``."""
    marked = set()
    for place in range(0, len(pairs), 2):
        for number in range(pairs[place], pairs[place] + pairs[place + 1]):
            marked.add(number)
    hole = np.zeros((height, width), dtype=bool)
    number = first
    outer, inner = (width, height) if columns else (height, width)
    for i in range(outer):
        for j in range(inner):
            hole[(j, i) if columns else (i, j)] = number in marked
            number += 1
    return hole


def encode(hole: np.ndarray, *, first: int, columns: bool) -> list[int]:
    height, width = hole.shape
    places = [(i, j) for j in range(width) for i in range(height)] if columns else list(np.ndindex(height, width))
    pairs: list[int] = []
    inside = False
    for number, place in enumerate(places, start=first):
        if hole[place] and not inside:
            pairs += [number, 0]
        if hole[place]:
            pairs[-1] += 1
        inside = bool(hole[place])
    return pairs
