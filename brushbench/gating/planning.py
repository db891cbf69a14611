"""Before a gate is set up: what margins a number of samples can hold, and what margins noise asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from brushbench.gating.accepted import load_accepted
from brushbench.gating.policy import Policy
from brushbench.runs import Run
from brushbench.scoresets import ColumnKey, Pair, from_run, pair
from brushbench.stats import power

__all__ = ["PLAN_HEADER", "plan", "proposal"]

PLAN_HEADER = ("column", "n", "spread", "margin", "held by 64", "held by 240", "held by 600", "n for the margin")


def plan(run: Run | Path | str, accepted: Run | Path | str, policy: Policy | None = None) -> list[tuple[str, ...]]:
    """Return what margins a number of samples can hold: one line per gated column.

    Returns:
        Rows of column, samples now, spread of the paired differences, margin, margins that 64, 240 and 600 samples hold
        with 80 % chance where nothing changed, and the samples that the margin needs.

    Raises:
        RunError: the two cannot be paired.
    """
    rules = policy or Policy()
    candidate, reference = from_run(run if isinstance(run, Run) else Run.open(run)), load_accepted(accepted)
    gated = rules.gated(reference)
    rows = []
    for item in pair(reference, candidate, list(gated)):
        if isinstance(item, Pair) and item.gains.size > 1:
            margin, _ = rules.margin(item.key, gated[item.key], reference)
            sd = float(item.gains.std(ddof=1))
            held = [f"{power(sd, n, level=rules.level).smallest:.4g}" for n in (64, 240, 600)]
            needed = power(sd, item.gains.size, margin, rules.level).needed if sd else 2
            rows.append((item.key.name, str(item.gains.size), f"{sd:.4g}", f"{margin:.4g}", *held, str(needed)))
    return rows


def proposal(noise: Mapping[ColumnKey, float]) -> str:
    """Return a policy that tolerates what another seed alone changes: 3 sd of the mean difference, rounded up."""
    lines = []
    grouped: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, sd in noise.items():
        if sd > 0:
            grouped.setdefault((key.metric, key.protocol, key.variant), {})[key.split] = 3 * sd
    for (metric, protocol, variant), splits in grouped.items():
        if variant == "raw" and protocol == "standard":
            lines.append(
                f'[metrics."{metric}"]\nmargin = {_up(max(splits.values())):g}\nsplits = {_listed(list(splits))}\n'
            )
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _up(value: float) -> float:
    """Round up to two digits."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / scale - 1e-9) * scale
