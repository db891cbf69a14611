"""From a report's data to a folder: Jinja lays out, nothing is computed in a template.

The folder opens from disk and from any static host. Prompts, names and metadata are untrusted: the templates escape
them, the page's script sets them as text, file names are our own, and the page's Content-Security-Policy allows no
script but its own file.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from brushbench import __version__
from brushbench.errors import RunError, UsageError
from brushbench.progress import track
from brushbench.report.audits import LEGEND
from brushbench.report.boards import make_board
from brushbench.report.data import Report
from brushbench.report.images import draw_all
from brushbench.report.plots import draw_plots
from brushbench.types import Benchmark

__all__ = ["STATIC", "GateSection", "check_folder", "prepare_folder", "write_page", "write_pictures"]

STATIC = ("report.css", "report.js")
MARK = "gallery.js"  # what tells a report's folder from any other


@dataclass(frozen=True)
class GateSection:
    """The quality gate in a page.

    Attributes:
        sentence: the verdict in words, untrusted.
        table: its checks as HTML, from :func:`brushbench.leaderboard.render.render_grid`, which escapes every cell.
    """

    sentence: str
    table: str


def check_folder(out: Path) -> None:
    """Refuse a folder that holds other files than a report's.

    Raises:
        UsageError: the folder holds other files, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Name a folder for the report.")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise UsageError(f"{out} holds other files. Name a new folder for the report, or one that holds a report.")


def prepare_folder(out: Path) -> None:
    """Make the report's folder, or empty the report that is there.

    Raises:
        UsageError: the folder holds other files, or is a file.
    """
    check_folder(out)
    for part in ("thumbs", "full"):
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def write_pictures(
    report: Report,
    benchmark: Benchmark,
    out: Path,
    *,
    side: int = 160,
    originals: bool = True,
    jobs: int = 2,
    quality: int | None = None,
) -> None:
    """Draw every picture of the gallery.

    Args:
        report: its gallery's prompts, metadata and problems are filled on the way.
        benchmark: the one the runs were made on; references and holes come from it.
        out: the report's folder.
        side: longest side of a thumbnail, pixels.
        originals: whether pictures of full size are part of the report.
        jobs: processes.
        quality: of the thumbnails' WebP, 1..100; None: 82, and lossless up to 96 pixels.

    Raises:
        RunError: the runs have samples that the benchmark lacks.
    """
    known = set(benchmark.keys)
    strangers = [row for row in report.gallery.rows if (row.sample, row.split) not in known]
    if strangers:
        raise RunError(
            f"The benchmark lacks {len(strangers)} of the runs' samples, the first {strangers[0].sample!r} "
            f"({strangers[0].split}). Name the data the runs were made on with --data or --bench."
        )
    drawn = draw_all(report.gallery.drawings(benchmark), out, side, originals, jobs, quality)
    for _, (row, problems) in zip(track(report.gallery.rows, "report", lambda _: 1), drawn, strict=True):
        for key, reason in problems.items():
            report.gallery.problems.setdefault(key, {})[row] = reason


def write_page(report: Report, out: Path, gates: Sequence[GateSection] = ()) -> Path:
    """Write the page beside its pictures and return its path."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brushbench.report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    plots = [{"svg": Markup(plot.svg), "caption": plot.caption} for plot in draw_plots(report)]  # noqa: S704  our own SVG
    views = [("leaderboard", "Leaderboard"), ("gallery", "Gallery"), ("plots", "Plots"), ("provenance", "Provenance")]
    if report.audits:
        views.insert(3, ("audit", "Audit"))
    if gates:
        views.insert(1, ("gate", "Gate"))
    context: dict[str, Any] = {
        "report": report,
        "boards": [make_board(table) for table in report.tables],
        "plots": plots,
        "views": views,
        "gates": [(gate.sentence, Markup(gate.table)) for gate in gates],  # noqa: S704  escaped where it was made
        "legend": LEGEND,
        "version": __version__,
    }
    page = out / "index.html"
    page.write_text(_clean(environment.get_template("page.html.j2").render(context)), encoding="utf-8")
    (out / MARK).write_text(report.gallery.to_script(), encoding="ascii")
    static = resources.files("brushbench.report") / "static"
    for name in STATIC:
        (out / name).write_bytes((static / name).read_bytes())
    return page


def _clean(text: str) -> str:
    """Return text that UTF-8 can hold and HTML allows: lone surrogates and control characters are replaced."""
    kept = "".join(c if c >= " " or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return kept.encode("utf-8", "replace").decode("utf-8")
