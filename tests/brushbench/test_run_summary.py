from __future__ import annotations

from pathlib import Path

import pytest

import brushbench
from brushbench.errors import UsageError
from brushbench.runs import Run
from tests.brushbench.written_runs import write_run


def test_repeats_are_averaged_inside_a_sample_first(tmp_path: Path) -> None:
    """Otherwise n counts images, and the interval is that of twice as many samples."""
    low, high = [float(i) for i in range(10)], [float(i) + 1 for i in range(10)]
    repeated = Run.open(write_run(tmp_path / "two", "two", {"psnr": [low, high]})).summary().iloc[0]
    averaged = Run.open(write_run(tmp_path / "one", "one", {"psnr": [i + 0.5 for i in low]})).summary().iloc[0]
    assert repeated["n"] == 10
    assert (repeated["mean"], repeated["low"], repeated["high"]) == (
        averaged["mean"],
        averaged["low"],
        averaged["high"],
    )


def test_a_repeat_without_a_score_leaves_the_sample_its_other_one(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "r", "r", {"psnr": [[1.0, None, None], [3.0, 5.0, None]]}))
    summary = run.summary().iloc[0]
    assert (summary["mean"], summary["n"], summary["missing"]) == (3.5, 2, 1)


def test_a_summary_of_one_protocol(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", {"psnr": [1.0, 2.0]})
    run = Run.open(folder)
    assert len(run.summary(protocol="standard")) == 1
    assert len(run.summary(protocol="brushnet-paper")) == 0
    with pytest.raises(UsageError, match="brushnet-paper"):
        run.summary(protocol="standrad")


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "r", "mine", {"psnr": [1.0, 2.0], "mse": [0.1, 0.2]}))
    assert repr(run) == f"<Run 'mine' on 'toy': 2 planned, 2 ok; metrics: mse, psnr; in {str(tmp_path / 'r')!r}>"


def test_the_package_shows_public_names_only() -> None:
    assert dir(brushbench) == sorted([*brushbench.__all__, "__version__"])
    assert all(hasattr(brushbench, name) for name in dir(brushbench))
