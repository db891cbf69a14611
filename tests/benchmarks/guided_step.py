"""One guided SD 1.5 step at 512x512: the branch run once for both guidance halves, or quicker, against run on both.

::

    python -m tests.benchmarks.guided_step --flops-only                   # seconds, needs no weights in memory
    python -m tests.benchmarks.guided_step                                # minutes, 7 GB
    python -m tests.benchmarks.guided_step --speeds exact+prepacked bf16  # ten minutes, 16 GB

The step: branch, U-Net with the residuals, guidance at 7.5, DDIM; float32, random weights, latents of 64x64. Arithmetic
is counted on the meta device, for on a CPU torch's counter scores attention as zero. Time is the median over
interleaved runs on the same, ever new inputs, the order alternating, after one warm-up of each. What lasts in
networks, such as another dtype, has networks of its own; every way but the first runs the branch once.

Exit code 1 if a share is above its limit. bf16 has one (0.30) where the processor has AMX; elsewhere it is reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brushnet import BrushNetModel, guidance, inject
from brushnet.acceleration import Speed, prepare_branch, prepare_unet
from brushnet.guidance import guided_residuals
from brushnet.injection import Slot

MAX_ARITHMETIC = 0.85  # of the same step with the branch run on both halves
MAX_TIME = 0.87
MAX_TIME_BF16 = 0.30
CONFIGS = Path(__file__).parents[1] / "golden" / "brushnet" / "keys_sd15.json"
GUIDANCE = 7.5
Inputs = tuple[Tensor, Tensor, Tensor]


def make_models(device: str) -> tuple[UNet2DConditionModel, BrushNetModel]:
    """Return the real-size U-Net and its branch, whose residuals are not zero."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**json.loads(CONFIGS.read_text())["unet_config"])
    brushnet = BrushNetModel.from_unet(unet)
    for conv in (*brushnet.brushnet_down_blocks, brushnet.brushnet_mid_block, *brushnet.brushnet_up_blocks):
        torch.nn.init.normal_(conv.weight, std=0.02)
    return unet.eval().requires_grad_(False), brushnet.eval().requires_grad_(False)


def make_inputs(device: str, seed: int) -> Inputs:
    """Return latents, conditioning and text for one sample."""
    shapes = ((1, 4, 64, 64), (1, 5, 64, 64), (2, 77, 768))
    if device == "meta":
        return tuple(torch.empty(shape, device=device) for shape in shapes)
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def guided_step(
    unet: UNet2DConditionModel, brushnet: BrushNetModel, slot: Slot, scheduler: DDIMScheduler, inputs: Inputs
) -> Tensor:
    """Take one denoising step as the pipelines do."""
    latents, conditioning, text = inputs
    timestep, sample = scheduler.timesteps[len(scheduler.timesteps) // 2], torch.cat([latents] * 2)
    slot.set(guided_residuals(brushnet, sample, timestep, conditioning, guided=True))
    unconditional, conditional = unet(sample, timestep, encoder_hidden_states=text).sample.chunk(2)
    prediction = unconditional + GUIDANCE * (conditional - unconditional)
    return scheduler.step(prediction, timestep, latents).prev_sample


@contextmanager
def halves(agree: bool) -> Iterator[None]:
    """Tell the guided step whether the halves agree, instead of letting it compare them."""
    with mock.patch.object(guidance, "_halves_agree", return_value=agree):
        yield


def make_scheduler() -> DDIMScheduler:
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    scheduler.set_timesteps(50)
    return scheduler


def arithmetic() -> tuple[int, int]:
    """Count the floating-point operations of a step with the branch run once, and on both halves."""
    unet, brushnet = make_models("meta")
    counts = []
    for once in (True, False):
        with halves(once), inject(unet) as slot, FlopCounterMode(display=False) as counter, torch.no_grad():
            guided_step(unet, brushnet, slot, make_scheduler(), make_inputs("meta", 0))
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def accelerated(
    speed: Speed, plain: tuple[UNet2DConditionModel, BrushNetModel]
) -> Callable[[DDIMScheduler, Inputs], Tensor]:
    """Return a step with an acceleration switched on; what lasts in networks goes into others than the plain ones."""
    unet, brushnet = make_models("cpu") if speed.switches else plain
    dtype = getattr(torch, speed.dtype or "float32")
    unet.to(dtype), brushnet.to(dtype)
    prepare_unet(unet, speed)
    prepare_branch(brushnet, speed)

    def step(scheduler: DDIMScheduler, inputs: Inputs) -> Tensor:
        latents, conditioning, text = (tensor.to(dtype) for tensor in inputs)
        with inject(unet) as slot, speed.at_work(unet, [brushnet], len(latents)):
            return guided_step(unet, brushnet, slot, scheduler, (latents, conditioning, text)).float()

    return step


def on_both(step: Callable[[DDIMScheduler, Inputs], Tensor]) -> Callable[[DDIMScheduler, Inputs], Tensor]:
    """Return the step with the branch run on both halves, as published."""

    def run(scheduler: DDIMScheduler, inputs: Inputs) -> Tensor:
        with halves(False):
            return step(scheduler, inputs)

    return run


def wall_time(repeats: int, speeds: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of every step by way, and the largest relative difference from the published result."""
    plain = make_models("cpu")
    once = accelerated(Speed(), plain)
    ways = {"both": on_both(once), "once": once} | {speed: accelerated(Speed.parse(speed), plain) for speed in speeds}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    worst = dict.fromkeys(ways, 0.0)
    scheduler = make_scheduler()
    with torch.no_grad():
        for repeat in range(repeats + 1):
            inputs, results = make_inputs("cpu", seed=repeat), {}
            for way in list(ways) if repeat % 2 else reversed(ways):
                start = time.perf_counter()
                results[way] = ways[way](scheduler, inputs)
                if repeat:  # the first of each warms up
                    seconds[way].append(time.perf_counter() - start)
            for way, result in results.items():
                difference = (result - results["both"]).abs().max() / results["both"].abs().max()
                worst[way] = max(worst[way], float(difference))
    return seconds, worst


def limit_of(way: str) -> float | None:
    """Return the largest share of the published time that a way may take, if one was set."""
    if Speed.parse(way if way != "once" else "").dtype is None:
        return MAX_TIME
    return MAX_TIME_BF16 if torch.cpu._is_amx_tile_supported() else None


def main() -> int:
    """Print the shares; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flops-only", action="store_true", help="count arithmetic, measure no time")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each way (default 5)")
    parser.add_argument("--speeds", nargs="*", default=(), help="accelerations to time too, such as exact+prepacked")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    once, both = arithmetic()
    share = once / both
    print(
        f"arithmetic  once {once / 1e12:.3f}  both {both / 1e12:.3f} TFLOP  share {share:.3f}  limit {MAX_ARITHMETIC}"
    )
    fine = share <= MAX_ARITHMETIC
    if not options.flops_only:
        seconds, worst = wall_time(options.repeats, options.speeds)
        published = statistics.median(seconds.pop("both"))
        print(f"both halves {published:.2f} s (median of {options.repeats}, {torch.get_num_threads()} threads)")
        for way, taken in seconds.items():
            share, limit = statistics.median(taken) / published, limit_of(way)
            print(
                f"{way:20} {statistics.median(taken):.2f} s  share {share:.3f}  limit {limit or 'none here'}  largest "
                f"relative difference of the latents {worst[way]:.1e}  {[round(t, 2) for t in taken]}"
            )
            fine = fine and (limit is None or share <= limit)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
