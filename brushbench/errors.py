"""Every error brushbench raises on purpose.

::

    BrushbenchError                  exit code 5
    ├── UsageError                   exit code 2   an invalid name, option or value
    │   ├── UnknownNameError         exit code 2   no such model, metric, benchmark or option
    │   └── InvalidScoresError       exit code 2   scores or settings that a statistic cannot take; a ValueError too
    ├── DataError                    exit code 5   a benchmark or picture that cannot be read
    │   ├── EmptyBenchmarkError      exit code 5   a benchmark of which no record can be used
    │   ├── UnusableError            exit code 5   a file, picture, hole or caption that cannot be used
    │   └── BadRecordError           exit code 5   one record of a benchmark; ``--skip-bad`` passes over it
    ├── WeightsError                 exit code 5   weights that are there but wrong
    │   └── MissingWeightsError      exit code 5   weights that are not there; says how to get them
    └── RunError                     exit code 3   a run folder that cannot be continued or compared
        ├── ConfigMismatchError      exit code 3   the folder holds a run of other settings
        ├── EndedEarlyError          exit code 3   code of a plug-in tried to end the process
        └── RunLockedError           exit code 3   another process works on the same shard

A message says what was got, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

__all__ = [
    "BadRecordError",
    "BrushbenchError",
    "ConfigMismatchError",
    "DataError",
    "EmptyBenchmarkError",
    "EndedEarlyError",
    "InvalidScoresError",
    "MissingWeightsError",
    "RunError",
    "RunLockedError",
    "UnknownNameError",
    "UnusableError",
    "UsageError",
    "WeightsError",
    "printable",
    "reason_of",
    "without_addresses",
]


class BrushbenchError(Exception):
    """Root of the tree; catching it catches every error raised on purpose."""

    exit_code = 5


class UsageError(BrushbenchError):
    """An invalid name, option or value."""

    exit_code = 2


class UnknownNameError(UsageError):
    """No such model, metric, benchmark or option; names the nearest match."""

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        """Say which ``kind`` of thing ``name`` is not, which ``known`` name is nearest, and a ``remedy``."""
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        what = f"Unknown {kind} {name!r}.{hint} Known: {', '.join(choices) or 'none'}."
        super().__init__(f"{what} {remedy}".rstrip())


class InvalidScoresError(UsageError, ValueError):
    """Scores or settings that a statistic cannot take: NaN, infinite, too few, a margin that is not above 0."""


class DataError(BrushbenchError):
    """A benchmark or picture that cannot be read."""


class UnusableError(DataError):
    """A file, picture, hole or caption that cannot be used; a benchmark adds the record's name to it."""

    def __init__(self, problem: str, remedy: str) -> None:
        """Keep the ``problem`` and its ``remedy`` apart, so that others can put them into a sentence of theirs."""
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem[:1].upper()}{problem[1:]}. {remedy}.")

    def __reduce__(self) -> tuple[type[UnusableError], tuple[str, str]]:
        return type(self), (self.problem, self.remedy)


class BadRecordError(DataError):
    """One record of a benchmark is unusable; ``--skip-bad`` passes over it and counts it, but for lists and tables."""

    def __init__(self, record: str, problem: str, remedy: str, skippable: bool = True) -> None:
        """Name the ``record``, the ``problem`` found in it and the ``remedy``, and whether --skip-bad is one too."""
        self.record, self.problem, self.remedy, self.skippable = record, problem, remedy, skippable
        skip = ", or pass --skip-bad (in Python skip_bad=True) to leave it out" if skippable else ""
        super().__init__(f"Record {record!r}: {problem}. {remedy}{skip}.")

    def __reduce__(self) -> tuple[type[BadRecordError], tuple[str, str, str, bool]]:
        return type(self), (self.record, self.problem, self.remedy, self.skippable)


class EmptyBenchmarkError(DataError):
    """A benchmark of which no record can be used; ``skipped`` says why, record by record."""

    def __init__(self, name: str, skipped: Sequence[tuple[str, str]]) -> None:
        """Name the benchmark and the first few of its ``skipped`` (record, reason)."""
        self.name, self.skipped = name, list(skipped)
        listed = "; ".join(f"{record}: {reason}" for record, reason in self.skipped[:3])
        super().__init__(
            f"Benchmark {name!r} has no usable record ({len(self.skipped)} skipped{': ' if listed else ''}{listed}). "
            "Check that the folder is complete."
        )

    def __reduce__(self) -> tuple[type[EmptyBenchmarkError], tuple[str, list[tuple[str, str]]]]:
        return type(self), (self.name, self.skipped)


class WeightsError(BrushbenchError):
    """Weights that are there but wrong: other keys, other shapes, NaN, an unsafe file."""


class MissingWeightsError(WeightsError):
    """Weights that are not there; the message says how to get them."""


class RunError(BrushbenchError):
    """A run folder that cannot be continued or compared."""

    exit_code = 3


class ConfigMismatchError(RunError):
    """The folder already holds a run of other settings; the message shows the difference."""


class BrokenDeviceError(RunError):
    """The GPU is of no use to this process any more; a new process can go on."""


class EndedEarlyError(RunError):
    """Code of a plug-in tried to end the process, with work still to be done."""


class RunLockedError(RunError):
    """Another process works on the same shard of the same run."""


def printable(text: str, most: int = 300) -> str:
    """Return a text as one line of a record: no line breaks, control characters, lone surrogates or addresses."""
    line = " ".join(without_addresses(text[: 4 * most]).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def without_addresses(text: str) -> str:
    """Return a text without memory addresses, which differ from one process to the next."""
    return re.sub(r"\b0x[0-9a-fA-F]{8,}\b", "0x...", re.sub(r" at 0x[0-9a-fA-F]+", "", text))


def message_of(error: BaseException) -> str:
    """Return an exception's message; empty where a class of a plug-in fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def reason_of(error: BaseException) -> str:
    """Return what went wrong as one line that is the same in every run: the kind of error and its message."""
    text = message_of(error)
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)
