"""``leaderboard``, ``list`` and ``doctor``: commands that show what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brushbench.cli.console import print_table, say, say_unavailable
from brushbench.cli.options import TableOptions, shared_options
from brushbench.errors import BrushbenchError, RunError

app = typer.Typer()


@app.command(epilog="Example: [bold]brushbench leaderboard runs/photos --format markdown[/]")
@shared_options
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold several.")],
    table: TableOptions,
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown, csv or json.")] = "table",
) -> None:
    """Compare runs: methods x splits in the paper's scales, with n and missing."""
    from brushbench.leaderboard import make_tables, open_runs, render

    opened = open_runs(runs)
    tables = make_tables(opened, table.protocol)
    if text := render(tables, form, table.intervals):
        typer.echo(text)
    say_unavailable(opened)
    shown = {row.method for found in tables for row in found.rows}
    for run in opened:
        if run.config.name not in shown:
            say(
                f"{run.config.name} has no scores under the protocol {table.protocol}. Finish it with the "
                f"`brushbench eval` command that began it, or score it: brushbench score {run.path}"
            )
    if not tables:
        raise typer.Exit(RunError.exit_code)


@app.command(name="list", epilog="Example: [bold]brushbench list metrics[/]")
def list_(
    kind: Annotated[str | None, typer.Argument(help="models, metrics or benchmarks; all three without it.")] = None,
) -> None:
    """Show what there is, what each needs, and whether it is here."""
    from brushbench.inventory import KINDS, inventory

    for shown in [kind] if kind is not None else KINDS:
        print_table(*inventory(shown))


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, embedded data, metric weights. Exit code 5 if something is broken."""
    from brushbench.inventory import checkup

    lines, healthy = checkup()
    print_table(["what", "state"], lines)
    if not healthy:
        raise typer.Exit(BrushbenchError.exit_code)
