"""The gate on the command line: every exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from brushbench import cli
from tests.brushbench.test_cli import HEAVY, brushbench, imported_by
from tests.brushbench.written_runs import write_run

FILES = ("--markdown", "c.md", "--junit", "c.xml", "--json", "c.json")
BASE = np.random.default_rng(0).normal(25, 3, 70)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gated")
    noise = np.random.default_rng(1).normal(0, 0.4, 70)
    noise -= noise.mean()
    for name, gain in (("old", 0.0), ("same", 0.0), ("worse", -2.0), ("unsure", -0.5)):
        write_run(folder / name, name, {"psnr": list(BASE + gain + (noise if gain else 0))})
    write_run(folder / "other", "other", {"psnr": list(BASE)}, data="b")
    return folder


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["gate", "same", "--accepted", "old"], 0, "PASS: same against old"),
        (["gate", "worse", "--accepted", "old", *FILES], 1, "FAIL"),
        (["gate", "unsure", "--accepted", "old"], 4, "INCONCLUSIVE: unsure"),
        (["gate", "unsure", "--accepted", "old", "--inconclusive", "pass"], 0, "counts as pass"),
        (["gate", "unsure", "--accepted", "old", "--inconclusive", "fail"], 1, "counts as fail"),
        (["gate", "unsure", "worse", "same", "--accepted", "old"], 1, "FAIL: worse"),
        (["gate", "other", "worse", "--accepted", "old"], 3, "data of toy"),
        (["gate", "same"], 2, "--accepted is missing"),
        (["gate", "same", "--accepted", "old", "--inconclusive", "maybe"], 2, "report, pass, fail"),
        (["gate", "same", "--accepted", "old", "--policy", "none.toml"], 2, "cannot be read"),
        (["gate", "same", "old", "--noise"], 3, "both have the seed"),
        (["gate", "unsure", "--accepted", "old", "--plan"], 0, "held by 240"),
        (["gate", "worse", "--accepted", "old", "--json", "-"], 1, '"exit_code": 1'),
        (["accept", "--list"], 0, "reason"),
        (["accept", "old"], 2, "brushbench accept RUN --name NAME"),
        (["compare", "old", "worse"], 0, "worse"),
        (["compare", "old", "other"], 3, "cannot be paired by sample"),
        (["inpaint", "none.png", "none.png", "x", "-m", "telea"], 5, "none.png"),
    ],
)  # fmt: skip
def test_every_exit_code(
    args: list[str], code: int, said: str, runs: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The command line's own `main`, without the seconds of a fresh process."""
    monkeypatch.chdir(runs)
    monkeypatch.setattr("sys.argv", ["brushbench", *args])
    monkeypatch.setenv("COLUMNS", "200")  # no heading is folded
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code or 0) == code, out + err
    assert said in " ".join((out + err).split())
    assert "Traceback" not in err
    if "c.md" in args:
        assert "### FAIL" in (runs / "c.md").read_text()
        assert "<testsuites>" in (runs / "c.xml").read_text()
        assert json.loads((runs / "c.json").read_text())["verdict"] == "fail"


def test_accept_then_gate_by_name(runs: Path) -> None:
    done = brushbench("accept", "old", "--name", "first", "--reason", "the release", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "reports/accepted/first.json" in done.stderr
    assert brushbench("gate", "same", "--accepted", "first", cwd=runs).returncode == 0
    shown = brushbench("accept", "--show", "first", cwd=runs).stdout
    assert "the release" in shown
    assert "psnr, inside: mean" in shown


@pytest.mark.parametrize(("name", "code"), [("same", 0), ("worse", 1), ("other", 3), ("unsure", 4)])
def test_the_shell_sees_the_exit_code(name: str, code: int, runs: Path) -> None:
    assert brushbench("gate", name, "--accepted", "old", cwd=runs).returncode == code


@pytest.mark.parametrize("command", [["gate", "same", "--accepted", "old"], ["compare", "same", "old"]])
def test_gate_and_compare_import_no_torch(command: list[str], runs: Path) -> None:
    names = [str(runs / arg) if (runs / arg).is_dir() else arg for arg in command]
    assert not imported_by(*names) & set(HEAVY)


@pytest.mark.parametrize("module", ["stats", "published", "comparison", "gating", "leaderboard", "scoresets", "text"])
def test_rooms_that_need_no_torch_import_none(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, brushbench.{module}; assert not {set(HEAVY)!r} & set(sys.modules), sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-300:]
