"""``speed``: what a method's accelerations gain, and whether its images stay as good."""

from pathlib import Path
from typing import Annotated

import typer

from brushbench.cli.console import check_output, say
from brushbench.cli.data import embedded_benchmark, load
from brushbench.cli.options import DataOptions, MachineOptions, shared_options
from brushbench.cli.score import metric_weights

app = typer.Typer()


@app.command(epilog="Example: [bold]brushbench speed brushnet --limit 64 --split inside -o reports/speed.md[/]")
@shared_options
def speed(
    model: Annotated[list[str], typer.Argument(help="Diffusion methods with their options; without speed.")],
    data: DataOptions,
    machine: MachineOptions,
    speeds: Annotated[
        str | None, typer.Option("--speeds", help="Accelerations to try, with commas. Default: all, and a broken one.")
    ] = None,
    weights: Annotated[list[str] | None, typer.Option("--weights", help="METRIC=PATH or METRIC=HUB_ID.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1234,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs.")] = Path("runs/speed"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Markdown file to write as well.")] = None,
) -> None:
    """Run methods with each acceleration, and gate the images against those of the published way.

    proven: not worse by more than the gate's margins on any gated metric · refuted: worse · not proven: too few
    samples to say, or not comparable.
    """
    from brushbench.registry import parse_spec
    from brushbench.speedups import SPEEDS, measure, render

    if output is not None:
        check_output(output)
    specs = [parse_spec(text) for text in model]
    benchmark = load(data.bench or embedded_benchmark(specs), data)
    wanted = SPEEDS if speeds is None else [name.strip() for name in speeds.split(",") if name.strip()]
    written = []
    for spec in specs:
        found = measure(
            spec, benchmark, out / benchmark.name / spec.label, speeds=wanted, weights=metric_weights(weights),
            notify=say, batch_size=batch_size, seed=seed, device=machine.device, dtype=machine.dtype, tf32=machine.tf32,
        )  # fmt: skip
        title = f"{spec.label} on {benchmark.name}, {len(benchmark)} images"
        typer.echo(render(found, title, "table"))
        written.append(render(found, title, "markdown"))
    if output is not None:
        output.write_text("\n\n".join(written) + "\n", "utf-8")
        say(f"Wrote {output}.")
