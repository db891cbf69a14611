"""The same weights give the same bits, wherever they lie in memory (MKL_CBWR, set by ``import brushnet``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "MKL_CBWR"

# torch comes first, as in a script that imports it at its top.
SHIFTED_WEIGHTS = """
import torch
import brushnet

torch.set_num_threads(1)


def shifted(tensor, bytes_beyond):
    room = torch.empty(tensor.numel() + 32)
    start = (-room.data_ptr() % 64 + bytes_beyond) // 4
    copy = room[start : start + tensor.numel()].view(tensor.shape)
    assert copy.data_ptr() % 64 == bytes_beyond
    return copy.copy_(tensor)


generator = torch.Generator().manual_seed(0)
for rows, outputs, inputs in [(2, 7, 33), (1, 320, 1280), (77, 64, 64), (4, 1280, 320), (9, 72, 33), (17, 31, 63)]:
    sample, weight = (torch.randn(size, inputs, generator=generator) for size in (rows, outputs))
    expected = torch.nn.functional.linear(sample, shifted(weight, 0))
    for bytes_beyond in range(4, 64, 4):
        for start in (0, bytes_beyond):
            got = torch.nn.functional.linear(shifted(sample, start), shifted(weight, bytes_beyond))
            assert torch.equal(got, expected), (rows, outputs, inputs, bytes_beyond, start)

branch = brushnet.BrushNetModel(
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    block_out_channels=(16, 32),
    norm_num_groups=4,
    addition_embed_type="text_time",
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=33 + 6 * 4,
)
added = {"text_embeds": torch.randn(2, 33, generator=generator), "time_ids": torch.ones(2, 6)}
call = (torch.randn(2, 4, 8, 8, generator=generator), 7, torch.randn(2, 5, 8, 8, generator=generator))
with torch.no_grad():
    for parameter in branch.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    results = []
    for bytes_beyond in (0, 4, 16, 44):
        for parameter in branch.parameters():
            parameter.data = shifted(parameter.data, bytes_beyond)
        results.append(branch(*call, added_cond_kwargs=added))
for output in results[1:]:
    assert all(map(torch.equal, output.up_block_res_samples, results[0].up_block_res_samples))
"""


def run(code: str, **environment: str) -> str:
    """Run code in a process that inherits no choice of kernels; return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != VARIABLE}
    inherited["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("package", ["brushnet", "brushbench", "baselines", "brushbench.cli"])
def test_every_package_sets_the_variable_and_loads_no_torch(package: str) -> None:
    code = f"import os, sys, {package}; print(os.environ['{VARIABLE}'], 'torch' in sys.modules)"
    assert run(code) == "AUTO,STRICT False"


def test_weights_that_are_not_aligned_gave_other_last_bits() -> None:
    run(SHIFTED_WEIGHTS)


def test_a_users_own_choice_wins() -> None:
    assert run(f"import os, brushbench; print(os.environ['{VARIABLE}'])", MKL_CBWR="COMPATIBLE") == "COMPATIBLE"


def test_a_process_that_was_spawned_has_the_variable() -> None:
    code = f"""
import multiprocessing, os, brushbench
with multiprocessing.get_context("spawn").Pool(1) as pool:
    print(pool.apply(os.getenv, ("{VARIABLE}",)))
"""
    assert run(code) == "AUTO,STRICT"


def test_a_run_records_the_variable() -> None:
    code = "from brushbench.evaluation.provenance import machine; print(machine()['mkl_cbwr'])"
    assert run(code) == "AUTO,STRICT"
    assert run(code, MKL_CBWR="AVX2") == "AVX2"


def test_make_sets_what_the_package_sets() -> None:
    (value,) = re.findall(rf"^export {VARIABLE} \?= (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert value == run(f"import os, brushnet; print(os.environ['{VARIABLE}'])")
