"""Which damage does a metric see? References are damaged on purpose, and each metric says which image is worse."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from brushbench.errors import UsageError
from brushbench.evaluation.answers import ask
from brushbench.evaluation.columns import Column, load_columns
from brushbench.evaluation.damages import DAMAGES, ORDERS, is_for, levels
from brushbench.evaluation.scoring import Scoring
from brushbench.features import Features
from brushbench.outcome import FAULT
from brushbench.pictures import encode_png, open_picture, to_rgb
from brushbench.progress import track
from brushbench.stats import wilson
from brushbench.types import JSON, Benchmark, Metric, Picture, Sample, Score, Unscored, sample_seed

__all__ = ["Audit", "Audited", "Finding", "Stability", "audit"]

LEAST = 8  # samples below which a verdict says nothing
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """What one metric makes of one damage.

    Attributes:
        metric: the column, ``name@protocol``.
        damage: a key of :data:`DAMAGES` or :data:`ORDERS`.
        n: samples that were scored whole and damaged; of an order: under both damages.
        worse: of them, those whose damaged picture scored strictly worse; of an order: the worse of the two.
        better: strictly better.
        low, high: 95 % interval (Wilson) of the share that scored worse.
        largest: largest change of a score, in the metric's unit; infinite where a perfect score is.
        verdict: ``detects`` if the interval lies above one half, ``inverted`` if the damaged picture is better in
            more than half, else ``blind``; ``too few`` below 8 samples.
        asked: whether the metric is there to see this kind of damage.
    """

    metric: str
    damage: str
    n: int
    worse: int
    better: int
    low: float
    high: float
    largest: float
    verdict: str
    asked: bool


@dataclass(frozen=True)
class Stability:
    """How far a metric's scores move where nothing that anyone sees has changed.

    Scored are the references with noise of 5 levels everywhere, so that no score is perfect.

    Attributes:
        metric: the column, ``name@protocol``.
        change: ``batch size`` (one by one, against all at once), ``PNG`` (written and read back), ``1 grey level``
            (each value one up or down), ``resized by 1 pixel`` (and back, Pillow's bicubic).
        n: samples scored before and after.
        largest: largest change of a score, in the metric's unit.
        spread: standard deviation of the scores themselves.
    """

    metric: str
    change: str
    n: int
    largest: float
    spread: float


@dataclass(frozen=True)
class Audited:
    """A metric of an audit.

    Attributes:
        description: what its scores depend on: settings, hashes of weights.
        region: which pixels it judges.
        seconds: per image, over all damages; what metrics share is counted for the first of them.
        identical: mean score of the references themselves.
        worst: the damage of the largest mean change for the worse, and the mean score there.
    """

    description: Mapping[str, JSON]
    region: str
    seconds: float
    identical: float
    worst: tuple[str, float]


@dataclass(frozen=True)
class Audit:
    """The result of :func:`audit`.

    Attributes:
        benchmark, splits, images: what was damaged.
        columns: by ``name@protocol``.
        findings: per metric and damage.
        stability: per metric and harmless change.
        unavailable: metrics without weights here, with the way to get them.
        faults: by column, why the metric itself failed: one reason per score that is missing.
    """

    benchmark: str
    splits: tuple[str, ...]
    images: int
    columns: Mapping[str, Audited]
    findings: tuple[Finding, ...]
    stability: tuple[Stability, ...]
    unavailable: Mapping[str, str]
    faults: Mapping[str, Sequence[str]]


def audit(
    benchmark: Benchmark, scoring: Scoring | None = None, damages: Sequence[str] | None = None, batch: int = 8
) -> Audit:
    """Score every reference of a benchmark whole and damaged.

    Args:
        benchmark: at least two samples; the next one serves as the other where a damage needs one.
        scoring: which metrics, and with which weights.
        damages: names of :data:`DAMAGES`; ``None`` takes all.
        batch: samples scored at once.

    Raises:
        UsageError: an unknown damage, or a benchmark of a single sample.
    """
    chosen = list(DAMAGES) if damages is None else list(damages)
    if unknown := [name for name in chosen if name not in DAMAGES]:
        raise UsageError(f"Unknown damage {unknown[0]!r}. Known: {', '.join(DAMAGES)}.")
    if len(benchmark) < 2:
        raise UsageError("An audit needs two samples or more: raise --limit, or name a larger benchmark.")
    columns, unavailable = load_columns(scoring or Scoring(), benchmark)
    sheet = _Sheet(columns)
    batches = [range(start, min(start + batch, len(benchmark))) for start in range(0, len(benchmark), batch)]
    for places in track(batches, "audit", len):
        samples = [benchmark[i] for i in places]
        others = [_other(benchmark, i, sample) for i, sample in zip(places, samples, strict=True)]
        sheet.ask("", [s.image for s in samples], samples)
        for damage in chosen:
            make = DAMAGES[damage].make
            asked = [make(s, o, _rng(s)) for s, o in zip(samples, others, strict=True)]
            sheet.ask(damage, [p for p, _ in asked], [s for _, s in asked])
        _ask_unchanged(sheet, samples)
    orders = [name for name, order in ORDERS.items() if {order.worse, order.better} <= set(chosen)]
    return Audit(
        benchmark.name,
        tuple(dict.fromkeys(benchmark[i].split for i in range(len(benchmark)))),
        len(benchmark),
        {column.name: _audited(column, sheet, chosen) for column in columns},
        tuple(_finding(column.metric, column.name, name, sheet) for column in columns for name in [*chosen, *orders]),
        tuple(_stability(column.name, change, sheet) for column in columns for change in CHANGES),
        unavailable,
        dict(sheet.faults),
    )


def _rng(sample: Sample) -> np.random.Generator:
    return np.random.default_rng(sample_seed(0, sample.id))


def _other(benchmark: Benchmark, place: int, sample: Sample) -> Sample:
    """Return the next sample of another picture, brought to this one's size."""
    for step in range(1, len(benchmark)):
        other = benchmark[(place + step) % len(benchmark)]
        if other.id != sample.id:
            size = sample.image.shape[1::-1]
            hole = cv2.resize(other.hole.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            image = np.asarray(Image.fromarray(other.image).resize(size, Image.Resampling.BICUBIC))
            return replace(other, image=image, hole=np.asarray(hole))
    raise UsageError("An audit needs samples of two pictures or more: raise --limit, or name a larger benchmark.")


# Scores -------------------------------------------------------------------------------------------------------------


class _Sheet:
    """Scores by column and by what was done to the images, in the order of the samples; NaN where there is none."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.features = Features()
        self.scores: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.asked: defaultdict[str, int] = defaultdict(int)
        self.faults: defaultdict[str, list[str]] = defaultdict(list)

    def ask(self, what: str, pictures: Sequence[Picture], samples: Sequence[Sample], batch: int | None = None) -> None:
        """Score images under every column, all at once or ``batch`` at a time."""
        size = batch or len(pictures)
        for column in self.columns:
            start = time.perf_counter()
            for i in range(0, len(pictures), size):
                answers = ask(column.metric, pictures[i : i + size], samples[i : i + size], self.features)
                self.scores[column.name, what] += map(_number, answers)
                for answer in answers:
                    if isinstance(answer, Unscored) and answer.reason.startswith(FAULT):
                        self.faults[column.name].append(answer.reason)
            self.seconds[column.name] += time.perf_counter() - start
            self.asked[column.name] += len(pictures)

    def values(self, column: str, what: str) -> Values:
        return np.array(self.scores[column, what], dtype=np.float64)


def _number(score: Score) -> float:
    return math.nan if isinstance(score, Unscored) else float(score)


def _worse_by(metric: Metric, before: Values, after: Values) -> Values:
    """Return how much worse scores are after, positive for worse, of those that are there both times."""
    both = ~np.isnan(before) & ~np.isnan(after)
    sign = 1.0 if metric.higher_is_better else -1.0
    with np.errstate(invalid="ignore"):  # of two infinities: equal
        return np.where(before[both] == after[both], 0.0, sign * (before[both] - after[both]))


def _finding(metric: Metric, column: str, name: str, sheet: _Sheet) -> Finding:
    order = ORDERS.get(name)
    before, after = (order.better, order.worse) if order else ("", name)
    changes = _worse_by(metric, sheet.values(column, before), sheet.values(column, after))
    asked = is_for(metric, "order" if order else DAMAGES[name].kind)
    n, worse, better = len(changes), int((changes > 0).sum()), int((changes < 0).sum())
    if not n:
        return Finding(column, name, 0, 0, 0, math.nan, math.nan, math.nan, "too few", asked)
    low, high = wilson(worse, n)
    verdict = "blind"
    if n < LEAST:
        verdict = "too few"
    elif low > 0.5:
        verdict = "detects"
    elif wilson(better, n).low > 0.5:
        verdict = "inverted"
    return Finding(column, name, n, worse, better, low, high, float(np.abs(changes).max()), verdict, asked)


def _audited(column: Column, sheet: _Sheet, damages: Sequence[str]) -> Audited:
    means = {name: _mean(sheet.values(column.name, name)) for name in ["", *damages]}
    sign = -1.0 if column.metric.higher_is_better else 1.0
    worst = max(damages, key=lambda name: -math.inf if math.isnan(means[name]) else sign * means[name], default="")
    seconds = sheet.seconds[column.name] / max(sheet.asked[column.name], 1)
    return Audited(column.description, column.metric.region, seconds, means[""], (worst, means[worst]))


def _mean(values: Values) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


# Stability ----------------------------------------------------------------------------------------------------------


def _ask_unchanged(sheet: _Sheet, samples: Sequence[Sample]) -> None:
    """Score images before and after changes that nobody sees."""
    noisy = [levels(s.image + _rng(s).normal(0, 5, s.image.shape)) for s in samples]
    sheet.ask("noise", noisy, samples)
    sheet.ask("batch size", noisy, samples, batch=1)
    for change, make in CHANGES.items():
        if make is not None:
            sheet.ask(change, [make(p, _rng(s)) for p, s in zip(noisy, samples, strict=True)], samples)


def _as_png(picture: Picture, _: np.random.Generator) -> Picture:
    with open_picture(encode_png(picture), "PNG") as image:
        return to_rgb(image)


def _one_level(picture: Picture, rng: np.random.Generator) -> Picture:
    return levels(picture + rng.choice([-1.0, 1.0], picture.shape))


def _resized(picture: Picture, _: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    larger = Image.fromarray(picture).resize((width + 1, height + 1), Image.Resampling.BICUBIC)
    return np.asarray(larger.resize((width, height), Image.Resampling.BICUBIC))


CHANGES = {"batch size": None, "PNG": _as_png, "1 grey level": _one_level, "resized by 1 pixel": _resized}


def _stability(column: str, change: str, sheet: _Sheet) -> Stability:
    before, after = sheet.values(column, "noise"), sheet.values(column, change)
    both = np.isfinite(before) & np.isfinite(after)
    moved = np.abs(after[both] - before[both])
    if not moved.size:
        return Stability(column, change, 0, math.nan, math.nan)
    return Stability(column, change, int(moved.size), float(moved.max()), float(before[both].std()))
