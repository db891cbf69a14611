"""Which rows of a column are best and second best, among rows that answer the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brushbench.resampling import hold_zero
from brushbench.stats import SMALLEST

__all__ = ["Entry", "rank"]

TAIL = 0.025  # outside on each side of a 95 % interval


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of a column.

    Attributes:
        row: its place in the table.
        scores: one per sample of the table, in the order of their ids, turned so that more is better; NaN where none.
        incomplete: samples of the row have no image: it is shown and not ranked.
        exact: the value follows from what was done, not from how well: kept pixels that were pasted back.
    """

    row: int
    scores: npt.NDArray[np.float64]
    incomplete: bool
    exact: bool


def rank(entries: Sequence[Entry]) -> dict[int, str]:
    """Return ``best`` and ``second`` by row.

    Rows are compared only where they were scored on the same samples: a method that died on the hard half has a better
    mean than it deserves. Two rows tie where the 95 % interval of their paired difference holds 0; below eight
    samples, where no interval is, only equal means tie.
    """
    scored = [entry for entry in entries if not np.isnan(entry.scores).all()]
    if not scored:
        return {}
    everywhere = np.any([~np.isnan(entry.scores) for entry in scored], axis=0)
    whole = [e for e in scored if not e.incomplete and (~np.isnan(e.scores) == everywhere).all()]
    rows = [entry for entry in whole if not entry.exact and np.isfinite(entry.scores).any()]
    if not rows or (len(rows) == 1 and len(scored) > len(whole)):
        return {}
    found: dict[int, str] = {}
    for place in ("best", "second"):
        left = [entry for entry in rows if entry.row not in found]
        if not left:
            break
        top = max(left, key=_mean)
        found |= dict.fromkeys(_tied(top, left), place)
    return found


def _mean(entry: Entry) -> float:
    return float(entry.scores[np.isfinite(entry.scores)].mean())


def _tied(top: Entry, entries: Sequence[Entry]) -> list[int]:
    equal = [e.row for e in entries if e is top or _mean(e) == _mean(top)]
    others = [e for e in entries if e.row not in equal]
    finite = [np.isfinite(e.scores) & np.isfinite(top.scores) for e in others]
    found = zip(others, [top.scores[f] - e.scores[f] for e, f in zip(others, finite, strict=True)], strict=True)
    pairs = [(e, difference) for e, difference in found if difference.size >= SMALLEST]
    # No interval is shorter than Student's: where 1.96 standard errors reach 0, the bootstrap is not asked.
    near = [abs(d.mean()) <= 1.96 * d.std(ddof=1) / math.sqrt(d.size) for _, d in pairs]
    far = [pair for pair, tied in zip(pairs, near, strict=True) if not tied]
    tied = [e.row for (e, _), is_near in zip(pairs, near, strict=True) if is_near]
    held = hold_zero([difference for _, difference in far], TAIL)
    return equal + tied + [e.row for (e, _), is_held in zip(far, held, strict=True) if is_held]
