"""The quick form of ``python -m tests.emulated_cuda``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from brushnet import guidance, injection
from tests.emulated_cuda import pipelines, runs, training
from tests.emulated_cuda.device import gpus
from tests.emulated_cuda.report import MOST, distance


@pytest.fixture(scope="module")
def tiny() -> pipelines.Tiny:
    return pipelines.Tiny()


def test_the_pretended_device_keeps_the_rules_of_cuda() -> None:
    pipelines.emulation()


@pytest.mark.parametrize("family", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_nothing_of_ours_waits_for_the_gpu_in_a_step(tiny: pipelines.Tiny, family: str) -> None:
    latents, waits = pipelines.step_waits(tiny, family, "ddim", num_inference_steps=3)
    reference = tiny.call(_ddim(tiny, family), num_inference_steps=3, output_type="latent")
    with gpus():
        assert distance(latents, reference) < MOST[torch.float16]
    assert [wait for wait in waits if wait.is_own] == []


def _ddim(tiny: pipelines.Tiny, family: str):
    pipe = tiny.makers[family]()
    pipe.scheduler = pipelines.make_scheduler("ddim", pipe.scheduler)
    return pipe


def test_a_planted_item_is_found(tiny: pipelines.Tiny) -> None:
    add = injection._Installation.add

    def waiting(self, hidden, place):
        if place == 0:
            hidden.sum().item()
        return add(self, hidden, place)

    with mock.patch.object(injection._Installation, "add", waiting):
        _, waits = pipelines.step_waits(tiny, "sd", "ddim", num_inference_steps=3)
    assert [wait.kind for wait in waits if wait.is_own] == [".item()"]


def test_a_planted_device_mismatch_is_found(tiny: pipelines.Tiny) -> None:
    run = guidance._run

    def on_the_cpu(brushnet, inputs, *others):
        inputs.brushnet_cond = inputs.brushnet_cond.cpu()
        inputs.reads(brushnet)["sample"] + inputs.brushnet_cond[:, :4]
        return run(brushnet, inputs, *others)

    with (
        mock.patch.object(guidance, "_run", on_the_cpu),
        pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"),
    ):
        pipelines.step_waits(tiny, "sd", "ddim", num_inference_steps=3)


@pytest.mark.parametrize("check", runs.CHECKS.values(), ids=lambda check: check.__name__)
def test_a_run_on_one_of_several_gpus(check: Callable[[Path], str], tmp_path: Path) -> None:
    check(tmp_path)


@pytest.mark.slow
def test_a_training_in_float16_resumes_with_the_scale_of_its_loss(tmp_path: Path) -> None:
    training.resumed(tmp_path, "fp16", overflow=True)
