"""The plan: which pictures are made together. It depends on nothing but the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Batch", "make_plan"]


@dataclass(frozen=True)
class Batch:
    """Pictures that are made together: of one split and one repeat.

    Attributes:
        number: place in the plan.
        indexes: places in the benchmark.
    """

    number: int
    split: str
    repeat: int
    indexes: tuple[int, ...]


def make_plan(keys: Sequence[tuple[str, str]], batch_size: int, repeats: int = 1) -> list[Batch]:
    """Cut a benchmark into fixed batches: by split, then by repeat, in manifest order."""
    batches: list[Batch] = []
    for split in dict.fromkeys(split for _, split in keys):
        indexes = [i for i, (_, s) in enumerate(keys) if s == split]
        for repeat in range(repeats):
            for start in range(0, len(indexes), batch_size):
                batches.append(Batch(len(batches), split, repeat, tuple(indexes[start : start + batch_size])))
    return batches
