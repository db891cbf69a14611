"""What became of a run's pictures: how many failed, why, and which. Verdict and words come from one value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brushbench.records import PictureRow

__all__ = ["FAULT", "UNUSABLE", "Outcome", "common_reasons"]

UNUSABLE = "the record cannot be used: "  # begins the reason of a sample that could not be read
FAULT = "the metric "  # begins the reason of a score that is missing by the metric's own fault

SHOWN = 5  # ids that are named
REASONS = 3  # reasons that are named


@dataclass(frozen=True)
class Outcome:
    """What became of a run's pictures.

    Attributes:
        planned: pictures of the whole plan.
        rows: of every batch that is committed.
    """

    planned: int
    rows: Sequence[PictureRow]

    @property
    def left(self) -> int:
        """Pictures that are still to be made."""
        return self.planned - len(self.rows)

    @property
    def lost(self) -> list[PictureRow]:
        """Rows of failed and missing pictures."""
        return [row for row in self.rows if row.state in ("failed", "missing")]

    @property
    def unusable(self) -> list[PictureRow]:
        """Rows of samples whose record could not be used: the method was not asked."""
        return [row for row in self.lost if row.reason.startswith(UNUSABLE)]

    def is_complete(self, max_failed: int, others: bool = False) -> bool:
        """Whether every picture is made, but for a number that may have failed, and what ``others`` may be making."""
        return (others or not self.left) and len(self.lost) <= max_failed

    def in_words(self) -> str:
        """Return how many pictures failed, the commonest reasons and the first ids; empty if none did."""
        lost = self.lost
        if not lost:
            return ""
        ids = ", ".join(f"{row.sample} ({row.split})" for row in lost[:SHOWN])
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        reasons = common_reasons(row.reason for row in lost)
        return f"{len(lost)} of {self.planned} images failed: {reasons}. First: {ids}{more}."


def common_reasons(reasons: Iterable[str]) -> str:
    """Return the commonest reasons, each with how often it stood."""
    counts = Counter(reasons)
    named = [f"{reason} ({count} times)" if count > 1 else reason for reason, count in counts.most_common(REASONS)]
    others = len(counts) - len(named)
    return "; ".join(named) + (f"; and {others} other reasons" if others else "")
