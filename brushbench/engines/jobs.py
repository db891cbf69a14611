"""Jobs: processes of this machine that share one command, each with a shard of the plan, like threads, a GPU."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from typing import TypeVar

from brushbench import progress
from brushbench.errors import BrushbenchError, RunError

__all__ = ["share"]

T = TypeVar("T")


def share(work: Callable[[str], T], count: int, elsewhere: Callable[[str], object]) -> T:
    """Call ``work("1/count")`` in this process and ``elsewhere("i/count")`` for every other i in one of its own.

    The processes divide torch's threads between them. Where there are GPUs, the i-th takes the i-th, in turn, as
    ``cuda``. Only the first shows progress.

    Args:
        work: takes a shard.
        count: processes, at least 2.
        elsewhere: likewise; importable and picklable, for the other processes start anew.

    Returns:
        What ``work`` returned in this process.

    Raises:
        BrushbenchError: another process failed; it has said why.
        RunError: another process left its part incomplete.
    """
    import torch

    threads = max(1, torch.get_num_threads() // count)
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_join, args=(elsewhere, i, count, threads)) for i in range(2, count + 1)]
    for process in others:
        process.start()
    try:
        _settle(0, threads)
        mine = work(f"1/{count}")
        for process in others:
            process.join()
    finally:
        for process in others:
            process.terminate()
            process.join()
    failed = [i for i, process in enumerate(others, start=2) if process.exitcode]
    if failed:
        incomplete = all(process.exitcode in (0, RunError.exit_code) for process in others)
        raise (RunError if incomplete else BrushbenchError)(
            f"Of {count} processes these failed: {', '.join(map(str, failed))}. What is made is kept; the same command "
            "continues."
        )
    return mine


def _join(work: Callable[[str], object], index: int, count: int, threads: int) -> None:
    progress.show_progress = False
    _settle(index - 1, threads)
    try:
        work(f"{index}/{count}")
    except BrushbenchError as error:
        print(f"process {index} of {count}: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(error.exit_code) from None


def _settle(place: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(place % gpus)
