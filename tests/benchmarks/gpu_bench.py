"""What the items of ``gpu_acceptance`` share: networks of the published sizes, random; one guided step; timing."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

import brushbench
from brushnet import BrushNetModel, guidance, inject
from brushnet.checkpoints import PUBLISHED_CONFIGS
from brushnet.guidance import guided_residuals
from tests.brushnet import tiny

SIZES = {"sd15": (64, 768), "sdxl": (128, 2048)}  # side of the latents, width of the text
UNETS: Mapping[str, Mapping[str, Any]] = {
    "sd15": {"cross_attention_dim": 768},
    "sdxl": {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": (5, 10, 20),
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
    },
}  # fmt: skip
FAMILIES = {"sd15": "SD 1.5", "sdxl": "SDXL"}


class FailedError(Exception):
    """What was measured is not what was promised."""


class SkippedError(Exception):
    """An item that this machine cannot show."""


@dataclass
class Bench:
    """The device, and what the items share.

    Attributes:
        device: of everything.
        tiny: small networks in place of the published sizes.
        scratch: folder.
    """

    device: torch.device
    tiny: bool
    scratch: Path
    half: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.half = torch.float16 if self.device.type == "cuda" else torch.bfloat16

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @functools.cached_property
    def bench(self) -> brushbench.Benchmark:
        return brushbench.load_benchmark("shapes", "inside", 4 if self.tiny else 32)

    def wait(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], repeats: int = 5) -> float:
        """Return the median seconds of a call, after one warm-up."""
        run()
        times = []
        for _ in range(1 if self.tiny else repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def peak(self, run: Callable[[], object]) -> float:
        """Return how many GiB a call takes beyond what was there before; 0 where it is not counted."""
        if not self.on_cuda:
            run()
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**30

    def networks(self, family: str, dtype: torch.dtype) -> tuple[UNet2DConditionModel, BrushNetModel]:
        """Return a U-Net and its branch, whose residuals are not zero; random, the same ones for the same dtype."""
        torch.manual_seed(0)
        if self.tiny:
            unet = tiny.make_unet("sdxl" if family == "sdxl" else "sd")
            return unet.to(self.device, dtype), tiny.make_branch(unet.float()).to(self.device, dtype)
        with self.device:
            unet = UNet2DConditionModel(**UNETS[family])
            branch = BrushNetModel(**PUBLISHED_CONFIGS[FAMILIES[family]])
            for conv in tiny.zero_convs(branch):
                torch.nn.init.normal_(conv.weight, std=0.02)
        return unet.to(dtype).eval().requires_grad_(False), branch.to(dtype).eval().requires_grad_(False)

    def inputs(self, family: str, batch: int, seed: int = 0) -> dict[str, Any]:
        """Return what a guided step reads, in float32: latents and text of both halves, conditioning, sizes."""
        side, width = (8, 12) if self.tiny else SIZES[family]
        draws = torch.Generator().manual_seed(seed)
        normal = functools.partial(torch.randn, generator=draws)
        latents, kept = normal(batch, 4, side, side), (normal(batch, 1, side, side) > 0).float()
        found = {
            "sample": torch.cat([latents] * 2), "cond": torch.cat([normal(batch, 4, side, side), kept], dim=1),
            "text": normal(2 * batch, 5 if self.tiny else 77, width), "added": None,
        }  # fmt: skip
        if family == "sdxl":
            pooled, sizes = normal(2 * batch, 8 if self.tiny else 1280), torch.full((2 * batch, 6), 8.0 * side)
            found["added"] = {"text_embeds": pooled, "time_ids": sizes}
        return found


def guided_step(bench: Bench, unet: Any, branch: Any, inputs: Mapping[str, Any], once: bool | None = None) -> Tensor:
    """Return the U-Net's prediction of one guided step.

    Args:
        bench: device.
        unet: U-Net.
        branch: its branch.
        inputs: of :meth:`Bench.inputs`.
        once: run the branch on one half, or on both; None lets the step compare them.
    """
    to = functools.partial(_moved, device=bench.device, dtype=next(unet.parameters()).dtype)
    sample, text, added = to(inputs["sample"]), to(inputs["text"]), to(inputs["added"])
    agree = guidance._halves_agree
    if once is not None:
        guidance._halves_agree = lambda _: once
    try:
        with torch.inference_mode(), inject(unet) as slot:
            time_step = torch.tensor(501, device=bench.device)
            slot.set(
                guided_residuals(branch, sample, time_step, to(inputs["cond"]), guided=True, added_cond_kwargs=added)
            )
            return unet(sample, time_step, encoder_hidden_states=text, added_cond_kwargs=added).sample
    finally:
        guidance._halves_agree = agree


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _moved(part, device, dtype) for name, part in value.items()}
    return value if value is None else value.to(device, dtype)


def relative(ours: Tensor, reference: Tensor) -> float:
    """Return the largest difference over the largest value."""
    ours, reference = ours.float().cpu(), reference.float().cpu()
    return float((ours - reference).abs().max() / reference.abs().max())


def at_most(name: str, value: float, most: float) -> None:
    """Fail unless a value is a number of at most ``most``."""
    if not value <= most:
        raise FailedError(f"{name} is {value:.3g}, expected at most {most:.3g}")
