"""Runs to tables: methods x splits, in the paper's scales and arrows. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushbench.errors import RunError, UsageError
from brushbench.runs import Run
from brushbench.types import PROTOCOLS

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FORMATS", "Cell", "Row", "Table", "make_tables", "open_runs", "render", "wide_console"]

FORMATS = ("table", "markdown", "csv", "json")
SCALES: Mapping[str, tuple[str, float]] = {  # the paper's headings; scores themselves are stored unscaled
    "image_reward": ("x10", 10.0),
    "hps_v2": ("x10²", 1e2),
    "hps_v2.1": ("x10²", 1e2),
    "lpips": ("x10³", 1e3),
    "mse": ("x10³", 1e3),
    "ssim": ("x10²", 1e2),
    "attribute_accuracy": ("%", 1e2),
    "boundary": ("x10³", 1e3),
}
ORDER = ("image_reward", "hps_v2", "hps_v2.1", "aesthetic", "psnr", "mse", "lpips", "ssim", "clip_score")


@dataclass(frozen=True)
class Cell:
    """One mean with its interval, in the metric's own units."""

    mean: float
    low: float
    high: float
    n: int
    infinite: int
    missing: int


@dataclass(frozen=True)
class Row:
    """One method, one variant, one split."""

    method: str
    variant: str
    reference: bool
    pictures: int
    cells: Mapping[str, Cell]  # by metric


@dataclass(frozen=True)
class Table:
    """Rows that answer the same questions: one benchmark, one split, one protocol."""

    benchmark: str
    questions: str  # SHA-256 over data and sample keys: rows of other questions never share a table
    split: str
    prompt_variant: str
    protocol: str
    metrics: tuple[str, ...]
    higher_is_better: Mapping[str, bool]
    tiny: tuple[str, ...]  # metrics whose models are this repository's own small ones
    rows: tuple[Row, ...]

    def best(self, metric: str) -> float | None:
        """Return the best mean of a column among ranked rows; reference lines do not count."""
        means = [c.mean for r in self.rows if not r.reference and (c := r.cells.get(metric)) and not math.isnan(c.mean)]
        if not means:
            return None
        return max(means) if self.higher_is_better[metric] else min(means)


def open_runs(paths: Sequence[Path | str]) -> list[Run]:
    """Open runs; a folder that holds runs stands for all of them.

    Raises:
        RunError: a path holds no run.
    """
    runs: list[Run] = []
    for path in map(Path, paths):
        found = [path] if (path / "run.json").is_file() else sorted(f.parent for f in path.glob("**/run.json"))
        if not found:
            raise RunError(f"{path} holds no run. Name the folder that `brushbench eval` wrote, or its parent.")
        runs += [Run.open(folder) for folder in found]
    return runs


def make_tables(runs: Sequence[Run], protocol: str = "standard") -> list[Table]:
    """Return one table a benchmark and split; runs on other data or other samples get tables of their own.

    Raises:
        UsageError: an unknown protocol.
        RunError: two runs of one table have the same name.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"No protocol {protocol!r}. Known: {', '.join(PROTOCOLS)}.")
    groups: dict[tuple[str, str, str, str], list[tuple[Run, dict[str, Any], Row]]] = {}
    for run in runs:
        rows_of_run = _rows(run, protocol)
        headers_of_run = run.metrics  # after the scores: headers are written before them, so each score has its own
        for (split, prompt_variant), rows in rows_of_run.items():
            benchmark = run.header["benchmark"]
            questions = f"{benchmark.get('sha256', '')}:{run.header['plan']['keys_sha256']}"
            key = (str(benchmark.get("name")), questions, split, prompt_variant)
            groups.setdefault(key, []).extend((run, headers_of_run, row) for row in rows)
    tables = []
    for (name, questions, split, prompt_variant), found in groups.items():
        rows = sorted((row for _, _, row in found), key=lambda row: row.reference)  # stable: as they were named
        _refuse_doubles(rows, name, split)
        metrics = _ordered({metric for row in rows for metric in row.cells})
        headers = {metric: _header(found, metric, protocol) for metric in metrics}
        directions = {metric: bool(header["higher_is_better"]) for metric, header in headers.items()}
        tiny = tuple(m for m, header in headers.items() if (header.get("weights") or {}).get("tiny"))
        tables.append(Table(name, questions, split, prompt_variant, protocol, metrics, directions, tiny, tuple(rows)))
    return tables


def _header(found: Sequence[tuple[Run, dict[str, Any], Row]], metric: str, protocol: str) -> dict[str, Any]:
    """Return what a column was computed with, which must be the same weights in every run."""
    column = f"{metric}@{protocol}"
    scored: list[tuple[Run, dict[str, Any]]] = [
        (run, headers[column]) for run, headers, row in found if metric in row.cells
    ]
    (first, header), *others = scored
    for run, other in others:
        if other.get("weights") != header.get("weights"):
            raise RunError(
                f"{first.path} and {run.path} were scored with different weights of {metric}: one column cannot hold "
                f"both. Score one again: brushbench score {run.path} --metrics {metric} --weights {metric}=PATH."
            )
    return header


def _rows(run: Run, protocol: str) -> dict[tuple[str, str], list[Row]]:
    """Return a run's rows by (split, prompt variant)."""
    summary = run.summary()
    summary = summary[summary["protocol"] == protocol]
    cells: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for record in summary.to_dict("records"):
        key = (record["split"], record["prompt_variant"], record["variant"])
        cells.setdefault(key, {})[record["metric"]] = Cell(**{field.name: record[field.name] for field in fields(Cell)})
    rows: dict[tuple[str, str], list[Row]] = {}
    for (split, prompt_variant, variant), found in sorted(cells.items(), key=lambda item: item[0][2] != "raw"):
        pictures = max(cell.n + cell.missing for cell in found.values())
        row = Row(run.config.name, variant, run.is_reference, pictures, found)
        rows.setdefault((split, prompt_variant), []).append(row)
    return rows


def _refuse_doubles(rows: Iterable[Row], benchmark: str, split: str) -> None:
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = (row.method, row.variant)
        if key in seen:
            raise RunError(
                f"Two runs on {benchmark} ({split}) are named {row.method!r}. Name one of them apart with --name."
            )
        seen.add(key)


def _ordered(metrics: set[str]) -> tuple[str, ...]:
    return (*(m for m in ORDER if m in metrics), *sorted(metrics - set(ORDER)))


# Rendering ------------------------------------------------------------------------------------------------------------


def render(tables: Sequence[Table], form: str = "table", intervals: bool = False) -> str:
    """Return tables as text.

    Args:
        tables: from :func:`make_tables`.
        form: ``table`` (for a terminal), ``markdown``, ``csv`` or ``json`` (both unscaled, with intervals; JSON
            has no infinity and no NaN: ``null`` stands there, and ``n`` and ``infinite`` tell which of the two it was).
        intervals: show the 95 % interval behind each mean.

    Raises:
        UsageError: an unknown form.
    """
    if form == "json":
        return json.dumps(_finite([asdict(table) for table in tables]), indent=1, ensure_ascii=False, allow_nan=False)
    if form == "csv":
        return _csv(tables)
    if form == "markdown":
        return "\n\n".join(_markdown(table, intervals) for table in tables)
    if form == "table":
        return "\n".join(_terminal(table, intervals) for table in tables)
    raise UsageError(f"No format {form!r}. Known: {', '.join(FORMATS)}.")


def _finite(value: Any) -> Any:
    """Return a value with ``None`` in place of every infinity and NaN in it: no JSON reader but Python's takes them."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(table: Table) -> str:
    prompt = "" if table.prompt_variant == "caption" else f", prompt: {table.prompt_variant}"
    return f"{table.benchmark}, {table.split}{prompt} ({table.protocol})"


def _heading(table: Table, metric: str) -> str:
    scale = SCALES.get(metric, ("", 1.0))[0]
    arrow = "↑" if table.higher_is_better[metric] else "↓"
    mark = "†" if metric in table.tiny else ""
    return " ".join(part for part in (metric.replace("_", " ") + mark, scale, arrow) if part)


def _notes(table: Table, references: str) -> list[str]:
    """Return the sentences under a table; ``references`` says how reference lines are set apart."""
    notes = [f"{references}: reference lines, which see the answer and are not ranked"]
    tiny = ["†: small models of this repository, trained on its own scenes; not comparable with published numbers"]
    return (notes if any(row.reference for row in table.rows) else []) + (tiny if table.tiny else [])


def _method(row: Row) -> str:
    return row.method if row.variant == "raw" else f"{row.method} ({row.variant})"


def _grid(table: Table, intervals: bool, bold: str) -> tuple[list[str], list[list[str]]]:
    header = ["method", *(_heading(table, metric) for metric in table.metrics), "n", "missing"]
    best = {metric: table.best(metric) for metric in table.metrics}
    lines = []
    for row in table.rows:
        cells = []
        # A picture that is not there has no score at all. Where one metric gives none, that metric's n says so.
        missing = min((cell.missing for cell in row.cells.values()), default=0)
        for metric in table.metrics:
            cell = row.cells.get(metric)
            text = _value(cell, SCALES.get(metric, ("", 1.0))[1], intervals)
            if cell is not None and 0 < cell.n < row.pictures - missing:
                text += f" (n {cell.n})"
            winner = not row.reference and metric in row.cells and row.cells[metric].mean == best[metric]
            cells.append(bold.format(text) if winner else text)
        lines.append([_method(row), *cells, str(row.pictures - missing), str(missing)])
    return header, lines


def _value(cell: Cell | None, scale: float, intervals: bool) -> str:
    if cell is None or math.isnan(cell.mean):
        return "–"
    if math.isinf(cell.mean):
        return "∞"
    text = f"{cell.mean * scale:.2f}"
    if intervals and not math.isnan(cell.low):
        text += f" [{cell.low * scale:.2f}, {cell.high * scale:.2f}]"
    return text + (f" ({cell.infinite}x∞)" if cell.infinite else "")


def _markdown(table: Table, intervals: bool) -> str:
    header, lines = _grid(table, intervals, "**{}**")
    named = [line[0].replace("|", "\\|") for line in lines]  # a bare bar would end the cell
    slanted = [f"_{name}_" if row.reference else name for name, row in zip(named, table.rows, strict=True)]
    body = [[name, *line[1:]] for name, line in zip(slanted, lines, strict=True)]
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *body])
    return "\n\n".join([f"### {_title(table)}", rows, *(f"{note}." for note in _notes(table, "_Slanted_"))])


def wide_console() -> Console:
    """Return a console as wide as the terminal; a pipe or a log has no width of its own and gets 200 columns."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _terminal(table: Table, intervals: bool) -> str:
    from rich.markup import escape
    from rich.table import Table as RichTable

    header, lines = _grid(table, intervals, "[bold green]{}[/]")
    caption = "\n".join(_notes(table, "below the rule")) or None
    shown = RichTable(title=_title(table), caption=caption, title_justify="left", caption_justify="left")
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=not i)
    first_reference = next((i for i, row in enumerate(table.rows) if row.reference), len(lines))
    for i, (line, row) in enumerate(zip(lines, table.rows, strict=True)):
        style = "dim" if row.reference else ""
        shown.add_row(escape(line[0]), *line[1:], style=style, end_section=i == first_reference - 1)
    console = wide_console()
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def _csv(tables: Sequence[Table]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["benchmark", "split", "prompt_variant", "protocol", "method", "variant", "reference", "metric",
         "higher_is_better", "mean", "low", "high", "n", "infinite", "missing"]
    )  # fmt: skip
    for table in tables:
        for row in table.rows:
            for metric, cell in row.cells.items():
                values: list[Any] = [
                    table.benchmark,
                    table.split,
                    table.prompt_variant,
                    table.protocol,
                    row.method,
                    row.variant,
                ]
                writer.writerow(
                    [*values, row.reference, metric, table.higher_is_better[metric], cell.mean, cell.low, cell.high,
                     cell.n, cell.infinite, cell.missing]
                )  # fmt: skip
    return buffer.getvalue().rstrip("\n")
