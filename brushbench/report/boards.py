"""A leaderboard table as the page shows it: texts, values to sort by, and whiskers in percent of a column's range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from brushbench.leaderboard import Cell, Row, Table

__all__ = ["Board", "make_board"]


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
    best: bool
    whisker: Whisker | None


@dataclass(frozen=True)
class BoardRow:
    """One method and variant."""

    label: str
    cells: tuple[BoardCell, ...]
    n: int
    missing: int


@dataclass(frozen=True)
class BoardColumn:
    """One metric's heading."""

    name: str
    label: str
    higher: bool


@dataclass(frozen=True)
class Board:
    """One table of the page."""

    title: str
    split: str
    protocol: str
    columns: tuple[BoardColumn, ...]
    ranked: tuple[BoardRow, ...]
    references: tuple[BoardRow, ...]
    notes: tuple[str, ...]


def make_board(table: Table) -> Board:
    """Return a table as the page shows it."""
    columns = tuple(BoardColumn(m, table.heading(m), table.higher_is_better[m]) for m in table.metrics)
    ranges = {
        metric: _range([row.cells[metric] for row in table.rows if metric in row.cells]) for metric in table.metrics
    }
    rows = [(row.reference, _row(table, row, ranges)) for row in table.rows]
    return Board(
        table.title,
        table.split,
        table.protocol,
        columns,
        tuple(row for reference, row in rows if not reference),
        tuple(row for reference, row in rows if reference),
        tuple(table.notes("set apart below the rule")),
    )


def _range(cells: Sequence[Cell]) -> tuple[float, float]:
    values = [v for cell in cells for v in (cell.low, cell.high, cell.mean) if math.isfinite(v)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _row(table: Table, row: Row, ranges: dict[str, tuple[float, float]]) -> BoardRow:
    missing = min((cell.missing for cell in row.cells.values()), default=0)
    cells = tuple(_cell(table, row, metric, ranges[metric]) for metric in table.metrics)
    return BoardRow(row.label, cells, row.pictures - missing, missing)


def _cell(table: Table, row: Row, metric: str, span: tuple[float, float]) -> BoardCell:
    cell = row.cells.get(metric)
    if cell is None or math.isnan(cell.mean):
        return BoardCell(metric, "–", "", "", best=False, whisker=None)
    scale = table.scale(metric)
    text = "∞" if math.isinf(cell.mean) else f"{cell.mean * scale:.2f}"
    # Infinity sorts by a number that no score reaches: the page's script reads numbers only.
    value = f"{math.copysign(1e300, cell.mean):.0e}" if math.isinf(cell.mean) else repr(cell.mean)
    interval = f"{cell.low * scale:.2f} to {cell.high * scale:.2f}" if math.isfinite(cell.low) else ""
    best = table.is_best(row, metric)
    return BoardCell(metric, text, value, interval, best, _whisker(cell, *span) if interval else None)


def _whisker(cell: Cell, low: float, high: float) -> Whisker | None:
    if not (high > low and math.isfinite(cell.mean)):
        return None
    left, right, mean = (round(100 * (v - low) / (high - low), 1) for v in (cell.low, cell.high, cell.mean))
    return Whisker(left, round(max(right - left, 1.0), 1), min(mean, 98.0))
