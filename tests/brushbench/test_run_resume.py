"""Must show: kill -9 at several counts of pictures on disk, then the same command, gives byte-equal results."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import brushbench
from baselines.telea import Telea
from brushbench.evaluation import Scoring, rescore, score_images
from brushbench.store import RunFolder

ROOT = Path(__file__).parents[2]
TOYS = Path(__file__).with_name("toys.py")


def command(data: Path, out: Path, *more: str) -> list[str]:
    model = ["--model", f"{TOYS}:Slow", "--name", "noise", "--batch-size", "2"]
    where = ["--bench", "brushbench", "--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "brushbench", "eval", *model, *where, "--metrics", "psnr,mse", *more]


def environment(seconds: float = 0.0) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TOY_SECONDS": str(seconds), "OMP_NUM_THREADS": "1"}


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), env=environment(), capture_output=True, text=True, check=True)


def contents(run_folder: Path) -> dict[str, str]:
    """SHA-256 of everything that byte-equality covers."""
    left_out = {"timing.jsonl"}
    files = [
        f for f in sorted(run_folder.rglob("*")) if f.is_file() and f.name not in left_out and "locks" not in f.parts
    ]
    found = {str(f.relative_to(run_folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    header = json.loads((run_folder / "run.json").read_text())
    header.pop("where")  # machine and git revision: the checkout may move on while this test runs
    return {**found, "run.json": json.dumps(header, sort_keys=True)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("toys", TOYS)
    assert spec
    assert spec.loader
    toys = module_from_spec(spec)
    spec.loader.exec_module(toys)
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    run(data, out)
    found = contents(out / "noise")
    assert sum(name.startswith("pictures/") for name in found) == 15
    assert "scores.parquet" in found
    return found


@pytest.mark.parametrize("pictures", [1, 4, 9])
def test_kill_9_then_the_same_command_is_byte_equal(
    pictures: int, data: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    process = subprocess.Popen(command(data, tmp_path), env=environment(0.15), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("noise/pictures/*/*/*.png"))) < pictures:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "noise" / "scores.parquet").exists()
    run(data, tmp_path)
    assert contents(tmp_path / "noise") == whole


def test_two_shards_equal_the_whole(data: Path, whole: dict[str, str], tmp_path: Path) -> None:
    shards = [subprocess.Popen(command(data, tmp_path, "--shard", f"{i}/2"), env=environment()) for i in (1, 2)]
    assert [shard.wait(120) for shard in shards] == [0, 0]
    assert contents(tmp_path / "noise") == whole


def test_two_jobs_equal_the_whole(data: Path, whole: dict[str, str], tmp_path: Path) -> None:
    done = run(data, tmp_path, "--jobs", "2")
    assert contents(tmp_path / "noise") == whole
    assert "2 processes share the work" in done.stderr
    assert done.stderr.count("noise: generate: 8/8") == 1  # the first process's share of 15, in batches of 2
    assert "psnr" in done.stdout


def test_a_run_and_images_scored_by_two_jobs_equal_those_scored_by_one(data: Path, tmp_path: Path) -> None:
    def score(*more: str) -> str:
        asked = [sys.executable, "-m", "brushbench", "score", *more, "--metrics", "psnr,mse", "--data", str(data)]
        return subprocess.run([*asked, "--jobs", "2"], env=environment(), capture_output=True, text=True).stderr

    scoring, one, two = Scoring("psnr,mse"), tmp_path / "1", tmp_path / "2"
    made = brushbench.evaluate(Telea(), data, out=one / "run", limit=3, batch_size=1, metrics="none")
    shutil.copytree(one / "run", two / "run")
    rescore(one / "run", data=data, scoring=scoring)
    assert "2 processes share the work" in score(str(two / "run"))
    images, benchmark = tmp_path / "images", brushbench.load_benchmark(data, limit=3)
    for split in ("inside", "outside"):
        shutil.copytree(made.path / "pictures" / split / "0", images / split)
    score_images(images, benchmark, name="images", out=one / "images", scoring=scoring)
    score("--images", str(images), "--bench", "brushbench", "--limit", "3", "--out", str(two))
    for name in ("run", "images"):
        assert contents(one / name) == contents(two / name)


def test_overwriting_and_jobs_are_not_mixed_in_score(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "brushbench", "score", "--images", str(tmp_path), "--overwrite", "--jobs", "2"]
    mixed = subprocess.run(asked, env=environment(), capture_output=True, text=True)
    assert mixed.returncode == 2
    assert "Delete the run first" in mixed.stderr


def test_a_job_that_fails_says_why_and_keeps_what_is_made(data: Path, whole: dict[str, str], tmp_path: Path) -> None:
    broken = {**environment(), "TOY_FAILS_IN_JOBS": "1"}
    failed = subprocess.run(command(data, tmp_path, "--jobs", "2"), env=broken, capture_output=True, text=True)
    assert failed.returncode == 5
    assert "process 2 of 2: error: out of paint" in failed.stderr
    assert "Of 2 processes these failed: 2." in failed.stderr
    run(data, tmp_path, "--jobs", "2")
    assert contents(tmp_path / "noise") == whole


def test_jobs_and_shard_are_not_mixed(data: Path, tmp_path: Path) -> None:
    mixed = subprocess.run(
        command(data, tmp_path, "--jobs", "2", "--shard", "1/2"), env=environment(), capture_output=True, text=True
    )
    assert mixed.returncode == 2
    assert "Leave --shard out" in mixed.stderr


def test_a_batch_that_another_process_works_on_is_waited_for_and_said_so(
    data: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """The whole run and its shards had locks of their own, so two processes worked on one batch."""
    run(data, tmp_path)
    folder = RunFolder(tmp_path / "noise")
    folder.discard("inside-0-000001")
    with folder.lock("inside-0-000001"):
        second = subprocess.Popen(command(data, tmp_path), env=environment(), stderr=subprocess.PIPE, text=True)
        assert second.stderr
        said = next(line for line in second.stderr if "Waiting" in line)
        assert said.startswith("Waiting for another process, which works on batch inside-0-000001 in ")
        assert second.poll() is None
    assert second.wait(120) == 0
    assert contents(tmp_path / "noise") == whole


def test_other_settings_in_the_same_folder_are_refused_with_the_difference(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path)
    before = contents(tmp_path / "noise")
    more = [*command(data, tmp_path, "--seed", "5", "--limit", "2")]
    second = subprocess.run(more, env=environment(), capture_output=True, text=True, check=False)
    assert second.returncode == 3
    assert "config.seed: 1234 -> 5" in second.stderr
    assert "config.limit: null -> 2" in second.stderr
    assert "--out" in second.stderr
    assert contents(tmp_path / "noise") == before
