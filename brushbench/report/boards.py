"""A leaderboard table as the page shows it: the grid's words, values to sort by, whiskers in percent of a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brushbench.leaderboard import Cell, Row, Table
from brushbench.leaderboard.grid import TINY, CellText, Heading, make_grid

__all__ = ["Board", "heading_text", "make_board"]


@dataclass(frozen=True)
class Whisker:
    """Where an interval and its mean stand in a cell, percent of the cell's width."""

    low: float
    width: float
    mean: float


@dataclass(frozen=True)
class BoardCell:
    """One mean as text, with the value that sorts it (empty: none) and its interval in words."""

    metric: str
    text: str
    value: str
    interval: str
    mark: str
    whisker: Whisker | None


@dataclass(frozen=True)
class BoardRow:
    """One method and variant; ``n`` and ``missing`` are the grid's words."""

    label: str
    cells: tuple[BoardCell, ...]
    n: str
    missing: str


@dataclass(frozen=True)
class BoardColumn:
    """One metric's heading."""

    name: str
    label: str
    higher: bool


@dataclass(frozen=True)
class Board:
    """One table of the page: ranked rows, reference lines, and published rows if they were asked for."""

    title: str
    split: str
    protocol: str
    columns: tuple[BoardColumn, ...]
    groups: tuple[tuple[str, tuple[BoardRow, ...]], ...]
    notes: tuple[str, ...]


def make_board(table: Table) -> Board:
    """Return a table as the page shows it."""
    grid = make_grid(table)
    columns = tuple(
        BoardColumn(column.metric, heading_text(head), column.higher_is_better)
        for column, head in zip(table.columns, grid.headings, strict=False)
    )
    spans = [_span([row.cells[name] for row in table.rows if name in row.cells]) for name in table.metrics]
    groups: dict[str, list[BoardRow]] = {"ranked": [], "published": [], "references": []}
    for row, label, words in zip(table.rows, grid.methods, grid.cells, strict=True):
        group = "references" if row.reference else "published" if row.published else "ranked"
        groups[group].append(_row(table, row, label, words, spans))
    notes = [f"[{number}] {note}" for number, note in enumerate(grid.notes, 1)] + list(grid.remarks)
    notes += [f"†: {TINY}"] if grid.tiny else []
    notes += (
        ["Slanted rows are reference lines: they see the answer and are not ranked."] if groups["references"] else []
    )
    return Board(
        grid.title,
        table.split,
        table.protocol,
        columns,
        tuple((name, tuple(rows)) for name, rows in groups.items() if rows),
        tuple(notes),
    )


def heading_text(head: Heading) -> str:
    """Return a column's heading in one line: name, mark of small models, scale, arrow, footnotes."""
    name = head.name.replace("_", " ") + ("†" if head.tiny else "")
    return " ".join(part for part in (name, head.scale, head.arrow, *(f"[{n}]" for n in head.notes)) if part)


def _span(cells: Sequence[Cell]) -> tuple[float, float]:
    values = [v for cell in cells for v in (cell.low, cell.high, cell.mean) if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _row(
    table: Table, row: Row, label: str, words: Sequence[CellText], spans: Sequence[tuple[float, float]]
) -> BoardRow:
    cells = []
    for column, text, span in zip(table.columns, words, spans, strict=False):
        cell = row.cells.get(column.metric)
        interval = ""
        if cell is not None and math.isfinite(cell.low):
            interval = f"{cell.low * column.factor:.2f} to {cell.high * column.factor:.2f}"
        whisker = _whisker(cell, *span) if cell is not None and interval else None
        cells.append(BoardCell(column.metric, text.text, _sort_value(cell), interval, text.mark, whisker))
    return BoardRow(label, tuple(cells), words[-2].text, words[-1].text)


def _sort_value(cell: Cell | None) -> str:
    """Return what the page's script sorts by; infinity is a number that no score reaches."""
    if cell is None or math.isnan(cell.mean):
        return ""
    return f"{math.copysign(1e300, cell.mean):.0e}" if math.isinf(cell.mean) else repr(cell.mean)


def _whisker(cell: Cell, low: float, high: float) -> Whisker | None:
    if not (high > low and math.isfinite(cell.mean)):
        return None
    left, right, mean = (round(100 * (v - low) / (high - low), 1) for v in (cell.low, cell.high, cell.mean))
    return Whisker(left, round(max(right - left, 1.0), 1), min(mean, 98.0))
