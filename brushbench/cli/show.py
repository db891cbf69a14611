"""``leaderboard``, ``list`` and ``doctor``: commands that show what is there."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brushbench.cli.console import check_complete, check_output, print_table, say, say_unavailable
from brushbench.cli.options import FailureOptions, TableOptions, shared_options
from brushbench.errors import BrushbenchError, RunError

if TYPE_CHECKING:
    from brushbench.runs import Run

app = typer.Typer()


@app.command(epilog="Example: [bold]brushbench leaderboard runs/photos runs/old/telea=old --format markdown -o t.md[/]")
@shared_options
def leaderboard(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders of runs, or folders that hold several; FOLDER=LABEL names a run in the table."),
    ],
    table: TableOptions,
    failures: FailureOptions,
    form: Annotated[
        str, typer.Option("--format", "-f", help="table, markdown, csv, json, latex (booktabs) or html.")
    ] = "table",
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="Columns to show, in this order: psnr,lpips.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="all, or inside, outside, brush; several with commas.")] = "all",
    by: Annotated[
        str | None, typer.Option("--by", help="One table per value of a key of the samples' metadata: category.")
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="A column: its best row first.")] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Beside the article's rows, under the protocol brushnet-paper."),
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Compare runs: methods x metrics per split in the paper's scales, with n and missing."""
    from brushbench.leaderboard import make_tables, open_runs, render

    if output is not None:
        check_output(output)
    opened = open_runs(runs)
    wanted = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    shown = table.spread != "none" or form in ("csv", "json")
    protocol = "brushnet-paper" if published else table.protocol
    tables = make_tables(opened, protocol, metrics=wanted, split=split, by=by, sort=sort, intervals=shown)
    if published:
        from brushbench.leaderboard.beside import with_published

        tables = with_published(tables, wanted, split)
    text = render(tables, form, spread=table.spread)
    if output is not None:
        output.write_text(text + "\n", "utf-8")
        say(f"Wrote {output}.")
    elif text:
        typer.echo(text)
    say_unavailable(opened)
    scored = _say_unscored(opened, protocol)
    names = {column for run in opened for column in run.metrics} if wanted is None else wanted
    columns = {f"{name.partition('@')[0]}@{protocol}" for name in names}
    check_complete(opened, failures.max_failed, columns=columns)
    if not scored:
        raise typer.Exit(RunError.exit_code)


def _say_unscored(runs: "list[Run]", protocol: str) -> bool:
    """Name the runs without scores under a protocol; return whether some run has any."""
    scored = [protocol in run.protocols() for run in runs]
    for run, has_scores in zip(runs, scored, strict=True):
        if not has_scores:
            say(
                f"{run.label} has no scores under the protocol {protocol}. Finish it with the `brushbench eval` "
                f"command that began it, or score it: brushbench score {run.path}"
            )
    return any(scored)


@app.command(name="list", epilog="Example: [bold]brushbench list metrics[/]")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="models, metrics, benchmarks or published; the first three without it.")
    ] = None,
) -> None:
    """Show what there is, what each needs, and whether it is here."""
    if kind == "published":
        from brushbench.published import listing

        print_table(*listing())
        return
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
