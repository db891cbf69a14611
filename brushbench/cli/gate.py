"""``compare``, ``gate`` and ``accept``: is this checkpoint better, and may it go in?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brushbench.cli.console import check_output, print_table, say
from brushbench.cli.report import check_folder, make_page
from brushbench.errors import UsageError

if TYPE_CHECKING:
    from brushbench.gating import Verdict

app = typer.Typer()

RUNS = "Folders of runs; or the word selftest: damage runs on purpose and show that the gate sees it (half an hour)."
ACCEPTED = "A run's folder, an accepted file, or a name in reports/accepted."
FILE = "Write to FILE as well; - prints instead of the table."


@app.command(
    epilog="Example: [bold]brushbench compare runs/shapes/ck-1000 runs/shapes/ck-2000 --metrics lpips,clip_score[/]"
)
def compare(
    first: Annotated[Path, typer.Argument(help="The run to start from.")],
    second: Annotated[Path, typer.Argument(help="The run to compare with it.")],
    metrics: Annotated[str | None, typer.Option("--metrics", help="Names, with @brushnet-paper where meant.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="One of the splits; default: all.")] = None,
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown, json or latex.")] = "table",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write instead of printing.")] = None,
) -> None:
    """Compare two runs, paired by sample: differences with intervals, and the samples that changed most."""
    from brushbench.comparison import compare as compare_runs

    if output is not None:
        check_output(output)
    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    shown = compare_runs(first, second, metrics=names, split=split).render(form)
    if output is None:
        typer.echo(shown)
    else:
        output.write_text(shown + "\n", "utf-8")
        say(f"Wrote {output}.")


@app.command(
    epilog="Examples: [bold]brushbench gate runs/shapes/brushnet --accepted tiny-brushnet --markdown gate.md[/] · "
    "[bold]brushbench gate --noise runs/seed-1 runs/seed-2[/] · [bold]brushbench gate selftest[/]"
)
def gate(
    runs: Annotated[list[Path], typer.Argument(help=RUNS)],
    accepted: Annotated[str | None, typer.Option("--accepted", help=ACCEPTED)] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="TOML file of margins and budgets.")] = None,
    inconclusive: Annotated[
        str, typer.Option("--inconclusive", help="What too few samples count as: report (exit code 4), pass or fail.")
    ] = "report",
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="FILE", help=FILE)] = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="FILE", help=FILE)] = None,
    json: Annotated[str | None, typer.Option("--json", metavar="FILE", help=FILE)] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder of a page to write, with the verdict and every image.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what margins how many samples can hold; decide nothing.")
    ] = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="Take two runs of one method with two seeds, and propose a policy.")
    ] = False,
) -> None:
    """Say whether runs are worse than what was accepted.

    Exit codes: 0 pass · 1 quality regression · 2 usage or policy · 3 incomplete or not comparable · 4 inconclusive.
    """
    if runs == [Path("selftest")]:
        _selftest()
        return
    if noise:
        _propose(runs)
        return
    if accepted is None:
        raise UsageError(
            "--accepted is missing: a run's folder, an accepted file, or a name (brushbench accept --list)."
        )
    if plan:
        _plan(runs, accepted, policy)
        return
    from brushbench.gating import gate as decide
    from brushbench.gating import load_policy

    rules = None if policy is None else load_policy(policy)
    if inconclusive not in ("report", "pass", "fail"):
        raise UsageError(f"--inconclusive {inconclusive!r} is unknown. Known: report, pass, fail.")
    if report is not None:
        check_folder(report)
    verdicts = [decide(run, accepted, rules, inconclusive=inconclusive) for run in runs]  # type: ignore[arg-type]
    wanted = {"to_markdown": markdown, "to_junit": junit, "to_json": json}
    if not _write(verdicts, wanted):
        for verdict in verdicts:
            typer.echo(verdict.to_text())
    for verdict in verdicts:
        say(verdict.sentence)
    _look(runs, verdicts, report)
    raise typer.Exit(max((verdict.exit_code for verdict in verdicts), key=[0, 4, 1, 3].index))


def _look(runs: list[Path], verdicts: "list[Verdict]", report: Path | None) -> None:
    """Write the page of the runs with their verdicts, or say how to look at the images."""
    if report is None:
        folders = " ".join(map(str, runs))
        say(f"To see the images: brushbench sheet {folders} -o sheet.png, or the option --report FOLDER")
        return
    from brushbench.gating.output import table
    from brushbench.leaderboard import open_runs
    from brushbench.report.render import GateSection

    gates = [GateSection(verdict.sentence, table(verdict, "html")) for verdict in verdicts]
    say(f"Wrote {make_page(open_runs(runs), report, gates=gates)}. Open it in a browser.")


def _write(verdicts: "list[Verdict]", wanted: dict[str, str | None]) -> bool:
    """Write what was asked for; return whether something was printed in place of the table."""
    printed = False
    for way, place in wanted.items():
        if place is None:
            continue
        parts = [getattr(verdict, way)() for verdict in verdicts]
        if way == "to_json":
            text = parts[0] if len(parts) == 1 else "[" + ",\n".join(parts) + "]"
        elif way == "to_junit":
            from brushbench.gating.output import junit

            text = junit(verdicts)
        else:
            text = "\n\n".join(parts)
        if place == "-":
            typer.echo(text)
            printed = True
        else:
            check_output(Path(place))
            Path(place).write_text(text + "\n", "utf-8")
            say(f"Wrote {place}.")
    return printed


def _selftest() -> None:
    from brushbench.cli.console import print_table
    from brushbench.errors import BrushbenchError
    from brushbench.selftest import HEADER, selftest

    lines, healthy = selftest(say)
    print_table(list(HEADER), lines)
    if not healthy:
        raise typer.Exit(BrushbenchError.exit_code)


def _propose(runs: list[Path]) -> None:
    from brushbench.gating.accepted import noise_of
    from brushbench.gating.planning import proposal
    from brushbench.runs import Run

    if len(runs) != 2:
        raise UsageError(f"--noise takes two runs of one method with two seeds; got {len(runs)}.")
    typer.echo(proposal(noise_of(*map(Run.open, runs))))


def _plan(runs: list[Path], accepted: str, policy: Path | None) -> None:
    from brushbench.gating import load_policy
    from brushbench.gating.planning import PLAN_HEADER, plan

    rules = None if policy is None else load_policy(policy)
    for run in runs:
        print_table(list(PLAN_HEADER), [list(row) for row in plan(run, accepted, rules)])


@app.command(
    epilog='Example: [bold]brushbench accept runs/shapes/brushnet --name tiny-brushnet --reason "first release"[/]'
)
def accept(
    run: Annotated[Path | None, typer.Argument(help="The run to accept.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the file in reports/accepted.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="One sentence for the reviewer.")] = None,
    noise: Annotated[
        Path | None, typer.Option("--noise", help="The same method with another seed: what differs is noise.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder. Default: reports/accepted.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an accepted file of this name.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show the accepted files.")] = False,
    show: Annotated[str | None, typer.Option("--show", help="Show one accepted file: a name or a path.")] = None,
) -> None:
    """Write what a run scored into a small file to review and commit; `gate` compares with it."""
    from brushbench.gating.accepted import accept as write
    from brushbench.gating.accepted import accepted_names, read_accepted, summary
    from brushbench.runs import Run

    if listed:
        files = [read_accepted(file) for file in accepted_names().values()]
        print_table(
            ["name", "accepted", "benchmark", "reason"],
            [[f.name, str(f.accepted), f.benchmark, f.reason] for f in files],
        )
        return
    if show is not None:
        typer.echo(summary(show))
        return
    if run is None or name is None or reason is None:
        raise UsageError('Expected: brushbench accept RUN --name NAME --reason "…"; or --list, or --show NAME.')
    file = write(
        Run.open(run),
        name,
        reason,
        noise=None if noise is None else Run.open(noise),
        folder=output,
        overwrite=overwrite,
    )
    say(f"Wrote {file} ({file.stat().st_size // 1000 + 1} KB). Review it, and commit it.")
