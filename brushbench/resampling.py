"""The studentised bootstrap behind every interval; its resamples are shared by rows of equal length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLES", "Interval", "Resampled", "hold_zero", "intervals_of", "resample", "standard_error"]

Scores: TypeAlias = npt.NDArray[np.float64]
Kind: TypeAlias = Literal["float64", "float32"]

RESAMPLES = 4000
SEED = 20240711
_BLOCK = 4_000_000  # resampled values drawn at once: bounds the memory of long rows
_SINGLE = 10_000  # values in a row from which sums in single precision are not close enough
_CACHED = 2048  # rows up to this length keep their resamples


class Interval(NamedTuple):
    """Lower and upper bound."""

    low: float
    high: float


def hold_zero(columns: Sequence[Scores], tail: float) -> list[bool]:
    """Return whether the bounds of each row, as :func:`intervals_of` finds them, hold 0.

    Bounds in single precision take half the time. They decide where 0 is clearly inside or outside; the others are
    computed anew, so that the answer is that of the exact ones.
    """
    rough = intervals_of(columns, tail, "float32")
    near = [i for i, bounds in enumerate(rough) if columns[i].size > _SINGLE or not _is_clear(*bounds)]
    exact = dict(zip(near, intervals_of([columns[i] for i in near], tail), strict=True))
    return [low <= 0 <= high for low, high in (exact.get(i, bounds) for i, bounds in enumerate(rough))]


def _is_clear(low: float, high: float) -> bool:
    """Whether 0 is further from both bounds than single precision can be wrong; NaN is not clear."""
    return min(abs(low), abs(high)) > 0.01 * (high - low)


def intervals_of(columns: Sequence[Scores], tail: float, kind: Kind = "float64") -> list[Interval]:
    """Return bounds with ``tail`` outside on each side, for rows of finite scores; equal lengths share resamples.

    A fixed set of resamples is a sample itself: its quantile is taken one standard error further out, so that the seed
    cannot make an interval too short. In single precision, bounds that it cannot give are NaN.
    """
    bounds: list[Interval] = [Interval(math.nan, math.nan)] * len(columns)
    reach = tail - math.sqrt(tail * (1 - tail) / RESAMPLES)
    for n in dict.fromkeys(column.size for column in columns):
        places = [i for i, column in enumerate(columns) if column.size == n]
        spread = [i for i in places if standard_error(columns[i]) > 0]
        for i in places:
            bounds[i] = Interval(*[float(columns[i].mean())] * 2)
        if not spread:
            continue
        from scipy.special import stdtrit  # it takes a sixth of a second to import, and tables may need none

        drawn = resample(np.stack([columns[i] for i in spread], axis=1), kind)
        student = float(stdtrit(n - 1, 1 - tail)) / math.sqrt(n - 1)
        tails = (reach, 1 - reach)
        low, high = zip(
            np.quantile(drawn.w, tails, axis=0), drawn.straighten(np.quantile(drawn.bent, tails, axis=0)), strict=True
        )
        upper, lower = np.max(high, axis=0).clip(min=student), np.min(low, axis=0).clip(max=-student)
        for i, up, down in zip(spread, upper, lower, strict=True):
            mean, sd = float(columns[i].mean()), float(columns[i].std())
            bounds[i] = Interval(mean - float(up) * sd, mean - float(down) * sd)
    return bounds


@dataclass(frozen=True, eq=False)
class Resampled:
    """The bootstrap distribution of k studentised means.

    Attributes:
        w: (resamples, k) mean over standard deviation (divisor n): t over the square root of n - 1.
        bent: (resamples, k) the same without skewness, by Hall's transformation.
        skewness: (k,) of the rows themselves.
        n: length of the rows.
    """

    w: Scores
    bent: Scores
    skewness: Scores
    n: int

    def bend(self, w: Scores | float) -> Scores:
        """Return ``w`` without the skewness of the rows: Hall 1992, "On the removal of skewness by transformation"."""
        return _bend(np.asarray(w, dtype=np.float64), self.skewness, self.n)

    def straighten(self, bent: Scores) -> Scores:
        """Return the ``w`` whose transform this is."""
        skewness: Scores = np.where(np.abs(self.skewness) < 1e-6, 1e-6, self.skewness)
        cube: Scores = np.cbrt(1 + skewness * (bent - skewness / (6 * self.n)))
        return 3 / skewness * (cube - 1)


def _bend(w: Scores, skewness: Scores, n: int) -> Scores:
    # Horner's form: NumPy's third power is ten times slower than three products.
    return w * (1 + w * (skewness / 3 + w * (skewness**2 / 27))) + skewness / (6 * n)


def resample(columns: Scores, kind: Kind = "float64") -> Resampled:
    """Resample the columns of (n, k), none of which may be constant (Efron and Tibshirani 1993, sec. 12.5).

    Args:
        columns: scores.
        kind: double precision; in single precision a column of which some resample has little spread becomes NaN.
    """
    n = columns.shape[0]
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)  # w has no unit; powers stay in range
    moments = np.hstack([scaled, scaled**2, scaled**3]).astype(kind, copy=False)
    least = 1e-12 if kind == "float64" else 0.05  # of a resample's mean square: below it the difference is rounding
    w, bent = [], []
    for counts in _resamples(n, kind):
        first, second, third = np.hsplit(counts @ moments / n, 3)
        variances = second - first**2
        # A resample of one value only has no spread but rounding: it says nothing and counts as its centre.
        spread = variances > least * second
        sd = np.sqrt(variances, out=np.ones_like(first), where=spread)
        means = np.where(spread, first / sd, 0.0)
        skewness = np.where(spread, (third - first * (3 * second - 2 * first * first)) / (sd * sd * sd), 0.0)
        if kind != "float64":
            means[:, ~spread.all(axis=0)] = np.nan
        w.append(means)
        bent.append(_bend(means, skewness, n))
    return Resampled(np.concatenate(w), np.concatenate(bent), (scaled**3).mean(axis=0), n)


def _resamples(n: int, kind: Kind) -> Iterator[Scores]:
    """Yield how often each of ``n`` values is drawn in each resample, in blocks of rows."""
    rows = max(1, min(RESAMPLES, _BLOCK // n))
    for block, start in enumerate(range(0, RESAMPLES, rows)):
        make = _cached_counts if n <= _CACHED else _counts
        yield make(n, min(rows, RESAMPLES - start), block, kind)


def _counts(n: int, rows: int, block: int, kind: Kind) -> Scores:
    rng = np.random.default_rng([SEED, n, block])
    drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(kind)


_cached_counts = lru_cache(maxsize=8)(_counts)


def standard_error(scores: Scores) -> float:
    """Return the standard error of the mean; 0 where all scores are equal, whatever rounding makes of their mean."""
    if float(np.ptp(scores)) == 0.0:
        return 0.0
    return float(scores.std(ddof=1)) / math.sqrt(scores.size)
