"""Blending pixel by pixel, with a Gaussian written out, as the oracle of ``brushnet.blending``."""

from __future__ import annotations

import math

import numpy as np


def gaussian_blur(picture: np.ndarray, kernel: int, sigma: float) -> np.ndarray:
    """Blur (H, W) in 0..255 in float64, mirroring at the edge without repeating it."""
    sigma = sigma or 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8  # OpenCV's rule for sigma 0
    reach = kernel // 2
    weights = np.array([math.exp(-(x**2) / (2 * sigma**2)) for x in range(-reach, reach + 1)])
    weights /= weights.sum()
    padded = np.pad(picture.astype(np.float64), reach, mode="reflect")
    rows = sum(w * padded[i : i + picture.shape[0]] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + picture.shape[1]] for i, w in enumerate(weights))


def blend_pixelwise(original, generated, hole, mode="blur", kernel=21, sigma=0.0):
    """Mix every pixel on its own; exact up to the 8-bit rounding of the blurred hole."""
    blurred = gaussian_blur(hole.astype(np.float64) * 255, kernel, sigma) / 255
    out = np.empty_like(original)
    for y, x in np.ndindex(hole.shape):
        b, h = blurred[y, x], float(hole[y, x])
        share = {"blur": 1 - (1 - h) * (1 - b), "brushedit": 0.5 * b + 0.5, "paste": h, "none": 1.0}[mode]
        out[y, x] = (original[y, x] * (1 - share) + generated[y, x] * share).astype(np.uint8)
    return out
