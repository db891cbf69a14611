"""The plan: which pictures are made together. It depends on nothing but the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brushbench.config import SCHEMA_VERSION
from brushbench.records import batch_name

__all__ = ["Batch", "make_plan"]


@dataclass(frozen=True)
class Batch:
    """Pictures that are made together: of one split and one repeat.

    Attributes:
        number: place in the plan.
        name: of its files. It does not depend on how many batches there are, so that a run can grow.
        indexes: places in the benchmark.
    """

    number: int
    name: str
    split: str
    repeat: int
    indexes: tuple[int, ...]


def make_plan(
    keys: Sequence[tuple[str, str]], batch_size: int, repeats: int = 1, schema: int = SCHEMA_VERSION
) -> list[Batch]:
    """Cut a benchmark into fixed batches: by split, then by repeat, in manifest order.

    Args:
        keys: (sample, split) of the benchmark.
        batch_size: images per batch; the last one of a split may hold fewer.
        repeats: images per sample.
        schema: of the run's record; schema 1 numbered its batches through.
    """
    batches: list[Batch] = []
    for split in dict.fromkeys(split for _, split in keys):
        indexes = [i for i, (_, s) in enumerate(keys) if s == split]
        for repeat in range(repeats):
            for start in range(0, len(indexes), batch_size):
                number = len(batches)
                name = f"{number:06d}" if schema == 1 else batch_name(split, repeat, start // batch_size)
                batches.append(Batch(number, name, split, repeat, tuple(indexes[start : start + batch_size])))
    return batches
