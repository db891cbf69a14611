"""From runs to tables: what is shown, computed once; how it looks is the renderers' business."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from brushbench.leaderboard.audited import audited, inverts
from brushbench.leaderboard.columns import Column, choose, identity, make_column
from brushbench.leaderboard.gather import Gathered, Question, gather, of_splits, open_runs
from brushbench.leaderboard.ranking import Entry, rank
from brushbench.runs import Run, SetValue, check_protocol
from brushbench.stats import Summary, are_shares, summarise_all

__all__ = ["Cell", "Column", "Row", "Table", "make_tables", "open_runs", "why_apart"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One mean with its interval, in the metric's own unit.

    Attributes:
        mean, low, high, median, n, infinite, missing: as in :class:`brushbench.stats.Summary`.
        rank: ``best`` or ``second`` of its column, ties included; empty otherwise.
        printed: the very digits of a published row, in the heading's scale; empty for own runs.
    """

    mean: float
    low: float
    high: float
    n: int
    infinite: int
    missing: int
    median: float = math.nan
    rank: Literal["", "best", "second"] = ""
    printed: str = ""


@dataclass(frozen=True)
class Row:
    """One method, one variant, one split.

    Attributes:
        method: its label.
        variant: what was done after generation.
        reference: a reference line, which sees the answer and is never ranked.
        pictures: samples the run has or should have images of.
        missing: samples without any score: their images failed, are black, or are not there.
        cells: by metric.
        incomplete: why the row is not ranked; empty where it is.
        published: where the row was published; empty for own runs.
    """

    method: str
    variant: str
    reference: bool
    pictures: int
    missing: int
    cells: Mapping[str, Cell]
    incomplete: str = ""
    published: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that answer the same questions: one benchmark, the same samples, one split, one protocol.

    Attributes:
        benchmark: its name.
        questions: SHA-256 over the data and the samples' ids: rows of other questions never share a table.
        samples: how many.
        split, prompt_variant, protocol: of every row.
        group: ``key: value`` where rows are grouped by what samples carry; empty otherwise.
        columns: what is shown, in order.
        rows: reference lines last.
        notes: sentences that belong to this table alone.
    """

    benchmark: str
    questions: str
    samples: int
    split: str
    prompt_variant: str
    protocol: str
    group: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.metric for column in self.columns)

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Directions of the columns."""
        return {column.metric: column.higher_is_better for column in self.columns}

    @property
    def tiny(self) -> tuple[str, ...]:
        """Columns whose models are this repository's own small ones."""
        return tuple(column.metric for column in self.columns if column.tiny)


class _Key(NamedTuple):
    benchmark: str
    questions: str
    split: str
    prompt_variant: str
    group: str


def make_tables(
    runs: Sequence[Run],
    protocol: str = "standard",
    *,
    metrics: Sequence[str] | None = None,
    split: str = "all",
    by: str | None = None,
    sort: str | None = None,
    intervals: bool = True,
) -> list[Table]:
    """Return one table per benchmark and split; runs on other data or other samples get tables of their own.

    Args:
        runs: from :func:`open_runs`; each is labelled by its ``label``, told apart by its folder where two are equal.
        protocol: ``standard`` or ``brushnet-paper``.
        metrics: columns to show, in this order; ``None`` shows all.
        split: ``all``, or one or several of inside, outside, brush, with commas.
        by: a key of the samples' metadata, such as ``category``: one table per value.
        sort: a metric: its best row first. Reference lines stay last.
        intervals: off leaves the intervals of the cells out.

    Raises:
        UsageError: an unknown protocol, metric, split or key.
        RunError: one column was computed with different weights.
    """
    check_protocol(protocol)
    everything = gather(runs, protocol, by)
    found = of_splits(everything, split)
    known = {metric for part in found for metric in part.headers}
    if metrics is None:  # what says so itself is shown only where it is named
        known -= {m for m in known if not any(p.headers[m].get("shown", True) for p in found if m in p.headers)}
    shown = choose(known, metrics, protocol)
    if sort is not None:
        choose(shown, [sort], protocol)
    groups: dict[_Key, list[Gathered]] = {}
    for part in found:
        groups.setdefault(_key(part.question), []).append(part)
    by_default = metrics is None
    tables = [_table(key, parts, shown, protocol, sort, intervals, by_default) for key, parts in groups.items()]
    scored = {id(part.run) for part in everything}
    waiting = [run for run in runs if id(run) not in scored]
    tables = [_with_unscored(t, parts, waiting) for t, parts in zip(tables, groups.values(), strict=True)]
    return [table for table in tables if table.columns or table.notes]


def _with_unscored(table: Table, parts: Sequence[Gathered], waiting: Sequence[Run]) -> Table:
    """Add rows for runs of the same plan that have no scores yet: shown, and not ranked."""
    plans = {_plan(part.run) for part in parts}
    rows = []
    for run in (run for run in waiting if _plan(run) in plans and table.split in run.config.splits):
        counts = run.pictures()
        why = f"no scores yet; {counts['ok']} of {counts['planned']} images generated"
        rows.append(Row(run.label, "raw", run.is_reference, table.samples, table.samples, {}, why))
    return replace(table, rows=tuple(sorted((*table.rows, *rows), key=lambda row: row.reference)))


def _plan(run: Run) -> tuple[object, ...]:
    header = run.header
    return header.benchmark.name, header.benchmark.sha256, header.plan.keys_sha256


def _key(question: Question) -> _Key:
    """Return what rows must share to stand in one table."""
    content = f"{question.data}\0" + "\0".join(question.ids)
    questions = hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()
    return _Key(question.benchmark, questions, question.split, question.prompt_variant, question.group)


def _table(
    key: _Key, parts: Sequence[Gathered], shown: Sequence[str], protocol: str, sort: str | None, intervals: bool,
    by_default: bool,
) -> Table:  # fmt: skip
    metrics = [metric for metric in shown if any(metric in part.columns for part in parts)]
    headers = {m: [(p.run.path, p.headers[m]) for p in parts if m in p.columns] for m in metrics}
    benchmark = parts[0].run.header.benchmark.name
    columns = [_with_audit(make_column(m, protocol, headers[m]), benchmark, key.split, headers[m]) for m in metrics]
    columns = _fold_equal(columns, headers, parts)
    sets, apart = _set_columns(shown, protocol, parts)
    withheld = _withheld(columns, benchmark, headers, sort) if by_default else []
    columns = [column for column in columns if column not in withheld]
    summaries = _summaries(columns, parts, intervals)
    ranks = _ranks(columns, parts)
    names = _names(parts)
    rows = []
    for i, part in enumerate(parts):
        cells = {
            column.metric: _cell(summaries[i, column.metric], ranks.get((i, column.metric), ""))
            for column in columns
            if column.metric in part.columns
        }
        cells |= {column.metric: _set_cell(part.sets[column.metric]) for column in sets if column.metric in part.sets}
        rows.append(
            Row(names[i], part.variant, part.run.is_reference, len(part.question.ids), part.missing, cells,
                part.incomplete)
        )  # fmt: skip
    if sort is not None:
        rows.sort(key=lambda row: _order(row, next(c for c in [*columns, *sets] if sort in (c.metric, *c.same_as))))
    rows.sort(key=lambda row: row.reference)  # stable
    ids = parts[0].question.ids
    return Table(
        key.benchmark, key.questions, len(ids), key.split, key.prompt_variant, protocol, key.group,
        (*columns, *sets), tuple(rows), (*_why_withheld(withheld, benchmark), *apart),
    )  # fmt: skip


Headers = Sequence[tuple[Path, Mapping[str, Any]]]


def _with_audit(column: Column, benchmark: str, split: str, headers: Headers) -> Column:
    """Add what the committed audit of this benchmark and split found."""
    found = audited(benchmark, f"{column.metric}@{headers[0][1].get('protocol')}", headers[0][1], split)
    notes = [note for one in found if (note := one.footnote())]
    return replace(column, caveats=(*column.caveats, *notes)) if notes else column


def _set_columns(
    shown: Sequence[str], protocol: str, parts: Sequence[Gathered]
) -> tuple[list[Column], tuple[str, ...]]:
    """Return the columns of whole sets, not ranked, and a sentence for each whose sets differ in size."""
    columns, apart = [], []
    for metric in (m for m in shown if any(m in part.sets for part in parts)):
        own = [part for part in parts if metric in part.sets]
        sizes = {part.sets[metric].n for part in own}
        if len(sizes) > 1:
            listed = ", ".join(f"{part.run.label} {part.sets[metric].n}" for part in own)
            apart.append(f"Not shown: {metric}: sets of different size cannot be compared: {listed} images")
            continue
        column = make_column(metric, protocol, [(part.run.path, part.headers[metric]) for part in own])
        columns.append(replace(column, caveats=(*column.caveats, f"of {sizes.pop()} images and their references")))
    return columns, tuple(apart)


def _set_cell(value: SetValue) -> Cell:
    return Cell(value.value, value.low, value.high, value.n, 0, 0)


def _withheld(
    columns: Sequence[Column], benchmark: str, headers: Mapping[str, Headers], sort: str | None
) -> list[Column]:
    """Return the columns of small models that scored damaged images higher in the committed audit of this benchmark.

    A column that the table is sorted by stays, and so do all of them where nothing else is left.
    """
    found = [
        column
        for column in columns
        for header in [headers[column.metric][0][1]]
        if column.tiny and sort not in (column.metric, *column.same_as)
        if inverts(audited(benchmark, f"{column.metric}@{header.get('protocol')}", header))
    ]
    return found if len(found) < len(columns) else []


def _why_withheld(columns: Sequence[Column], benchmark: str) -> tuple[str, ...]:
    if not columns:
        return ()
    names = [name for column in columns for name in (column.metric, *column.same_as)]
    listed = ", ".join(name.replace("_", " ") for name in names)
    why = f"in the audit of {benchmark} their small models scored damaged images higher"
    return (f"Not shown: {listed}: {why}; show them with --metrics {','.join(names)}",)


def _order(row: Row, column: Column) -> float:
    cell = row.cells.get(column.metric)
    if cell is None or math.isnan(cell.mean):
        return math.inf
    return -cell.mean if column.higher_is_better else cell.mean


def _cell(summary: Summary, rank_: Any) -> Cell:
    return Cell(
        summary.mean, summary.low, summary.high, summary.n, summary.infinite, summary.missing, summary.median, rank_
    )


def _summaries(columns: Sequence[Column], parts: Sequence[Gathered], intervals: bool) -> dict[tuple[int, str], Summary]:
    """Summarise every cell; a column of zeros and ones throughout is one of shares."""
    places, scores, shares = [], [], []
    for column in columns:
        held = {i: part.columns[column.metric] for i, part in enumerate(parts) if column.metric in part.columns}
        share = are_shares(np.concatenate(list(held.values())), column.suffix)
        places += [(i, column.metric) for i in held]
        scores += list(held.values())
        shares += [share] * len(held)
    return dict(zip(places, summarise_all(scores, shares, intervals), strict=True))


def _ranks(columns: Sequence[Column], parts: Sequence[Gathered]) -> dict[tuple[int, str], str]:
    """Return the best and second cells of every column, among rows that may be compared there."""
    found: dict[tuple[int, str], str] = {}
    for column in columns:
        entries = [
            Entry(i, sign * part.columns[column.metric], bool(part.incomplete), part.is_exact(column))
            for sign in [1.0 if column.higher_is_better else -1.0]
            for i, part in enumerate(parts)
            if column.metric in part.columns and not part.run.is_reference
        ]
        found |= {(i, column.metric): place for i, place in rank(entries).items()}
    return found


def _fold_equal(
    columns: Sequence[Column],
    headers: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]],
    parts: Sequence[Gathered],
) -> list[Column]:
    """Make one of two columns that are one computation under two names, such as two HPS with the same weights."""
    kept: list[Column] = []
    for column in columns:
        own = identity(headers[column.metric][0][1], named=False)
        twin = next(
            (
                i
                for i, other in enumerate(kept)
                if headers[column.metric][0][1].get("weights")
                and identity(headers[other.metric][0][1], named=False) == own
                and _equal(column.metric, other.metric, parts)
            ),
            None,
        )
        if twin is None:
            kept.append(column)
        else:
            kept[twin] = replace(kept[twin], same_as=(*kept[twin].same_as, column.metric))
    return kept


def _equal(one: str, other: str, parts: Sequence[Gathered]) -> bool:
    pairs = [(part.columns.get(one), part.columns.get(other)) for part in parts]
    return all(a is not None and b is not None and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _names(parts: Sequence[Gathered]) -> list[str]:
    """Return labels; equal ones of one table are told apart by their folders."""
    labels = [part.run.label for part in parts]
    names = list(labels)
    for label in dict.fromkeys(labels):
        folders = {p.run.path.resolve() for p, own in zip(parts, labels, strict=True) if own == label}
        if len(folders) < 2:
            continue
        depth = _common_depth(sorted(folders))
        for i, part in enumerate(parts):
            if labels[i] == label:
                rest = part.run.path.resolve().parts[depth:]
                rest = rest[:-1] if len(rest) > 1 and rest[-1] == label else rest
                names[i] = f"{label} ({'/'.join(rest)})"
    return names


def _common_depth(folders: Sequence[Path]) -> int:
    depth = 0
    for parts in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(parts)) > 1:
            break
        depth += 1
    return min(depth, min(len(folder.parts) for folder in folders) - 1)


def why_apart(tables: Sequence[Table]) -> list[str]:
    """Return one sentence per benchmark and split whose runs stand in several tables, saying why."""
    sentences = []
    together: dict[tuple[str, ...], list[Table]] = {}
    for table in tables:
        together.setdefault(
            (table.benchmark, table.split, table.prompt_variant, table.protocol, table.group), []
        ).append(table)
    for (benchmark, split, *_), found in together.items():
        if len(found) > 1:
            listed = "; ".join(
                f"{', '.join(dict.fromkeys(row.method for row in t.rows))} on {t.samples} samples ({t.questions[:8]})"
                for t in found
            )
            sentences.append(f"Runs on different samples get separate tables: {benchmark}, {split}: {listed}.")
    return sentences
