"""The committed audit of a benchmark as the page shows it: which damage each metric of the page detects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushbench.audit_tables import NOTES, share_worse, short_name
from brushbench.leaderboard.audited import committed_audits
from brushbench.leaderboard.columns import identity

if TYPE_CHECKING:
    from brushbench.runs import Run

__all__ = ["LEGEND", "HeatCell", "HeatMap", "heat_maps"]

# Blue and orange differ to every kind of colour vision; black text reads on both, and on the white and grey between.
BETTER, HALF, WORSE = (245, 162, 93), (247, 247, 247), (125, 184, 224)
UNASKED = "#dddddd"
LEGEND = (
    "Blue: the damaged images scored worse, as they should. White: half of them did",
    "Orange: they scored better. Grey: the metric is not there to judge this damage",
    *NOTES,
)


@dataclass(frozen=True)
class HeatCell:
    """One damage and one metric: ``k/n`` with its verdict, and the colour behind it."""

    text: str
    colour: str


@dataclass(frozen=True)
class HeatMap:
    """One audit: a row per damage, a column per metric that the page's runs computed in the same way."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_maps(runs: Sequence[Run], splits: Set[str]) -> list[HeatMap]:
    """Return the committed audits of the runs' benchmark, of some of its splits and of the columns that they have.

    A column belongs here if a run computed it with the weights and settings that were audited.

    Args:
        runs: all on one benchmark.
        splits: those that the page shows.
    """
    computed = {(name, identity(header)) for run in runs for name, header in run.metrics.items()}
    found = []
    for audit in committed_audits():
        if audit["benchmark"] != runs[0].config.benchmark or not splits & set(audit["splits"]):
            continue
        names = [name for name, one in audit["columns"].items() if (name, identity(one["description"])) in computed]
        if names:
            found.append(_heat_map(audit, names))
    return found


def _heat_map(audit: Mapping[str, Any], names: Sequence[str]) -> HeatMap:
    cells = {(one["damage"], one["metric"]): _cell(one) for one in audit["findings"]}
    damages = dict.fromkeys(damage for damage, _ in cells)
    nothing = HeatCell("–", UNASKED)
    return HeatMap(
        f"Audit of {audit['benchmark']}, {', '.join(audit['splits'])}: {audit['images']} damaged images",
        tuple(map(short_name, names)),
        tuple((damage, tuple(cells.get((damage, name), nothing) for name in names)) for damage in damages),
    )


def _cell(finding: Mapping[str, Any]) -> HeatCell:
    worse, better, n = (int(finding[key]) for key in ("worse", "better", "n"))
    verdict = "" if finding["verdict"] == "detects" else f" {finding['verdict']}"
    if not (finding["asked"] and n):
        return HeatCell(f"({worse}/{n}{verdict})", UNASKED)
    return HeatCell(f"{worse}/{n}{verdict}", _colour(share_worse(worse, better, n)))


def _colour(share: float) -> str:
    """Return the colour of a share of 0..1 as ``#rrggbb``."""
    end, weight = (WORSE, 2 * share - 1) if share > 0.5 else (BETTER, 1 - 2 * share)
    mixed = (round(half + weight * (one - half)) for half, one in zip(HALF, end, strict=True))
    return "#" + "".join(f"{level:02x}" for level in mixed)
