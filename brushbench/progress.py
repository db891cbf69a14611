"""What a person sees of the work: a bar on a terminal, plain lines elsewhere; the console that tables are drawn on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from brushbench.text import message, terminal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["say", "track", "wide_console"]

T = TypeVar("T")
WIDEST = 200  # columns of a pipe or a log, which have no width of their own
PLAIN_EVERY = 10.0  # seconds between lines when the output is not a terminal
show_progress = True  # off in a process that works for another


def say(sentence: str) -> None:
    """Print a sentence for a person to stderr, but not from a process that works for another."""
    if show_progress:
        print(message(sentence), file=sys.stderr, flush=True)  # noqa: T201


def track(items: Sequence[T], title: str, size: Callable[[T], int]) -> Iterable[T]:
    """Yield every item while showing progress: a bar on a terminal, a plain line every ten seconds elsewhere.

    Args:
        items: what is worked on.
        title: what is done to them.
        size: how many pictures an item holds.
    """
    title = terminal(title)  # a run's name, which may come from someone else
    total = sum(map(size, items))
    if not total:
        return
    if not show_progress:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, title, size, total)
    else:
        yield from _lines(items, title, size, total)


def _bar(items: Sequence[T], title: str, size: Callable[[T], int], total: int) -> Iterable[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    title_column, rate_column = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[rate]}")
    columns = [SpinnerColumn(), title_column, BarColumn(), MofNCompleteColumn(), rate_column, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total, rate="")
        start, done = time.monotonic(), 0
        for item in items:
            yield item
            done += size(item)
            progress.update(task, advance=size(item), rate=f"{done / max(time.monotonic() - start, 1e-9):.2f}/s")


def _lines(items: Sequence[T], title: str, size: Callable[[T], int], total: int) -> Iterable[T]:
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if done == total or now - last >= PLAIN_EVERY:
            last = now
            rate = done / max(now - start, 1e-9)
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            print(f"{title}: {done}/{total}, {rate:.2f}/s{left}", file=sys.stderr, flush=True)  # noqa: T201


def wide_console(width: int | None = None) -> Console:
    """Return a console as wide as the terminal or ``COLUMNS``; a pipe or a log has neither and gets 200 columns."""
    from rich.console import Console

    console = Console(width=width)
    if not console.is_terminal and width is None and "COLUMNS" not in os.environ:
        console.width = WIDEST
    return console
