"""Tables to text: terminal, Markdown, LaTeX, HTML, CSV, JSON. What runs name is shown as text in each."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from brushbench import text
from brushbench.errors import UsageError
from brushbench.leaderboard.grid import TINY, Grid, Heading, Spread, make_grid
from brushbench.leaderboard.tables import Table, why_apart
from brushbench.leaderboard.terminal import draw

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMATS", "render", "render_grid"]

FORMATS = ("table", "markdown", "csv", "json", "latex", "html")


def render(
    tables: Sequence[Table], form: str = "table", intervals: bool = False, *, spread: Spread | None = None,
    width: int | None = None,
) -> str:  # fmt: skip
    """Return tables as text.

    Args:
        tables: from :func:`make_tables`.
        form: ``table`` (for a terminal), ``markdown``, ``latex`` (booktabs), ``html``, ``csv`` or ``json`` (both
            unscaled, with intervals; JSON has no infinity and no NaN: ``null`` stands there, and ``n`` and
            ``infinite`` tell which of the two it was).
        intervals: show the 95 % interval behind each mean.
        spread: ``interval``, ``plus-minus`` (half the interval's width) or ``none``, in place of ``intervals``.
        width: columns of the terminal; ``None`` asks it, and takes 200 where there is none.

    Raises:
        UsageError: an unknown format.
    """
    shown: Spread = spread or ("interval" if intervals else "none")
    if form == "json":
        return json.dumps(_finite([_record(table) for table in tables]), indent=1, allow_nan=False)
    if form == "csv":
        return _csv(tables)
    _check_form(form)
    parts = [render_grid(make_grid(table, shown), form, width) for table in tables]
    parts += [_sentence(form, sentence) for sentence in why_apart(tables)]
    return ("\n" if form == "table" else "\n\n").join(parts)


def render_grid(grid: Grid, form: str, width: int | None = None) -> str:
    """Return one grid as text: ``table``, ``markdown``, ``latex`` or ``html``.

    Raises:
        UsageError: an unknown format.
    """
    writers: Mapping[str, Callable[[Grid], str]] = {
        "markdown": _markdown, "latex": _latex, "html": _html, "table": lambda grid: draw(grid, width),
    }  # fmt: skip
    _check_form(form, tuple(writers))
    return writers[form](grid)


def _check_form(form: str, known: Sequence[str] = FORMATS) -> None:
    if form not in known:
        raise UsageError(f"No format {form!r}. Known: {', '.join(known)}.")


def _sentence(form: str, sentence: str) -> str:
    clean = {"markdown": text.markdown, "latex": text.latex, "html": text.html, "table": text.terminal}[form](sentence)
    return f"<p>{clean}</p>" if form == "html" else clean


# Data -----------------------------------------------------------------------------------------------------------------


def _record(table: Table) -> dict[str, Any]:
    """Return a table as JSON data; metrics, directions and small models stand by name too."""
    named = {"metrics": table.metrics, "higher_is_better": table.higher_is_better, "tiny": table.tiny}
    return {**asdict(table), **named}


def _finite(value: Any) -> Any:
    """Return a value with ``None`` in place of every infinity and NaN in it: no JSON reader but Python's takes them."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(tables: Sequence[Table]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["benchmark", "split", "prompt_variant", "protocol", "method", "variant", "reference", "metric",
            "higher_is_better", "mean", "low", "high", "n", "infinite", "missing", "group", "rank", "incomplete",
            "published", "questions"]  # fmt: skip
    writer.writerow(head)
    for table in tables:
        own = [table.benchmark, table.split, table.prompt_variant, table.protocol]
        for row in table.rows:
            for metric, cell in row.cells.items():
                names = [*own, row.method, row.variant, str(row.reference), metric]
                figures = [table.higher_is_better[metric], cell.mean, cell.low, cell.high, cell.n, cell.infinite]
                last = [table.group, cell.rank, row.incomplete, row.published, table.questions]
                clean = [list(map(text.csv_cell, part)) for part in (names, last)]
                writer.writerow([*clean[0], *figures, cell.missing, *clean[1]])
    return buffer.getvalue().rstrip("\n")


# Markup ---------------------------------------------------------------------------------------------------------------


def _markdown(grid: Grid) -> str:
    names = [text.markdown(name) for name in grid.methods]
    names = [f"_{name}_" if reference else name for name, reference in zip(names, grid.references, strict=True)]
    body = [
        [name, *(f"**{cell.text}**" if cell.mark == "best" else cell.text for cell in line)]
        for name, line in zip(names, grid.cells, strict=True)
    ]
    head = [grid.first, *(_words(heading, text.markdown) for heading in grid.headings)]
    rule = ["---", *["---:"] * len(grid.headings)]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])
    return "\n\n".join([f"### {text.markdown(grid.title)}", rows, *_notes(grid, "_Slanted_", text.markdown)])


def _words(heading: Heading, clean: Callable[[object], str]) -> str:
    mark = ("†" if heading.tiny else "") + "".join(clean(f" [{number}]") for number in heading.notes)
    return " ".join(part for part in (clean(heading.name) + mark, clean(heading.scale), heading.arrow) if part)


def _notes(grid: Grid, references: str, clean: Callable[[object], str]) -> list[str]:
    """Return the sentences under a table; ``references`` says how reference lines are set apart."""
    notes = [f"{references}: reference lines, which see the answer and are not ranked."] if any(grid.references) else []
    notes += [f"†: {TINY}."] if grid.tiny else []
    notes += [f"{clean(f'[{number}]')} {clean(note)}." for number, note in enumerate(grid.notes, 1)]
    return notes + [f"{clean(remark)}." for remark in grid.remarks]


def _latex(grid: Grid) -> str:
    r"""Return a table for ``\usepackage{booktabs}``: best bold, second underlined, arrows."""
    math_signs = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$^\dagger$", "∞": r"$\infty$", "±": r"$\pm$",
                  "x10³": r"$\times 10^3$", "x10²": r"$\times 10^2$", "x10": r"$\times 10$", "–": "--"}  # fmt: skip

    def signs(plain: str) -> str:
        for sign, command in math_signs.items():
            plain = plain.replace(sign, command)
        return plain

    def digits(cell: str, mark: str) -> str:
        shown = signs(cell)
        return {"best": rf"\textbf{{{shown}}}", "second": rf"\underline{{{shown}}}"}.get(mark, shown)

    def head(heading: Heading) -> str:
        mark = "†" if heading.tiny else ""
        notes = ",".join(map(str, heading.notes))
        raised = rf"\textsuperscript{{{notes}}}" if notes else ""
        tail = " ".join(signs(part) for part in (heading.scale.replace("%", r"\%"), heading.arrow) if part)
        return f"{text.latex(heading.name)}{signs(mark)}{raised} {tail}".strip()

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{text.latex(grid.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(grid.headings)}}}", r"\toprule"]
    lines += [" & ".join([grid.first, *map(head, grid.headings)]) + r" \\", r"\midrule"]
    for i, (name, line) in enumerate(zip(grid.methods, grid.cells, strict=True)):
        if grid.references[i] and (i == 0 or not grid.references[i - 1]) and i:
            lines.append(r"\midrule")
        shown = rf"\textit{{{text.latex(name)}}}" if grid.references[i] else text.latex(name)
        lines.append(" & ".join([shown, *(digits(cell.text, cell.mark) for cell in line)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = _notes(grid, "Slanted", text.latex)
    lines += [r"\par\footnotesize " + signs(note) for note in notes]
    return "\n".join([*lines, r"\end{table}"])


def _html(grid: Grid) -> str:
    tags = {"best": "<strong>{}</strong>", "second": "<u>{}</u>", "": "{}"}
    head = "".join(f"<th>{_words(heading, text.html)}</th>" for heading in [Heading(grid.first), *grid.headings])
    lines = []
    for name, reference, line in zip(grid.methods, grid.references, grid.cells, strict=True):
        shown = f"<em>{text.html(name)}</em>" if reference else text.html(name)
        cells = "".join(f"<td>{tags[cell.mark].format(text.html(cell.text))}</td>" for cell in line)
        lines.append(f"<tr><th>{shown}</th>{cells}</tr>")
    notes = "".join(f"<p>{note}</p>\n" for note in _notes(grid, "<em>Slanted</em>", text.html))
    body = "\n".join(lines)
    return (
        f"<table>\n<caption>{text.html(grid.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n"
        f"</tbody>\n</table>\n{notes}"
    ).rstrip("\n")
