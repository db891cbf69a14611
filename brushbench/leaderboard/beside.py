"""Published rows beside own ones, under the published protocol; never ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from brushbench.leaderboard.columns import Column, ordered
from brushbench.leaderboard.tables import Cell, Row, Table
from brushbench.published import COLUMNS, PublishedRow, article_rows, digits, published_rows

__all__ = ["PROTOCOL", "with_published"]

PROTOCOL = "brushnet-paper"


def with_published(tables: Sequence[Table], metrics: Sequence[str] | None = None, split: str = "all") -> list[Table]:
    """Return tables with the article's rows: in the table of the same benchmark and split, or in one of their own.

    Args:
        tables: of the protocol ``brushnet-paper``.
        metrics: columns to show; ``None`` shows all.
        split: ``all``, or splits with commas.
    """
    placed = []
    shown: set[tuple[str, str]] = set()
    for table in tables:
        rows = [] if table.group else article_rows(table.benchmark, table.split)
        placed.append(_beside(table, rows, metrics) if rows else table)
        shown |= {(table.benchmark, table.split)} if rows else set()
    places = dict.fromkeys(row.place for row in published_rows() if row.is_article_table)
    wanted = [name.strip() for name in split.split(",")]
    places = {place: None for place in places if split == "all" or place[1] in wanted}
    alone = [(place, article_rows(*place)) for place in places if place not in shown]
    empty = [(Table(*place[:1], "", 0, place[1], "caption", PROTOCOL, "", (), ()), rows) for place, rows in alone]
    return placed + [_beside(table, rows, metrics) for table, rows in empty]


def _beside(table: Table, published: Sequence[PublishedRow], metrics: Sequence[str] | None) -> Table:
    own = {column.metric: column for column in table.columns}
    columns = dict(own)
    for name, suffix, factor in COLUMNS.values():
        if metrics is None or name in metrics:
            columns.setdefault(name, Column(name, suffix, factor, name not in ("mse", "lpips")))
    names = [name for name in metrics if name in columns] if metrics is not None else ordered(columns)
    rows = [_row(row, columns) for row in published]
    notes = list(table.notes)
    if table.rows:
        notes.append(
            f"Published rows are means over the whole benchmark, own ones over {table.samples} samples: they are shown "
            "beside each other and not ranked"
        )
        notes += [
            f"Published {name} was computed with the published weights, not with this repository's small ones"
            for name in names
            if name in own and own[name].tiny
        ]
    return replace(
        table, columns=tuple(columns[name] for name in names), rows=(*table.rows, *rows), notes=tuple(notes)
    )  # fmt: skip


def _row(published: PublishedRow, columns: dict[str, Column]) -> Row:
    cells = {}
    for key, (name, _, factor) in COLUMNS.items():
        number = published.metrics.get(key)
        if number is not None and name in columns:
            cells[name] = Cell(float(number) / factor, math.nan, math.nan, 0, 0, 0, printed=digits(number))
    variant = "blended" if published.blended else "raw"
    return Row(published.method, variant, False, 0, 0, cells, published=published.footnote())
