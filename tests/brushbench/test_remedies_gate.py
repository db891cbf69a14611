"""What the messages of gate, accept, compare and reports advise works: it is carried out as it stands there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.brushbench.conftest import Command
from tests.brushbench.written_runs import write_run

SCORES = np.random.default_rng(3).normal(25, 3, 70)
NOISE = np.random.default_rng(4).normal(0, 0.05, 70)

POLICIES = {
    "good.toml": "[metrics.psnr]\nmargin = 0.5\n",
    "bare.toml": "[metrics.odd]\n",
    "odd.toml": '[metrics."odd"]\nmargin = 0.5\n',
    "settings.toml": "same_settings = false\n",
    "broken.toml": "[metrics.psnr]\nmargin = 0.5\nmagrin = 3\n",
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs whose scores are written by hand, and policies."""
    tmp_path = tmp_path_factory.mktemp("written")
    for name, changes in {
        "old": {}, "same": {}, "other": {"data": "b"}, "seed2": {"seed": 2}, "short": {"method": {"steps": 10}},
    }.items():  # fmt: skip
        values = list(SCORES + (NOISE if name == "seed2" else 0))
        write_run(tmp_path / "runs" / name, name, {"psnr": values}, **changes)  # type: ignore[arg-type]
    for name, seed in (("odd", 1), ("odd2", 2)):
        write_run(tmp_path / "odd" / name, name, {"odd": list(SCORES + NOISE * seed)}, seed=seed)
    write_run(tmp_path / "again" / "old", "old", {"psnr": list(SCORES)})
    for name, text in POLICIES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "file").touch()
    return tmp_path


@pytest.fixture
def runs(brushbench: Command, written: Path, tmp_path: Path) -> Command:
    """The command line in a folder that holds them."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return brushbench


ACCEPT = "accept runs/old --reason 'the release'"
# the command that is refused, its exit code, what the message advises, and the commands that follow the advice
ADVICE: dict[str, tuple[str, int, str, list[str]]] = {
    "nothing to compare with": (
        "gate runs/same", 2, "a run's folder, an accepted file, or a name (brushbench accept --list)",
        ["gate runs/same --accepted runs/old", "accept --list"],
    ),
    "nothing of that name": (
        "gate runs/same --accepted new", 2, 'Write one: brushbench accept RUN --name NAME --reason "…"',
        [f"{ACCEPT} --name new", "gate runs/same --accepted new"],
    ),
    "noise of one seed": (
        "gate runs/old runs/same --noise", 3, "Run the same samples with another --seed.",
        ["gate runs/old runs/seed2 --noise"],
    ),
    "accept without a name": (
        "accept runs/old", 2, 'brushbench accept RUN --name NAME --reason "…"; or --list, or --show NAME.',
        [f"{ACCEPT} --name first", "accept --list", "accept --show first"],
    ),
    "accept under a path": (
        f"{ACCEPT} --name a/b", 2, "Use letters, digits, '.', '_' and '-', at most 100.", [f"{ACCEPT} --name a_b"],
    ),
    "accept without a reason": (
        "accept runs/old --name x --reason ''", 2, "Say in one sentence why these scores are accepted.",
        [f"{ACCEPT} --name x"],
    ),
    "a policy that is not there": (
        "gate runs/same --accepted runs/old --policy none.toml", 2, "Name a TOML file.",
        ["gate runs/same --accepted runs/old --policy good.toml"],
    ),
    "an unknown key": (
        "gate runs/same --accepted runs/old --policy broken.toml", 2, "Known keys: level, no_op, same_settings",
        ["gate runs/same --accepted runs/old --policy good.toml"],
    ),
    "no gated column": (
        "gate odd/odd --accepted odd/odd2", 3, "has no column that is gated by default: write a policy",
        ["gate odd/odd --accepted odd/odd2 --policy odd.toml"],
    ),
    "no margin": (
        "gate odd/odd --accepted odd/odd2 --policy bare.toml", 2,
        (
            'Write one into the policy: [metrics."odd"] margin = …, in the metric\'s own unit, or accept a run with a '
            'noise floor: brushbench accept RUN --noise RUN_B --name NAME --reason "…"'
        ),
        [
            "gate odd/odd --accepted odd/odd2 --policy odd.toml",
            "accept odd/odd --noise odd/odd2 --name odd --reason noise",
            "gate odd/odd --accepted odd --policy bare.toml",
        ],
    ),
    "other settings": (
        "gate runs/short --accepted runs/old", 3, "allow it with same_settings = false in the policy",
        ["gate runs/short --accepted runs/old --policy settings.toml"],
    ),
    "compare other samples": (
        "compare runs/old runs/other", 3, "Run both on the same samples.", ["compare runs/old runs/same"],
    ),
    "compare a metric of sets": (
        "compare runs/old runs/same --metrics fid", 2, "Leave it out; `brushbench leaderboard` shows it",
        ["compare runs/old runs/same", "leaderboard runs/old runs/same"],
    ),
    "a report in place of a file": (
        "report runs/old --no-pictures -o file", 2, "Name a folder for the report.",
        ["report runs/old --no-pictures -o page"],
    ),
    "a report beside other files": (
        "report runs/old --no-pictures -o d", 2, "Name a new folder for the report, or one that holds a report.",
        ["report runs/old --no-pictures -o page", "report runs/same --no-pictures -o page"],
    ),
    "two runs of one name": (
        "export runs/old again/old --to dir -o out", 3, "Export them one by one.",
        ["export runs/old --to dir -o out", "export again/old --to dir -o out2"],
    ),
    "a table in place of a folder": (
        "export runs/old --to csv -o d", 2, "Name a file.", ["export runs/old --to csv -o scores.csv"],
    ),
    "nothing to pull": (
        "pull d -o here", 3, "Expected what `brushbench push` uploads", ["push runs/old hub", "pull hub -o here"],
    ),
    "pull into a full folder": (
        "pull hub -o d", 2, "Name a new folder.", ["push runs/old hub", "pull hub -o here"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_of_a_refusal_works(case: str, runs: Command, tmp_path: Path) -> None:
    refused, code, advice, instead = ADVICE[case]
    if "hub" in refused:
        (tmp_path / "hub").mkdir()
    assert advice in runs(refused, code)
    for command in instead:
        runs(command)


def test_an_accepted_file_is_replaced_or_gets_another_name(runs: Command, tmp_path: Path) -> None:
    runs(f"{ACCEPT} --name first")
    assert "Pass --overwrite to replace it, or choose another --name." in runs(f"{ACCEPT} --name first", 2)
    runs(f"{ACCEPT} --name first --overwrite")
    runs(f"{ACCEPT} --name second")
    (tmp_path / "reports" / "accepted" / "second.json").write_text("{")
    told = runs("gate runs/same --accepted second", 3)
    assert "Restore it, or accept the run again with --overwrite." in told
    runs(f"{ACCEPT} --name second --overwrite")
    runs("gate runs/same --accepted second")


def test_a_run_with_failed_images_is_finished_as_the_message_says(brushbench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nfrom brushbench import Capabilities\nclass Mine:\n    capabilities = Capabilities(text=False)\n"
        "    def describe(self): return {}\n    def inpaint(self, requests):\n"
        "        if os.path.exists('broken') and requests[0].id == 'good': raise ValueError('no paint')\n"
        "        return [r.image for r in requests]\n"
    )
    (tmp_path / "broken").touch()
    command = "eval -m mine.py:Mine --name mine --bench d --metrics psnr --variants raw --batch-size 1"
    brushbench(command, 3)
    accept = "accept runs/folder/mine --name mine --reason new"
    told = brushbench(accept, 3)
    (option,) = re.findall(r"Finish it before it is accepted; `brushbench eval` with (\S+) makes failed images", told)
    (tmp_path / "broken").unlink()
    brushbench(f"{command} {option}")
    brushbench(accept)


def test_a_column_of_two_weights_is_scored_again_or_left_out(brushbench: Command, tmp_path: Path) -> None:
    for name, weights in (("a", "1"), ("b", "2"), ("c", "2")):
        header = {"lpips": {"weights": {"sha256": weights}}}
        write_run(tmp_path / "runs" / name, name, {"psnr": [20.0], "lpips": [0.1]}, headers=header)
    told = brushbench("leaderboard runs", 3)
    (metric,) = re.findall(r"Score one again: brushbench score \S+ --metrics (\w+)@standard --weights \1=PATH", told)
    assert "=PATH, or leave the column out with --metrics." in told
    brushbench("leaderboard runs --metrics psnr")
    brushbench(f"leaderboard runs/b runs/c --metrics {metric}")  # of the same weights


def test_what_cannot_be_uploaded_is_written_to_a_folder(
    runs: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    told = runs("push runs/old me/results", 5)
    assert "or write a folder: brushbench export RUN --to hub --output FOLDER." in told
    runs("export runs/old --to hub --output folder")
    assert (tmp_path / "folder" / "runs" / "000" / "run.json").is_file()


def test_a_metric_that_failed_is_corrected_before_its_run_is_accepted(brushbench: Command, tmp_path: Path) -> None:
    """A column of dashes was accepted, and every later gate on it would have been one of nothing."""
    (tmp_path / "metric.py").write_text("def shade(picture, sample): return 1 / 0\n")
    brushbench("eval -m telea --bench d --metrics psnr,metric.py:shade --variants raw", 3)
    accept = "accept runs/folder/telea --name mine --reason new"
    told = brushbench(accept, 3)
    assert "Correct the metric, and score the run again before it is accepted." in told
    (tmp_path / "metric.py").write_text("def shade(picture, sample): return 1.0\n")
    brushbench("score runs/folder/telea --metrics metric.py:shade --variants raw")
    brushbench(accept)
