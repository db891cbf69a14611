"""What runs have to say to tables: scores per sample, by split, variant and metric."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brushbench.errors import RunError, UnknownNameError, UsageError
from brushbench.leaderboard.columns import Column
from brushbench.runs import Run, SetValue, per_sample
from brushbench.score_table import ScoreTable
from brushbench.types import SPLITS

__all__ = ["Gathered", "Question", "gather", "of_splits", "open_runs"]


@dataclass(frozen=True)
class Question:
    """What a row answers: rows that share it may stand in one table."""

    benchmark: str
    data: str  # SHA-256 of the benchmark's data
    split: str
    prompt_variant: str
    group: str  # "key: value" of the samples' metadata; empty where rows are not grouped
    ids: tuple[str, ...]  # of the samples, sorted


@dataclass(frozen=True, eq=False)
class Gathered:
    """One row to be: a run's scores of one variant on one question.

    Attributes:
        columns: by metric, one score per sample in the order of ``question.ids``; NaN where there is none.
        headers: by metric, what the column was computed with.
        sets: by metric, one number for all images; rows that are grouped have none.
    """

    run: Run
    variant: str
    question: Question
    columns: Mapping[str, npt.NDArray[np.float64]]
    headers: Mapping[str, Mapping[str, Any]]
    sets: Mapping[str, SetValue] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Samples without a score in any column: a metric that gives none for an image says so by its own n."""
        if not self.columns:
            return len(self.question.ids) - max((one.n for one in self.sets.values()), default=0)
        return int(np.all([np.isnan(values) for values in self.columns.values()], axis=0).sum())

    @property
    def incomplete(self) -> str:
        """Why the row is not ranked; empty where it is."""
        if not self.missing or not self.columns:
            return ""
        return f"{self.missing} of {len(self.question.ids)} samples have no image or no score"

    def is_exact(self, column: Column) -> bool:
        """Whether the column's value follows from pasting the kept pixels back, not from how good the method is."""
        values = self.columns[column.metric]
        scored = values[~np.isnan(values)]
        pasted = self.variant == "pasted" or self.run.header.capabilities.background == "exact"
        return bool(np.isinf(scored).all()) or (pasted and column.region == "keep")


def open_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Open runs; a folder that holds runs stands for all of them, and ``PATH=LABEL`` names a run in tables.

    Raises:
        RunError: a path holds no run.
        UsageError: a label for a folder of several runs.
    """
    runs: dict[Path, Run] = {}
    for given in paths:
        path, label = _path_and_label(str(given))
        found = [path] if os.path.lexists(path / "run.json") else sorted(f.parent for f in path.glob("**/run.json"))
        if not found:
            raise RunError(f"{path} holds no run. Name the folder that `brushbench eval` wrote, or its parent.")
        if label and len(found) > 1:
            raise UsageError(
                f"{path} holds {len(found)} runs, and {label!r} can name one. Name their folders one by one."
            )
        for folder in found:
            run = Run.open(folder)
            run.label = label or run.label
            runs.setdefault(folder.resolve(), run)
    return list(runs.values())


def _path_and_label(given: str) -> tuple[Path, str]:
    path, equals, label = given.rpartition("=")
    if not equals or Path(given).expanduser().exists():
        return Path(given).expanduser(), ""
    if not path or not label:
        raise UsageError(f"{given!r} is neither a folder nor PATH=LABEL, such as runs/shapes/telea=seed-2.")
    return Path(path).expanduser(), label


def gather(runs: Sequence[Run], protocol: str, by: str | None = None) -> list[Gathered]:
    """Return every row there is to show, in the order of the runs, raw before other variants.

    Raises:
        UnknownNameError: no run carries such a key of metadata.
    """
    with _no_search_for_cycles():
        found = [row for run in runs for row in _rows(run, protocol, by)]
    if by is not None and not any(row.question.group for row in found):
        keys = {key for run in runs for meta in run.metadata().values() for key in meta}
        raise UnknownNameError("key of the samples' metadata", by, keys)
    return found


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Leave out the search for cycles of objects: rows of many runs hold none, and it took a fifth of reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def of_splits(found: Sequence[Gathered], split: str) -> list[Gathered]:
    """Return the rows of ``all`` or of some splits, named with commas.

    Raises:
        UnknownNameError: no such split.
    """
    if split == "all":
        return list(found)
    splits = [name.strip() for name in split.split(",")]
    known = list(dict.fromkeys([*SPLITS, *(row.question.split for row in found)]))
    for name in splits:
        if name not in known:
            raise UnknownNameError("split", name, known)
    return [row for row in found if row.question.split in splits]


def _rows(run: Run, protocol: str, by: str | None) -> Iterator[Gathered]:
    headers = {name.partition("@")[0]: h for name, h in run.metrics.items() if name.partition("@")[2] == protocol}
    sets: dict[tuple[str, str, str], dict[str, SetValue]] = {}
    for one in run.set_scores() if by is None else ():
        metric, _, named = one.column.partition("@")
        if named == protocol:
            sets.setdefault((one.split, one.prompt_variant, one.variant), {})[metric] = one
    scores = run.score_table()
    scores = scores.take(scores.is_in("protocol", protocol))
    if len(scores.held("repeat")) > 1:
        scores = ScoreTable.of(per_sample(scores.frame()))
    for (split, prompt_variant), mine in scores.parts("split", "prompt_variant"):
        for group, some in _groups(run, scores.take(mine), by):
            ids = tuple(sorted(some.held("sample")))
            question = _question(run, str(split), str(prompt_variant), group, ids)
            variants = sorted(some.held("variant"), key=lambda variant: (variant != "raw", variant))
            for variant in variants:
                columns = _columns(some.take(some.is_in("variant", variant)), ids)
                described = {metric: headers[metric] for metric in columns if metric in headers}
                columns = {metric: columns[metric] for metric in described}
                own = sets.pop((str(split), str(prompt_variant), variant), {})
                described |= {metric: headers[metric] for metric in own}
                yield Gathered(run, variant, question, columns, described, own)
    rows = run.picture_rows() if sets else []
    for (split, prompt_variant, variant), own in sets.items():  # of runs that hold no score per image
        alike = {row.sample for row in rows if (row.split, row.prompt_variant) == (split, prompt_variant)}
        question = _question(run, split, prompt_variant, "", tuple(sorted(alike)))
        yield Gathered(run, variant, question, {}, {metric: headers[metric] for metric in own}, own)


def _question(run: Run, split: str, prompt_variant: str, group: str, ids: tuple[str, ...]) -> Question:
    benchmark = run.header.benchmark
    return Question(benchmark.title or benchmark.name, benchmark.sha256, split, prompt_variant, group, ids)


def _columns(scores: ScoreTable, ids: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    found = {sample: place for place, sample in enumerate(ids)}
    places = np.array([found.get(sample, -1) for sample in scores.distinct["sample"]])[scores.codes["sample"]]
    columns = {}
    for (metric,), rows in scores.parts("metric"):
        columns[str(metric)] = np.full(len(ids), math.nan)
        columns[str(metric)][places[rows]] = scores.values[rows]
    return columns


def _groups(run: Run, scores: ScoreTable, by: str | None) -> Iterator[tuple[str, ScoreTable]]:
    if by is None:
        yield "", scores
        return
    metadata = run.metadata()
    samples, splits = (scores.distinct[name][scores.codes[name]] for name in ("sample", "split"))
    values = [metadata.get(key, {}).get(by) for key in zip(samples, splits, strict=True)]
    for value in sorted({value for value in values if value is not None}):
        yield f"{by}: {value}", scores.take(np.array([own == value for own in values]))
