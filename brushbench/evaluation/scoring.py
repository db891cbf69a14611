"""Scores: make the variants, compute every column batch by batch, merge what is complete."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from brushbench import registry
from brushbench.devices import allow_tf32, check_device
from brushbench.engines.shard import Others, Shard
from brushbench.errors import (
    DataError,
    RunError,
    RunLockedError,
    UnknownNameError,
    UsageError,
    WeightsError,
    printable,
    reason_of,
)
from brushbench.evaluation.answers import ask
from brushbench.evaluation.behind import Behind
from brushbench.evaluation.columns import Column, check_plugins, for_cli, load_columns, stored_rows
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.evaluation.sets import score_sets
from brushbench.features import Features
from brushbench.metrics.plugins import load_metric, metric_class
from brushbench.progress import track
from brushbench.records import ColumnScores, PictureKey, PictureRow, ScoreRow
from brushbench.runs import Run
from brushbench.store import RunFolder
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
        """Refuse, before any work, an unusable device, weights or metric of one's own."""
        check_device(self.device)
        for name, place in self.weights.items():
            metric = metric_class(name)
            if "weights" not in registry.option_names(metric):
                raise UsageError(f"Metric {name!r} needs no weights. Leave --weights {name}= out.")
            if is_hub_id(place):  # downloaded when the metric is loaded
                continue
            try:
                load_metric(name, metric.protocols[0], place, self.device, self.dtype)
            except WeightsError as error:
                raise UsageError(f"--weights {name}={place}: {for_cli(error, name)}") from None
        check_plugins(self)


def score(
    folder: RunFolder,
    benchmark: Benchmark,
    scoring: Scoring,
    shard: Shard | None = None,
    redo: bool = False,
) -> dict[str, str]:
    """Compute columns for every picture of a shard, and merge what is complete; other columns stay as they are.

    Each batch has one owner at a time: what another process is scoring is left to it, and waited for at the end.

    Args:
        folder: a run whose pictures are made.
        benchmark: the one it was made on.
        scoring: what to compute, and with which weights.
        shard: the part of the plan that is scored here; the last shard to finish merges, and scores whole sets. Where
            it is stolen, that is left to the command that started the workers.
        redo: compute columns again that are already there.

    Returns:
        Columns that are unavailable, with the way to get them.

    Raises:
        RunError: pictures are not made yet.
    """
    allow_tf32(False)  # a score is float32's, whatever its images were made with
    shard = shard or Shard()
    run = Run(folder)
    plan = make_plan(benchmark.keys, run.config.batch_size, run.config.repeats, run.header.schema_version)
    mine = shard.take(plan)
    left = [b.name for b in mine if not folder.finished(b.name, [benchmark.keys[i][0] for i in b.indexes])]
    if left:
        raise RunError(
            f"{folder.path} lacks {len(left)} of {len(mine)} batches. Finish it with the `brushbench eval` command "
            "that began it, then score."
        )
    variants = choose_variants(scoring.variants, run.header.capabilities)
    columns, unavailable = load_columns(scoring, benchmark)
    planned = [key for b in plan for key in keys_of(b, benchmark)]
    find = functools.partial(_tasks, folder, columns, variants, planned, redo)
    todo = find()
    features = scoring.features or Features(low_memory=scoring.low_memory)
    for group in [[task] for task in todo] if scoring.low_memory else [todo]:
        _score_columns(folder, benchmark, run.config.name, mine, group, find, features)
        if not shard.stolen:
            _merge_complete(folder, group, plan, benchmark)
    if not shard.stolen and all(folder.is_committed(batch.name) for batch in plan):
        unavailable |= score_sets(folder, benchmark, scoring, variants, features, redo)
    for name, reason in unavailable.items():
        if name not in folder.metric_headers():
            folder.record_metric(name, {"unavailable": reason})
    return unavailable


@dataclass(frozen=True)
class _Task:
    """One column that is computed: under which variants, and what of them is already there."""

    column: Column
    variants: Sequence[str]
    held: Mapping[PictureKey, Sequence[ScoreRow]]

    @property
    def part(self) -> str:
        """Where its scores wait."""
        return self.column.part(self.variants)

    def rows_of(self, folder: RunFolder, batch: Batch, pictures: Mapping[PictureKey, PictureRow]) -> list[ScoreRow]:
        """Return the scores of a batch that are there, waiting or merged; none where some are not.

        Args:
            folder: the run.
            batch: of its plan.
            pictures: of the batch.
        """
        rows = folder.waiting(self.part, batch.name, pictures) or [
            row for key in pictures for row in self.held.get(key, ())
        ]
        return rows if len(rows) == len(batch.indexes) * len(self.variants) else []


def keys_of(batch: Batch, benchmark: Benchmark) -> list[PictureKey]:
    """Return sample, split and repeat of every image of a batch."""
    return [(*benchmark.keys[i], batch.repeat) for i in batch.indexes]


def _tasks(
    folder: RunFolder, columns: Sequence[Column], variants: Sequence[str], planned: Sequence[PictureKey], redo: bool
) -> list[_Task]:
    """Return what of the columns is to be computed; those that are complete are left out."""
    tasks, complete = [], []
    for column, stored in zip(columns, stored_rows(folder, columns), strict=True):
        missing = column.missing_variants(folder, stored, variants, planned)
        if redo:  # what other settings left in the column has to go in any case
            tasks.append(_Task(column, list(dict.fromkeys([*missing, *variants])), {}))
        elif missing:
            held: dict[PictureKey, list[ScoreRow]] = {}
            for row in stored:
                if row.variant in missing:
                    held.setdefault((row.sample, row.split, row.repeat), []).append(row)
            tasks.append(_Task(column, missing, held))
        else:
            complete.append(column.name)
    if complete:
        folder.clear_parts(complete)
    return tasks


def _score_columns(
    folder: RunFolder,
    benchmark: Benchmark,
    title: str,
    batches: Sequence[Batch],
    tasks: Sequence[_Task],
    find: Callable[[], Sequence[_Task]],
    features: Features,
) -> None:
    """Score batches under each column's variants; what is there already is not computed again.

    Args:
        folder: the run.
        benchmark: the one it was made on.
        title: of the run.
        batches: of its plan.
        tasks: the columns, as ``find`` found them.
        find: looks which columns are still to be computed.
        features: shared.
    """
    todo = [batch for batch in batches if _left(folder, batch, tasks)]
    busy: list[Batch] = []
    others = Others(functools.partial(folder.scored_batches, [task.part for task in tasks]))
    with Behind() as behind:
        for batch in track(todo, f"{title}: score", lambda b: len(b.indexes)):
            if batch.name in others.names:
                continue
            with contextlib.ExitStack() as owner:
                try:
                    owner.enter_context(folder.lock(batch.name, wait=False))  # its pictures stay what they are
                except RunLockedError:
                    busy.append(batch)
                    continue
                left = _left(folder, batch, tasks)
                if left:
                    scored = _score_tasks(folder, benchmark, batch, left, features)
                    behind.submit(functools.partial(_commit, folder, batch, scored), owner.pop_all())
            if busy or others.names or not left:
                others.look()
    for batch in busy:
        if batch.name not in others.names:
            others.look()
        if batch.name in others.names:
            continue
        with folder.lock(batch.name):
            now = [task for task in find() if any(task.part == each.part for each in tasks)]  # another has merged
            if left := _left(folder, batch, now):
                _commit(folder, batch, _score_tasks(folder, benchmark, batch, left, features))


def _left(folder: RunFolder, batch: Batch, tasks: Sequence[_Task]) -> list[_Task]:
    """Return the tasks of which scores of a batch are missing."""
    if not folder.is_committed(batch.name):  # another process is at it
        return list(tasks)
    pictures = {row.key: row for row in folder.rows(batch.name)}
    return [task for task in tasks if not task.rows_of(folder, batch, pictures)]


def _commit(folder: RunFolder, batch: Batch, scored: Mapping[str, Sequence[ScoreRow]]) -> None:
    for part, rows in scored.items():
        folder.commit_scores(part, batch.name, rows)


def _score_tasks(
    folder: RunFolder, benchmark: Benchmark, batch: Batch, tasks: Sequence[_Task], features: Features
) -> dict[str, list[ScoreRow]]:
    """Return the scores of a batch under each task's column, by the folder in which they wait to be merged."""
    rows = folder.rows(batch.name)
    answered = [_Answered.read(folder, row, benchmark, i) for row, i in zip(rows, batch.indexes, strict=True)]
    made = {
        variant: [one.made(variant) for one in answered]
        for variant in dict.fromkeys(v for task in tasks for v in task.variants)
    }
    return {
        task.part: [r for v in task.variants for r in _score_batch(task.column.metric, v, made[v], answered, features)]
        for task in tasks
    }


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
        result.append(ScoreRow(*key, number, reason, one.row.sha256))
    return result


def _merge_complete(folder: RunFolder, tasks: Sequence[_Task], plan: Sequence[Batch], benchmark: Benchmark) -> None:
    """Merge the columns whose last batch is scored, here or by another process."""
    with folder.lock("merge"):
        pictures = folder.picture_rows()
        found: list[ColumnScores] = []
        for task in tasks:
            rows: list[ScoreRow] = []
            for batch in plan:
                there = {key: pictures[key] for key in keys_of(batch, benchmark) if key in pictures}
                scored = task.rows_of(folder, batch, there)
                if not scored:
                    break
                rows += scored
            else:
                column = task.column
                before = folder.metric_headers().get(column.name, {})
                held = before["variants"] if column.matches(before) and "variants" in before else []
                variants = list(dict.fromkeys([*held, *task.variants]))
                found.append(ColumnScores(column.name, rows, functools.partial(column.header, variants)))
        folder.merge(found, [key for batch in plan for key in keys_of(batch, benchmark)])


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
