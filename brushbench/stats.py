"""Means with intervals. NumPy only; every interval is reproducible from a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Summary", "bootstrap_t", "paired_difference", "summarise"]

RESAMPLES = 2000
SEED = 20240711
SMALLEST = 8  # below this a studentised bootstrap resamples too few distinct values to mean anything


@dataclass(frozen=True)
class Summary:
    """The mean of one cell, with what did not go into it.

    Attributes:
        mean: of the finite scores; ``inf`` if every score is; ``nan`` if there is none.
        low, high: 95 % interval of the mean; ``nan`` where fewer than eight finite scores carry it.
        median: of all scores, infinite ones included.
        n: scores, infinite ones included.
        infinite: how many of them are infinite (PSNR of an identical picture); not in the mean.
        missing: samples without a score: failed, black, missing or unscorable.
    """

    mean: float
    low: float
    high: float
    median: float
    n: int
    infinite: int
    missing: int


def summarise(values: Iterable[float | None]) -> Summary:
    """Summarise the scores of one cell; ``None`` and NaN stand for a sample without a score."""
    everything = [math.nan if value is None else float(value) for value in values]
    scores = np.array([value for value in everything if not math.isnan(value)], dtype=np.float64)
    finite = scores[np.isfinite(scores)]
    low, high = bootstrap_t(finite)
    mean = float(finite.mean()) if finite.size else (math.inf if scores.size else math.nan)
    median = float(np.median(scores)) if scores.size else math.nan
    return Summary(mean, low, high, median, scores.size, scores.size - finite.size, len(everything) - scores.size)


def bootstrap_t(values: npt.NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided studentised bootstrap interval of the mean (Efron and Tibshirani 1993, sec. 12.5).

    A few ruined pictures make a long tail, under which percentile and t intervals are too short; this one is not.

    Args:
        values: finite scores, one an independent sample.
        level: coverage, in (0, 1).

    Returns:
        Lower and upper bound; both ``nan`` below eight values, both the mean if all values are equal.
    """
    n = values.size
    if n < SMALLEST:
        return math.nan, math.nan
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return mean, mean
    rng = np.random.default_rng(SEED)
    draws = values[rng.integers(0, n, size=(RESAMPLES, n))]
    errors = draws.std(axis=1, ddof=1) / math.sqrt(n)
    t = (draws.mean(axis=1) - mean)[errors > 0] / errors[errors > 0]
    upper_t, lower_t = np.quantile(t, [(1 + level) / 2, (1 - level) / 2])
    return mean - float(upper_t) * error, mean - float(lower_t) * error


def paired_difference(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Summary:
    """Summarise ``a - b`` over samples scored by both; a pair with a NaN counts as missing.

    Raises:
        ValueError: the two do not pair one to one.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"Expected two equally long rows of scores, got shapes {a.shape} and {b.shape}.")
    return summarise(np.subtract(a, b).tolist())
