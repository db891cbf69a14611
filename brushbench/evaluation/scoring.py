"""Scores: make the variants, compute every column batch by batch, merge what is complete."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from brushbench import registry
from brushbench.devices import check_device
from brushbench.engines.shard import Shard
from brushbench.errors import MissingWeightsError, RunError, UnknownNameError, UsageError
from brushbench.evaluation.loading import load_metric
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.features import Features
from brushbench.progress import track
from brushbench.runs import Run
from brushbench.store import PictureRow, RunFolder, ScoreRow
from brushbench.types import JSON, PROTOCOLS, Benchmark, Capabilities, Metric, Picture, Sample, Score, Unscored
from brushbench.variants import VARIANTS, make_variant
from brushbench.weights import HUB_ID

if TYPE_CHECKING:
    import pandas

__all__ = ["CAPTION_CUT", "Scoring", "choose_columns", "choose_variants", "score"]

CAPTION_CUT = "the caption is longer than the model reads and was cut"  # beside a score, not in its place


@dataclass(frozen=True)
class Scoring:
    """How pictures are scored. Not part of a run's identity: a run is scored as often as one likes.

    Attributes:
        metrics: ``"auto"``, ``"none"``, or names, each with ``@standard`` or ``@brushnet-paper`` where one is meant.
        variants: ``"auto"`` (raw, and blended unless the method keeps the background exact), or names.
        weights: where a metric's weights are, by metric name: hub id, folder or file. A metric that is not named looks
            in the caches, but on ``shapes`` takes this repository's own small models.
        device: of the metric models.
        dtype: of the metric models.
        low_memory: keep one metric model in memory at a time; slower.
        features: what several calls share: models, captions, references; ``None`` starts afresh.
    """

    metrics: str | Sequence[str] = "auto"
    variants: str | Sequence[str] = "auto"
    weights: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    dtype: str = "float32"
    low_memory: bool = False
    features: Features | None = None  # share captions, models and references with other calls

    def __post_init__(self) -> None:
        """Refuse weights that no metric reads or that are not there, and such a device, before any work."""
        check_device(self.device)
        for name, place in self.weights.items():
            metric = registry.resolve("metric", name)
            if "weights" not in registry.option_names(metric):
                raise UsageError(f"Metric {name!r} needs no weights. Leave --weights {name}= out.")
            fetched = HUB_ID.fullmatch(place) and not Path(place).exists()
            missing = None if fetched or not hasattr(metric, "available") else metric.available(place)
            if missing:
                raise UsageError(f"--weights {name}={place}: {missing}")


@dataclass(frozen=True)
class Column:
    """One metric under one protocol, ready to compute."""

    metric: Metric

    @property
    def name(self) -> str:
        """``metric@protocol``."""
        return f"{self.metric.name}@{self.metric.protocol}"

    def part(self, variants: Sequence[str]) -> str:
        """Name of the folder in which this column's scores wait: it changes with the settings and the weights."""
        identity = json.dumps([dict(self.metric.describe()), list(variants)], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def score(
    folder: RunFolder, benchmark: Benchmark, scoring: Scoring, shard: Shard | None = None, redo: bool = False
) -> dict[str, str]:
    """Compute columns for every picture of a shard, and merge what is complete; other columns stay as they are.

    Args:
        folder: a run whose pictures are made.
        benchmark: the one it was made on.
        scoring: what to compute, and with which weights.
        shard: the part of the plan that is scored here; the last shard to finish merges.
        redo: compute columns again that are already there.

    Returns:
        Columns that could not be had, with the way to get them.

    Raises:
        RunError: pictures are not made yet.
    """
    shard = shard or Shard()
    run = Run(folder)
    plan = make_plan(benchmark.keys, run.config.batch_size, run.config.repeats)
    mine = shard.take(plan)
    left = [batch.number for batch in mine if not folder.finished(batch.number)]
    if left:
        raise RunError(
            f"{folder.path} lacks {len(left)} of {len(mine)} batches. Finish it with the `brushbench eval` command "
            "that began it, then score."
        )
    variants = choose_variants(scoring.variants, Capabilities(**run.header["capabilities"]))
    pairs = choose_columns(scoring.metrics)
    if scoring.metrics == "auto":
        pairs = [pair for pair in pairs if _suits(pair, benchmark)]
    if not redo:
        pairs = [p for p in pairs if not _is_complete(folder, p, variants, len(benchmark) * run.config.repeats)]
    unavailable: dict[str, str] = {}
    features = scoring.features or Features(low_memory=scoring.low_memory)
    for group in [[pair] for pair in pairs] if scoring.low_memory else [pairs]:
        columns = list(_load(group, scoring, benchmark, unavailable))
        with folder.lock(f"score-{shard}"):
            _score_columns(folder, benchmark, run.config.name, mine, columns, variants, features)
        for column in columns:
            _merge_if_complete(folder, column, variants, plan)
    for name, reason in unavailable.items():
        if name not in folder.metric_headers():
            folder.record_metric(name, {"unavailable": reason})
    return unavailable


def _load(
    pairs: Sequence[tuple[str, str]], scoring: Scoring, benchmark: Benchmark, unavailable: dict[str, str]
) -> Iterator[Column]:
    for name, protocol in pairs:
        weights = scoring.weights.get(name) or _own_weights(name, benchmark)
        try:
            yield Column(load_metric(name, protocol, weights, scoring.device, scoring.dtype))
        except MissingWeightsError as error:
            if name in scoring.weights:  # asked for by name: not to be passed over
                raise
            unavailable[f"{name}@{protocol}"] = str(error)


def _score_columns(
    folder: RunFolder,
    benchmark: Benchmark,
    title: str,
    batches: Sequence[Batch],
    columns: Sequence[Column],
    variants: Sequence[str],
    features: Features,
) -> None:
    parts = {column: column.part(variants) for column in columns}
    todo = [b for b in batches if any(not folder.part(part, b.number).is_file() for part in parts.values())]
    for batch in track(todo, f"{title}: score", lambda b: len(b.indexes)):
        rows = folder.rows(batch.number)
        samples = [benchmark[i] for i in batch.indexes]
        pictures = [folder.picture(row) if row.state == "ok" else None for row in rows]
        made = {
            v: [make_variant(v, p, s) for p, s in zip(pictures, samples, strict=True) if p is not None]
            for v in variants
        }
        for column, part in parts.items():
            if not folder.part(part, batch.number).is_file():
                scored = [r for v in variants for r in _score_batch(column.metric, v, made[v], rows, samples, features)]
                folder.commit_scores(part, batch.number, scored)


def _score_batch(
    metric: Metric,
    variant: str,
    pictures: Sequence[Picture],
    rows: Sequence[PictureRow],
    samples: Sequence[Sample],
    features: Features,
) -> list[ScoreRow]:
    good = [sample for row, sample in zip(rows, samples, strict=True) if row.state == "ok"]
    values = iter(metric(pictures, good, features)) if good else iter(())
    was_cut = getattr(metric, "was_cut", lambda _: False)
    result = []
    for row, sample in zip(rows, samples, strict=True):
        value: Score = next(values) if row.state == "ok" else Unscored(f"{row.state}: {row.reason}")
        if isinstance(value, float) and math.isnan(value):
            value = Unscored("the metric returned NaN")
        number, reason = (None, value.reason) if isinstance(value, Unscored) else (float(value), "")
        if number is not None and was_cut(sample.prompt):
            reason = CAPTION_CUT
        prompt_variant = sample.meta.get("prompt_variant", "caption")
        key = (sample.id, sample.split, prompt_variant, row.repeat, variant, metric.name, metric.protocol)
        result.append(ScoreRow(*key, number, reason))
    return result


def _merge_if_complete(folder: RunFolder, column: Column, variants: Sequence[str], plan: Sequence[Batch]) -> None:
    part = column.part(variants)
    if len(folder.scored_batches(part)) != len(plan):
        return
    metric = column.metric

    def describe(scores: pandas.DataFrame) -> dict[str, JSON]:
        return {
            **metric.describe(),
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "region": metric.region,
            "variants": list(variants),
            "captions_cut": int(scores[scores["reason"] == CAPTION_CUT]["sample"].nunique()),
        }

    folder.merge(part, column.name, describe)


def choose_columns(metrics: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return (metric, protocol) pairs for ``"auto"``, ``"psnr,lpips@standard"`` or a list of such names.

    ``auto`` takes every registered metric under the protocols it computes unasked; a bare name likewise.

    Raises:
        UnknownNameError: no such metric.
        UsageError: a protocol that the metric does not have, or no metric at all.
    """
    if metrics == "none":
        return []
    if metrics == "auto":
        asked = registry.names("metric")
    else:
        asked = [part.strip() for part in (metrics.split(",") if isinstance(metrics, str) else metrics) if part.strip()]
    if not asked:
        raise UsageError("No metric was named. Write --metrics auto, or names such as psnr,lpips@brushnet-paper.")
    pairs: list[tuple[str, str]] = []
    for text in asked:
        name, at, protocol = text.partition("@")
        cls = registry.resolve("metric", name)
        known = tuple(getattr(cls, "protocols", PROTOCOLS))
        if at and protocol not in known:
            raise UsageError(f"Metric {name!r} has no protocol {protocol!r}. It has {', '.join(known)}.")
        pairs += [(name, p) for p in ([protocol] if at else getattr(cls, "auto_protocols", known))]
    return list(dict.fromkeys(pairs))


def choose_variants(variants: str | Sequence[str], capabilities: Capabilities) -> list[str]:
    """Return the variants to score; ``auto`` is raw, and blended where blending changes anything worth a row.

    Raises:
        UnknownNameError: no such variant.
    """
    if variants == "auto":
        blendable = capabilities.background != "exact" and not capabilities.needs_reference
        return ["raw", "blended"] if blendable else ["raw"]
    asked = [v.strip() for v in variants.split(",")] if isinstance(variants, str) else list(variants)
    for variant in asked:
        if variant not in VARIANTS:
            raise UnknownNameError("variant", variant, VARIANTS)
    return list(dict.fromkeys(asked))


def _own_weights(name: str, benchmark: Benchmark) -> str | None:
    """Return ``"tiny"`` where the benchmark is judged by this repository's own small models, on every machine alike."""
    has_tiny = any(need.tiny for need in getattr(registry.resolve("metric", name), "needs", ()))
    return getattr(benchmark, "metric_weights", None) if has_tiny else None


def _suits(pair: tuple[str, str], benchmark: Benchmark) -> bool:
    """Whether a metric means something on a benchmark: it may name what a sample's ``meta`` must carry."""
    needed = getattr(registry.resolve("metric", pair[0]), "required_meta", ())
    return not needed or all(key in benchmark[0].meta for key in needed)


def _is_complete(folder: RunFolder, pair: tuple[str, str], variants: Sequence[str], pictures: int) -> bool:
    """Whether a column is already there for every picture and variant."""
    header = folder.metric_headers().get(f"{pair[0]}@{pair[1]}", {})
    if "unavailable" in header or not set(variants) <= set(header.get("variants", [])):
        return False
    scores = folder.scores()
    mine = scores[(scores["metric"] == pair[0]) & (scores["protocol"] == pair[1])]
    return len(mine) == pictures * len(header["variants"])
