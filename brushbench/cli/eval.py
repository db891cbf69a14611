"""``eval``, ``generate`` and ``inpaint``: commands that run methods."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brushbench.cli.console import check_complete, check_output, say, show_runs
from brushbench.cli.data import embedded_benchmark, load, tiny_specs
from brushbench.cli.options import (
    DataOptions,
    FailureOptions,
    MachineOptions,
    MethodOptions,
    RunOptions,
    ScoreOptions,
    TableOptions,
    shared_options,
)
from brushbench.cli.score import metric_weights
from brushbench.errors import UsageError

if TYPE_CHECKING:
    from brushbench.runs import Run
    from brushbench.types import Benchmark

app = typer.Typer()

RETRY = "The same command with --retry-failed makes them again."


@app.command(name="eval", epilog="Example: [bold]brushbench eval -m telea -m 'ns,radius=5' --bench photos --limit 4[/]")
@shared_options
def eval_(
    method: MethodOptions,
    data: DataOptions,
    run: RunOptions,
    scoring: ScoreOptions,
    table: TableOptions,
    machine: MachineOptions,
    failures: FailureOptions,
) -> None:
    """Run methods over a benchmark, score the images, print the leaderboard.

    The same command again continues where it stopped, however it stopped.
    """
    runs = _run_methods(method, data, run, scoring, machine, failures)
    show_runs(runs, table)
    check_complete(runs, failures.max_failed, others=run.shard is not None, remedy=RETRY)


@app.command(epilog="Example: [bold]brushbench generate -m telea --bench photos --shard 1/2[/]")
@shared_options
def generate(
    method: MethodOptions, data: DataOptions, run: RunOptions, machine: MachineOptions, failures: FailureOptions
) -> None:
    """Generate the images of a run without scoring them; `score` does that later."""
    runs = _run_methods(method, data, run, ScoreOptions(metrics="none"), machine, failures)
    show_runs(runs, TableOptions())
    check_complete(runs, failures.max_failed, others=run.shard is not None, remedy=RETRY)


def _run_methods(
    method: MethodOptions,
    data: DataOptions,
    run: RunOptions,
    scoring: ScoreOptions,
    machine: MachineOptions,
    failures: FailureOptions,
) -> list[Run]:
    from brushbench.engines.jobs import share
    from brushbench.evaluation import choose_columns
    from brushbench.registry import parse_spec, with_preset

    if run.shard and run.jobs > 1:
        raise UsageError("--jobs cuts the work into shards itself. Leave --shard out, or start each shard alone.")
    labels = _labels(method.model, method.name)
    choose_columns(scoring.metrics)  # unknown names fail before anything is loaded
    specs = [with_preset(parse_spec(text), method.preset) for text in method.model]
    benchmark = load(data.bench or embedded_benchmark(specs), data)
    folders = {
        label: (str(spec), (run.out or Path("runs") / benchmark.name) / label)
        for spec, label in zip(specs, labels, strict=True)
    }
    work = partial(
        _evaluate, folders, benchmark, metrics=scoring.metrics, variants=scoring.variants, limit=data.limit,
        seed=run.seed, repeats=run.repeats, batch_size=run.batch_size, negative_prompt=run.negative_prompt,
        weights=metric_weights(scoring.weights), device=machine.device, dtype=machine.dtype,
        low_memory=scoring.low_memory, retry_failed=run.retry_failed,
        max_failed=failures.max_failed,
    )  # fmt: skip
    if run.jobs > 1:
        say(f"{run.jobs} processes share the work; the bars show the first one's part.")
    return share(work, run.jobs) if run.jobs > 1 else work(run.shard)


def _evaluate(
    folders: dict[str, tuple[str, Path]], benchmark: Benchmark, shard: str | None, low_memory: bool, **settings: Any
) -> list[Run]:
    """Run all methods, one after the other, with features that they share; ``folders`` is label: spec and folder."""
    from brushbench.evaluation import evaluate
    from brushbench.features import Features

    features = Features(low_memory=low_memory)
    return [
        evaluate(
            spec, benchmark, out=folder, name=label, features=features, shard=shard, low_memory=low_memory, **settings
        )
        for label, (spec, folder) in folders.items()
    ]


def _labels(models: list[str], names: list[str] | None) -> list[str]:
    names = names or []
    if names and len(names) != len(models):
        raise UsageError(f"{len(names)} --name for {len(models)} --model. Give one --name for each --model, or none.")
    labels = names or [model.strip().replace("/", "_") for model in models]
    for label in labels:
        if not label.strip("."):
            raise UsageError(f"--name {label!r} cannot name a folder. Give it a letter or a digit.")
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

    check_output(output)
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
        model=str(spec),
        masks=masks,
        blend_mode=blend,
        seed=seed,
        negative_prompt=negative_prompt,
        device=machine.device,
        dtype=machine.dtype,
    )
    Image.fromarray(picture).save(output, "PNG")
    say(f"Wrote {output}.")
