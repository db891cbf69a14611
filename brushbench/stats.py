"""Means, differences and decisions, with intervals. NumPy and SciPy only; every figure is reproducible (fixed seed).

One row of scores holds one number per independent sample: average the repeats of a sample before they come here.

An interval of a mean is the widest, on each side, of the studentised bootstrap, the same after Hall's removal of
skewness, and Student's t. The bootstrap follows a long tail, which a few ruined images make and under which t is too
short; t is the safer one where a few samples carry the spread. A row of zeros and ones is a share and gets Wilson's
interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from brushbench.errors import InvalidScoresError
from brushbench.resampling import RESAMPLES, Interval, intervals_of, resample, standard_error

__all__ = [
    "SMALLEST",
    "Interval",
    "NoiseFloor",
    "NonInferiority",
    "Power",
    "Summary",
    "holm",
    "mean_interval",
    "noise_floor",
    "non_inferiority",
    "paired_difference",
    "power",
    "regression_p",
    "summarise",
    "summarise_all",
    "wilson",
]

Scores: TypeAlias = npt.NDArray[np.float64]
Row: TypeAlias = "Sequence[float] | npt.NDArray[np.floating]"

SMALLEST = 8  # below this a studentised bootstrap resamples too few distinct values to mean anything
CHANCE = 0.8  # of finding a difference that is there, where a number of samples is planned


@dataclass(frozen=True)
class Summary:
    """The mean of one cell, with what did not go into it.

    Attributes:
        mean: of the finite scores; ``inf`` if every score is; ``nan`` if there is none.
        low, high: 95 % interval of the mean; ``nan`` where fewer than eight finite scores carry it, or none was asked.
        median: of all scores, infinite ones included.
        n: scores, infinite ones included.
        infinite: how many of them are infinite (PSNR of an identical image); not in the mean.
        missing: samples without a score: failed, black, missing or unscorable.
    """

    mean: float
    low: float
    high: float
    median: float
    n: int
    infinite: int
    missing: int


@dataclass(frozen=True)
class NonInferiority:
    """Whether a candidate is worse than what was accepted by more than a margin.

    Attributes:
        verdict: ``pass`` if ``low > -margin``, ``fail`` if ``high < -margin``, else ``inconclusive``.
        low, high: one-sided bounds of the mean difference, each at the level that was asked for.
        needed: samples that would decide with 80 % chance if mean and spread stayed as they are; ``None`` where the
            verdict is decided, or where the mean lies on the margin and no number decides.
    """

    verdict: Literal["pass", "fail", "inconclusive"]
    low: float
    high: float
    needed: int | None


@dataclass(frozen=True)
class Power:
    """What a number of samples can show.

    Attributes:
        smallest: smallest difference found with the chance that was asked for, in the unit of the spread.
        needed: samples that find the difference that was asked for; ``None`` where none was.
    """

    smallest: float
    needed: int | None


@dataclass(frozen=True)
class NoiseFloor:
    """What another seed alone changes.

    Attributes:
        score: standard deviation of one score of one sample.
        mean: standard deviation of the mean over the samples.
        difference: standard deviation of the difference of two runs' means: the square root of two times ``mean``.
        n: samples it was found on.
    """

    score: float
    mean: float
    difference: float
    n: int


# Intervals of a mean --------------------------------------------------------------------------------------------------


def mean_interval(values: Row, level: float = 0.95, proportion: bool | None = None) -> Interval:
    """Return the two-sided interval of a mean.

    Args:
        values: (n,) finite scores, one per independent sample, at least eight.
        level: coverage, in (0, 1).
        proportion: whether the scores are zeros and ones that stand for no and yes, which takes Wilson's interval;
            ``None`` says yes if every score is 0 or 1. Say ``False`` for a measured quantity that happens to be 0.

    Raises:
        InvalidScoresError: NaN or infinite scores, too few, or a level outside (0, 1).
    """
    scores = _checked(values, "values")
    _check_level(level)
    if proportion is None:
        proportion = _zeros_and_ones(scores)
    if proportion:
        if not _zeros_and_ones(scores):
            raise InvalidScoresError("A proportion has scores of 0 and 1 only. Leave proportion out, or pass False.")
        return wilson(int(scores.sum()), scores.size, level)
    (interval,) = intervals_of([scores], (1 - level) / 2)
    return interval


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's two-sided interval of a share (Wilson 1927), in [0, 1].

    Args:
        successes: how many of the ``n`` are counted, 0..n.
        n: samples, at least 1.
        level: coverage, in (0, 1).

    Raises:
        InvalidScoresError: no sample, or more successes than samples.
    """
    _check_level(level)
    if not (n >= 1 and 0 <= successes <= n):
        raise InvalidScoresError(f"Got {successes} of {n}. Expected a count from 0 to n, and n at least 1.")
    z, share = _normal_quantile((1 + level) / 2), successes / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((centre + side * half) / (1 + z * z / n) for side in (-1, 1))
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == n else high)


def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri  # when it is asked for: it takes a sixth of a second to import

    return float(ndtri(share))


def summarise(values: Sequence[float | None] | Scores, proportion: bool | None = None) -> Summary:
    """Summarise the scores of one cell; ``None`` and NaN stand for a sample without a score."""
    return summarise_all([values], None if proportion is None else [proportion])[0]


def are_shares(column: Scores, suffix: str) -> bool:
    """Whether a whole column holds shares of zeros and ones, whose means take Wilson's interval.

    A measured quantity may be 0 or 1 for every sample, such as SSIM where the kept pixels are exact: its interval is
    that number.

    Args:
        column: (n,) scores of all its cells; NaN and infinite ones are passed over.
        suffix: of its heading: ``%`` says that it holds shares.
    """
    numbers = column[np.isfinite(column)]
    return _zeros_and_ones(numbers) and (suffix == "%" or bool((numbers == 0.0).any() and (numbers == 1.0).any()))


def summarise_all(
    columns: Sequence[Sequence[float | None] | Scores],
    proportions: Sequence[bool] | None = None,
    intervals: bool = True,
) -> list[Summary]:
    """Summarise many cells at once: cells with equally many scores share one set of resamples.

    Args:
        columns: the scores of each cell; ``None`` and NaN stand for a sample without a score.
        proportions: per cell, whether it holds shares of zeros and ones; ``None`` decides by the scores.
        intervals: off leaves ``low`` and ``high`` out, which is most of the work.
    """
    everything = [np.array(column, dtype=np.float64) for column in columns]
    scored = [column[~np.isnan(column)] for column in everything]
    finite = [column[np.isfinite(column)] for column in scored]
    bounds = [Interval(math.nan, math.nan)] * len(finite)
    if intervals:
        shares = proportions or [bool(f.size) and _zeros_and_ones(f) for f in finite]
        long = [i for i, f in enumerate(finite) if f.size >= SMALLEST]
        for i in (i for i in long if shares[i]):
            bounds[i] = mean_interval(finite[i], proportion=True)
        rest = [i for i in long if not shares[i]]
        for i, interval in zip(rest, intervals_of([finite[i] for i in rest], 0.025), strict=True):
            bounds[i] = interval
    return [_summary(*parts) for parts in zip(everything, scored, finite, bounds, strict=True)]


def _summary(everything: Scores, scored: Scores, finite: Scores, bounds: Interval) -> Summary:
    mean = float(finite.mean()) if finite.size else (float(scored[0]) if scored.size else math.nan)
    median = float(np.median(scored)) if scored.size else math.nan
    return Summary(
        mean, *bounds, median, scored.size, scored.size - finite.size, everything.size - scored.size
    )  # fmt: skip


def paired_difference(a: Row, b: Row) -> Summary:
    """Summarise ``a - b`` over samples scored by both, with the 95 % interval of the mean difference.

    Args:
        a: (n,) scores; NaN where a sample has none. Two infinite scores of one sign differ by 0.
        b: (n,) scores of the same samples in the same order.

    Returns:
        The summary of the differences; a pair with a NaN counts as missing, one with an infinity as infinite.

    Raises:
        InvalidScoresError: the two do not pair one to one.
    """
    return summarise(_subtract(a, b), proportion=False)


def _subtract(a: Row, b: Row) -> Scores:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise InvalidScoresError(
            f"Got scores of shapes {left.shape} and {right.shape}. Expected two equally long rows, paired by sample."
        )
    difference = np.zeros_like(left)
    np.subtract(left, right, out=difference, where=~(np.isinf(left) & (left == right)))
    return difference


# Decisions ------------------------------------------------------------------------------------------------------------


def non_inferiority(differences: Row, margin: float, level: float = 0.95) -> NonInferiority:
    """Decide whether a candidate is at most ``margin`` worse than what was accepted.

    Args:
        differences: (n,) candidate minus accepted, turned so that positive is better, one per independent sample, at
            least eight.
        margin: > 0, in the same unit: the loss that is still tolerated.
        level: of each one-sided bound, in (0.5, 1).

    Raises:
        InvalidScoresError: NaN or infinite differences, too few, a margin that is not above 0, or such a level.
    """
    scores = _checked(differences, "differences")
    _check_margin(margin)
    if not 0.5 < level < 1:
        raise InvalidScoresError(f"Got level {level}. Expected a number between 0.5 and 1, such as 0.95.")
    ((low, high),) = intervals_of([scores], 1 - level)
    if low > -margin:
        return NonInferiority("pass", low, high, None)
    if high < -margin:
        return NonInferiority("fail", low, high, None)
    distance = abs(float(scores.mean()) + margin)
    needed = _samples(float(scores.std(ddof=1)), distance, level, CHANCE)
    return NonInferiority("inconclusive", low, high, None if needed is None else max(needed, scores.size + 1))


def regression_p(differences: Row, margin: float) -> float:
    """Return the p-value of "not worse by more than the margin": small where the candidate is worse.

    It agrees with :func:`non_inferiority`: the verdict at a level is ``fail`` where this lies below one minus that
    level. Give it to :func:`holm` where several metrics may each refuse a candidate.

    Raises:
        InvalidScoresError: as in :func:`non_inferiority`.
    """
    from scipy.special import stdtr

    scores = _checked(differences, "differences")
    _check_margin(margin)
    distance = float(scores.mean()) + margin
    if standard_error(scores) == 0.0:
        return 0.0 if distance < 0 else 1.0
    observed = distance / float(scores.std())
    drawn = resample(scores[:, None])
    below = max(float(np.mean(drawn.w <= observed)), float(np.mean(drawn.bent <= drawn.bend(observed))))
    bootstrap = below + math.sqrt(below * (1 - below) / RESAMPLES) + 1 / RESAMPLES
    student = float(stdtr(scores.size - 1, observed * math.sqrt(scores.size - 1)))
    return min(1.0, max(bootstrap, student))


def holm(p_values: Row) -> Scores:
    """Return p-values adjusted for their number after Holm (1979), in the order given.

    Args:
        p_values: (k,) in [0, 1]. A hypothesis is refused where its adjusted value is at most the error rate.

    Raises:
        InvalidScoresError: a value outside [0, 1] or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InvalidScoresError("Got p-values that are no row of numbers in [0, 1].")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)).clip(max=1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def power(sd: float, n: int, difference: float | None = None, level: float = 0.95, chance: float = CHANCE) -> Power:
    """Return what ``n`` samples can show, and how many a difference needs (one-sided, normal approximation).

    Args:
        sd: standard deviation of the paired differences, >= 0, in the metric's unit.
        n: samples, at least 2.
        difference: the loss to be found, > 0, in the same unit.
        level: of the one-sided bound, in (0.5, 1).
        chance: of finding it, in (0, 1).

    Raises:
        InvalidScoresError: a value outside these ranges.
    """
    if not (math.isfinite(sd) and sd >= 0) or n < 2 or not (0.5 < level < 1) or not (0 < chance < 1):
        raise InvalidScoresError(
            f"Got sd {sd}, n {n}, level {level}, chance {chance}. Expected sd >= 0, n >= 2, level in (0.5, 1) and "
            "chance in (0, 1)."
        )
    if difference is not None:
        _check_margin(difference, "difference")
    reach = _normal_quantile(level) + _normal_quantile(chance)
    needed = None if difference is None else _samples(sd, difference, level, chance)
    return Power(reach * sd / math.sqrt(n), needed)


def noise_floor(scores: npt.ArrayLike) -> NoiseFloor:
    """Return what the seed alone changes, from several images per sample.

    Args:
        scores: (n, draws) scores of the same method: one row per sample, one column per repeat or second seed; at
            least eight rows and two columns, all finite.

    Raises:
        InvalidScoresError: another shape, NaN or infinite scores, or too few.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise InvalidScoresError(
            f"Got scores of shape {table.shape}. Expected (samples, draws) with at least two draws: --repeats 2, or a "
            "second run with another seed."
        )
    _checked(table.ravel()[: table.shape[0]], "scores")
    if not np.isfinite(table).all():
        raise InvalidScoresError("Got NaN or infinite scores. Leave out the samples that have no score in some draw.")
    n = table.shape[0]
    variance = float(table.var(axis=1, ddof=1).mean())
    mean = math.sqrt(variance / n)
    return NoiseFloor(math.sqrt(variance), mean, math.sqrt(2) * mean, n)


def _samples(sd: float, difference: float, level: float, chance: float) -> int | None:
    reach = _normal_quantile(level) + _normal_quantile(chance)
    ratio = reach * sd / difference if difference else math.inf
    return max(2, math.ceil(ratio**2)) if ratio < 1e6 else None


# What may come in -----------------------------------------------------------------------------------------------------


def _zeros_and_ones(scores: Scores) -> bool:
    return bool(((scores == 0.0) | (scores == 1.0)).all())


def _checked(values: Row, what: str) -> Scores:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1:
        raise InvalidScoresError(f"Got {what} of shape {scores.shape}. Expected one row, one number per sample.")
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise InvalidScoresError(
            f"Got {bad} of {scores.size} {what} that are NaN or infinite. Leave those samples out and count them."
        )
    if scores.size < SMALLEST:
        raise InvalidScoresError(f"Got {scores.size} {what}. Expected at least {SMALLEST}: fewer carry no interval.")
    return scores


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InvalidScoresError(f"Got level {level}. Expected a number between 0 and 1, such as 0.95.")


def _check_margin(margin: float, what: str = "margin") -> None:
    if not (math.isfinite(margin) and margin > 0):
        raise InvalidScoresError(f"Got {what} {margin}. Expected a finite number above 0, in the metric's own unit.")
