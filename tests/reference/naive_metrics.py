"""Metrics written as their formulas read, one pixel at a time, in float64."""

from __future__ import annotations

import math

import numpy as np


def sample_means(picture: np.ndarray, reference: np.ndarray, keep: np.ndarray) -> tuple[float, int]:
    """Return the sum of squared errors on the 0..1 scale over kept pixels, and how many pixels are kept."""
    total, pixels = 0.0, 0
    height, width = keep.shape
    for y in range(height):
        for x in range(width):
            if keep[y, x]:
                pixels += 1
                for c in range(3):
                    total += ((int(picture[y, x, c]) - int(reference[y, x, c])) / 255) ** 2
    return total, pixels


def mse(picture: np.ndarray, reference: np.ndarray, keep: np.ndarray, per_pixel: bool) -> float:
    """Mean over values, or (the published fault) over pixels."""
    total, pixels = sample_means(picture, reference, keep)
    return total / pixels if per_pixel else total / (3 * pixels)


def psnr(error: float) -> float:
    return -10 * math.log10(error)


def ssim(picture: np.ndarray, reference: np.ndarray, keep: np.ndarray) -> float:
    """Wang et al. 2004, eq. (13), window by window with mirrored borders, averaged over kept pixels and colours."""
    radius, sigma = 5, 1.5
    line = np.array([math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)])
    window = np.outer(line, line) / np.outer(line, line).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    height, width = keep.shape
    values = []
    for c in range(3):
        a = np.pad(reference[..., c].astype(np.float64), radius, mode="symmetric")
        b = np.pad(picture[..., c].astype(np.float64), radius, mode="symmetric")
        for y in range(height):
            for x in range(width):
                if not keep[y, x]:
                    continue
                p, q = (m[y : y + 2 * radius + 1, x : x + 2 * radius + 1] for m in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))
