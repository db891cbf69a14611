"""What two things must share to be compared: scores by sample, and what they were computed with.

A score set comes from a run's folder or from an accepted file. It is data: nothing that it names is imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from brushbench import registry
from brushbench.errors import RunError, UsageError
from brushbench.leaderboard.columns import Column, changes, identity, make_column
from brushbench.runs import Run, per_sample
from brushbench.types import JSON

__all__ = ["ColumnKey", "Pair", "ScoreSet", "from_run", "pair", "refuse_sets", "unlike"]

Scores = npt.NDArray[np.float64]
EXACT_PSNR = 100.0  # dB that stand for an identical image, whose PSNR is infinite: differences need a number


class ColumnKey(NamedTuple):
    """One column of scores."""

    metric: str
    protocol: str
    split: str
    prompt_variant: str
    variant: str

    @property
    def name(self) -> str:
        """Return the column in words: ``lpips, inside`` and what is not the usual case."""
        rest = [self.protocol] * (self.protocol != "standard") + [self.variant] * (self.variant != "raw")
        rest += [self.prompt_variant] * (self.prompt_variant != "caption")
        return ", ".join([self.metric, self.split, *rest])


@dataclass(frozen=True)
class ScoreSet:
    """Scores of one method on one benchmark.

    Attributes:
        label: what messages call it.
        benchmark, data: name, and SHA-256 of the data.
        columns: by column, scores by sample id with repeats averaged; NaN where a sample has none.
        headers: by ``metric@protocol``, what the column was computed with.
        states: how many images are planned, ok, black, missing and failed.
        seed: of the run.
        noise: by column, the standard deviation of a mean difference that another seed alone makes; empty if unknown.
        record: what else is known of the run: method, software, settings; shown, never compared.
    """

    label: str
    benchmark: str
    data: str
    columns: Mapping[ColumnKey, Mapping[str, float]]
    headers: Mapping[str, Mapping[str, JSON]]
    states: Mapping[str, int]
    seed: int = 0
    noise: Mapping[ColumnKey, float] = field(default_factory=dict)
    record: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics, in order."""
        return list(dict.fromkeys(key.metric for key in self.columns))

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in order."""
        return list(dict.fromkeys(key.split for key in self.columns))


@dataclass(frozen=True, eq=False)
class Pair:
    """One column of two score sets, paired by sample.

    Attributes:
        key: the column.
        shown: how it is shown: unit, factor, direction.
        ids: of the samples, sorted.
        first, second: their scores; NaN where there is none.
    """

    key: ColumnKey
    shown: Column
    ids: tuple[str, ...]
    first: Scores
    second: Scores

    @property
    def gains(self) -> Scores:
        """Second minus first, turned so that positive is better, of the samples that both have a score of."""
        both = ~np.isnan(self.first) & ~np.isnan(self.second)
        return self.turned(self.second[both], self.first[both])

    @property
    def paired_ids(self) -> list[str]:
        """Ids of the samples that both have a score of, in the order of :attr:`gains`."""
        both = ~np.isnan(self.first) & ~np.isnan(self.second)
        return [sample for sample, there in zip(self.ids, both, strict=True) if there]

    def turned(self, new: Scores, old: Scores) -> Scores:
        """Return ``new - old``, positive where better; identical images' infinite PSNR counts as 100 dB."""
        sign = 1.0 if self.shown.higher_is_better else -1.0
        difference: Scores = sign * (_finite(new) - _finite(old))
        return difference


def _finite(scores: Scores) -> Scores:
    return np.where(np.isinf(scores), np.copysign(EXACT_PSNR, scores), scores)


def from_run(run: Run) -> ScoreSet:
    """Return the scores of a run.

    Raises:
        RunError: it has none.
    """
    scores = run.scores
    if scores.empty:
        raise RunError(f"{run.path} has no scores. Score it: brushbench score {run.path}")
    headers = {name: header for name, header in run.metrics.items() if "unavailable" not in header}
    columns: dict[ColumnKey, dict[str, float]] = {}
    order = ["metric", "protocol", "split", "prompt_variant", "variant"]
    for key, part in per_sample(scores).groupby(order, sort=False):
        column = ColumnKey(*map(str, key))
        if f"{column.metric}@{column.protocol}" in headers:
            columns[column] = dict(zip(part["sample"], part["value"].astype(float), strict=True))
    record: dict[str, JSON] = {
        "method": run.header.method, "software": run.header.software, "config": run.config.model_dump(mode="json"),
    }  # fmt: skip
    benchmark = run.header.benchmark
    return ScoreSet(
        run.label, benchmark.name, benchmark.sha256, columns, headers, run.pictures(), run.config.seed, record=record
    )


def unlike(first: ScoreSet, second: ScoreSet) -> list[str]:
    """Return why two score sets answer different questions; empty if they answer the same ones."""
    if first.benchmark != second.benchmark:
        return [f"benchmark: {first.benchmark} -> {second.benchmark}"]
    if first.data != second.data:
        return [f"data of {first.benchmark}: SHA-256 {first.data[:12]} -> {second.data[:12]}"]
    found = []
    for split in [split for split in first.splits if split in second.splits]:
        ours, theirs = _ids(first, split), _ids(second, split)
        if ours != theirs:
            only = [f"only in {s.label}: {_few(a - b)}" for s, a, b in ((first, ours, theirs), (second, theirs, ours))]
            found.append(f"samples of {split}: {len(ours)} -> {len(theirs)} ({'; '.join(only)})")
    prompts = [{key.prompt_variant for key in scores.columns} for scores in (first, second)]
    if not prompts[0] & prompts[1]:
        found.append(f"prompts: {', '.join(sorted(prompts[0]))} -> {', '.join(sorted(prompts[1]))}")
    if not set(first.splits) & set(second.splits):
        found.append(f"splits: {', '.join(first.splits)} -> {', '.join(second.splits)}")
    return found


def _ids(scores: ScoreSet, split: str) -> set[str]:
    return {sample for key, column in scores.columns.items() if key.split == split for sample in column}


def _few(ids: set[str]) -> str:
    if not ids:
        return "none"
    return ", ".join(sorted(ids)[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def pair(first: ScoreSet, second: ScoreSet, keys: Sequence[ColumnKey]) -> Iterator[Pair | tuple[ColumnKey, str]]:
    """Yield each column paired by sample, or the column with the reason why it cannot be compared."""
    for key in keys:
        name = f"{key.metric}@{key.protocol}"
        absent = [scores.label for scores in (first, second) if key not in scores.columns]
        if absent:
            yield key, f"{key.name}: no scores in {' and '.join(absent)}"
            continue
        ours, theirs = first.headers[name], second.headers[name]
        if identity(ours) != identity(theirs):
            yield key, f"{key.name}: computed with different {', '.join(changes(ours, theirs))}"
            continue
        ids = tuple(sorted({*first.columns[key], *second.columns[key]}))
        rows = [np.array([s.columns[key].get(sample, math.nan) for sample in ids]) for s in (first, second)]
        yield Pair(key, make_column(key.metric, key.protocol, [("", theirs)]), ids, rows[0], rows[1])


def refuse_sets(names: Iterable[str], what: str) -> None:
    """Refuse metrics that are one number for a set of images: there is nothing to pair by sample.

    Raises:
        UsageError: one of the names is such a metric.
    """
    for name in names:
        if name.partition("@")[0] in registry.OF_SETS:
            raise UsageError(
                f"{name} is one number for a set of images, not one per sample: {what} cannot pair it. Leave it out; "
                "`brushbench leaderboard` shows it with its interval."
            )
