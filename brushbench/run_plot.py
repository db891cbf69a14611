"""The figure of one run: what ``Run.plot`` shows. Matplotlib is imported when it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from brushbench.text import plot_label

if TYPE_CHECKING:
    import pandas

__all__ = ["draw_summary"]

COLOUR = "#0072B2"


def draw_summary(summary: pandas.DataFrame, headers: Mapping[str, Any], title: str) -> npt.NDArray[Any]:
    """Draw means with their intervals: a panel per metric, a row per split, prompt variant and variant.

    Args:
        summary: of :meth:`brushbench.Run.summary`, one protocol, at least one row.
        headers: what each column, ``name@protocol``, was computed with: scale and direction.
        title: of the figure.

    Returns:
        The Axes, one per metric.
    """
    import matplotlib.pyplot as plt

    groups = [(str(metric), part) for metric, part in summary.groupby("metric", sort=False)]
    rows = max(len(part) for _, part in groups)
    size = (3.9 * len(groups), 1.1 + 0.28 * rows)
    figure, grid = plt.subplots(1, len(groups), squeeze=False, figsize=size, layout="constrained")
    for axes, (metric, part) in zip(grid[0], groups, strict=True):
        header = headers[f"{metric}@{part['protocol'].iloc[0]}"]
        suffix, factor = header.get("display") or ("", 1.0)
        _draw_rows(axes, part, float(factor))
        arrow = "\N{UPWARDS ARROW}" if header["higher_is_better"] else "\N{DOWNWARDS ARROW}"
        axes.set_title(" ".join(filter(None, (plot_label(metric.replace("_", " ")), suffix, arrow))), fontsize=10)
    figure.suptitle(plot_label(title, 80), fontsize=11)
    axes_of_metrics: npt.NDArray[Any] = grid[0]
    return axes_of_metrics


def _draw_rows(axes: Any, part: pandas.DataFrame, factor: float) -> None:
    labels = []
    for place, row in enumerate(part.to_dict("records")):
        mean, low, high = (row[key] * factor for key in ("mean", "low", "high"))
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [place, place], color=COLOUR, linewidth=2)
        if math.isfinite(mean):
            axes.plot([mean], [place], "o", color=COLOUR, markersize=5)
        else:  # said, for an empty row looks like a forgotten one
            word = "no score" if math.isnan(mean) else "\N{INFINITY}"
            axes.text(0.5, place, word, transform=axes.get_yaxis_transform(), ha="center", va="center")
        prompts = "" if row["prompt_variant"] == "caption" else f", {row['prompt_variant']}"
        labels.append(plot_label(f"{row['split']}{prompts}, {row['variant']} (n {row['n']})", 40))
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
