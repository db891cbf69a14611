"""``eval``, ``generate`` and ``inpaint``: commands that run methods."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brushbench.cli.console import Stopped, check_complete, check_output, say, show_runs
from brushbench.cli.data import embedded_benchmark, load, tiny_specs
from brushbench.cli.engines import check_engine, run_elsewhere
from brushbench.cli.options import (
    DataOptions,
    EngineOptions,
    FailureOptions,
    LookOptions,
    MachineOptions,
    MethodOptions,
    RunOptions,
    ScoreOptions,
    TableOptions,
    shared_options,
)
from brushbench.cli.report import check_folder, make_page
from brushbench.cli.score import metric_weights
from brushbench.errors import UsageError
from brushbench.tracking import check_tracker, track_run

if TYPE_CHECKING:
    from brushbench.config import RunConfig
    from brushbench.evaluation import Scoring, Session
    from brushbench.registry import Spec
    from brushbench.runs import Run
    from brushbench.store import RunFolder
    from brushbench.types import Benchmark

app = typer.Typer()

RETRY = "The same command with --retry-failed makes them again."


@app.command(
    name="eval",
    epilog="Examples: [bold]brushbench eval -m telea -m 'ns,radius=5' --bench photos --limit 4[/] · "
    "[bold]brushbench eval -m brushnet --preset sd15 --bench brushbench --data ~/BrushBench --engine ray --jobs 8[/]",
)
@shared_options
def eval_(
    method: MethodOptions,
    data: DataOptions,
    run: RunOptions,
    scoring: ScoreOptions,
    table: TableOptions,
    machine: MachineOptions,
    engine: EngineOptions,
    failures: FailureOptions,
    look: LookOptions,
) -> None:
    """Run methods over a benchmark, score the images, print the leaderboard.

    The same command again continues where it stopped, however it stopped.
    """
    if look.track:
        check_tracker(look.track)
    if look.report:
        check_folder(look.report)
    runs = _run_methods(method, data, run, scoring, machine, engine, failures)
    show_runs(runs, table)
    _look(runs, look)
    check_complete(runs, failures.max_failed, others=run.shard is not None, remedy=RETRY, columns=None)


def _look(runs: "list[Run]", look: LookOptions) -> None:
    """Log the means, write the page, and say how to look at the images."""
    folders = " ".join(str(run.path) for run in runs)
    for run in runs if look.track else []:
        track_run(run, look.track or "", run.path.parent / "tracking")
    if look.report:
        say(f"Wrote {make_page(runs, look.report)}. Open it in a browser.")
    else:
        say(f"To see the images: brushbench sheet {folders} -o sheet.png, or brushbench report {folders}")


@app.command(epilog="Example: [bold]brushbench generate -m telea --bench photos --shard 1/2[/]")
@shared_options
def generate(
    method: MethodOptions,
    data: DataOptions,
    run: RunOptions,
    machine: MachineOptions,
    engine: EngineOptions,
    failures: FailureOptions,
) -> None:
    """Generate the images of a run without scoring them; `score` does that later."""
    runs = _run_methods(method, data, run, ScoreOptions(metrics="none"), machine, engine, failures)
    show_runs(runs, TableOptions())
    check_complete(runs, failures.max_failed, others=run.shard is not None, remedy=RETRY)


def _run_methods(
    method: MethodOptions,
    data: DataOptions,
    run: RunOptions,
    scoring: ScoreOptions,
    machine: MachineOptions,
    engine: EngineOptions,
    failures: FailureOptions,
) -> "list[Run]":
    from brushbench.engines.shard import Shard
    from brushbench.evaluation import Made, Scoring, Session, choose_columns, configure
    from brushbench.registry import check_options, with_preset
    from brushbench.store import RunFolder

    if run.shard and run.overwrite:
        raise UsageError("--overwrite would remove what other shards make. Leave it out, or delete the folder first.")
    if run.shard and run.jobs > 1:
        raise UsageError("--jobs cuts the work into shards itself. Leave --shard out, or start each shard alone.")
    check_engine(engine, machine.device, run.shard)
    asked = _asked(method, machine)
    labels = _labels(asked, method.name)
    choose_columns(scoring.metrics)  # unknown names fail before anything is loaded
    specs = [with_preset(spec, method.preset) for spec in asked]
    for spec in specs:
        check_options("model", spec)
    bench = data.bench or embedded_benchmark(specs)
    benchmark = load(bench, data)
    configs = [
        configure(
            spec, benchmark, name=label, seed=run.seed, repeats=run.repeats, batch_size=run.batch_size,
            negative_prompt=run.negative_prompt, device=machine.device, dtype=machine.dtype,
            tf32=machine.tf32,
        )
        for spec, label in zip(specs, labels, strict=True)
    ]  # fmt: skip
    wanted = Scoring(
        scoring.metrics, scoring.variants, metric_weights(scoring.weights), machine.device,
        low_memory=scoring.low_memory,
    )  # fmt: skip
    parent = (run.out or Path("runs") / benchmark.name).absolute()
    folders = {config.name: RunFolder(parent / config.name) for config in configs}
    if run.overwrite:
        for folder in folders.values():
            folder.overwrite()
    shard = Shard.parse(run.shard) if run.shard else Shard(stolen=not engine.is_local)
    session = Session(
        shard, run.retry_failed, failures.max_failed, announce=engine.is_local and run.jobs == 1,
        retry_before=max(folder.newest_batch() for folder in folders.values()),
    )  # fmt: skip
    work = partial(_carry_out, configs, bench, data, wanted, parent, session)
    try:
        return _share(work, benchmark, run, engine, folders, wanted)
    except Stopped:
        for name, folder in folders.items():
            if folder.exists:
                kept, planned = len(Made.count(folder).pictures), folder.header().plan.pictures
                say(f"{name}: {kept} of {planned} images are made and kept in {folder.path}.")
        raise


def _share(
    work: "partial[list[Run]]",
    benchmark: "Benchmark",
    run: RunOptions,
    engine: EngineOptions,
    folders: "Mapping[str, RunFolder]",
    scoring: "Scoring",
) -> "list[Run]":
    """Do the work here, here and in further processes, or on other machines."""
    from brushbench.engines.jobs import share
    from brushbench.evaluation import Made
    from brushbench.evaluation.plan import make_plan

    if engine.is_local and run.jobs == 1:
        return work(benchmark=benchmark)
    before = {name: Made.count(folder) for name, folder in folders.items()}
    if engine.is_local:
        say(f"{run.jobs} processes share the work; the bars show the first one's part.")
        runs = share(partial(work, benchmark=benchmark), run.jobs, elsewhere=work)
    else:
        plan = make_plan(benchmark.keys, run.batch_size, run.repeats)
        runs = run_elsewhere(engine, work, run.jobs, benchmark, folders, len(plan), scoring, redo=False)
    for name, folder in folders.items():
        say(f"{name}: {before[name].since(folder)}")
    return runs


def _asked(method: MethodOptions, machine: MachineOptions) -> "list[Spec]":
    """Return the methods that --model names; ``all`` stands for everything that can run here, and says what cannot."""
    from brushbench.registry import parse_spec

    if method.model != ["all"]:
        return [parse_spec(text) for text in method.model]
    from brushbench.inventory import all_methods

    specs, reasons = all_methods(method.preset, {"device": machine.device, "dtype": machine.dtype})
    say(f"{len(specs)} methods can run here: {', '.join(spec.name for spec in specs)}.")
    for name, reason in reasons.items():
        say(f"Left out: {name}: {reason}")
    return specs


def _carry_out(
    configs: "list[RunConfig]",
    bench: str,
    data: DataOptions,
    scoring: "Scoring",
    parent: Path,
    session: "Session",
    shard: str | None = None,
    benchmark: "Benchmark | None" = None,
    notify: Callable[[str], None] = say,
) -> "list[Run]":
    """Run all methods, one after the other, with features that they share; another process loads its own benchmark."""
    from brushbench.engines.shard import Shard
    from brushbench.evaluation import carry_out
    from brushbench.features import Features

    scoring = replace(scoring, features=Features(low_memory=scoring.low_memory))
    samples = load(bench, data) if benchmark is None else benchmark
    session = replace(session, shard=Shard.parse(shard)) if shard else session
    return [
        carry_out(config, samples, scoring, out=parent / config.name, session=session, notify=notify)
        for config in configs
    ]


def _labels(specs: "list[Spec]", names: list[str] | None) -> list[str]:
    """Return a label per method: those given with --name for the first ones, their own for the others."""
    names = names or []
    if len(names) > len(specs):
        raise UsageError(f"{len(names)} --name for {len(specs)} --model. The first --name labels the first --model.")
    labels = [*names, *(spec.label for spec in specs[len(names) :])]
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if doubles:
        raise UsageError(f"Two runs would be named {doubles[0]!r}. Tell them apart with --name.")
    return labels


@app.command(epilog='Example: [bold]brushbench inpaint photo.png hole.png "a red car" -o out.png --preset sd15[/]')
@shared_options
def inpaint(
    image: Annotated[Path, typer.Argument(help="The image.")],
    mask: Annotated[Path, typer.Argument(help="White = repaint, see --masks; of the image's size.")],
    machine: MachineOptions,
    prompt: Annotated[str, typer.Argument(help="What the finished image shows.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the PNG.")] = Path("inpainted.png"),
    model: Annotated[str, typer.Option("--model", "-m", help="Method with its options.")] = "brushnet",
    preset: Annotated[str | None, typer.Option("--preset", help="tiny, sd15, sdxl: the method's weights.")] = None,
    masks: Annotated[
        str, typer.Option("--masks", help="What marks the hole in MASK: white, black or alpha (transparent).")
    ] = "white",
    blend: Annotated[str, typer.Option("--blend", help="blur, paste, brushedit or none.")] = "blur",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1234,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt")] = "",
) -> None:
    """Repaint one image."""
    from PIL import Image

    from brushbench.evaluation import inpaint_one
    from brushbench.registry import parse_spec, with_preset

    check_output(output, ".png")
    spec = with_preset(parse_spec(model), preset)
    if tiny_specs([spec]):
        say(
            "The preset `tiny`, which this repository trained itself, knows coloured shapes at 64x64 and nothing else. "
            f"For photographs: --model {spec.name} --preset sd15"
        )
    picture = inpaint_one(
        image,
        mask,
        prompt,
        model=spec,
        masks=masks,
        blend_mode=blend,
        seed=seed,
        negative_prompt=negative_prompt,
        device=machine.device,
        dtype=machine.dtype,
        tf32=machine.tf32,
    )
    Image.fromarray(picture).save(output, "PNG")
    say(f"Wrote {output}.")
