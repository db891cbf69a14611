"""Commits behind the work: their order, their errors and the locks that they hold."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import brushbench
from brushbench.errors import RunError
from brushbench.evaluation import Scoring, columns
from brushbench.evaluation.behind import Behind
from brushbench.features import Features
from brushbench.store import RunFolder
from tests.brushbench import toys
from tests.brushbench.test_run_resume import contents


def noted(events: list[str], text: str) -> ExitStack:
    owner = ExitStack()
    owner.callback(events.append, text)
    return owner


def test_commits_keep_their_order_and_give_up_their_locks_at_once() -> None:
    events: list[str] = []
    with Behind() as behind:
        for i in range(4):
            behind.submit(lambda i=i: (time.sleep(0.01), events.append(f"commit {i}")), noted(events, f"free {i}"))
    assert events == [f"{what} {i}" for i in range(4) for what in ("commit", "free")]


def test_at_most_one_finished_piece_waits() -> None:
    go, begun = threading.Event(), []
    with Behind() as behind:
        behind.submit(lambda: (begun.append(0), go.wait(10)), ExitStack())
        late = threading.Timer(0.2, go.set)
        late.start()
        behind.submit(lambda: begun.append(1), ExitStack())
        assert go.is_set(), "the second was taken while the first was not committed"
    assert begun == [0, 1]


def test_a_commit_that_fails_stops_the_work_and_frees_every_lock() -> None:
    events: list[str] = []

    def fails() -> None:
        raise RunError("the disk is full")

    def work() -> None:
        with Behind() as behind:
            behind.submit(fails, noted(events, "free 0"))
            behind.submit(lambda: events.append("commit 1"), noted(events, "free 1"))
            events.append("the second was taken")

    with pytest.raises(RunError, match="the disk is full"):
        work()
    assert events == ["free 0", "free 1"]


def test_what_was_finished_before_an_interruption_is_committed() -> None:
    events: list[str] = []

    def work() -> None:
        with Behind() as behind:
            behind.submit(lambda: (time.sleep(0.05), events.append("commit")), noted(events, "free"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert events == ["commit", "free"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench", pictures=3)


@pytest.mark.parametrize("broken", ["commit", "commit_scores"])
def test_a_run_whose_commits_fail_stops_and_goes_on_byte_equal(
    data: Path, tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(name: str) -> brushbench.Run:
        return brushbench.evaluate(toys.Noise(), data, out=tmp_path / name, metrics="psnr,mse", batch_size=1)

    whole, calls = contents(evaluate("whole").path), []
    own = getattr(RunFolder, broken)

    def third_fails(folder: RunFolder, *args: object) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise RunError("the disk is full")
        own(folder, *args)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, broken, third_fails)
        with pytest.raises(RunError, match="the disk is full"):
            evaluate("r")
    assert len(calls) == 3, "work went on after a commit failed"
    assert contents(evaluate("r").path) == whole


def test_all_columns_are_merged_into_the_table_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each column was merged alone: the table was read and written as often as there are columns."""
    written, own = [], RunFolder._write_scores
    monkeypatch.setattr(
        RunFolder, "_write_scores", lambda folder, table: (written.append(len(table)), own(folder, table))
    )
    run = brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics="psnr,mse,ssim", limit=1)
    assert written == [len(run.scores)]
    assert set(run.scores["metric"]) == {"psnr", "mse", "ssim"}


def test_metrics_are_loaded_once_for_the_runs_that_share_features(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of `eval` with several methods checked every metric's weights again."""
    loaded, own = [], columns.load_metric
    monkeypatch.setattr(columns, "load_metric", lambda *args: (loaded.append(args[0]), own(*args))[1])
    benchmark, features = brushbench.load_benchmark(data), Features()
    first, _ = columns.load_columns(Scoring("psnr,ssim", features=features), benchmark)
    again, _ = columns.load_columns(Scoring("ssim,psnr@standard,mse", features=features), benchmark)
    assert loaded == ["psnr", "psnr", "ssim", "mse", "mse"]  # under each of their protocols
    assert again[0] is first[2]
    assert again[1] is first[0]
