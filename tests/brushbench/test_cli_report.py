from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from brushbench.cli import app
from brushbench.errors import BrushbenchError, UsageError

from .toys import write_benchmark


def brushbench(*args: object) -> str:
    """Run a command in this process and return what it printed; an error of ours is raised."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("look")
    data = write_benchmark(root / "data", 2)
    out = brushbench(
        "eval", "-m", "telea", "-m", "copy", "--bench", "brushbench", "--data", data, "--split", "inside",
        "--metrics", "psnr,mse", "--out", root / "runs", "--report", root / "page", "--track", "tensorboard",
    )  # fmt: skip
    assert f"Wrote {root / 'page' / 'index.html'}. Open it in a browser." in out
    return root


def test_eval_writes_the_page_and_the_tracker_that_it_was_asked_for(runs: Path) -> None:
    assert (runs / "page" / "index.html").is_file()
    assert list((runs / "runs" / "tracking" / "telea").glob("events*"))


def test_eval_without_a_report_says_how_to_look_and_that_command_works(runs: Path, tmp_path: Path) -> None:
    out = brushbench(
        "eval", "-m", "telea", "--bench", "brushbench", "--data", runs / "data", "--split", "inside",
        "--metrics", "psnr,mse", "--out", runs / "runs",
    )  # fmt: skip
    line = next(line for line in out.splitlines() if line.startswith("To see the images: "))
    first = line.removeprefix("To see the images: brushbench ").partition(", or ")[0].split()
    first[first.index("sheet.png")] = str(tmp_path / "sheet.png")
    brushbench(*first)
    assert Image.open(tmp_path / "sheet.png").width == 8 + 3 * 168


def test_report_replaces_a_report_and_nothing_else(runs: Path, tmp_path: Path) -> None:
    brushbench("report", runs / "runs", "-o", tmp_path / "page", "--no-originals", "--jobs", 1)
    brushbench("report", runs / "runs", "-o", tmp_path / "page", "--no-pictures")
    assert not (tmp_path / "page" / "thumbs").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"holds other files\. Name a new folder"):
        brushbench("report", runs / "runs", "-o", tmp_path / "mine")
    with pytest.raises(UsageError, match="holds other files"):
        brushbench("eval", "-m", "telea", "--bench", "photos", "--report", tmp_path / "mine")


def test_report_refuses_other_data_than_the_runs_were_made_on(runs: Path, tmp_path: Path) -> None:
    other = write_benchmark(tmp_path / "other", 3)
    with pytest.raises(BrushbenchError, match="made on other data"):
        brushbench("report", runs / "runs", "-o", tmp_path / "page", "--data", other)


def test_sheet_export_push_and_pull(runs: Path, tmp_path: Path) -> None:
    brushbench("sheet", runs / "runs", "-o", tmp_path / "s.png", "--worst", "mse", "--limit", 1, "--variant", "blended")
    brushbench("sheet", runs / "runs", "-o", tmp_path / "t.png", "--compare", "telea", "copy", "--size", 64)
    brushbench("export", runs / "runs", "--to", "csv", "-o", tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().startswith("run,benchmark,sample,split")
    brushbench("push", runs / "runs", tmp_path / "hub")
    out = brushbench("pull", tmp_path / "hub", "-o", tmp_path / "copy")
    assert "Pulled 2 runs" in out
    remedy = out.partition("Next: brushbench ")[2].strip().split()
    assert "telea" in brushbench(*remedy)
    with pytest.raises(UsageError, match="Leave one out"):
        brushbench("sheet", runs / "runs", "--sort", "mse", "--worst", "mse")


def test_gate_writes_the_page_with_its_verdict(runs: Path, tmp_path: Path) -> None:
    out = brushbench(
        "gate", runs / "runs" / "telea", "--accepted", runs / "runs" / "telea", "--report", tmp_path / "page"
    )
    page = (tmp_path / "page" / "index.html").read_text("utf-8")
    verdict = next(line for line in out.splitlines() if ": telea against telea" in line)
    assert "Quality gate" in page
    assert verdict.partition(":")[0] in page


def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    brushbench("sheet", runs / "runs", "--output=~/sheet.png", "--limit", 1)
    brushbench("export", runs / "runs", "--output=~/scores.parquet")
    assert (tmp_path / "sheet.png").is_file()
    assert (tmp_path / "scores.parquet").is_file()
