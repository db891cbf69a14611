"""Scores: make the variants, compute every column batch by batch, merge what is complete."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from brushbench import registry
from brushbench.devices import check_device
from brushbench.engines.shard import Shard
from brushbench.errors import DataError, RunError, UnknownNameError, UsageError, printable, reason_of
from brushbench.evaluation.answers import ask
from brushbench.evaluation.columns import Column, load_columns
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.features import Features
from brushbench.metrics.plugins import metric_class
from brushbench.progress import track
from brushbench.runs import Run
from brushbench.store import PictureRow, RunFolder, ScoreRow
from brushbench.types import Benchmark, Capabilities, Metric, Picture, Sample, Score, Scored, Unscored
from brushbench.variants import VARIANTS, make_variant
from brushbench.weights import is_hub_id

NO_CAPTION, NO_SAMPLE = Unscored("the caption is missing"), Unscored("the record cannot be read")

__all__ = ["Scoring", "choose_variants", "score"]


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
            metric = metric_class(name)
            if "weights" not in registry.option_names(metric):
                raise UsageError(f"Metric {name!r} needs no weights. Leave --weights {name}= out.")
            missing = None if is_hub_id(place) else metric.available(place)
            if missing:
                raise UsageError(f"--weights {name}={place}: {missing}")


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
        Columns that are unavailable, with the way to get them.

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
    variants = choose_variants(scoring.variants, run.header.capabilities)
    columns, unavailable = load_columns(scoring, benchmark)
    pictures = len(benchmark) * run.config.repeats
    # `redo` computes what is asked for again; what other settings left in the column has to go in any case.
    todo = {c: c.missing_variants(folder, variants, pictures) for c in columns}
    if redo:
        todo = {c: list(dict.fromkeys([*missing, *variants])) for c, missing in todo.items()}
    todo = {c: missing for c, missing in todo.items() if missing}
    features = scoring.features or Features(low_memory=scoring.low_memory)
    for group in [{c: v} for c, v in todo.items()] if scoring.low_memory else [todo]:
        with folder.lock(f"score-{shard}"):
            _score_columns(folder, benchmark, run.config.name, mine, group, features)
        for column, missing in group.items():
            _merge_if_complete(folder, column, missing, plan)
    for name, reason in unavailable.items():
        if name not in folder.metric_headers():
            folder.record_metric(name, {"unavailable": reason})
    return unavailable


def _score_columns(
    folder: RunFolder,
    benchmark: Benchmark,
    title: str,
    batches: Sequence[Batch],
    columns: Mapping[Column, Sequence[str]],
    features: Features,
) -> None:
    """Score batches under each column's variants; what waits to be merged already is not computed again."""
    parts = {column: column.part(variants) for column, variants in columns.items()}
    todo = [b for b in batches if any(not folder.part(part, b.number).is_file() for part in parts.values())]
    for batch in track(todo, f"{title}: score", lambda b: len(b.indexes)):
        answered = [_Answered.read(folder, row, benchmark, i) for row, i in _rows_of(folder, batch)]
        made = {
            variant: [one.made(variant) for one in answered]
            for variant in dict.fromkeys(v for variants in columns.values() for v in variants)
        }
        for column, variants in columns.items():
            if not folder.part(parts[column], batch.number).is_file():
                scored = [r for v in variants for r in _score_batch(column.metric, v, made[v], answered, features)]
                folder.commit_scores(parts[column], batch.number, scored)


def _rows_of(folder: RunFolder, batch: Batch) -> list[tuple[PictureRow, int]]:
    return list(zip(folder.rows(batch.number), batch.indexes, strict=True))


@dataclass(frozen=True)
class _Answered:
    """One picture of a batch beside the sample that it answers, or why there is nothing to score."""

    row: PictureRow
    picture: Picture | Unscored
    sample: Sample | Unscored

    @classmethod
    def read(cls, folder: RunFolder, row: PictureRow, benchmark: Benchmark, index: int) -> _Answered:
        picture = folder.picture(row) if row.state == "ok" else Unscored(f"{row.state}: {row.reason}")
        try:
            sample = benchmark[index]
            sample.image.setflags(write=False)
            sample.hole.setflags(write=False)
            return cls(row, picture, sample)
        except DataError as error:  # found late: it costs this sample, not the run
            return cls(row, picture, Unscored(f"the record cannot be read: {printable(str(error))}"))

    def made(self, variant: str) -> Picture | Unscored:
        """Return the picture under a variant."""
        if isinstance(self.picture, Unscored):
            return self.picture
        if isinstance(self.sample, Unscored):
            return self.sample
        try:
            picture = make_variant(variant, self.picture, self.sample)
            picture.setflags(write=False)  # every metric gets the same array: none may change it for the next
            return picture
        except Exception as error:  # blending and encoding libraries raise kinds of their own
            return Unscored(f"the variant {variant} could not be made: {reason_of(error)}")


def _score_batch(
    metric: Metric,
    variant: str,
    made: Sequence[Picture | Unscored],
    answered: Sequence[_Answered],
    features: Features,
) -> list[ScoreRow]:
    pictures, samples, places = [], [], []
    scores: dict[int, Score] = {}
    for place, (picture, one) in enumerate(zip(made, answered, strict=True)):
        if isinstance(picture, Unscored) or isinstance(one.sample, Unscored):
            scores[place] = picture if isinstance(picture, Unscored) else NO_SAMPLE
        elif metric.reads_caption and not one.sample.prompt.strip():  # a model would score the empty text
            scores[place] = NO_CAPTION
        else:
            pictures.append(picture)
            samples.append(one.sample)
            places.append(place)
    scores.update(zip(places, ask(metric, pictures, samples, features), strict=True))
    result = []
    for place, one in enumerate(answered):
        value = scores[place]
        number, reason = (None, value.reason) if isinstance(value, Unscored) else (float(value), "")
        if isinstance(value, Scored):
            reason = value.remark
        meta = {} if isinstance(one.sample, Unscored) else one.sample.meta
        prompt_variant = meta.get("prompt_variant", "caption")
        key = (one.row.sample, one.row.split, prompt_variant, one.row.repeat, variant, metric.name, metric.protocol)
        result.append(ScoreRow(*key, number, reason))
    return result


def _merge_if_complete(folder: RunFolder, column: Column, variants: Sequence[str], plan: Sequence[Batch]) -> None:
    part = column.part(variants)
    if len(folder.scored_batches(part)) != len(plan):
        return
    before = folder.metric_headers().get(column.name, {})
    held = before["variants"] if column.matches(before) and "variants" in before else []
    folder.merge(part, column.name, functools.partial(column.header, list(dict.fromkeys([*held, *variants]))))


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
