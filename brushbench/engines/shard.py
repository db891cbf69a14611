"""Shards: several processes, or machines with a common folder, share the batches of one plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from brushbench.errors import UsageError, printable

__all__ = ["Shard"]

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count``; 1/1 is the whole."""

    index: int = 1
    count: int = 1

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
        return list(batches[self.index - 1 :: self.count])

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"
