"""What --engine refuses, and that its advice works."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

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
