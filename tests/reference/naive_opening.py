"""Erosion, then dilation, with a square, pixel by pixel, in OpenCV's convention of the anchor at ``size // 2``."""

from __future__ import annotations

import numpy as np


def opening(region: np.ndarray, size: int) -> np.ndarray:
    return _sweep(_sweep(region, size, all, outside=True), size, any, outside=False)


def _sweep(region: np.ndarray, size: int, decide, outside: bool) -> np.ndarray:
    height, width = region.shape
    reach = range(-(size // 2), size - size // 2)

    def at(i: int, j: int) -> bool:
        return bool(region[i, j]) if 0 <= i < height and 0 <= j < width else outside

    result = np.zeros_like(region)
    for i, j in np.ndindex(height, width):
        result[i, j] = decide(at(i + di, j + dj) for di in reach for dj in reach)
    return result
