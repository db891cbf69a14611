"""An audit as text and as an image: tables in Markdown and LaTeX, JSON, a heat map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushbench.errors import UnknownNameError
from brushbench.leaderboard.grid import CellText, Grid, Heading
from brushbench.leaderboard.render import render_grid

if TYPE_CHECKING:
    from brushbench.evaluation.audit import Audit, Finding, Stability

__all__ = ["FORMATS", "NOTES", "draw_heat_map", "render", "share_worse", "short_name"]

FORMATS = ("markdown", "json", "latex")
NOTES = (
    "k/n: of n images, k scored strictly worse when damaged",
    "Without a word the metric detects the damage: the 95 % interval of the share lies above one half",
    "blind: it does not. inverted: more than half of the damaged images scored better",
    "In brackets: damage of pixels or captions that the metric is not there to judge",
)


def render(audit: Audit, form: str = "markdown") -> str:
    """Return an audit as ``markdown``, ``latex`` or ``json``.

    Raises:
        UnknownNameError: another format.
    """
    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    if form == "json":
        return _json(audit)
    return "\n\n".join(render_grid(grid, form) for grid in (_findings(audit), _others(audit)))


def draw_heat_map(audit: Audit, file: Path) -> None:
    """Draw the share of images that scored worse as a PNG: a row per damage, a column per metric.

    Blue: worse, as it should be; white: half of them; red: better. What a metric is not there to see is grey.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, damages = list(audit.columns), list(dict.fromkeys(f.damage for f in audit.findings))
    shares = [[math.nan] * len(metrics) for _ in damages]
    figure = Figure(figsize=(3.2 + 0.62 * len(metrics), 1.6 + 0.24 * len(damages)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    for finding in audit.findings:
        row, column = damages.index(finding.damage), metrics.index(finding.metric)
        share = 0.5
        if finding.n and finding.asked:
            share = shares[row][column] = share_worse(finding.worse, finding.better, finding.n)
        ink = "white" if abs(share - 0.5) > 0.35 else "black"
        axes.text(column, row, f"{finding.worse}/{finding.n}", ha="center", va="center", fontsize=6, color=ink)
    axes.imshow(shares, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(metrics)), [short_name(name) for name in metrics], rotation=45, ha="left", fontsize=7)
    axes.set_yticks(range(len(damages)), damages, fontsize=7)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    figure.savefig(file, format="png", dpi=85)


def share_worse(worse: int, better: int, n: int) -> float:
    """Return the share of n damaged images that scored worse, 0..1; a tie counts half."""
    return 0.5 + (worse - better) / (2 * n)


def short_name(column: str) -> str:
    """Return a column's name for a heading: without ``@standard`` and underscores."""
    return column.removesuffix("@standard").replace("_", " ")


def _title(audit: Audit, what: str) -> str:
    return f"{audit.benchmark}, {', '.join(audit.splits)}, {audit.images} images: {what}"


def _grid(audit: Audit, what: str, first: str, rows: Mapping[str, Sequence[CellText]], notes: Sequence[str]) -> Grid:
    return Grid(
        title=_title(audit, what),
        headings=tuple(Heading(short_name(name)) for name in audit.columns),
        methods=tuple(rows),
        references=(False,) * len(rows),
        published=(False,) * len(rows),
        cells=tuple(tuple(cells) for cells in rows.values()),
        notes=(),
        remarks=tuple(notes),
        first=first,
    )


def _findings(audit: Audit) -> Grid:
    rows: dict[str, list[CellText]] = {}
    for finding in sorted(audit.findings, key=lambda f: list(audit.columns).index(f.metric)):
        rows.setdefault(finding.damage, []).append(_verdict(finding))
    return _grid(audit, "images that scored worse", "damage", rows, NOTES)


def _verdict(finding: Finding) -> CellText:
    word = "" if finding.verdict == "detects" else f" {finding.verdict}"
    text = f"{finding.worse}/{finding.n}{word}"
    if not finding.asked:
        return CellText(f"({text})")
    return CellText(text, "best" if finding.verdict == "inverted" else "")


def _others(audit: Audit) -> Grid:
    columns = audit.columns.values()
    rows = {
        "identical image": [CellText(_number(column.identical)) for column in columns],
        "worst case": [CellText(column.worst[0] or "–") for column in columns],
        "score there": [CellText(_number(column.worst[1])) for column in columns],
        "ms per image": [CellText(_number(1000 * column.seconds)) for column in columns],
    }
    for change in dict.fromkeys(one.change for one in audit.stability):
        found = {one.metric: one for one in audit.stability if one.change == change}
        rows[change] = [CellText(_moved(found[name])) for name in audit.columns]
    notes = (
        "Last four rows: largest change of a score where nobody sees one, and its share of the scores' deviation",
        "batch size: one image at a time against all at once",
        "Time on the machine of the audit; what metrics share is counted for the first of them",
    )
    return _grid(audit, "ends of the scale, speed, stability", "", rows, notes)


def _moved(one: Stability) -> str:
    if not one.n:
        return "–"
    share = f" ({one.largest / one.spread:.1%})" if one.largest and one.spread else ""
    return f"{_number(one.largest)}{share}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.3g}"


def _json(audit: Audit) -> str:
    """Return JSON with one line per finding; an infinite or missing number is null."""
    data = _plain(asdict(audit))
    rows = {key: data.pop(key) for key in ("findings", "stability")}
    head = json.dumps(data, indent=1, ensure_ascii=False).removesuffix("\n}")
    parts = []
    for key, found in rows.items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in found)
        parts.append(f' "{key}": [\n{lines}\n ]' if found else f' "{key}": []')
    return ",\n".join([head, *parts]) + "\n}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
