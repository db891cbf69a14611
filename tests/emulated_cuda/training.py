"""The training step on the pretended GPU, and the loop with made-up gradients: autograd does not run there."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from brushbench.training.brushnet import BrushNetRecipe, train_brushnet
from brushbench.training.loop import FitConfig
from brushnet import BrushNetModel
from brushnet.training import BrushNetTrainingStep
from tests.emulated_cuda.device import gpus
from tests.emulated_cuda.pipelines import Tiny
from tests.emulated_cuda.report import MOST, DefectError, check, demand, distance, short

__all__ = ["resumed", "training"]

VARIANTS: tuple[dict[str, Any], ...] = (
    {}, {"sample_posterior": True, "gradient_checkpointing": True}, {"mask_channel": False}, {"injection": "encoder"},
)  # fmt: skip


def step(tiny: Tiny, family: str, dtype: torch.dtype | None, device: str, **how: Any) -> torch.Tensor:
    """Return the loss of one batch."""
    parts = dict(tiny.makers[family]().components)
    parts.pop("brushnet")
    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    base = cls(**parts, **({"add_watermarker": False} if family == "sdxl" else {"requires_safety_checker": False}))
    branch = BrushNetModel.from_unet(base.unet)
    with torch.no_grad():
        for conv in (*branch.brushnet_down_blocks, branch.brushnet_mid_block, *branch.brushnet_up_blocks):
            conv.weight += 0.05
    objective = BrushNetTrainingStep(branch, base, dtype=dtype, **how)
    batch = objective.batch([(tiny.picture, tiny.hole, "a cat")] * 2, tiny.kit.generator(0))
    objective.to(device)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return objective(**batch)[0].detach().cpu().reshape(1)


def made_up(overflow: bool, scales: list[float]) -> Callable[..., None]:
    """Return a backward pass: gradients that the loss seeds, infinite while the scale is above 2**14 if asked for.

    Args:
        overflow: make them infinite at first.
        scales: gets the scale of the loss at every call.
    """

    def backward(self: Accelerator, loss: torch.Tensor, **_: object) -> None:
        draws = torch.Generator().manual_seed(int(abs(float(loss.detach().cpu())) * 1e6))
        if self.scaler is not None:
            self.scaler.scale(loss)
        scales.append(self.scaler.get_scale() if self.scaler is not None else 1.0)
        factor = float("inf") if overflow and scales[-1] > 2**14 else 1e-3 * scales[-1]
        for group in self._optimizers[-1].param_groups:
            for parameter in group["params"]:
                noise = torch.randn(parameter.shape, generator=draws)
                parameter.grad = (factor * noise).to(parameter.device, parameter.dtype)

    return backward


def resumed(scratch: Path, precision: str, overflow: bool) -> str:
    """Train 4 steps in one go, and again from the checkpoint at step 2: the weights must be equal."""
    scales: list[float] = []

    def fit(out: Path, resume: bool = False) -> list[float]:
        AcceleratorState._reset_state(True)
        scales.clear()
        config = FitConfig(
            out, max_steps=4, batch_size=2, warmup=1, save_every=2, log_every=1, picture_every=0,
            mixed_precision=precision, resume=resume,
        )  # fmt: skip
        with mock.patch.object(Accelerator, "backward", made_up(overflow, scales)):
            train_brushnet(config, BrushNetRecipe())
        return list(scales)

    whole = scratch / f"train-{precision}-{overflow}"
    cut = whole.with_name(f"{whole.name}-cut")
    with gpus(), contextlib.redirect_stdout(None), contextlib.redirect_stderr(sys.stdout):
        first = fit(whole)
        shutil.copytree(whole, cut)
        (cut / "checkpoints" / "step-0000004.pt").unlink()  # as if it had died after step 2
        second = fit(cut, resume=True)
        AcceleratorState._reset_state(True)
    a, b = (torch.load(f / "checkpoints" / "step-0000004.pt", weights_only=True)["weights"] for f in (whole, cut))
    if not all(torch.equal(a[name], b[name]) for name in a):
        raise DefectError(f"the resumed weights differ; scales of the loss: {first} in one go, {second} after resuming")
    if overflow and not (len(set(first)) > 1 and second == first[2:]):
        raise DefectError(f"scales of the loss: {first} in one go, {second} after resuming")
    return "resumed weights are equal"


def training(tiny: Tiny, scratch: Path) -> None:
    """The step in every precision, and the loop resumed in the middle."""

    def one_step(family: str, dtype: torch.dtype | None, how: dict[str, Any]) -> str:
        reference = step(tiny, family, None, "cpu", **how)
        with gpus():
            return demand(distance(step(tiny, family, dtype, "cuda", **how), reference), MOST[dtype or torch.float32])

    for family, dtype, how in itertools.product(tiny.makers, (None, torch.float16, torch.bfloat16), VARIANTS):
        title = f"training step {family}, {short(dtype) if dtype else 'float32'}{', ' if how else ''}{', '.join(how)}"
        check(title, functools.partial(one_step, family, dtype, how))
    for precision in ("no", "bf16", "fp16"):
        check(f"training loop, mixed precision {precision}", functools.partial(resumed, scratch, precision, False))
    check("training loop, fp16, first steps overflow", functools.partial(resumed, scratch, "fp16", True))
