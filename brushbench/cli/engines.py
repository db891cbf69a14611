"""``--engine``: a command's work on other machines, and what the command itself does before and after."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from brushbench.cli.console import say
from brushbench.errors import RunError, UsageError

if TYPE_CHECKING:
    from brushbench.cli.options import EngineOptions
    from brushbench.engines.workers import Crew
    from brushbench.evaluation import Scoring
    from brushbench.runs import Run
    from brushbench.store import RunFolder
    from brushbench.types import Benchmark

__all__ = ["check_engine", "run_elsewhere"]


def check_engine(engine: "EngineOptions", device: str, shard: str | None = None) -> None:
    """Refuse what workers on other machines cannot be given.

    Raises:
        UsageError: a part of the plan, or one GPU by its number.
    """
    if engine.is_local:
        return
    if shard:
        raise UsageError(f"--engine {engine.engine}: every worker works over the whole plan. Leave --shard out.")
    if ":" in device:
        raise UsageError(f"--engine {engine.engine} gives each worker a GPU of its own. Write --device auto.")


def run_elsewhere(
    engine: "EngineOptions",
    call: Callable[..., object],
    count: int,
    benchmark: "Benchmark",
    folders: "Mapping[str, RunFolder]",
    batches: int,
    scoring: "Scoring",
    redo: bool,
) -> "list[Run]":
    """Have work done by workers, then merge the scores of its runs here.

    Args:
        engine: which.
        call: the work; importable and picklable. It leaves scores unmerged, and takes ``notify``, which it calls with
            sentences for a person.
        count: workers.
        benchmark: of the runs.
        folders: of the runs, by name; in one folder.
        batches: of the plan of each.
        scoring: as in ``call``.
        redo: as in ``call``.

    Raises:
        BrushbenchError: the engine cannot be used, or every worker failed.
    """
    import uuid

    from brushbench.engines.workers import follow, run_workers
    from brushbench.evaluation import rescore
    from brushbench.features import Features

    parent = next(iter(folders.values())).path.parent
    name = f".engine-{uuid.uuid4().hex[:8]}"  # nobody else's
    crew = _crew(engine, count, scoring.device, parent / name)
    who, do = (f"{count} workers", "share") if count > 1 else ("1 worker", "does")
    say(f"{who} on {engine.engine} {do} the work.")
    with _meeting_place(parent / f"{name}.lock") as place:
        work = partial(_take_part, _installation(), place, call)
        told = run_workers(crew, work, count, partial(follow, folders, batches, scoring.metrics != "none"))

    def notify(sentence: str) -> None:
        if sentence not in told:
            say(sentence)

    scoring = replace(scoring, features=Features(low_memory=scoring.low_memory))
    return [rescore(f.path, benchmark=benchmark, scoring=scoring, redo=redo, notify=notify) for f in folders.values()]


def _crew(engine: "EngineOptions", count: int, device: str, logs: Path) -> "Crew":
    """Return where the workers run; their logs, where there are any, go to a folder that all machines share."""
    if engine.engine == "ray":
        from brushbench.engines.ray import RayCrew, address_of

        return RayCrew(address_of(engine.engine_address), device, count)
    from brushbench.engines.slurm import SlurmCrew

    return SlurmCrew(engine.engine_address or "slurm", logs, engine.settings, device, count)


# What a worker must have in common with the command -------------------------------------------------------------------


def _installation() -> dict[str, str]:
    """Return versions, and the SHA-256 of our own code."""
    from brushbench.evaluation.provenance import own_code, software

    code = {f"code of {package}": sha256[:12] for package, sha256 in own_code().items()}
    return {**software(), **code}


@contextlib.contextmanager
def _meeting_place(file: Path) -> "Iterator[Path]":
    """Hold a file locked by which workers see whether they share the command's folder and its locks."""
    from filelock import FileLock

    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file):
            yield file
    finally:
        file.unlink(missing_ok=True)


def _take_part(installation: Mapping[str, str], place: Path, call: Callable[..., object]) -> list[str]:
    """Do the work, in a worker, if it would do it as every other one does; return what is to be said of it.

    Args:
        installation: the command's.
        place: a file beside the runs that the command holds locked.
        call: the work.
    """
    _refuse_other_installation(installation, _installation())
    _refuse_other_folder(place)
    notes: list[str] = []
    call(notify=notes.append)
    return notes


def _refuse_other_installation(there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to mix images and scores of different code.

    Raises:
        RunError: the command has other versions.
    """
    import platform

    names = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    if names:
        difference = ", ".join(f"{name} {there.get(name)} -> {here.get(name)}" for name in names)
        raise RunError(
            f"{platform.node()} has another installation than the command (there -> here): {difference}. Install the "
            "same on every machine."
        )


def _refuse_other_folder(place: Path) -> None:
    """Refuse a folder of the same name that is another one, and locks that end at the border of a machine.

    Raises:
        RunError: either.
    """
    import platform

    from filelock import FileLock, Timeout

    if not place.is_file():
        raise RunError(
            f"{place.parent} is not the command's folder on {platform.node()}: {place.name} is missing. Write to a "
            "folder that every machine has under the same path."
        )
    try:
        with FileLock(place, timeout=0):
            pass
    except Timeout:
        return  # as it should be
    raise RunError(
        f"{place} should be locked, and is not on {platform.node()}: the command has ended, or locks in {place.parent} "
        "end at the border of a machine, and two workers would write one image. Use a file system whose flock works "
        "across machines."
    )
