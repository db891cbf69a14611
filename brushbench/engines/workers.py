"""Workers: processes anywhere that all work over one whole plan in one shared folder, until nothing of it is left.

Nobody deals the work out. Each worker goes over the plan and takes what nobody has locked, so unequal batches leave
nobody idle; what a dead worker held is free at once. The command that started them watches the folder, and merges the
scores when they have ended. Where workers run is a :class:`Crew`'s business: Ray's or Slurm's.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from brushbench import progress
from brushbench.errors import BrushbenchError, RunError, reason_of
from brushbench.progress import say, track
from brushbench.store import RunFolder

__all__ = ["Crew", "Report", "follow", "run_workers", "threads_for", "work"]

POLL = 0.1  # seconds between two looks at the workers
WATCH = 1.0  # seconds between two looks into the runs' folders, which load the shared file system
GRACE = 10.0  # seconds that the others get to end by themselves once everything is done


@dataclass(frozen=True)
class Report:
    """How a worker ended.

    Attributes:
        error: what went wrong, as a sentence; empty where everything is done.
        exit_code: of the error.
        details: a traceback, or nothing.
        notes: what the worker has to say to a person, where everything is done.
    """

    error: str = ""
    exit_code: int = 0
    details: str = ""
    notes: tuple[str, ...] = ()


class Crew(Protocol):
    """Where workers run.

    Attributes:
        threads: of torch in each.
    """

    threads: int

    def start(self, packed: bytes, count: int) -> None:
        """Have :func:`work` called with ``packed`` in ``count`` processes, each as soon as there is room for it."""

    def ended(self) -> Mapping[int, Report]:
        """Return how those ended that have ended so far, by number from 1; at once."""

    def stop(self) -> None:
        """End every worker that is left, and leave nothing behind."""


def run_workers(
    crew: Crew, call: Callable[[], Sequence[str]], count: int, watch: Callable[[Callable[[], bool]], None]
) -> list[str]:
    """Have ``call`` carried out by workers until one of them reports that everything is done.

    A worker that ends with an error, or is lost, leaves its part to the others, and that is said.

    Args:
        crew: where they run; stopped in any case.
        call: the whole of the work; importable and picklable. Several workers call it at once. It returns sentences
            for a person.
        count: workers.
        watch: shows progress for as long as what it is given returns ``True``.

    Returns:
        What the workers had to say, each sentence once; it has been printed.

    Raises:
        BrushbenchError: every worker ended with an error; with the message and the exit code of the first.
    """
    reports: dict[int, Report] = {}

    def is_running() -> bool:
        reports.update(crew.ended())
        return len(reports) < count and all(report.error for report in reports.values())

    try:
        crew.start(_pack(call, crew.threads), count)
        watch(is_running)
        while is_running():
            time.sleep(POLL)
        deadline = time.monotonic() + GRACE
        while len(reports) < count and time.monotonic() < deadline:
            time.sleep(POLL)
            reports.update(crew.ended())
    finally:
        crew.stop()
    failed = {number: report for number, report in sorted(reports.items()) if report.error}
    if len(failed) == count:
        raise _error(failed)
    for number, report in failed.items():
        say(f"Worker {number} of {count} stopped: {report.error} The others did its part.")
    notes = list(dict.fromkeys(note for _, report in sorted(reports.items()) for note in report.notes))
    for note in notes:
        say(note)
    return notes


def work(packed: bytes) -> Report:
    """Carry out, in a worker, what :func:`run_workers` was given."""
    told = pickle.loads(packed)  # noqa: S301 - of the command that started this worker
    progress.show_progress = False
    if os.path.isdir(told["folder"]):  # noqa: PTH112 - of another machine it may be missing: then paths must be absolute
        os.chdir(told["folder"])
    sys.path += [place for place in told["path"] if place not in sys.path]
    try:
        import torch

        torch.set_num_threads(told["threads"])
        return Report(notes=tuple(pickle.loads(told["call"])()))  # noqa: S301
    except BrushbenchError as error:
        return Report(str(error), error.exit_code, traceback.format_exc())
    except Exception as error:
        return Report(f"{reason_of(error)}.", BrushbenchError.exit_code, traceback.format_exc())


def _pack(call: Callable[[], Sequence[str]], threads: int) -> bytes:
    told: dict[str, Any] = {"folder": os.getcwd(), "path": list(sys.path), "threads": threads}  # noqa: PTH109
    return pickle.dumps({**told, "call": pickle.dumps(call)})


def _error(failed: Mapping[int, Report]) -> BrushbenchError:
    first = next(iter(failed.values()))
    error = RunError(first.error if len(failed) == 1 else f"All {len(failed)} workers stopped. {first.error}")
    error.exit_code = first.exit_code
    error.add_note(first.details)
    return error


def threads_for(count: int, same_machine: bool) -> int:
    """Return torch's threads for each worker: workers of this machine divide them, as processes of --jobs do.

    On other machines it is one, or what ``OMP_NUM_THREADS`` says to the command.
    """
    import torch

    if same_machine:
        return max(1, torch.get_num_threads() // count)
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else 1


def follow(folders: Mapping[str, RunFolder], batches: int, scored: bool, is_running: Callable[[], bool]) -> None:
    """Show how runs in a shared folder grow, for as long as workers are running.

    Args:
        folders: of the runs, by name.
        batches: of the plan of each.
        scored: whether workers score too.
        is_running: whether they are.
    """
    for name, folder in folders.items():
        stages: dict[str, Callable[[RunFolder], int]] = {"batches generated": _generated}
        if scored:
            stages["batches scored"] = _scored
        for stage, count in stages.items():
            done, looked = 0, 0.0
            for place in track(range(batches), f"{name}: {stage}", lambda _: 1):
                while done <= place:
                    if not is_running():
                        done = count(folder)
                        if done <= place:
                            return
                    elif time.monotonic() - looked >= WATCH:
                        done, looked = count(folder), time.monotonic()
                    else:
                        time.sleep(POLL)


def _generated(folder: RunFolder) -> int:
    return len(folder.finished_batches())


def _scored(folder: RunFolder) -> int:
    """Return how many batches wait to be merged in every column of which some do."""
    return len(folder.scored_batches([part.name for part in folder.path.glob("parts/*")]))
