"""A record that was damaged when its images were generated: put right, the same command goes on with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench.errors import ConfigMismatchError, RunError
from brushbench.evaluation import Scoring, rescore
from tests.brushbench.toys import Noise
from tests.hostile.corpus import save


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Nine pictures, the last one cut at half its length, and their captions."""
    for i in range(9):
        save(tmp_path / "d" / f"p{i}.png", picture(i))
    (tmp_path / "d" / "captions.json").write_text(json.dumps({f"p{i}": "x" for i in range(9)}))
    last = tmp_path / "d" / "p8.png"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return tmp_path


def evaluate(root: Path, **options: object) -> brushbench.Run:
    return brushbench.evaluate("copy", root / "d", out=root / "run", metrics="psnr@standard", variants="raw", **options)


def test_a_picture_cut_at_its_end_costs_its_own_score_and_its_repair_continues_the_run(root: Path) -> None:
    first = evaluate(root)
    assert {state: n for state, n in first.pictures().items() if n} == {"planned": 9, "ok": 8, "failed": 1}
    assert int(first.scores["value"].notna().sum()) == 8
    Image.fromarray(picture(8)).save(root / "d" / "p8.png")
    said: list[str] = []
    second = evaluate(root, notify=said.append)
    assert second.pictures()["ok"] == 9
    assert int(second.scores["value"].notna().sum()) == 9
    assert any("the run goes on with them as they are now" in line for line in said)
    whole = brushbench.evaluate("copy", root / "d", out=root / "whole", metrics="psnr@standard", variants="raw")
    for file in ("run.json", "records.json"):
        mine, theirs = (json.loads((run.path / file).read_text()) for run in (second, whole))
        mine.pop("config", None), theirs.pop("config", None)
        assert mine == theirs
    assert second.scores.equals(whole.scores)


def test_a_repaired_picture_does_not_keep_what_is_there_from_being_scored(root: Path) -> None:
    evaluate(root)
    Image.fromarray(picture(8)).save(root / "d" / "p8.png")
    run = rescore(root / "run", scoring=Scoring("mse@standard", "raw"))
    assert int(run.scores[run.scores["metric"] == "mse"]["value"].notna().sum()) == 8


def test_another_picture_in_place_of_one_that_was_used_is_refused(root: Path) -> None:
    evaluate(root)
    Image.fromarray(picture(8)).save(root / "d" / "p8.png")
    Image.fromarray(picture(77)).save(root / "d" / "p0.png")
    with pytest.raises(ConfigMismatchError):
        evaluate(root)
    with pytest.raises(RunError, match="other data"):
        rescore(root / "run", scoring=Scoring("mse@standard", "raw"))
    (root / "run" / "records.json").write_text("[" * 100_000)  # damaged: then nothing is known
    Image.fromarray(picture(0)).save(root / "d" / "p0.png")
    with pytest.raises(ConfigMismatchError):
        evaluate(root)


def test_a_run_that_made_nothing_leaves_no_list_of_records_behind(root: Path) -> None:
    with pytest.raises(RunError):
        brushbench.evaluate(Noise(fail="all"), root / "d", out=root / "run", metrics="none")
    assert not (root / "run").exists()
    assert evaluate(root).pictures()["ok"] == 8
