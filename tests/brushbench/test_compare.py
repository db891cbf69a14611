from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import brushbench
from brushbench.errors import RunError, UnknownNameError, UsageError
from tests.brushbench.written_runs import write_run


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    base = rng.normal(20, 3, 40)
    first = write_run(tmp_path / "a", "a", {"psnr": list(base), "lpips": list(base / 100), "x": [1.0] * 40})
    second = {"psnr": list(base + 1 + rng.normal(0, 0.5, 40)), "lpips": list(base / 100), "y": [1.0] * 40}
    return first, write_run(tmp_path / "b", "b", second)


def test_runs_are_compared_by_sample(two: tuple[Path, Path]) -> None:
    found = brushbench.compare(*two)
    rows = {row.metric: row for row in found.rows}
    psnr = rows["psnr"]
    assert (psnr.n, psnr.verdict) == (40, "better")
    assert psnr.low < 1 < psnr.high
    assert psnr.high - psnr.low < 0.5  # unpaired it would be 2.6
    assert psnr.second - psnr.first == pytest.approx(psnr.difference)
    assert psnr.better > 0.9
    assert len(psnr.gained) == 10
    changes = [change.second - change.first for change in psnr.gained]
    assert changes == sorted(changes, reverse=True)
    assert (rows["lpips"].verdict, rows["lpips"].better, rows["lpips"].gained) == ("no difference shown", 0.0, ())
    assert set(found.left_out) == {"not compared: x, inside: no scores in b", "not compared: y, inside: no scores in a"}


def test_a_metric_where_less_is_better_says_worse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(0.1, 0.01, 20)
    write_run(tmp_path / "a", "a", {"lpips": list(low)})
    write_run(tmp_path / "b", "b", {"lpips": list(low + 0.02 + rng.normal(0, 0.001, 20))})
    (row,) = brushbench.compare(tmp_path / "a", tmp_path / "b").rows
    assert (row.verdict, row.worse) == ("worse", 1.0)
    assert row.difference == pytest.approx(0.02, abs=0.002)


def test_what_cannot_be_paired_is_refused_with_the_reason(two: tuple[Path, Path], tmp_path: Path) -> None:
    write_run(tmp_path / "data", "data", {"psnr": [1.0] * 40}, data="other")
    write_run(tmp_path / "few", "few", {"psnr": [1.0] * 39})
    write_run(tmp_path / "bench", "bench", {"psnr": [1.0] * 40}, benchmark="else")
    write_run(tmp_path / "split", "split", {"psnr": [1.0] * 40}, split="outside")
    header = {"psnr": {"weights": {"sha256": "9"}}}
    write_run(tmp_path / "weights", "weights", {"psnr": [1.0] * 40}, headers=header)
    for name, said in {
        "data": "data of toy: SHA-256 a -> other",
        "few": "samples of inside: 40 -> 39 .only in a: 39",
        "bench": "benchmark: toy -> else",
        "split": "splits: inside -> outside",
        "weights": "psnr, inside: computed with different weights",
    }.items():
        with pytest.raises(RunError, match=said):
            brushbench.compare(two[0], tmp_path / name)


def test_repeats_are_averaged_and_missing_scores_are_counted(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", "a", {"psnr": [[float(i) for i in range(10)], [float(i) + 2 for i in range(10)]]})
    b = write_run(tmp_path / "b", "b", {"psnr": [None, *[float(i) for i in range(1, 10)]]})
    (row,) = brushbench.compare(a, b).rows
    assert (row.n, row.missing, row.difference) == (9, 1, -1.0)


def test_names_are_checked(two: tuple[Path, Path]) -> None:
    assert [row.metric for row in brushbench.compare(*two, metrics=["lpips"], split="inside").rows] == ["lpips"]
    with pytest.raises(UnknownNameError, match="Did you mean 'psnr@standard'"):
        brushbench.compare(*two, metrics=["psn"])
    with pytest.raises(UnknownNameError, match="split 'outside'"):
        brushbench.compare(*two, split="outside")


def test_every_format(two: tuple[Path, Path]) -> None:
    found = brushbench.compare(*two)
    assert "| psnr, inside ↑ |" in found.to_markdown()
    assert "most changed: psnr, inside ↑" in found.render("table")
    record = json.loads(found.render("json"))
    assert record["rows"][0]["metric"] == "psnr"
    assert r"\toprule" in found.render("latex")
    with pytest.raises(UsageError, match="No format"):
        found.render("html5")
