"""``report``, ``sheet``, ``export``, ``push`` and ``pull``: runs to look at, and runs that travel."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from brushbench.cli.console import check_output, say, say_faults
from brushbench.cli.options import shared_options
from brushbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brushbench.report.render import GateSection
    from brushbench.runs import Run
    from brushbench.types import Benchmark

app = typer.Typer()

Runs = Annotated[list[str], typer.Argument(help="Folders of runs, or folders that hold several.")]


@dataclass(frozen=True)
class SourceOptions:
    """Where the references come from."""

    panel: ClassVar[str] = "Benchmark"
    bench: Annotated[
        str | None, typer.Option("--bench", "-b", help="The runs' benchmark, where it is not built in: file.py:Class.")
    ] = None
    data: Annotated[Path | None, typer.Option("--data", help="Its folder, where the runs do not find it.")] = None


@app.command(epilog="Example: [bold]brushbench report runs/shapes -o page && xdg-open page/index.html[/]")
@shared_options
def report(
    runs: Runs,
    source: SourceOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the page.")] = Path("report"),
    title: Annotated[str, typer.Option("--title", help="Of the page. Default: benchmark and methods.")] = "",
    pictures: Annotated[bool, typer.Option(help="Thumbnails in the gallery; without them scores only.")] = True,
    originals: Annotated[bool, typer.Option(help="Images of full size, for zoom and slider.")] = True,
    thumbnail: Annotated[int, typer.Option("--thumbnail", min=32, max=1024, help="Longest side, pixels.")] = 160,
    gallery: Annotated[
        int | None, typer.Option("--gallery", min=1, help="Samples per split in the gallery; none: all.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option("--quality", min=1, max=100, help="WebP of thumbnails; none: 82, and lossless up to 96 pixels."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes that draw thumbnails.")] = 2,
) -> None:
    """Write a page to look at: leaderboard, every image side by side, plots, provenance.

    The folder opens from disk and from any static host, and asks nothing of the network.
    """
    from brushbench.leaderboard import open_runs

    opened = open_runs(runs)
    page = make_page(
        opened, output, source=source, title=title, pictures=pictures, originals=originals,
        thumbnail=thumbnail, gallery=gallery, quality=quality, jobs=jobs,
    )  # fmt: skip
    for run in opened:
        say_faults(run)
    say(f"Wrote {page}. Open it in a browser.")


def make_page(
    runs: "list[Run]",
    output: Path,
    *,
    source: SourceOptions | None = None,
    title: str = "",
    pictures: bool = True,
    originals: bool = True,
    thumbnail: int = 160,
    gallery: int | None = None,
    quality: int | None = None,
    jobs: int = 2,
    gates: "Sequence[GateSection]" = (),
) -> Path:
    """Write the page of runs, with the verdicts of a gate if there are any, and return its path."""
    from brushbench.report.data import collect
    from brushbench.report.render import prepare_folder, write_page, write_pictures

    found = collect(runs, title, gallery)
    benchmark = _benchmark(runs, source or SourceOptions()) if pictures else None
    prepare_folder(output)
    if benchmark is not None:
        write_pictures(found, benchmark, output, side=thumbnail, originals=originals, jobs=jobs, quality=quality)
    return write_page(found, output, gates)


@app.command(
    epilog="Examples: [bold]brushbench sheet runs/shapes -o sheet.png --worst lpips[/] · "
    "[bold]brushbench sheet runs/shapes --compare brushnet telea --sort psnr[/]"
)
@shared_options
def sheet(
    runs: Runs,
    source: SourceOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the PNG.")] = Path("sheet.png"),
    sort: Annotated[str | None, typer.Option("--sort", help="Metric: the first method's best images first.")] = None,
    worst: Annotated[str | None, typer.Option("--worst", help="Metric: the first method's worst images first.")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option("--compare", help="Two methods: what differs most between them first.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="One split only.")] = None,
    variant: Annotated[str, typer.Option("--variant", help="raw, blended, pasted, raw+jpeg75.")] = "raw",
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="Rows.")] = 12,
    size: Annotated[int, typer.Option("--size", min=32, max=1024, help="Side of a cell, pixels.")] = 160,
) -> None:
    """Draw a contact sheet: a row per sample; hole, every method and the reference as columns."""
    from brushbench.leaderboard import open_runs
    from brushbench.report.data import collect
    from brushbench.report.sheet import Order, draw_sheet

    if sort and worst:
        raise UsageError("--sort and --worst both say which rows come first. Leave one out.")
    check_output(output, ".png")
    opened = open_runs(runs)
    order = Order(sort or worst, worst is not None, compare, split, limit)
    draw_sheet(collect(opened).gallery, _benchmark(opened, source), order, size, variant).save(output, "PNG")
    say(f"Wrote {output}.")


@app.command(epilog="Example: [bold]brushbench export runs/shapes --to csv -o scores.csv[/]")
@shared_options
def export(
    runs: Runs,
    output: Annotated[Path, typer.Option("--output", "-o", help="File (parquet, csv) or new folder (dir, hub).")],
    to: Annotated[str, typer.Option("--to", help="parquet, csv, dir, or hub: a `datasets` repository.")] = "parquet",
    pictures: Annotated[bool, typer.Option(help="Images go with dir and hub.")] = True,
) -> None:
    """Write runs in a form that travels: one table of every score, copies, or a repository for the hub."""
    from brushbench.export import export as write
    from brushbench.leaderboard import open_runs

    say(f"Wrote {write(open_runs(runs), to, output, pictures)}.")


@app.command(epilog="Example: [bold]brushbench push runs/shapes me/my-results[/]")
@shared_options
def push(
    runs: Runs,
    repository: Annotated[str, typer.Argument(help="owner/name on the hub, or a folder that stands for it.")],
    pictures: Annotated[bool, typer.Option(help="Images go with the records.")] = True,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made is public.")] = False,
) -> None:
    """Upload runs to the hub as a `datasets` repository, private unless told otherwise."""
    from brushbench.export import push as upload
    from brushbench.leaderboard import open_runs

    say(f"Pushed to {upload(open_runs(runs), repository, pictures, private=not public)}.")


@app.command(epilog="Example: [bold]brushbench pull me/my-results -o results && brushbench leaderboard results[/]")
@shared_options
def pull(
    repository: Annotated[str, typer.Argument(help="owner/name on the hub, or a folder that stands for it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder.")],
) -> None:
    """Fetch runs that were pushed. They are read as data; nothing in them is executed."""
    from brushbench.export import pull as fetch

    found = fetch(repository, output)
    say(f"Pulled {len(found)} runs into {output}. Next: brushbench leaderboard {output}")


def check_folder(output: Path) -> None:
    """Refuse a folder for the page that holds something else, before any work is done for it."""
    from brushbench.report.render import check_folder as check

    check(output)


def _benchmark(runs: "list[Run]", source: SourceOptions) -> "Benchmark":
    """Load the benchmark of the run that has most samples; the others' samples are among them."""
    from brushbench.evaluation.recipes import benchmark_of

    return benchmark_of(max(runs, key=lambda run: run.header.plan.pictures), source.bench, source.data)
