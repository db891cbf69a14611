"""``audit``: which damage each metric sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from brushbench.cli.console import check_output, say
from brushbench.cli.score import metric_weights
from brushbench.errors import UnknownNameError

app = typer.Typer()


@app.command(epilog="Example: [bold]brushbench audit --bench shapes --limit 24 -o audit.md[/]")
def audit(
    bench: Annotated[str, typer.Option("--bench", "-b", help="A benchmark: a name or a folder.")] = "shapes",
    split: Annotated[str, typer.Option("--split", help="inside, outside or brush; several with commas.")] = "inside",
    limit: Annotated[int, typer.Option("--limit", min=2, help="First N images.")] = 24,
    metrics: Annotated[str, typer.Option("--metrics", help="auto, or names, of plug-ins too.")] = "auto",
    weights: Annotated[list[str] | None, typer.Option("--weights", help="METRIC=PATH. Repeatable.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1: of the metric models.")] = "auto",
    form: Annotated[str, typer.Option("--format", "-f", help="markdown or json.")] = "markdown",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Damage the references of a benchmark on purpose and ask each metric which picture is worse.

    Per metric and damage: the share of images that scored worse, and a verdict: detects, blind or inverted.
    """
    from brushbench.evaluation import Scoring, load_benchmark
    from brushbench.evaluation.audit import audit as damage_and_score
    from brushbench.evaluation.audit import to_json, to_markdown

    if form not in ("markdown", "json"):
        raise UnknownNameError("format", form, ("markdown", "json"))
    if output is not None:
        check_output(output)
    scoring = Scoring(metrics, weights=metric_weights(weights), device=device)
    findings, unavailable = damage_and_score(load_benchmark(bench, split, limit), scoring)
    text = json.dumps(to_json(findings), indent=1, ensure_ascii=False) if form == "json" else to_markdown(findings)
    if output is None:
        typer.echo(text)
    else:
        output.write_text(text + "\n", "utf-8")
        say(f"Wrote {output}.")
    for reason in dict.fromkeys(unavailable.values()):
        say(f"Unavailable: {', '.join(c for c, r in unavailable.items() if r == reason)}. {reason}")
