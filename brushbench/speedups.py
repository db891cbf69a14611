"""What the accelerations of a method gain and cost: each is run over a benchmark and gated against the published way.

*Proven*: the gate passes on every gated column. *Refuted*: it fails. *Not proven*: too few samples to say, or the two
cannot be compared. An acceleration that does nothing on the method is refused before any image is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeAlias

import numpy as np

from brushbench.config import RunConfig
from brushbench.errors import UsageError
from brushbench.evaluation import Scoring, carry_out, configure
from brushbench.features import Features
from brushbench.gating import Check, gate
from brushbench.gating.policy import DEFAULT_GATED
from brushbench.leaderboard.grid import CellText, Grid, Heading
from brushbench.leaderboard.render import render_grid
from brushbench.registry import Spec
from brushbench.runs import Run
from brushbench.types import Benchmark

__all__ = ["PUBLISHED", "SPEEDS", "Speedup", "measure", "to_grid"]

PUBLISHED = "published"
# The last one is broken on purpose: a branch that is never updated must be refuted, or the others prove nothing.
SPEEDS = ("exact", "branch-2", "guidance-2", "deep-2", "merge-50", "fast", "exact+fast", "bf16", "branch-1000")
MOST_CHANGED = 3  # images that are named

Finding: TypeAlias = Literal["reference", "proven", "not proven", "refuted", "refused"]
FINDINGS: Mapping[str, Finding] = {"pass": "proven", "fail": "refuted"}


@dataclass(frozen=True)
class Speedup:
    """What one acceleration gains and costs.

    Attributes:
        speed: as the option ``speed`` takes it.
        finding: ``proven`` | ``not proven`` | ``refuted`` | ``refused`` (it does nothing on this method), or
            ``reference`` for the published way.
        seconds: per image, the median over the batches after the first; NaN where none was made.
        gain: how many times quicker than the published way.
        checks: the gate's, of every gated column.
        changed: ids of the images whose pixels changed most, the most first.
        reason: why it was refused.
    """

    speed: str
    finding: Finding
    seconds: float = math.nan
    gain: float = math.nan
    checks: tuple[Check, ...] = ()
    changed: tuple[str, ...] = ()
    reason: str = ""


def measure(
    spec: Spec,
    benchmark: Benchmark,
    out: Path,
    *,
    speeds: Sequence[str] = SPEEDS,
    weights: Mapping[str, str] | None = None,
    notify: Callable[[str], None],
    **settings: Any,
) -> list[Speedup]:
    """Run a method with each acceleration and hold it against the published way.

    Runs lie in ``out``, one folder per acceleration; what is there is not made again. One after the other, they are
    timed fairly only on a machine that does nothing else.

    Args:
        spec: of a diffusion method.
        benchmark: at least 64 samples per split, or no gate decides anything.
        out: folder of the runs.
        speeds: accelerations, as the option ``speed`` takes them.
        weights: of metrics, by name.
        notify: called with sentences for a person.
        **settings: further fields of :class:`brushbench.config.RunConfig`.

    Raises:
        UsageError: the method has no option ``speed``, or the spec sets it.
    """
    if "speed" in spec.options:
        raise UsageError(f"{spec.label} sets speed, which this command tries out. Leave it out of the method.")
    scoring = Scoring(
        ",".join(DEFAULT_GATED), "raw", weights or {}, settings.get("device", "auto"), features=Features()
    )

    def run(speed: str) -> Run:
        own = Spec(spec.name, {**spec.options, "speed": speed})
        config: RunConfig = configure(own, benchmark, name=speed, **settings)
        return carry_out(config, benchmark, scoring, out=out / speed, notify=notify)

    reference = run(PUBLISHED)
    found = [Speedup(PUBLISHED, "reference", _seconds(reference), 1.0)]
    for speed in speeds:
        try:
            candidate = run(speed)
        except UsageError as error:
            found.append(Speedup(speed, "refused", reason=str(error)))
            continue
        verdict = gate(candidate, reference)
        seconds = _seconds(candidate)
        finding = FINDINGS.get(verdict.verdict, "not proven")
        changed = _most_changed(candidate, reference)
        found.append(Speedup(speed, finding, seconds, found[0].seconds / seconds, verdict.checks, changed))
    return found


def _seconds(run: Run) -> float:
    """Return the seconds per image: the median over batches, without the first, which warms up."""
    batches = [(float(str(entry["seconds"])), int(str(entry["pictures"]))) for entry in run.timing()]
    timed = [seconds / pictures for seconds, pictures in batches[1:] or batches]
    return median(timed) if timed else math.nan


def _most_changed(run: Run, reference: Run) -> tuple[str, ...]:
    """Return the samples whose images differ most, by the mean absolute difference of their pixels."""
    there = {row.key: row for row in reference.picture_rows() if row.sha256}
    changes = []
    for row in run.picture_rows():
        other = there.get(row.key)
        if row.sha256 and other is not None and row.sha256 != other.sha256:
            before, now = reference.picture(other).astype(np.int16), run.picture(row).astype(np.int16)
            changes.append((float(np.abs(now - before).mean()), row.sample))
    return tuple(sample for _, sample in sorted(changes, reverse=True)[:MOST_CHANGED])


def to_grid(found: Sequence[Speedup], title: str) -> Grid:
    """Return the findings as one table."""
    columns = list(dict.fromkeys(check.name for speedup in found for check in speedup.checks if check.margin))
    shown = {check.name: f"{check.name} {check.suffix}".strip() for s in found for check in s.checks if check.margin}
    headings = ["seconds per image", "times as quick", "finding", *(shown[name] for name in columns), "most changed"]
    return Grid(
        title=title,
        headings=tuple(map(Heading, headings)),
        methods=tuple(speedup.speed for speedup in found),
        references=(False,) * len(found),
        published=(False,) * len(found),
        cells=tuple(_cells(speedup, columns) for speedup in found),
        notes=(),
        remarks=(
            "seconds per image: median over batches of the generation alone; the first batch is left out",
            "change of each gated column, positive is better, and the gate's verdict: PASS, FAIL or INCONCLUSIVE",
            *(f"{s.speed} is refused: {s.reason}" for s in found if s.finding == "refused"),
        ),
        first="speed",
    )


def _cells(speedup: Speedup, columns: Sequence[str]) -> tuple[CellText, ...]:
    checks = {check.name: check for check in speedup.checks}
    words = [_number(speedup.seconds, ".3f"), _number(speedup.gain, ".2f"), speedup.finding]
    for name in columns:
        check = checks.get(name)
        words.append("–" if check is None else f"{_number(check.mean * check.factor, '+.3f')} {check.result.upper()}")
    return tuple(map(CellText, [*words, ", ".join(speedup.changed) or "–"]))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def render(found: Sequence[Speedup], title: str, form: str) -> str:
    """Return the findings as ``table`` or ``markdown``."""
    return render_grid(to_grid(found, title), form)
