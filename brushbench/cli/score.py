"""``score``: columns for images that are there."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brushbench.cli.console import check_complete, say, show_runs
from brushbench.cli.data import load
from brushbench.cli.engines import check_engine, run_elsewhere
from brushbench.cli.options import (
    DataOptions,
    EngineOptions,
    FailureOptions,
    ScoreOptions,
    TableOptions,
    shared_options,
)
from brushbench.errors import UsageError

if TYPE_CHECKING:
    from brushbench.evaluation import Scoring
    from brushbench.runs import Run

app = typer.Typer()


@app.command(
    epilog="Examples: [bold]brushbench score runs/photos/telea --metrics lpips --weights lpips=squeezenet.pth[/] · "
    "[bold]brushbench score --images out/ --bench photos --name mine[/] · "
    "[bold]brushbench score runs/photos/telea --engine ray --jobs 8[/]"
)
@shared_options
def score(
    data: DataOptions,
    scoring: ScoreOptions,
    table: TableOptions,
    engine: EngineOptions,
    failures: FailureOptions,
    run: Annotated[Path | None, typer.Argument(help="A run's folder, to add or redo columns.")] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="DIR/SPLIT/ID.png: images generated elsewhere.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Label of --images in tables.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Parent folder of the run. Default: runs/BENCHMARK.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that --images wrote.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes that share the work.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Score a run again, or score images that were generated elsewhere. Other columns are left alone."""
    from brushbench.evaluation import Scoring

    if (run is None) == (images is None):
        raise UsageError("Name either a run's folder or --images DIR, not both and not neither.")
    images_only = {
        "split": data.split != "all",
        "limit": data.limit,
        "name": name,
        "out": out,
        "skip-bad": data.skip_bad,
        "overwrite": overwrite,
    }
    if run is not None and any(images_only.values()):
        given = ", ".join(f"--{option}" for option, value in images_only.items() if value)
        raise UsageError(f"{given}: a run's folder says that itself. Leave it out, or score --images DIR.")
    if overwrite and jobs > 1 and engine.is_local:
        raise UsageError(
            "--overwrite would remove what other processes write. Delete the run first, or leave --jobs out."
        )
    check_engine(engine, device)
    wanted = Scoring(
        scoring.metrics, scoring.variants, metric_weights(scoring.weights), device, low_memory=scoring.low_memory
    )
    if run is not None:
        work = partial(_score_run, run, data, wanted)
    elif images is not None:
        label = name or images.expanduser().resolve().name.lstrip(".") or "images"
        work = partial(_score_images, images, data, label, out, overwrite, scoring=wanted)
    if not engine.is_local:
        done = _score_elsewhere(engine, work, run, data, wanted, jobs)
    elif jobs == 1:
        done = work()
    else:
        from brushbench.engines.jobs import share

        say(f"{jobs} processes share the work; the bars show the first one's part.")
        done = share(work, jobs, elsewhere=work)
    show_runs([done], table)
    check_complete([done], failures.max_failed, columns=None)


def _score_elsewhere(
    engine: EngineOptions, work: "partial[Run]", run: Path | None, data: DataOptions, scoring: "Scoring", jobs: int
) -> "Run":
    """Score by workers: the images of a run, or those that ``work`` first reads into one, here."""
    from brushbench.evaluation.plan import make_plan
    from brushbench.evaluation.recipes import benchmark_of
    from brushbench.runs import Run
    from brushbench.store import RunFolder

    if run is None:
        there = work(scoring=replace(scoring, metrics="none"))
        benchmark = load(data.bench or "photos", data, quiet=True)
    else:
        there = Run.open(run)
        benchmark = benchmark_of(there, data.bench, data.data)
    config = there.config
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats, there.header.schema_version)
    call = partial(_score_part, there.path, data, scoring, images=run is None)
    (done,) = run_elsewhere(
        engine, call, jobs, benchmark, {config.name: RunFolder(there.path)}, len(plan), scoring, redo=run is not None
    )
    return done


def _score_part(run: Path, data: DataOptions, scoring: "Scoring", images: bool, notify: Callable[[str], None]) -> None:
    """Score, in a worker, what no other worker has; redo what a run already has, but for images just read."""
    from brushbench.engines.shard import Shard
    from brushbench.evaluation import rescore

    benchmark = load(data.bench or "photos", data) if images else data.bench
    part = Shard(stolen=True)
    rescore(run, benchmark=benchmark, data=data.data, scoring=scoring, shard=part, redo=not images, notify=notify)


def _score_run(run: Path, data: DataOptions, scoring: "Scoring", shard: str | None = None) -> "Run":
    from brushbench.evaluation import rescore

    return rescore(run, benchmark=data.bench, data=data.data, scoring=scoring, shard=shard)


def _score_images(
    images: Path, data: DataOptions, label: str, out: Path | None, overwrite: bool, shard: str | None = None,
    *, scoring: "Scoring",
) -> "Run":  # fmt: skip
    from brushbench.evaluation import score_images

    benchmark = load(data.bench or "photos", data)
    folder = (out or Path("runs") / benchmark.name) / label
    return score_images(
        str(images), benchmark, name=label, out=folder, scoring=scoring, overwrite=overwrite, shard=shard
    )


def metric_weights(pairs: list[str] | None) -> dict[str, str]:
    """Return METRIC: PLACE of every ``--weights METRIC=PLACE``.

    Raises:
        UsageError: a pair without a metric or a place.
    """
    found: dict[str, str] = {}
    for pair in pairs or []:
        metric, equals, where = pair.partition("=")
        if not (metric and equals and where):
            raise UsageError(f"--weights {pair!r} is not METRIC=PATH, such as lpips=squeezenet1_1.pth.")
        found[metric] = where
    return found
