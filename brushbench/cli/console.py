"""What commands print, and what they refuse before any work."""

import signal
from collections.abc import Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from brushbench.errors import RunError, UsageError
from brushbench.outcome import common_reasons
from brushbench.progress import wide_console
from brushbench.text import message

if TYPE_CHECKING:
    from brushbench.cli.options import TableOptions
    from brushbench.runs import Run

__all__ = [
    "check_complete",
    "check_output",
    "print_table",
    "say",
    "say_faults",
    "say_reasons",
    "say_unavailable",
    "show_runs",
]

BAD_RECORDS = (
    "Records that cannot be used: repair them (`brushbench data check` lists them all) and run the same command again, "
    "or leave them out with --skip-bad in a new run, with another --out or --name."
)
debug = False  # set by --debug: show tracebacks


def say(sentence: str) -> None:
    """Print a sentence for a person to stderr; stdout is for tables."""
    typer.echo(message(sentence), err=True)


class Stopped(KeyboardInterrupt):
    """The process was asked to end, by Ctrl-C or a signal."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(signal.Signals(number).name)


def end_in_order() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end the process so that the others that work for it end first."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # there is no SIGHUP on Windows
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), stop)


def check_output(file: Path, suffix: str | None = None) -> None:
    """Refuse a place where no file can be written before any work is done for it.

    Args:
        file: the place.
        suffix: what the name must end with, such as ``.png``; anything goes without one.

    Raises:
        UsageError: a folder, a folder that is missing, or another suffix.
    """
    if file.is_dir():
        raise UsageError(f"--output {file} is a folder. Name a file in it.")
    if suffix is not None and file.suffix.lower() != suffix:
        kind = suffix.removeprefix(".").upper()
        raise UsageError(f"--output {file}: a {kind} is written, without loss. Name it {file.with_suffix(suffix)}.")
    if file.exists() and not file.is_file():
        raise UsageError(f"--output {file} is no regular file. Write elsewhere.")
    if not file.parent.is_dir():
        raise UsageError(f"--output {file}: there is no folder {file.parent}. Make it, or write elsewhere.")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print rows of plain text under a header."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=any("\n" in cell for row in rows for cell in row))
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name == header[0])
    for row in rows:
        table.add_row(*(Text(message(cell)) for cell in row))
    wide_console().print(table)


def show_runs(runs: "list[Run]", table: "TableOptions") -> None:
    """Print the leaderboard of runs, and how many images of each are in which state."""
    from brushbench.leaderboard import make_tables, render

    tables = make_tables(runs, table.protocol, intervals=table.spread != "none")
    if tables:
        typer.echo(render(tables, "table", spread=table.spread))
    say_unavailable(runs)
    for run in runs:
        counts = run.pictures()
        say(f"{run.config.name}: {', '.join(f'{n} {state}' for state, n in counts.items() if n)}; run in {run.path}")
        if run.config.negative_prompt and not run.header.capabilities.negative_prompt:
            say(f"{run.config.name} reads no negative prompt: it was not passed.")


def check_complete(
    runs: "list[Run]", max_failed: int, others: bool = False, remedy: str = "", columns: Container[str] | None = ()
) -> None:
    """Say what of the runs' images failed or is still to be made, and exit with the code of an incomplete run.

    Args:
        runs: the runs.
        max_failed: failed or missing images per run that are tolerated.
        others: other shards may still be at work, so that what is left is not missed here.
        remedy: how failed images are made again.
        columns: those that are shown, ``metric@protocol``; ``None``: all. Where their metric failed, that counts too.

    Raises:
        typer.Exit: code 3, a run is incomplete, or more of its images failed.
    """
    incomplete = False
    for run in runs:
        outcome = run.outcome()
        if outcome.left:
            whose = "by the other shards" if others else "the same command continues"
            say(f"{run.config.name}: {outcome.left} images are still to be generated, {whose}.")
        if outcome.lost:
            say(f"{run.config.name}: {outcome.in_words()}")
            if remedy and len(outcome.lost) > len(outcome.unusable):
                say(remedy)
            if outcome.unusable:
                say(BAD_RECORDS)
            _say_tracebacks(run)
        incomplete |= not outcome.is_complete(max_failed, others)
        if columns != ():
            incomplete |= say_faults(run, columns) > max_failed
    if incomplete:
        raise typer.Exit(RunError.exit_code)


def say_faults(run: "Run", columns: Container[str] | None = None) -> int:
    """Say in which columns of a run images have no score because the metric failed; return the most in one of them."""
    most = 0
    for column, reasons in run.faults().items():
        if columns is None or column in columns:
            say(f"{run.label}: {column}: {len(reasons)} images have no score: {common_reasons(reasons)}.")
            most = max(most, len(reasons))
    return most


def _say_tracebacks(run: "Run") -> None:
    files = run.tracebacks()
    if files and debug:
        say("\n".join(file.read_text("utf-8", errors="replace") for file in files))
    elif files:
        say(f"Tracebacks: {files[0].parent}, or --debug.")


def say_unavailable(runs: "list[Run]") -> None:
    """Name the metrics that are in no column, once each, with the way to get them."""
    say_reasons(
        (column.partition("@")[0], header["unavailable"])
        for run in runs
        for column, header in run.metrics.items()
        if "unavailable" in header
    )


def say_reasons(unavailable: Iterable[tuple[str, str]]) -> None:
    """Say why metrics are unavailable, given as (name, reason): each reason once, with its names."""
    reasons: dict[str, dict[str, None]] = {}
    for name, reason in unavailable:
        reasons.setdefault(reason, {})[name] = None
    for reason, names in reasons.items():
        say(f"Unavailable: {', '.join(names)}. {reason}")
