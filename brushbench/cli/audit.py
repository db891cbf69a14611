"""``audit``: which damage each metric sees."""

from pathlib import Path
from typing import Annotated

import typer

from brushbench.cli.console import check_output, say, say_reasons
from brushbench.cli.score import metric_weights
from brushbench.errors import RunError, UnknownNameError
from brushbench.outcome import common_reasons

app = typer.Typer()


@app.command(epilog="Example: [bold]brushbench audit --bench shapes --limit 24 -o audit.md[/]")
def audit(
    bench: Annotated[str, typer.Option("--bench", "-b", help="A benchmark: a name or a folder.")] = "shapes",
    split: Annotated[str, typer.Option("--split", help="inside, outside or brush; several with commas.")] = "inside",
    limit: Annotated[int, typer.Option("--limit", min=2, help="First N images.")] = 24,
    metrics: Annotated[str, typer.Option("--metrics", help="auto, or names, of plug-ins too.")] = "auto",
    weights: Annotated[list[str] | None, typer.Option("--weights", help="METRIC=PATH. Repeatable.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1: of the metric models.")] = "auto",
    form: Annotated[str, typer.Option("--format", "-f", help="markdown, json or latex.")] = "markdown",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
    heat_map: Annotated[Path | None, typer.Option("--heat-map", help="PNG to draw the shares into.")] = None,
    json_output: Annotated[
        Path | None, typer.Option("--json", help="File for the JSON, beside another format.")
    ] = None,
) -> None:
    """Damage the references of a benchmark on purpose and ask each metric which picture is worse.

    Per metric and damage: the share of images that scored worse, and a verdict: detects, blind or inverted. Then the
    ends of each scale, speed, and how far scores move where nothing visible changes.
    """
    from brushbench.audit_tables import FORMATS, draw_heat_map, render
    from brushbench.evaluation import Scoring, load_benchmark
    from brushbench.evaluation.audit import audit as damage_and_score

    if form not in FORMATS:
        raise UnknownNameError("format", form, FORMATS)
    for file in (output, heat_map, json_output):
        if file is not None:
            check_output(file)
    scoring = Scoring(metrics, weights=metric_weights(weights), device=device)
    result = damage_and_score(load_benchmark(bench, split, limit), scoring)
    text = render(result, form)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", "utf-8")
        say(f"Wrote {output}.")
    if json_output is not None:
        json_output.write_text(render(result, "json") + "\n", "utf-8")
        say(f"Wrote {json_output}.")
    if heat_map is not None:
        draw_heat_map(result, heat_map)
        say(f"Wrote {heat_map}.")
    say_reasons(result.unavailable.items())
    for column, reasons in result.faults.items():
        say(f"{column}: {len(reasons)} scores are missing: {common_reasons(reasons)}.")
    if result.faults:
        raise typer.Exit(RunError.exit_code)
