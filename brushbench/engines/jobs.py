"""Jobs: processes of this machine that share one command, each with a shard of the plan, like threads, a GPU."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from brushbench import progress
from brushbench.errors import BrushbenchError, RunError

__all__ = ["share"]

T = TypeVar("T")


def share(work: Callable[[str], T], count: int, elsewhere: Callable[[str], object]) -> T:
    """Call ``work("1/count")`` in this process and ``elsewhere("i/count")`` for every other i in one of its own.

    The processes divide torch's threads between them. Where there are GPUs, the i-th takes the i-th, in turn, as
    ``cuda``. Only the first shows progress. The others end with it, however it ends.

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
    packed = pickle.dumps(elsewhere)  # unpacked only when the process knows how to end: it imports much
    others = [context.Process(target=_join, args=(packed, i, count, threads)) for i in range(2, count + 1)]
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


def _join(packed: bytes, index: int, count: int, threads: int) -> None:
    _end_with_parent()
    progress.show_progress = False
    try:
        work = pickle.loads(packed)  # noqa: S301 - of our own parent
        _settle(index - 1, threads)
        work(f"{index}/{count}")
    except BrushbenchError as error:
        print(f"process {index} of {count}: error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:  # the parent says so
        raise SystemExit(128 + signal.SIGINT) from None


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, also by kill -9: two owners of one run would work at once."""
    parent, leave = multiprocessing.parent_process(), os._exit  # the true one: plug-ins get another
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        leave(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":  # even while a library holds the interpreter's lock
        import ctypes

        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def _settle(place: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if gpus := torch.cuda.device_count():
        torch.cuda.set_device(place % gpus)
