"""A grid for the terminal: columns that do not fit stand in further blocks below, so that nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from brushbench import text
from brushbench.leaderboard.grid import TINY, Grid, Heading
from brushbench.progress import wide_console

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

__all__ = ["draw"]

STYLES = {"best": "bold green", "second": "underline", "": ""}


def draw(grid: Grid, width: int | None = None) -> str:
    """Return a grid as lines of at most ``width`` columns; names that would fill them get a number and a line below."""
    console = wide_console(width)
    names, legend = _short(grid.methods, console.width)
    for between in (" ", "\n"):  # headings on one line where that fits, else one word per line
        head = [_heading(heading, between) for heading in grid.headings]
        blocks = _blocks(grid, names, head, console.width)
        if len(blocks) == 1:
            break
    with console.capture() as capture:
        for number, block in enumerate(blocks):
            console.print(_block(grid, names, head, block, title=_title(grid, number, len(blocks))))
        for note in [*legend, *_notes(grid)]:
            console.print(note, style="dim", markup=False, highlight=False)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def _short(methods: Sequence[str], width: int) -> tuple[list[str], list[str]]:
    """Return names that leave room for numbers, and lines that spell out those that do not."""
    from rich.cells import cell_len

    names: list[str] = []
    legend: list[str] = []
    for method in map(text.terminal, methods):
        if cell_len(method) <= max(16, width * 2 // 5):
            names.append(method)
        else:
            legend.append(f"({len(legend) + 1}): {method}")
            names.append(f"({len(legend)})")
    return names, legend


def _heading(heading: Heading, between: str) -> str:
    notes = "".join(f"[{number}]" for number in heading.notes)
    name = text.terminal(heading.name) + ("†" if heading.tiny else "") + notes
    unit = " ".join(part for part in (text.terminal(heading.scale), heading.arrow) if part)
    return between.join([*name.split(" "), *([unit] if unit else [])])


def _blocks(grid: Grid, names: Sequence[str], head: Sequence[str], width: int) -> list[list[int]]:
    """Cut the columns into blocks that fit, the fullest first."""
    from rich.cells import cell_len

    def room(column: int) -> int:
        words = [*head[column].split("\n"), *(line[column].text for line in grid.cells)]
        return max(map(cell_len, words), default=0) + 3  # a space on each side, and a border

    first = max(map(cell_len, [grid.first, *names])) + 4
    blocks: list[list[int]] = [[]]
    left = width - first
    for column in range(len(head)):
        if blocks[-1] and room(column) > left:
            blocks.append([])
            left = width - first
        blocks[-1].append(column)
        left -= room(column)
    return blocks


def _title(grid: Grid, number: int, blocks: int) -> str:
    part = f", {number + 1} of {blocks}" if blocks > 1 else ""
    return text.terminal(grid.title) + part


def _block(grid: Grid, names: Sequence[str], head: Sequence[str], columns: Sequence[int], title: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(title=Text(title), title_justify="left", title_style="italic")
    shown.add_column(grid.first, no_wrap=True)
    for column in columns:
        shown.add_column(Text(head[column], justify="right"), justify="right", no_wrap=True)
    first_reference = next((i for i, reference in enumerate(grid.references) if reference), len(names))
    for i, (name, line) in enumerate(zip(names, grid.cells, strict=True)):
        style = "dim" if grid.references[i] else ""
        cells: list[Text] = [Text(line[column].text, STYLES[line[column].mark]) for column in columns]
        shown.add_row(Text(name), *cells, style=style, end_section=i == first_reference - 1)
    return shown


def _notes(grid: Grid) -> list[str]:
    notes = ["below the rule: reference lines, which see the answer and are not ranked"] if any(grid.references) else []
    notes += [f"†: {TINY}"] if grid.tiny else []
    notes += [f"[{number}] {text.terminal(note)}" for number, note in enumerate(grid.notes, 1)]
    return notes + [text.terminal(remark) for remark in grid.remarks]
