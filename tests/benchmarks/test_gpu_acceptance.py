"""``gpu_acceptance`` in small, on the CPU and on the pretended GPU: on a card it must not fail for its own mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks import gpu_acceptance
from tests.benchmarks.gpu_bench import Bench
from tests.emulated_cuda.device import gpus

QUICK = ["versions", "step_error", "autoencoder", "out_of_memory"]


def test_the_quick_items_pass_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert gpu_acceptance.main(["--tiny", "--device", "cpu", "--json", str(file), "--only", *QUICK]) == 0
    items = json.loads(file.read_text())["items"]
    assert [(item["item"], item["verdict"]) for item in items] == [(name, "PASS") for name in QUICK]
    assert "PASS  step_error: sd15 half 0.00" in capsys.readouterr().out


def test_an_item_that_fails_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_acceptance, "relative", lambda ours, reference: 0.5)
    assert gpu_acceptance.main(["--tiny", "--device", "cpu", "--only", "step_error", "out_of_memory"]) == 1
    told = capsys.readouterr().out
    assert "FAIL  step_error: FailedError: sd15: error of torch.bfloat16 is 0.5, expected at most 0.05" in told
    assert "PASS  out_of_memory: failed 0" in told
    assert "1 of 2 items without failure: step_error" in told


@pytest.mark.slow
def test_offloading_works_on_the_pretended_gpu(tmp_path: Path) -> None:
    with gpus():
        errors = gpu_acceptance.offload(Bench(torch.device("cuda", 0), True, tmp_path))
    assert len(errors) == 4


@pytest.mark.slow
def test_every_item_passes_or_is_skipped_in_small() -> None:
    assert gpu_acceptance.main(["--tiny", "--device", "cpu"]) == 0


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_this_card_is_accepted() -> None:
    assert gpu_acceptance.main([]) == 0
