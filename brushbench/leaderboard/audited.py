"""What the committed audits say of columns: ``brushbench audit --json`` wrote them into ``reports/audits``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brushbench import assets
from brushbench.errors import BrushbenchError
from brushbench.leaderboard.columns import identity

__all__ = ["Audited", "audited", "committed_audits", "inverts"]

MOST_NAMED = 4  # damages that a footnote spells out


@dataclass(frozen=True)
class Audited:
    """The verdicts on one column, on damage of the kind that it is there to see.

    Attributes:
        benchmark, split, images: what was damaged.
        computed_with: what the audited scores were computed with, as :func:`brushbench.leaderboard.columns.identity`.
        inverted: damages that scored better than the original.
        blind: damages that the column did not see.
    """

    benchmark: str
    split: str
    images: int
    computed_with: str
    inverted: tuple[str, ...]
    blind: tuple[str, ...]

    def footnote(self) -> str:
        """Return a sentence for the foot of a table; empty where the column saw everything."""
        found = [("inverted", self.inverted), ("blind", self.blind)]
        words = [f"{verdict} to {_listed(damages)}" for verdict, damages in found if damages]
        if not words:
            return ""
        return f"audit of {self.benchmark} ({self.split}, {self.images} damaged images): {'; '.join(words)}"


def _listed(damages: Sequence[str]) -> str:
    named = ", ".join(damages[:MOST_NAMED])
    return named if len(damages) <= MOST_NAMED else f"{named} and {len(damages) - MOST_NAMED} more"


def audited(benchmark: str, column: str, header: Mapping[str, Any], split: str | None = None) -> list[Audited]:
    """Return the committed verdicts on a column that was computed with the same weights and settings.

    Args:
        benchmark: its registered name.
        column: ``name@protocol``.
        header: the column's record in ``metrics.json``.
        split: of one split; ``None``: of every split.
    """
    mine = identity(header)
    found = _committed().get((benchmark, column), ())
    return [one for one in found if split in (None, one.split) and one.computed_with == mine]


def inverts(found: Sequence[Audited]) -> bool:
    """Whether some damage scored better than the original."""
    return any(one.inverted for one in found)


def committed_audits() -> list[dict[str, Any]]:
    """Return every committed audit as ``brushbench audit --json`` wrote it."""
    try:
        folder = assets.path("reports/audits")
    except BrushbenchError:  # an installation without reports shows its tables all the same
        return []
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]


@functools.cache
def _committed() -> Mapping[tuple[str, str], tuple[Audited, ...]]:
    """Read every committed audit once, by benchmark and column."""
    found: dict[tuple[str, str], tuple[Audited, ...]] = {}
    for audit in committed_audits():
        for column, described in audit["columns"].items():
            verdicts: dict[str, list[str]] = {}
            for finding in audit["findings"]:
                if finding["metric"] == column and finding["asked"]:
                    verdicts.setdefault(finding["verdict"], []).append(finding["damage"])
            key = audit["benchmark"], column
            for split in audit["splits"]:
                one = Audited(
                    audit["benchmark"], split, audit["images"], identity(described["description"]),
                    tuple(verdicts.get("inverted", ())), tuple(verdicts.get("blind", ())),
                )  # fmt: skip
                found[key] = (*found.get(key, ()), one)
    return found
