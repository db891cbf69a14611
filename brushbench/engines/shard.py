"""Shards: several processes, or machines with a common folder, share the batches of one plan.

Shards are dealt: part 1 of 2, part 2 of 2. Or the whole plan is everybody's, and each takes what nobody has: then
batches are stolen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from brushbench.errors import UsageError, printable

__all__ = ["Others", "Shard"]

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``; 1/1 is the whole.

    Attributes:
        index: from 1.
        count: of the parts.
        stolen: other workers of the same command work over this part too. Each begins at a random place, so that they
            rarely meet, and nobody merges scores before all have ended.
    """

    index: int = 1
    count: int = 1
    stolen: bool = False

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n`` with 1 <= i <= n.

        Raises:
            UsageError: anything else.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            given = printable(text, 80)
            raise UsageError(f"--shard {given!r} is not i/n with 1 <= i <= n. The first of two shards is 1/2.")
        return cls(int(match[1]), int(match[2]))

    def take(self, batches: Sequence[T]) -> list[T]:
        """Return this shard's batches: every n-th, so that all shards get some of every split."""
        mine = list(batches[self.index - 1 :: self.count])
        start = random.randrange(len(mine)) if self.stolen and mine else 0
        return mine[start:] + mine[:start]

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


class Others:
    """What other processes have finished since this one began, so that their batches need not be locked and read.

    Args:
        finished: lists the names of finished batches, as the folder shows them.
    """

    def __init__(self, finished: Callable[[], Collection[str]]) -> None:
        self._finished = finished
        self._before = set(finished())
        self.names: set[str] = set()

    def look(self) -> None:
        """Look into the folder: once per batch of one's own is enough, and only where others have been met."""
        self.names = set(self._finished()) - self._before
