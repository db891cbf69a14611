"""Results that travel: runs to tables, to folders, and to a ``datasets`` repository with a card made from the runs.

What comes back is data: a pulled folder is read by the same typed readers as any run, and nothing in it is executed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brushbench.errors import BrushbenchError, RunError, UnknownNameError, UsageError
from brushbench.leaderboard import make_tables, render
from brushbench.text import csv_cell, markdown
from brushbench.types import PROTOCOLS

if TYPE_CHECKING:
    import pandas

    from brushbench.runs import Run

__all__ = ["TARGETS", "export", "pull", "push"]

TARGETS = ("parquet", "csv", "dir", "hub")
RECORDS = ("run.json", "metrics.json", "scores.parquet", "timing.jsonl")
KINDS = ("*.json", "*.jsonl", "*.parquet", "*.png", "README.md")  # all that is ever fetched


def export(runs: Sequence[Run], to: str, out: Path, pictures: bool = True) -> Path:
    """Write runs in a form that travels.

    Args:
        runs: at least one, each with a label of its own.
        to: ``parquet`` or ``csv``: every score of every run in long form, one row per score; ``dir``: copies of the
            runs' folders; ``hub``: the same as a ``datasets`` repository with a card.
        out: a file for ``parquet`` and ``csv``, a new or empty folder for ``dir`` and ``hub``.
        pictures: whether the copies hold the pictures.

    Returns:
        ``out``.

    Raises:
        UnknownNameError: no such target.
        UsageError: ``out`` is taken.
        RunError: no run, or two of one label.
    """
    if to not in TARGETS:
        raise UnknownNameError("export target", to, TARGETS)
    if not runs:
        raise RunError("Nothing to export. Name the folder that `brushbench eval` wrote.")
    labels = [run.config.name for run in runs]
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if doubles:
        raise RunError(f"Two runs are named {doubles[0]!r}. Export them one by one.")
    out = out.expanduser()
    if to in ("parquet", "csv"):
        return _write_table(runs, to, out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--output {out} is not empty. Name a new folder.")
    for number, run in enumerate(runs):
        _copy_run(run, out / "runs" / f"{number:03d}", pictures)
    if to == "hub":
        scores = out / "scores.parquet"
        _long_form(runs).to_parquet(scores, index=False)
        (out / "README.md").write_text(_card(runs), encoding="utf-8")
    return out


def push(runs: Sequence[Run], repository: str, pictures: bool = True, private: bool = True) -> str:
    """Upload runs as a ``datasets`` repository.

    Args:
        runs: as for :func:`export`.
        repository: a hub id (owner/name), or a folder that stands for the hub.
        pictures: whether the pictures go with them.
        private: whether a repository that is made for them is private.

    Returns:
        Where they are.

    Raises:
        BrushbenchError: the hub refused, or could not be reached.
    """
    if _is_folder(repository):
        return str(export(runs, "hub", Path(repository), pictures))
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as scratch:
        folder = export(runs, "hub", Path(scratch) / "repository", pictures)
        try:
            hub = HfApi()
            hub.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder, repo_type="dataset")
        except Exception as error:  # the hub, its transport and the file system each raise kinds of their own
            raise BrushbenchError(
                f"{repository} could not be written ({type(error).__name__}: {_first_line(error)}). Log in with "
                "`hf auth login`, or write a folder: brushbench export RUN --to hub --output FOLDER."
            ) from None
    return f"https://huggingface.co/datasets/{repository}"


def pull(repository: str, out: Path) -> list[Path]:
    """Fetch runs that :func:`push` uploaded.

    Args:
        repository: a hub id (owner/name), or a folder that stands for the hub.
        out: a new or empty folder.

    Returns:
        The runs' folders, ready for :meth:`Run.open`.

    Raises:
        UsageError: ``out`` is taken.
        RunError: the repository holds no runs.
        BrushbenchError: the hub could not be reached.
    """
    out = out.expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--output {out} is not empty. Name a new folder.")
    if _is_folder(repository):
        _copy_known(Path(repository).expanduser(), out)
    else:
        from huggingface_hub import snapshot_download

        try:
            snapshot_download(repository, repo_type="dataset", local_dir=out, allow_patterns=list(KINDS))
        except Exception as error:  # as above
            raise BrushbenchError(
                f"{repository} could not be downloaded ({type(error).__name__}: {_first_line(error)}). Check the name, "
                "and log in with `hf auth login` if it is private."
            ) from None
    found = sorted(file.parent for file in out.glob("runs/*/run.json"))
    if not found:
        shutil.rmtree(out, ignore_errors=True)  # it was new or empty, and the right repository may go there
        raise RunError(f"{repository} holds no runs. Expected what `brushbench push` uploads: runs/000/run.json …")
    return found


def _is_folder(repository: str) -> bool:
    place = Path(repository).expanduser()
    return place.is_dir() or place.is_absolute() or repository.startswith((".", "~")) or repository.count("/") != 1


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _long_form(runs: Sequence[Run]) -> pandas.DataFrame:
    import pandas as pd

    frames = []
    for run in runs:
        frame = run.scores
        frame.insert(0, "run", run.config.name)
        frame.insert(1, "benchmark", run.config.benchmark)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _write_table(runs: Sequence[Run], to: str, out: Path) -> Path:
    if out.is_dir():
        raise UsageError(f"--output {out} is a folder. Name a file.")
    out.parent.mkdir(parents=True, exist_ok=True)
    table = _long_form(runs)
    if to == "parquet":
        table.to_parquet(out, index=False)
    else:
        words = table.select_dtypes(exclude="number").columns
        table[words] = table[words].map(lambda value: csv_cell(str(value)))
        table.to_csv(out, index=False, encoding="utf-8", lineterminator="\n")
    return out


def _copy_run(run: Run, target: Path, pictures: bool) -> None:
    """Copy a run's records, rows and, if asked for, pictures; locks and unfinished parts stay behind."""
    target.mkdir(parents=True)
    for name in RECORDS:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    for part in ("batches", "pictures") if pictures else ("batches",):
        if (run.path / part).is_dir():
            shutil.copytree(run.path / part, target / part, copy_function=shutil.copyfile)


def _copy_known(source: Path, out: Path) -> None:
    """Copy the kinds of files that a repository of runs holds, and nothing that a link points at."""
    for pattern in KINDS:
        for file in source.rglob(pattern):
            if file.is_file() and not file.is_symlink():
                target = out / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def _card(runs: Sequence[Run]) -> str:
    """Return the repository's card: what was run on what, the tables, and how to load it."""
    tables = [table for protocol in PROTOCOLS for table in make_tables(runs, protocol)]
    first = runs[0]
    front = (
        "---\npretty_name: inpainting results\ntags:\n- inpainting\n- brushbench\nconfigs:\n- config_name: scores\n"
        "  data_files: scores.parquet\n---\n"
    )
    return "\n".join(
        [
            front,
            f"# Inpainting results on {markdown(first.config.benchmark)}",
            "",
            f"{len(runs)} runs, made and scored with brushbench. `scores.parquet` has one row per score;",
            "`runs/` holds each run's record (settings, seeds, versions, hashes), rows and pictures.",
            "",
            "```python",
            "import brushbench",
            'run = brushbench.Run.open("runs/000")',
            "```",
            "",
            render(tables, "markdown"),
            "",
        ]
    )
