"""A table as words: headings, cells with marks, footnotes. Every renderer draws the same grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from brushbench.leaderboard.columns import Column, heading
from brushbench.leaderboard.tables import Cell, Row, Table

__all__ = ["CellText", "Grid", "Heading", "Spread", "make_grid"]

Spread: TypeAlias = Literal["none", "interval", "plus-minus"]
Mark: TypeAlias = Literal["", "best", "second"]


@dataclass(frozen=True)
class Heading:
    """What stands above a column.

    Attributes:
        name: untrusted: a metric's name.
        scale: such as ``x10³``; empty where values are shown as they are.
        arrow: ``↑`` or ``↓``; empty above counts.
        notes: numbers of the footnotes.
        tiny: whether the dagger of small models stands here.
    """

    name: str
    scale: str = ""
    arrow: str = ""
    notes: tuple[int, ...] = ()
    tiny: bool = False


@dataclass(frozen=True)
class CellText:
    """Digits of a cell, and whether they are best or second of their column."""

    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Grid:
    """One table as words.

    Attributes:
        title: of the table; untrusted parts are in it.
        headings: of the columns after the method's.
        methods: the rows' names, untrusted.
        references: per row, whether it is a reference line.
        published: per row, whether it was published elsewhere.
        cells: (rows, columns).
        notes: footnotes by number, from 1, untrusted.
        remarks: further sentences under the table.
        tiny: whether some heading carries the dagger.
        first: heading of the rows' names.
    """

    title: str
    headings: tuple[Heading, ...]
    methods: tuple[str, ...]
    references: tuple[bool, ...]
    published: tuple[bool, ...]
    cells: tuple[tuple[CellText, ...], ...]
    notes: tuple[str, ...]
    remarks: tuple[str, ...]
    tiny: bool = False
    first: str = "method"


TINY = "small models of this repository, trained on its own scenes; not comparable with published numbers"


def make_grid(table: Table, spread: Spread = "none") -> Grid:
    """Return a table as words, in the headings' scales.

    Args:
        table: from :func:`brushbench.leaderboard.make_tables`.
        spread: ``interval`` shows the 95 % interval behind each mean, ``plus-minus`` half its width.
    """
    notes: list[str] = []
    headings = [_heading(column, notes) for column in table.columns] + [Heading("n"), Heading("missing")]
    rows = [
        (
            *(_cell(row, column, spread) for column in table.columns),
            CellText("" if row.published else str(row.pictures - row.missing)),
            CellText("" if row.published else str(row.missing)),
        )
        for row in table.rows
    ]
    return Grid(
        title=_title(table),
        headings=tuple(headings),
        methods=tuple(_method(row, notes) for row in table.rows),
        references=tuple(row.reference for row in table.rows),
        published=tuple(bool(row.published) for row in table.rows),
        cells=tuple(rows),
        notes=tuple(notes),
        remarks=_remarks(table),
        tiny=bool(table.tiny),
    )


def _title(table: Table) -> str:
    parts = [table.split, *([table.group] if table.group else [])]
    prompt = "" if table.prompt_variant == "caption" else f", prompt: {table.prompt_variant}"
    return f"{table.benchmark}, {', '.join(parts)}{prompt} ({table.protocol})"


def _heading(column: Column, notes: list[str]) -> Heading:
    own = list(column.caveats)
    if column.same_as:
        own.append(f"{column.metric} and {', '.join(column.same_as)} are one column here: the same weights and scores")
    arrow = "↑" if column.higher_is_better else "↓"
    return Heading(heading(column), column.suffix, arrow, _numbers(own, notes), column.tiny)


def _method(row: Row, notes: list[str]) -> str:
    name = row.method if row.variant == "raw" or row.published else f"{row.method} ({row.variant})"
    own = [text for text in (row.incomplete and f"not ranked: {row.incomplete}", row.published) if text]
    return name + "".join(f" [{number}]" for number in _numbers(own, notes))


def _numbers(texts: Sequence[str], notes: list[str]) -> tuple[int, ...]:
    for text in texts:
        if text not in notes:
            notes.append(text)
    return tuple(notes.index(text) + 1 for text in texts)


def _remarks(table: Table) -> tuple[str, ...]:
    found = list(table.notes)
    if any(cell.rank == "best" and not row.published for row in table.rows for cell in row.cells.values()):
        tied = [
            column.metric
            for column in table.columns
            if sum(c.rank == "best" for r in table.rows if (c := r.cells.get(column.metric))) > 1
        ]
        if tied:
            found.append(
                "Rows marked alike in one column cannot be told apart: the interval of their difference holds 0"
            )
    return tuple(found)


def _cell(row: Row, column: Column, spread: Spread) -> CellText:
    cell = row.cells.get(column.metric)
    if cell is None:
        return CellText("–")
    if cell.printed:
        return CellText(cell.printed)
    text = _digits(cell, column.factor, spread)
    # An image that is not there has no score at all. Where one metric gives none, that metric's n says so.
    if 0 < cell.n < row.pictures - row.missing:
        text += f" (n {cell.n})"
    return CellText(text, cell.rank)


def _digits(cell: Cell, factor: float, spread: Spread) -> str:
    if math.isnan(cell.mean):
        return "–"
    if math.isinf(cell.mean):
        return "∞" if cell.mean > 0 else "-∞"
    text = f"{cell.mean * factor:.2f}"
    if not math.isnan(cell.low):
        low, high = cell.low * factor, cell.high * factor
        if spread == "interval":
            text += f" [{low:.2f}, {high:.2f}]"
        elif spread == "plus-minus":
            text += f" ± {(high - low) / 2:.2f}"
    return text + (f" ({cell.infinite}x∞)" if cell.infinite else "")
