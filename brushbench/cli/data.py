"""``data``: look at benchmarks and check them; and how every command loads one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brushbench.cli.console import check_output, say
from brushbench.cli.options import DataOptions
from brushbench.errors import BrushbenchError, EmptyBenchmarkError, UsageError
from brushbench.text import message

if TYPE_CHECKING:
    from brushbench.registry import Spec
    from brushbench.types import Benchmark

app = typer.Typer(help="Look at benchmarks and check them.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option("--data", help="Folder of the benchmark, where it is not embedded.")]


@app.command(epilog="Example: [bold]brushbench data check brushbench --data ~/BrushBench[/]")
def check(bench: Annotated[str, typer.Argument()], data: Data = None) -> None:
    """Decode every record of a benchmark and say which are bad."""
    from brushbench.benchmarks.survey import survey

    try:
        benchmark = load(bench, DataOptions(data=data, skip_bad=True), quiet=True)
    except EmptyBenchmarkError as error:
        for record, reason in error.skipped:
            typer.echo(message(f"bad: {record}: {reason}"))
        raise
    lines, bad = survey(benchmark)
    for line in lines:
        typer.echo(message(line))
    if bad:
        raise typer.Exit(BrushbenchError.exit_code)


@app.command(epilog="Example: [bold]brushbench data preview photos -o photos.png[/]")
def preview(
    bench: Annotated[str, typer.Argument()],
    data: Data = None,
    split: Annotated[str, typer.Option("--split", help="all, or inside, outside, brush; several with commas.")] = "all",
    limit: Annotated[int, typer.Option("--limit", min=1, help="First N images of the manifest.")] = 8,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the PNG.")] = Path("preview.png"),
) -> None:
    """Draw the first images of a benchmark with their holes: one row per image, one column per split."""
    from brushbench.inventory import preview

    check_output(output, ".png")
    preview(load(bench, DataOptions(data=data, split=split, limit=limit))).save(output, "PNG")
    say(f"Wrote {output}.")


# How commands load a benchmark ----------------------------------------------------------------------------------------


def _takes(bench: str, option: str) -> bool:
    """Whether a benchmark takes an option; to a folder, whose layout is recognised later, every one is passed on."""
    from brushbench.registry import names, option_names, parse_spec, resolve

    name = parse_spec(bench).name if not Path(bench).expanduser().exists() else ""
    return not (name in names("benchmark") or ":" in name) or option in option_names(resolve("benchmark", name))


def load(bench: str, options: DataOptions, quiet: bool = False) -> "Benchmark":
    """Load a benchmark as ``--data``, ``--split``, ``--limit`` and ``--skip-bad`` say; name what was left out.

    Args:
        bench: a name with its options, or a folder.
        options: from the command line.
        quiet: say nothing; the caller lists what was left out itself.

    Raises:
        UsageError: ``--data`` for a benchmark that takes no folder, or a second folder.
    """
    from brushbench.evaluation import load_benchmark
    from brushbench.registry import names

    data = options.data
    if data and bench not in names("benchmark") and Path(bench).expanduser().is_dir():
        raise UsageError(f"--bench {bench} is a folder, and --data {data} another. Leave one of them out.")
    if data and not _takes(bench, "root"):
        raise UsageError(f"The benchmark {bench!r} is embedded. Leave --data out.")
    where = {"root": str(data.expanduser().resolve())} if data else {}
    skip = {"skip_bad": True} if options.skip_bad and (not quiet or _takes(bench, "skip_bad")) else {}
    benchmark = load_benchmark(bench, options.split, options.limit, **where, **skip)
    skipped = benchmark.skipped if options.skip_bad and not quiet else []
    for note in () if quiet else benchmark.notes:
        say(note)
    if skipped:
        listed = "; ".join(f"{record}: {reason}" for record, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more (see run.json)" if len(skipped) > 5 else ""
        say(f"Bad records left out: {len(skipped)} ({listed}{more}).")
    return benchmark


def embedded_benchmark(specs: "list[Spec]") -> str:
    """Return the embedded benchmark that fits the methods, and say what the real thing would be."""
    tiny = tiny_specs(specs)
    if not tiny:
        return "photos"
    say(
        "No --bench: the embedded benchmark `shapes` (rendered scenes, 64x64) with the preset `tiny`, which this "
        f"repository trained itself. The real thing: brushbench eval --model {tiny[0].name} --preset sd15 "
        "--bench brushbench --data DIR"
    )
    return "shapes"


def tiny_specs(specs: "list[Spec]") -> "list[Spec]":
    """Return the methods that run on the embedded family."""
    from brushbench.registry import takes_preset

    return [spec for spec in specs if takes_preset(spec) and spec.options.get("preset", "tiny") == "tiny"]
