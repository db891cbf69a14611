"""``--engine``: a command's work on other machines, and what the command itself does before and after."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from brushbench.cli.console import say
from brushbench.errors import UsageError

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
    call: Callable[[], object],
    count: int,
    device: str,
    benchmark: "Benchmark",
    folders: "Mapping[str, RunFolder]",
    batches: int,
    scoring: "Scoring",
    redo: bool,
) -> "list[Run]":
    """Have work done by workers, then merge the scores of its runs here.

    Args:
        engine: which.
        call: the work; importable and picklable. It leaves scores unmerged.
        count: workers.
        device: of the methods and metrics.
        benchmark: of the runs.
        folders: of the runs, by name.
        batches: of the plan of each.
        scoring: as in ``call``.
        redo: as in ``call``.

    Raises:
        BrushbenchError: the engine cannot be used, or every worker failed.
    """
    from brushbench.engines.workers import follow, run_workers
    from brushbench.evaluation import rescore
    from brushbench.features import Features

    crew = _crew(engine, count, device, next(iter(folders.values())))
    say(f"{count} {'worker' if count == 1 else 'workers'} on {engine.engine} share the work.")
    run_workers(crew, call, count, partial(follow, folders, batches, scoring.metrics != "none"))
    scoring = replace(scoring, features=Features(low_memory=scoring.low_memory))
    return [rescore(f.path, benchmark=benchmark, scoring=scoring, redo=redo) for f in folders.values()]


def _crew(engine: "EngineOptions", count: int, device: str, folder: "RunFolder") -> "Crew":
    """Return where the workers run."""
    if engine.engine == "ray":
        from brushbench.engines.ray import RayCrew, address_of

        return RayCrew(address_of(engine.engine_address), device, count)
    from brushbench.engines.slurm import SlurmCrew

    logs = folder.path.parent / f".slurm-{uuid.uuid4().hex[:8]}"  # on the shared file system, and nobody else's
    return SlurmCrew(engine.engine_address or "slurm", logs, engine.settings, device, count)
