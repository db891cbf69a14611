"""Which damage does a metric see? References are damaged on purpose, and each metric says which image is worse."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from brushbench.errors import UsageError
from brushbench.evaluation.answers import ask
from brushbench.evaluation.columns import load_columns
from brushbench.evaluation.scoring import Scoring
from brushbench.features import Features
from brushbench.progress import track
from brushbench.stats import wilson
from brushbench.types import Benchmark, Metric, Picture, Sample, Score, Unscored, sample_seed

__all__ = ["DAMAGES", "Finding", "audit", "to_markdown"]

Question: TypeAlias = "tuple[Picture, Sample]"
Damage: TypeAlias = "Callable[[Sample, Sample, np.random.Generator], Question]"  # of a sample, another one, chance
LEAST = 8  # samples below which a verdict says nothing


@dataclass(frozen=True)
class Finding:
    """What one metric makes of one damage.

    Attributes:
        metric: the column, ``name@protocol``.
        damage: a key of :data:`DAMAGES`.
        n: samples that were scored whole and damaged.
        worse: of them, those whose damaged picture scored strictly worse.
        better: strictly better.
        low, high: 95 % interval (Wilson) of the share that scored worse.
        largest: largest change of a score, in the metric's unit; infinite where a perfect score is.
        verdict: ``detects`` if the interval lies above one half, ``inverted`` if the damaged picture is better in
            more than half, else ``blind``; ``too few`` below 8 samples.
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


def audit(
    benchmark: Benchmark, scoring: Scoring | None = None, damages: Sequence[str] | None = None, batch: int = 8
) -> tuple[list[Finding], dict[str, str]]:
    """Score every reference of a benchmark whole and damaged.

    Args:
        benchmark: at least two samples; the next one serves as the other where a damage needs one.
        scoring: which metrics, and with which weights.
        damages: names of :data:`DAMAGES`; ``None`` takes all.
        batch: samples scored at once.

    Returns:
        A finding per metric and damage, and the metrics that are unavailable, with the way to get them.

    Raises:
        UsageError: an unknown damage, or a benchmark of a single sample.
    """
    chosen = list(DAMAGES) if damages is None else list(damages)
    if unknown := [name for name in chosen if name not in DAMAGES]:
        raise UsageError(f"Unknown damage {unknown[0]!r}. Known: {', '.join(DAMAGES)}.")
    if len(benchmark) < 2:
        raise UsageError("An audit needs two samples or more: raise --limit, or name a larger benchmark.")
    columns, unavailable = load_columns(scoring or Scoring(), benchmark)
    features = Features()
    changes: dict[tuple[str, str], list[float]] = {(c.name, d): [] for c in columns for d in chosen}
    batches = [range(start, min(start + batch, len(benchmark))) for start in range(0, len(benchmark), batch)]
    for places in track(batches, "audit", len):
        samples = [benchmark[i] for i in places]
        others = [_other(benchmark, i, sample) for i, sample in zip(places, samples, strict=True)]
        whole = {c.name: ask(c.metric, [s.image for s in samples], samples, features) for c in columns}
        for damage in chosen:
            asked = [
                DAMAGES[damage](s, o, np.random.default_rng(sample_seed(0, s.id)))
                for s, o in zip(samples, others, strict=True)
            ]
            for column in columns:
                scores = ask(column.metric, [p for p, _ in asked], [s for _, s in asked], features)
                changes[column.name, damage] += _changes(column.metric, whole[column.name], scores)
    return [_finding(column, damage, values) for (column, damage), values in changes.items()], unavailable


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


def _changes(metric: Metric, whole: Sequence[Score], damaged: Sequence[Score]) -> list[float]:
    """Return how much worse each damaged picture scored, positive for worse, of pairs that are both scored."""
    sign = 1.0 if metric.higher_is_better else -1.0
    found = []
    for a, b in zip(whole, damaged, strict=True):
        if not isinstance(a, Unscored) and not isinstance(b, Unscored):
            found.append(0.0 if a == b else sign * (float(a) - float(b)))
    return found


def _finding(metric: str, damage: str, changes: Sequence[float]) -> Finding:
    n, worse, better = len(changes), sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    if not n:
        return Finding(metric, damage, 0, 0, 0, math.nan, math.nan, math.nan, "too few")
    low, high = wilson(worse, n)
    verdict = "blind"
    if n < LEAST:
        verdict = "too few"
    elif low > 0.5:
        verdict = "detects"
    elif wilson(better, n).low > 0.5:
        verdict = "inverted"
    return Finding(metric, damage, n, worse, better, low, high, max(map(abs, changes)), verdict)


def to_markdown(findings: Sequence[Finding]) -> str:
    """Return a table: a row per damage, a column per metric; the share that scored worse, and the verdict in words."""
    metrics = list(dict.fromkeys(f.metric for f in findings))
    cells = {(f.metric, f.damage): f for f in findings}
    lines = [
        "| damage | " + " | ".join(metric.removesuffix("@standard").replace("_", " ") for metric in metrics) + " |",
        "| --- |" + " ---: |" * len(metrics),
    ]
    for damage in dict.fromkeys(f.damage for f in findings):
        shown = []
        for metric in metrics:
            one = cells[metric, damage]
            text = f"{one.worse}/{one.n}"
            words = {"detects": text, "inverted": f"**{text} inverted**"}
            shown.append(words.get(one.verdict, f"{text} {one.verdict}"))
        lines.append(f"| {damage} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def to_json(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """Return findings as JSON; an infinite or missing number is ``None``."""
    rows = [asdict(finding) for finding in findings]
    return [{k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()} for row in rows]


# Damages ------------------------------------------------------------------------------------------------------------


def _in_hole(sample: Sample, changed: npt.NDArray[np.generic], whole: bool = False) -> Question:
    values = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
    return (values if whole else np.where(sample.hole[..., None], values, sample.image)), sample


def _blurred(sample: Sample, sd: float) -> Question:
    return _in_hole(sample, np.asarray(Image.fromarray(sample.image).filter(ImageFilter.GaussianBlur(sd))))


def _jpeg(sample: Sample, quality: int) -> Question:
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "JPEG", quality=quality)
    return _in_hole(sample, np.asarray(Image.open(buffer, formats=["JPEG"])))


def _noisy(sample: Sample, rng: np.random.Generator, sd: float) -> Question:
    return _in_hole(sample, sample.image + rng.normal(0, sd, sample.image.shape))


def _scaled(sample: Sample, what: str, factor: float, whole: bool) -> Question:
    image = sample.image.astype(np.float64)
    grey = {"brightness": 0.0, "contrast": image.mean(), "saturation": image.mean(axis=2, keepdims=True)}[what]
    return _in_hole(sample, grey + factor * (image - grey), whole)


def _neighbour(sample: Sample) -> Question:
    """Copy what lies beside the hole into it, by its own width."""
    columns = np.flatnonzero(sample.hole.any(axis=0))
    shift = int(columns[-1] - columns[0] + 1) if columns.size else 1
    return _in_hole(sample, np.roll(sample.image, min(shift, sample.image.shape[1] // 2), axis=1))


def _moved_hole(sample: Sample) -> Question:
    step = max(1, round(16 * min(sample.hole.shape) / 512))
    return sample.image, replace(sample, hole=np.roll(sample.hole, (step, step), axis=(0, 1)))


def _enlarged(sample: Sample) -> Question:
    height, width = sample.image.shape[:2]
    middle = sample.image[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return np.asarray(Image.fromarray(middle).resize((width, height), Image.Resampling.BICUBIC)), sample


def _toned(what: str, factor: float, whole: bool) -> Damage:
    return lambda sample, _, __: _scaled(sample, what, factor, whole)


DAMAGES: dict[str, Damage] = {
    "blur 1": lambda s, _, __: _blurred(s, 1.0),
    "blur 2": lambda s, _, __: _blurred(s, 2.0),
    "blur 4": lambda s, _, __: _blurred(s, 4.0),
    "JPEG 50": lambda s, _, __: _jpeg(s, 50),
    "JPEG 20": lambda s, _, __: _jpeg(s, 20),
    "noise 5": lambda s, _, rng: _noisy(s, rng, 5.0),
    "noise 15": lambda s, _, rng: _noisy(s, rng, 15.0),
    **{
        f"{what} x{factor} {'everywhere' if whole else 'in the hole'}": _toned(what, factor, whole)
        for what in ("brightness", "contrast", "saturation")
        for factor in (0.8, 1.2)
        for whole in (False, True)
    },
    "step of 12 levels": lambda s, _, __: _in_hole(s, s.image + 12.0),
    "neighbourhood copied in": lambda s, _, __: _neighbour(s),
    "another image's content": lambda s, o, _: _in_hole(s, o.image),
    "grey hole": lambda s, _, __: _in_hole(s, np.full_like(s.image, 127)),
    "black image": lambda s, _, __: (np.zeros_like(s.image), s),
    "another image's caption": lambda s, o, _: (s.image, replace(s, prompt=o.prompt)),
    "hole moved": lambda s, _, __: _moved_hole(s),
    "middle enlarged twice": lambda s, _, __: _enlarged(s),
}
