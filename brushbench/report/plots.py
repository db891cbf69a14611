"""Plots of a report, as SVG text to be put into the page. Matplotlib draws; nothing is fetched and nothing is shown."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brushbench.stats import paired_difference
from brushbench.text import plot_label

if TYPE_CHECKING:
    from brushbench.report.data import Gallery, MethodCard, Report

__all__ = ["Plot", "draw_plots"]

# Okabe and Ito's colours, which readers with any kind of colour vision tell apart; colour never stands alone.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#777777")
INK = "#123457"  # stands for the page's text colour until the SVG is written
MOST_PANELS = 12
PRESERVATION = ("lpips", "psnr", "mse", "ssim")
TEXT = ("clip_score", "clip_score_local", "image_reward", "attribute_accuracy")


@dataclass(frozen=True)
class Plot:
    """One figure: SVG text and the sentence under it."""

    svg: str
    caption: str


def draw_plots(report: Report) -> list[Plot]:
    """Return the figures of a report: paired differences, distributions, trade-off, speed."""
    gallery = report.scored
    plots = []
    for split in dict.fromkeys(row.split for row in gallery.rows):
        for draw in (_differences, _distributions, _trade_off):
            plot = draw(gallery, split)
            if plot is not None:
                plots.append(plot)
    if len(report.seconds) > 1:
        plots.append(_speed(report.seconds))
    return plots


def _per_sample(gallery: Gallery, method: MethodCard, metric: str, split: str) -> npt.NDArray[np.float64]:
    """Return one score per sample of a split, repeats averaged, NaN where there is none."""
    column = gallery.scores.get(f"{method.key}|raw|{metric}")
    sums: dict[str, list[float]] = {}
    for i, row in enumerate(gallery.rows):
        if row.split == split:
            value = column[i] if column else None
            number = math.inf if value == "inf" else math.nan if value is None else float(value)
            sums.setdefault(row.sample, []).append(number)
    return np.array([float(np.nanmean(v)) if not np.all(np.isnan(v)) else math.nan for v in sums.values()])


def _panels(gallery: Gallery, split: str) -> list[dict[str, Any]]:
    """Return the metrics of the standard protocol that someone has finite scores for."""
    return [
        metric
        for metric in gallery.metrics
        if metric["name"].endswith("@standard")
        and any(np.isfinite(_per_sample(gallery, m, metric["name"], split)).any() for m in gallery.methods)
    ][:MOST_PANELS]


def _differences(gallery: Gallery, split: str) -> Plot | None:
    ranked = [method for method in gallery.methods if not method.reference]
    metrics = _panels(gallery, split)
    if len(ranked) < 2 or not metrics:
        return None
    first, others = ranked[0], ranked[1:]

    def panel(axes: Any, metric: dict[str, Any]) -> None:
        base = _per_sample(gallery, first, metric["name"], split)
        for place, method in enumerate(others):
            values = _per_sample(gallery, method, metric["name"], split)
            with np.errstate(invalid="ignore"):
                gaps = (values - base)[np.isfinite(values) & np.isfinite(base)] * metric["scale"]
            if gaps.size == 0:
                continue
            summary = paired_difference(gaps, np.zeros_like(gaps))
            colour = COLOURS[(place + 1) % len(COLOURS)]
            if math.isfinite(summary.low):
                axes.plot([summary.low, summary.high], [place, place], color=colour, linewidth=2)
            axes.plot([summary.mean], [place], "o", color=colour, markersize=5)
        axes.axvline(0, color=INK, linewidth=0.8)
        _name_rows(axes, [method.label for method in others])

    svg = _grid_figure(metrics, len(others), panel, f"Paired differences from {first.label}, {split}")
    return Plot(
        svg,
        f"{split}: difference of each method from {first.label}, paired by sample: mean and 95 % interval, in the "
        "column's unit. Samples where either has no finite score are left out. Arrows say which direction is better.",
    )


def _distributions(gallery: Gallery, split: str) -> Plot | None:
    metrics = _panels(gallery, split)
    if not metrics:
        return None

    def panel(axes: Any, metric: dict[str, Any]) -> None:
        for place, method in enumerate(gallery.methods):
            values = _per_sample(gallery, method, metric["name"], split) * metric["scale"]
            finite = values[np.isfinite(values)]
            if finite.size == 0:
                continue
            low, q1, middle, q3, high = np.quantile(finite, [0.05, 0.25, 0.5, 0.75, 0.95])
            colour = COLOURS[place % len(COLOURS)]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.2)
            axes.barh(place, q3 - q1, left=q1, height=0.5, color=colour, alpha=0.75)
            axes.plot([middle], [place], "|", color=INK, markersize=9)
        _name_rows(axes, [method.label for method in gallery.methods])

    svg = _grid_figure(metrics, len(gallery.methods), panel, f"Distributions, {split}")
    return Plot(
        svg,
        f"{split}: distribution of each metric over samples, raw pictures: median, middle half (bar), 5th to 95th "
        "percentile (line).",
    )


def _trade_off(gallery: Gallery, split: str) -> Plot | None:
    names = {metric["name"].partition("@")[0]: metric for metric in _panels(gallery, split)}
    across = next((names[name] for name in PRESERVATION if name in names), None)
    upwards = next((names[name] for name in TEXT if name in names), None)
    if across is None or upwards is None or len(gallery.methods) < 2:
        return None
    figure, axes = _figure(6.4, 4.2)
    for place, method in enumerate(gallery.methods):
        x = _per_sample(gallery, method, across["name"], split) * across["scale"]
        y = _per_sample(gallery, method, upwards["name"], split) * upwards["scale"]
        both = np.isfinite(x) & np.isfinite(y)
        if not both.any():
            continue
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([x[both].mean()], [y[both].mean()], "s" if method.reference else "o", color=colour, markersize=8)
        axes.annotate(plot_label(method.label), (x[both].mean(), y[both].mean()), (7, 4), textcoords="offset points",
                      color=INK, fontsize=9)  # fmt: skip
    axes.set_xlabel(across["label"], color=INK)
    axes.set_ylabel(upwards["label"], color=INK)
    svg = _to_svg(figure, f"Trade-off between {across['label']} and {upwards['label']}, {split}")
    return Plot(
        svg,
        f"{split}: what is preserved outside the hole against agreement with the text; mean per method, raw pictures. "
        "Squares are reference lines.",
    )


def _speed(seconds: Any) -> Plot:
    figure, axes = _figure(6.4, 0.5 + 0.34 * len(seconds))
    for place, value in enumerate(seconds.values()):
        axes.barh(place, value, height=0.6, color=COLOURS[0])
        axes.annotate(f" {value:.3g} s", (value, place), color=INK, va="center", fontsize=9)
    _name_rows(axes, list(seconds))
    axes.set_xlabel("seconds per picture", color=INK)
    return Plot(
        _to_svg(figure, "Seconds per picture"),
        "Seconds per picture, generation only, as each run recorded it. Runs on different machines do not compare.",
    )


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def _grid_figure(
    metrics: Sequence[dict[str, Any]], rows: int, panel: Callable[[Any, dict[str, Any]], None], title: str
) -> str:
    from matplotlib.figure import Figure

    across = min(3, len(metrics))
    down = math.ceil(len(metrics) / across)
    figure = Figure(figsize=(3.9 * across, (0.75 + 0.26 * rows) * down), layout="constrained")
    figure.patch.set_alpha(0)
    grid = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(metrics):
            axes.set_visible(False)
            continue
        _style(axes)
        panel(axes, metrics[place])
        axes.set_title(metrics[place]["label"], fontsize=9, color=INK)
    return _to_svg(figure, title)


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [plot_label(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)


def _to_svg(figure: Any, title: str) -> str:
    """Return a figure as one ``<svg>`` element with a name for screen readers, its ink the page's text colour."""
    from html import escape

    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    clean = escape("".join(c if c.isprintable() else " " for c in title), quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{clean}" ', 1)
