"""The command line: parses, calls one recipe, prints. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import errno
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from brushbench import __version__
from brushbench.errors import BrushbenchError, RunError, UsageError
from brushbench.training.commands import app as training_app

if TYPE_CHECKING:
    from brushbench.registry import Spec
    from brushbench.runs import Run
    from brushbench.types import Benchmark

NOT_OUR_FAULT = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}

app = typer.Typer(
    name="brushbench",
    help="Measure text-guided image inpainting: run methods over benchmarks, score them, compare them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: [bold]brushbench eval --model telea --model ns --bench photos[/]",
)

Models = Annotated[
    list[str], typer.Option("--model", "-m", help="Method with its options: NAME or NAME,option=value. Repeatable.")
]
Names = Annotated[list[str] | None, typer.Option("--name", help="Label of the --model at the same place. Repeatable.")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="tiny, sd15, sdxl: weights of every --model that takes a preset.")
]
Bench = Annotated[
    str | None,
    typer.Option("--bench", "-b", help="A name (see `list benchmarks`) or a folder. Default: an embedded one."),
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the benchmark, where it is not embedded.")]
Split = Annotated[str, typer.Option("--split", help="all, or inside, outside, brush; several with commas.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="First N pictures of the manifest, for every split.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Parent folder of the runs. Default: runs/BENCHMARK.")]
Metrics = Annotated[str, typer.Option("--metrics", help="auto, none, or names: psnr,lpips@brushnet-paper.")]
Variants = Annotated[str, typer.Option("--variants", help="auto, or raw, blended, pasted, raw+jpeg75.")]
Weights = Annotated[
    list[str] | None, typer.Option("--weights", help="METRIC=PATH or METRIC=HUB_ID: where its weights are. Repeatable.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, float16, bfloat16: of the method's weights.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=1, help="Processes of this machine that share the work; one a GPU.")
]
LowMemory = Annotated[bool, typer.Option("--low-memory", help="Keep one metric model in memory at a time.")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="standard, or brushnet-paper beside published rows.")]
Intervals = Annotated[bool, typer.Option("--intervals", help="Show the 95 % interval behind each mean.")]


@app.command(epilog="Example: [bold]brushbench eval -m telea -m 'ns,radius=5' --bench photos --limit 4[/]")
def eval(  # noqa: A001 - the command's own name
    model: Models,
    preset: Preset = None,
    bench: Bench = None,
    data: Data = None,
    split: Split = "all",
    limit: Limit = None,
    metrics: Metrics = "auto",
    variants: Variants = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 1234,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Pictures a sample.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests at once; part of the run.")] = 4,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", help="Given with every request.")] = "",
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: make part i of n only.")] = None,
    jobs: Jobs = 1,
    out: Out = None,
    name: Names = None,
    weights: Weights = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    skip_bad: SkipBad = False,
    low_memory: LowMemory = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Make failed pictures again.")] = False,
    protocol: ProtocolName = "standard",
    intervals: Intervals = False,
) -> None:
    """Run methods over a benchmark, score the pictures, print the leaderboard.

    The same command again continues where it stopped, however it stopped.
    """
    from brushbench.engines.jobs import share
    from brushbench.evaluation import choose_columns
    from brushbench.registry import parse_spec, with_preset

    if shard and jobs > 1:
        raise UsageError("--jobs cuts the work into shards itself. Leave --shard out, or start each shard alone.")
    labels = _labels(model, name)
    choose_columns(metrics)  # unknown names fail before anything is loaded
    specs = [with_preset(parse_spec(text), preset) for text in model]
    benchmark = _benchmark(bench or _embedded(specs), data, split, limit, skip_bad)
    folders = {
        label: (str(spec), _folder(out, benchmark.name, label)) for spec, label in zip(specs, labels, strict=True)
    }
    work = partial(
        _evaluate, folders, benchmark, metrics=metrics, variants=variants, limit=limit, seed=seed, repeats=repeats,
        batch_size=batch_size, negative_prompt=negative_prompt, weights=_weights(weights), device=device, dtype=dtype,
        low_memory=low_memory, retry_failed=retry_failed,
    )  # fmt: skip
    if jobs > 1:
        _say(f"{jobs} processes share the work; the bars show the first one's part.")
    _show(share(work, jobs) if jobs > 1 else work(shard), protocol, intervals)


@app.command(epilog="Example: [bold]brushbench generate -m telea --bench photos --shard 1/2[/]")
def generate(
    model: Models,
    preset: Preset = None,
    bench: Bench = None,
    data: Data = None,
    split: Split = "all",
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 1234,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Pictures a sample.")] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Requests at once; part of the run.")] = 4,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", help="Given with every request.")] = "",
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: make part i of n only.")] = None,
    jobs: Jobs = 1,
    out: Out = None,
    name: Names = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    skip_bad: SkipBad = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Make failed pictures again.")] = False,
) -> None:
    """Make the pictures of a run without scoring them; `score` does that later."""
    eval(
        model=model, preset=preset, bench=bench, data=data, split=split, limit=limit, metrics="none", seed=seed,
        repeats=repeats, batch_size=batch_size, negative_prompt=negative_prompt, shard=shard, jobs=jobs,
        out=out, name=name, device=device, dtype=dtype, skip_bad=skip_bad, retry_failed=retry_failed,
    )  # fmt: skip


@app.command(
    epilog="Examples: [bold]brushbench score runs/photos/telea --metrics lpips --weights lpips=squeezenet.pth[/] · "
    "[bold]brushbench score --images out/ --bench photos --name mine[/]"
)
def score(
    run: Annotated[Path | None, typer.Argument(help="A run's folder, to add or redo columns.")] = None,
    images: Annotated[Path | None, typer.Option("--images", help="DIR/SPLIT/ID.png: pictures made elsewhere.")] = None,
    bench: Bench = None,
    data: Data = None,
    split: Split = "all",
    limit: Limit = None,
    metrics: Metrics = "auto",
    variants: Variants = "auto",
    name: Annotated[str | None, typer.Option("--name", help="Label of --images in tables.")] = None,
    out: Out = None,
    weights: Weights = None,
    device: Device = "auto",
    skip_bad: SkipBad = False,
    low_memory: LowMemory = False,
    protocol: ProtocolName = "standard",
    intervals: Intervals = False,
) -> None:
    """Score a run again, or score pictures that were made elsewhere. Other columns are left alone."""
    from brushbench.evaluation import Scoring, rescore, score_images

    if (run is None) == (images is None):
        raise UsageError("Name either a run's folder or --images DIR, not both and not neither.")
    images_only = {
        "bench": bench,
        "split": split != "all",
        "limit": limit,
        "name": name,
        "out": out,
        "skip-bad": skip_bad,
    }
    if run is not None and any(images_only.values()):
        given = ", ".join(f"--{option}" for option, value in images_only.items() if value)
        raise UsageError(f"{given}: a run's folder says that itself. Leave it out, or score --images DIR.")
    scoring = Scoring(metrics, variants, _weights(weights), device, low_memory=low_memory)
    if run is not None:
        done = rescore(run, data=data, scoring=scoring)
    else:
        benchmark = _benchmark(bench or "photos", data, split, limit, skip_bad)
        label = name or str(images).strip("/").replace("/", "_")
        folder = _folder(out, benchmark.name, label)
        done = score_images(str(images), benchmark, name=label, out=folder, limit=limit, scoring=scoring, notify=_say)
    _show([done], protocol, intervals)


@app.command(epilog="Example: [bold]brushbench leaderboard runs/photos --format markdown[/]")
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that hold several.")],
    protocol: ProtocolName = "standard",
    form: Annotated[str, typer.Option("--format", "-f", help="table, markdown, csv or json.")] = "table",
    intervals: Intervals = False,
) -> None:
    """Compare runs: methods x splits in the paper's scales, with n and missing."""
    from brushbench.leaderboard import make_tables, open_runs, render

    opened = open_runs(runs)
    tables = make_tables(opened, protocol)
    if text := render(tables, form, intervals):
        typer.echo(text)
    _say_unavailable(opened)
    shown = {row.method for table in tables for row in table.rows}
    for run in opened:
        if run.config.name not in shown:
            _say(
                f"{run.config.name} has no scores under the protocol {protocol}. Finish it with the `brushbench eval` "
                f"command that began it, or score it: brushbench score {run.path}"
            )
    if not tables:
        raise typer.Exit(RunError.exit_code)


@app.command(epilog='Example: [bold]brushbench inpaint photo.png hole.png "a red car" -o out.png --preset sd15[/]')
def inpaint(
    image: Annotated[Path, typer.Argument(help="The picture.")],
    mask: Annotated[Path, typer.Argument(help="White = repaint; of the picture's size.")],
    prompt: Annotated[str, typer.Argument(help="What the finished picture shows.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the PNG.")] = Path("inpainted.png"),
    model: Annotated[str, typer.Option("--model", "-m", help="Method with its options.")] = "brushnet",
    preset: Preset = None,
    blend: Annotated[str, typer.Option("--blend", help="blur, paste, brushedit or none.")] = "blur",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1234,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Repaint one picture."""
    from PIL import Image

    from brushbench.evaluation import inpaint_one
    from brushbench.registry import parse_spec, with_preset

    _check_output(output)
    spec = with_preset(parse_spec(model), preset)
    if _tiny([spec]):
        _say(
            "The preset `tiny`, which this repository trained itself, knows coloured shapes at 64x64 and nothing else. "
            f"For photographs: --model {spec.name} --preset sd15"
        )
    picture = inpaint_one(
        image,
        mask,
        prompt,
        model=str(spec),
        blend_mode=blend,
        seed=seed,
        negative_prompt=negative_prompt,
        device=device,
        dtype=dtype,
    )
    Image.fromarray(picture).save(output, "PNG")
    _say(f"Wrote {output}.")


@app.command(name="list", epilog="Example: [bold]brushbench list metrics[/]")
def list_(kind: Annotated[str, typer.Argument(help="models, metrics or benchmarks.")]) -> None:
    """Show what there is, what each needs, and whether it is here."""
    from brushbench.inventory import inventory

    _print_table(*inventory(kind))


@app.command()
def doctor() -> None:
    """Check this installation: versions, device, embedded data, metric weights. Exit code 5 if something is broken."""
    from brushbench.inventory import checkup

    lines, healthy = checkup()
    _print_table(["what", "state"], lines)
    if not healthy:
        raise typer.Exit(BrushbenchError.exit_code)


app.add_typer(training_app, name="train")
data_app = typer.Typer(help="Look at benchmarks and check them.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command(name="check", epilog="Example: [bold]brushbench data check brushbench --data ~/BrushBench[/]")
def data_check(bench: Annotated[str, typer.Argument()], data: Data = None) -> None:
    """Decode every record of a benchmark and say which are bad."""
    benchmark = _benchmark(bench, data, "all", None, skip_bad=True)
    for key, value in benchmark.manifest.items():
        shown = f"{len(value)} entries" if isinstance(value, list) and len(value) > 8 and key != "skipped" else value
        typer.echo(f"{key}: {shown}")
    if benchmark.manifest.get("skipped"):
        raise typer.Exit(BrushbenchError.exit_code)


@data_app.command(name="preview", epilog="Example: [bold]brushbench data preview photos -o photos.png[/]")
def data_preview(
    bench: Annotated[str, typer.Argument()],
    data: Data = None,
    split: Split = "all",
    limit: Limit = 8,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the PNG.")] = Path("preview.png"),
) -> None:
    """Draw the first pictures of a benchmark with their holes: one row a picture, one column a split."""
    from brushbench.inventory import preview

    _check_output(output)
    preview(_benchmark(bench, data, split, limit, skip_bad=False)).save(output, "PNG")
    _say(f"Wrote {output}.")


# What commands share --------------------------------------------------------------------------------------------------


def _benchmark(bench: str, data: Path | None, split: str, limit: int | None, skip_bad: bool) -> Benchmark:
    from brushbench.evaluation import load_benchmark
    from brushbench.registry import names, option_names, parse_spec, resolve

    if data and bench not in names("benchmark") and Path(bench).expanduser().is_dir():
        raise UsageError(f"--bench {bench} is a folder, and --data {data} another. Leave one of them out.")
    if data and "root" not in option_names(resolve("benchmark", parse_spec(bench).name)):
        raise UsageError(f"The benchmark {bench!r} is embedded. Leave --data out.")
    where = {"root": str(data.expanduser().resolve())} if data else {}
    benchmark = load_benchmark(bench, split, limit, **where, **({"skip_bad": True} if skip_bad else {}))
    skipped = getattr(benchmark, "skipped", []) if skip_bad else []
    if skipped:
        listed = "; ".join(f"{record}: {reason}" for record, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more (see run.json)" if len(skipped) > 5 else ""
        _say(f"Bad records left out: {len(skipped)} ({listed}{more}).")
    return benchmark


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


def _embedded(specs: list[Spec]) -> str:
    """Return the embedded benchmark that fits the methods, and say what the real thing would be."""
    tiny = _tiny(specs)
    if not tiny:
        return "photos"
    _say(
        "No --bench: the embedded benchmark `shapes` (rendered scenes, 64x64) with the preset `tiny`, which this "
        f"repository trained itself. The real thing: brushbench eval --model {tiny[0].name} --preset sd15 "
        "--bench brushbench --data DIR"
    )
    return "shapes"


def _tiny(specs: list[Spec]) -> list[Spec]:
    """Return the methods that run on the embedded family."""
    from brushbench.registry import takes_preset

    return [spec for spec in specs if takes_preset(spec) and spec.options.get("preset", "tiny") == "tiny"]


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


def _check_output(file: Path) -> None:
    """Refuse a place where no file can be written before any work is done for it."""
    if file.is_dir():
        raise UsageError(f"--output {file} is a folder. Name a file in it.")
    if not file.parent.is_dir():
        raise UsageError(f"--output {file}: there is no folder {file.parent}. Make it, or write elsewhere.")


def _folder(out: Path | None, benchmark: str, label: str) -> Path:
    return (out or Path("runs") / benchmark) / label


def _weights(pairs: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs or []:
        metric, equals, where = pair.partition("=")
        if not (metric and equals and where):
            raise UsageError(f"--weights {pair!r} is not METRIC=PATH, such as lpips=squeezenet1_1.pth.")
        found[metric] = where
    return found


def _show(runs: list[Run], protocol: str, intervals: bool) -> None:
    from brushbench.leaderboard import make_tables, render

    tables = make_tables(runs, protocol)
    if tables:
        typer.echo(render(tables, "table", intervals))
    _say_unavailable(runs)
    for run in runs:
        counts = run.pictures()
        left = counts["planned"] - sum(n for state, n in counts.items() if state != "planned")
        if left:
            _say(f"{run.config.name}: {left} pictures are still to be made, by the other shards.")
        _say(f"{run.config.name}: {', '.join(f'{n} {state}' for state, n in counts.items() if n)}; run in {run.path}")


def _say_unavailable(runs: list[Run]) -> None:
    """Name the metrics that are in no column, once each, with the way to get them."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        for column, header in run.metrics.items():
            names = reasons.setdefault(header["unavailable"], []) if "unavailable" in header else []
            if column.partition("@")[0] not in names:
                names.append(column.partition("@")[0])
    for reason, names in reasons.items():
        _say(f"Unavailable: {', '.join(names)}. {reason}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from brushbench.leaderboard import wide_console

    table = Table(show_lines=any("\n" in cell for row in rows for cell in row))
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name == header[0])
    for row in rows:
        table.add_row(*map(escape, row))
    wide_console().print(table)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours becomes one sentence and its exit code."""
    try:
        app()
    except BrushbenchError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:  # the interpreter's own exit code, 1, means a quality regression here
        if isinstance(error, OSError) and error.errno in NOT_OUR_FAULT:
            _say(f"error: {error}. Free space or mend permissions there; the same command then continues.")
        else:
            import traceback

            traceback.print_exc()
        sys.exit(BrushbenchError.exit_code)
