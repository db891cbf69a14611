"""What --engine refuses, and that its advice works."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from brushbench import progress
from brushbench.cli import engines
from brushbench.engines.workers import Report, work
from brushbench.evaluation import scoring
from tests.brushbench.conftest import Command

EVAL = "eval -m copy --bench d --metrics psnr --variants raw"
LOCAL = f"{EVAL} --engine slurm --engine-address local"


@pytest.mark.parametrize(
    ("more", "advice", "followed"),
    [
        ("--engine dask", "Known: local, ray, slurm", "--engine local"),
        ("--engine-address auto", "Name one of them, or leave it out", ""),
        ("--engine ray --engine-option time=3", "Name that, or leave it out", ""),
        ("--engine slurm --engine-option time", "is not NAME=VALUE, such as slurm_partition=gpu", ""),
        ("--engine ray --shard 1/2", "every worker works over the whole plan. Leave --shard out", ""),
        ("--engine ray --device cuda:1", "gives each worker a GPU of its own. Write --device auto", "--device auto"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_a_remedy_that_works(
    more: str, advice: str, followed: str, brushbench: Command
) -> None:
    assert advice in brushbench(f"{EVAL} {more}", 2)
    assert "psnr" in brushbench(f"{EVAL} {followed}")


@pytest.mark.parametrize(
    ("engine", "package", "advice"),
    [
        ("ray", "ray", "which is not installed. Run pip install 'brushbench[ray]'"),
        ("slurm", "submitit", "which is not installed. Run pip install 'brushbench[slurm]'"),
    ],
)
def test_an_engine_that_is_not_installed_is_named_with_the_way_to_get_it(
    engine: str, package: str, advice: str, brushbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert advice in brushbench(f"{EVAL} --engine {engine} --jobs 2", 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not find_spec("submitit"), reason="not installed: pip install 'brushbench[slurm]'")
def test_without_slurm_the_command_can_be_tried_here(brushbench: Command) -> None:
    told = brushbench(f"{EVAL} --engine slurm", 2)
    assert "Run the command where sbatch is, or try it with --engine-address local" in told
    assert "for Slurm it is slurm, or local" in brushbench(f"{EVAL} --engine slurm --engine-address auto", 2)
    assert "slurm_partition=gpu, timeout_min=120" in brushbench(f"{LOCAL} --engine-option slurm_part=gpu", 2)
    assert "psnr" in brushbench(f"{LOCAL} --engine-option slurm_partition=gpu --engine-option timeout_min=120")


# What a worker must have in common with the command -------------------------------------------------------------------

Spoil = Callable[[pytest.MonkeyPatch], object]


class Here:
    """Workers in this process, one after the other; something may be wrong with where they are."""

    threads = 1

    def __init__(self, spoil: Spoil = lambda _: None) -> None:
        self.spoil, self.reports = spoil, dict[int, Report]()

    def start(self, packed: bytes, count: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            self.spoil(patch)
            self.reports = {number: work(packed) for number in range(1, count + 1)}
        progress.show_progress = True

    def ended(self) -> dict[int, Report]:
        return self.reports

    def stop(self) -> None:
        pass


def place() -> Path:
    (found,) = Path.cwd().rglob(".engine-*.lock")
    return found


def have_other_torch(patch: pytest.MonkeyPatch) -> None:
    here = engines._installation()
    patch.setattr(engines, "_installation", lambda: {**here, "torch": "1.0"})


def have_other_code(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("brushbench.evaluation.provenance.OWN_PACKAGES", ("brushbench", "brushnet"))


def see_another_folder(_: pytest.MonkeyPatch) -> None:
    place().unlink()


def see_no_locks(_: pytest.MonkeyPatch) -> None:
    name = place()
    name.unlink()
    name.touch()  # another file, which nobody holds


@pytest.mark.parametrize(
    ("spoil", "said", "advice"),
    [
        (have_other_torch, "-> 1.0", "Install the same on every machine"),
        (have_other_code, "code of baselines", "Install the same on every machine"),
        (see_another_folder, "is missing", "Write to a folder that every machine has under the same path"),
        (see_no_locks, "two workers would write one image", "Use a file system whose flock works across machines"),
    ],
)
def test_a_worker_whose_machine_or_folder_is_another_makes_no_image(
    spoil: Spoil, said: str, advice: str, brushbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two folders of one name, or locks of one machine alone, gave a run of parts, or two writers of one image."""
    crew = Here(spoil)
    monkeypatch.setattr(engines, "_crew", lambda *_: crew)
    told = brushbench(f"{EVAL} --engine ray", 3)
    assert said in told
    assert advice in told
    assert not list(tmp_path.rglob("run.json"))
    crew.spoil = lambda _: None
    assert "psnr" in brushbench(f"{EVAL} --engine ray")


def test_what_is_said_of_a_run_in_a_worker_reaches_the_command(
    brushbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "_crew", lambda *_: Here())
    brushbench(f"{EVAL} --limit 1 --engine ray")
    grown = brushbench(f"{EVAL} --limit 2 --engine ray --jobs 2")
    assert grown.count("The run grows from 1 to 2 images.") == 1


def test_two_workers_and_the_command_score_each_batch_once(
    brushbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scores that a worker merged would have been computed again by the next one, and by the command."""
    monkeypatch.setattr(engines, "_crew", lambda *_: Here())
    brushbench(f"{EVAL} --batch-size 1 --engine ray --jobs 2")
    (run,) = tmp_path.rglob("run.json")
    scored, score = [], scoring._score_tasks
    monkeypatch.setattr(scoring, "_score_tasks", lambda *told: scored.append(told[2].name) or score(*told))
    assert "mse" in brushbench(f"score {run.parent} --metrics mse --engine ray --jobs 2")
    assert sorted(scored) == sorted(path.stem for path in run.parent.glob("batches/*.json"))
    assert len(scored) == 2
