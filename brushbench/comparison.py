"""Two runs side by side, paired by sample: what changed, by how much, how surely, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from brushbench.errors import RunError, UnknownNameError, UsageError
from brushbench.leaderboard.columns import ordered
from brushbench.leaderboard.grid import CellText, Grid, Heading
from brushbench.leaderboard.render import render_grid
from brushbench.runs import Run
from brushbench.scoresets import ColumnKey, Pair, ScoreSet, from_run, pair, refuse_sets, unlike
from brushbench.stats import SMALLEST, paired_difference

__all__ = ["FORMATS", "Change", "Compared", "Comparison", "compare"]

FORMATS = ("table", "markdown", "json", "latex")
MOST = 10  # samples that are named each way


@dataclass(frozen=True)
class Change:
    """One sample's scores in both runs, in the metric's own unit."""

    sample: str
    first: float
    second: float


@dataclass(frozen=True)
class Compared:
    """One column of two runs.

    Attributes:
        metric, protocol, split, variant, prompt_variant: the column.
        n: samples that both have a score of; ``missing`` those that one or both have none of.
        first, second: means of the first and the second run over those n, identical images' PSNR left out.
        difference, low, high: mean of second minus first, with its 95 % interval (NaN below 8).
        better: share of the n samples in which the second run is better; ``worse`` likewise, the rest are equal.
        verdict: ``better`` or ``worse``: the second run, by its interval; else ``no difference shown``.
        suffix, factor: of the metric's heading.
        gained, lost: the ten samples that changed most each way, the largest change first.
    """

    metric: str
    protocol: str
    split: str
    variant: str
    prompt_variant: str
    n: int
    missing: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: float
    worse: float
    verdict: str
    suffix: str
    factor: float
    higher_is_better: bool
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared.

    Attributes:
        first, second: their labels.
        rows: one per column that both have.
        left_out: why other columns are not compared.
    """

    first: str
    second: str
    rows: tuple[Compared, ...]
    left_out: tuple[str, ...]

    def render(self, form: str = "table", width: int | None = None) -> str:
        """Return the comparison as ``table``, ``markdown``, ``json`` or ``latex``.

        Raises:
            UsageError: another format.
        """
        if form not in FORMATS:
            raise UsageError(f"No format {form!r}. Known: {', '.join(FORMATS)}.")
        if form == "json":
            return json.dumps(_plain(asdict(self)), indent=1, allow_nan=False)
        parts = [render_grid(self._grid(), form, width)]
        parts += [render_grid(_changes(row), form, width) for row in self.rows if row.gained or row.lost]
        return "\n\n".join(part.rstrip("\n") for part in parts)

    def to_markdown(self) -> str:
        """Return the comparison for a pull request's comment."""
        return self.render("markdown")

    def _grid(self) -> Grid:
        headings = [
            self.first,
            self.second,
            "difference",
            "95 % interval",
            "better",
            "worse",
            "n",
            "missing",
            "verdict",
        ]
        return Grid(
            title=f"{self.second} against {self.first}, paired by sample",
            headings=tuple(map(Heading, headings)),
            methods=tuple(_name(row) for row in self.rows),
            references=(False,) * len(self.rows),
            published=(False,) * len(self.rows),
            cells=tuple(_cells(row) for row in self.rows),
            notes=(),
            remarks=(f"difference: {self.second} minus {self.first}, mean over the same samples", *self.left_out),
            first="metric",
        )


def compare(
    a: Run | str | Path, b: Run | str | Path, *, metrics: Sequence[str] | None = None, split: str | None = None
) -> Comparison:
    """Compare two runs, paired by sample; repeats of a sample are averaged first.

    Args:
        a: the run to start from, or its folder.
        b: the run to compare with it, or its folder.
        metrics: names, each with ``@brushnet-paper`` where that protocol is meant; ``None`` takes every metric of the
            protocol ``standard`` that both have.
        split: one split; ``None`` takes all that both have.

    Raises:
        RunError: the two cannot be paired: other data, other samples, or no column computed alike.
        UsageError: an unknown metric or split.
    """
    refuse_sets(metrics or (), "compare")
    runs = [run if isinstance(run, Run) else Run.open(run) for run in (a, b)]
    first, second = map(from_run, runs)
    if runs[0].label == runs[1].label:
        first, second = _told_apart(runs, first, second)
    reasons = unlike(first, second)
    if reasons:
        raise RunError(
            f"{runs[0].path} and {runs[1].path} cannot be paired by sample: {'; '.join(reasons)}. Run both on the same "
            "samples."
        )
    keys = _keys(first, second, metrics, split)
    found = list(pair(first, second, keys))
    rows = [_compared(item) for item in found if isinstance(item, Pair) and item.paired_ids]
    left_out = [
        f"{item.key.name}: no sample has a score in both" if isinstance(item, Pair) else item[1]
        for item in found
        if not (isinstance(item, Pair) and item.paired_ids)
    ]
    if not rows:
        raise RunError(f"{runs[0].path} and {runs[1].path} have no column in common: {'; '.join(left_out) or 'none'}.")
    return Comparison(first.label, second.label, tuple(rows), tuple(f"not compared: {reason}" for reason in left_out))


def _told_apart(runs: Sequence[Run], *sets: ScoreSet) -> list[ScoreSet]:
    from dataclasses import replace

    return [replace(s, label=f"{s.label} ({r.path.parent.name})") for r, s in zip(runs, sets, strict=True)]


def _keys(first: ScoreSet, second: ScoreSet, metrics: Sequence[str] | None, split: str | None) -> list[ColumnKey]:
    every = {**first.columns, **second.columns}
    known = list(dict.fromkeys(key.metric for key in every))
    if split is not None and split not in {key.split for key in every}:
        raise UnknownNameError("split", split, {key.split for key in every})
    wanted = [name.partition("@") for name in metrics] if metrics is not None else [(m, "", "") for m in ordered(known)]
    keys = []
    for name, _, protocol in wanted:
        mine = [k for k in every if k.metric == name and k.protocol == (protocol or "standard")]
        if not mine and metrics is not None:
            raise UnknownNameError(
                "column", f"{name}@{protocol or 'standard'}", {f"{k.metric}@{k.protocol}" for k in every}
            )
        keys += [key for key in mine if split in (None, key.split)]
    return keys


def _compared(item: Pair) -> Compared:
    gains, ids = item.gains, item.paired_ids
    both = ~np.isnan(item.first) & ~np.isnan(item.second)
    first, second = item.first[both], item.second[both]
    sign = 1.0 if item.shown.higher_is_better else -1.0
    summary = paired_difference(sign * gains, np.zeros_like(gains))
    surely = gains.size >= SMALLEST and not summary.low <= 0 <= summary.high
    verdict = ("better" if sign * summary.mean > 0 else "worse") if surely else "no difference shown"
    order = np.argsort(gains, kind="stable")
    changes = [Change(ids[i], float(first[i]), float(second[i])) for i in order]
    lost = [change for change, gain in zip(changes, gains[order], strict=True) if gain < 0][:MOST]
    gained = [change for change, gain in zip(changes[::-1], gains[order][::-1], strict=True) if gain > 0][:MOST]
    n = max(gains.size, 1)
    return Compared(
        *item.key[:3], item.key.variant, item.key.prompt_variant, gains.size, len(item.ids) - gains.size,
        _mean(first), _mean(second), summary.mean, summary.low, summary.high, float((gains > 0).sum()) / n,
        float((gains < 0).sum()) / n, verdict, item.shown.suffix, item.shown.factor, item.shown.higher_is_better,
        tuple(gained), tuple(lost),
    )  # fmt: skip


def _mean(scores: np.ndarray) -> float:
    finite = scores[np.isfinite(scores)]
    return float(finite.mean()) if finite.size else math.inf if scores.size else math.nan


def _name(row: Compared) -> str:
    name = ColumnKey(row.metric, row.protocol, row.split, row.prompt_variant, row.variant).name
    return f"{name} {row.suffix}".strip() + (" ↑" if row.higher_is_better else " ↓")


def _cells(row: Compared) -> tuple[CellText, ...]:
    def number(value: float) -> str:
        return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value * row.factor:.2f}"

    interval = "–" if math.isnan(row.low) else f"[{row.low * row.factor:.2f}, {row.high * row.factor:.2f}]"
    words = [number(row.first), number(row.second), number(row.difference), interval, f"{row.better:.0%}"]
    words += [f"{row.worse:.0%}", str(row.n), str(row.missing), row.verdict]
    return tuple(map(CellText, words))


def _changes(row: Compared) -> Grid:
    lines = [(way, change) for way, changes in (("gained", row.gained), ("lost", row.lost)) for change in changes]

    def number(value: float) -> CellText:
        return CellText(f"{value * row.factor:.2f}" if math.isfinite(value) else "∞")

    return Grid(
        title=f"most changed: {_name(row)}",
        headings=(Heading("way"), Heading("before"), Heading("after")),
        methods=tuple(change.sample for _, change in lines),
        references=(False,) * len(lines),
        published=(False,) * len(lines),
        cells=tuple((CellText(way), number(change.first), number(change.second)) for way, change in lines),
        notes=(),
        remarks=(),
        first="sample",
    )


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
