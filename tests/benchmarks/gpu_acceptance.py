"""Accept a GPU: what the project promises, checked and timed on a card, in at most ten minutes and without network.

::

    python -m tests.benchmarks.gpu_acceptance --json gpu.json    # on a machine with a card of 40 GB or more
    python -m tests.benchmarks.gpu_acceptance --tiny --device cpu  # minutes; shows that this script works

Weights of the published sizes are random and made on the device. One line PASS, FAIL or SKIP per item, with its
numbers; the exit code is 1 if any item fails. ``tests.emulated_cuda`` checks devices and waits without a card.
"""

from __future__ import annotations

import argparse
import collections
import functools
import importlib.metadata
import json
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import brushbench
from baselines.diffusion import Batch
from baselines.latents import decode_scaled, encode_scaled
from brushbench import progress
from brushbench.devices import choose_device, cuda_settings
from brushbench.evaluation.sources import Method
from brushbench.training.brushnet import BrushNetRecipe, train_brushnet
from brushbench.training.loop import FitConfig
from brushbench.types import Capabilities, InpaintRequest, Sample
from tests.benchmarks import metric_throughput
from tests.benchmarks.gpu_bench import UNETS, Bench, FailedError, SkippedError, at_most, guided_step, relative
from tests.brushnet import tiny_pipelines

SECONDS = 600
ROOMS = ("/brushnet/", "/brushbench/", "/baselines/")


# Items ----------------------------------------------------------------------------------------------------------------


def versions(bench: Bench) -> dict[str, Any]:
    """Versions, the card, and that float32 is float32."""
    found: dict[str, Any] = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    found |= {"python": platform.python_version(), **cuda_settings()}
    if bench.on_cuda:
        found["card"] = torch.cuda.get_device_name(bench.device)
    if found["tf32_convolutions"] or found["tf32_products"]:
        raise FailedError(f"float32 rounds to TF32: {found}")
    return found


def tiny_family(bench: Bench) -> dict[str, Any]:
    """The embedded BrushNet on the device against the CPU in float32."""
    request = bench.bench[0].request(1)

    def latents(device: str, dtype: str) -> Tensor:
        method: Any = brushbench.load_inpainter("brushnet,steps=4", device, dtype)
        with torch.no_grad():
            return method.latents(Batch.of([request], method.factor, method.multiple))

    reference, limits = latents("cpu", "float32"), {"float32": 1e-3, "bfloat16": 0.25}
    if bench.on_cuda:
        limits["float16"] = 5e-2
    found = {dtype: relative(latents(str(bench.device), dtype), reference) for dtype in limits}
    for dtype, most in limits.items():
        at_most(f"relative error in {dtype}", found[dtype], most)
    return found


def step_error(bench: Bench) -> dict[str, Any]:
    """A guided step at full size: half precision against float32, and the branch once against on both halves."""
    found = {}
    for family in UNETS:
        inputs = bench.inputs(family, 1)
        exact, half = (
            {once: guided_step(bench, *bench.networks(family, dtype), inputs, once) for once in (True, False)}
            for dtype in (torch.float32, bench.half)
        )
        found |= {
            f"{family} half": relative(half[True], exact[True]),
            f"{family} once": relative(exact[True], exact[False]),
        }
        at_most(f"{family}: error of {bench.half}", found[f"{family} half"], 0.05)
        if family == "sd15":  # SDXL's halves differ in their pooled text
            at_most(f"{family}: once against both", found[f"{family} once"], 1e-4)
    return found


def waits(bench: Bench) -> dict[str, Any]:
    """Where the host waits for the card in the steps of a pipeline: nowhere in our own code."""
    if not bench.on_cuda:
        raise SkippedError("only a card waits; tests.emulated_cuda counts without one")
    pipe = tiny_pipelines.make_pipe().to(bench.device)
    picture, hole = tiny_pipelines.make_picture()
    places: collections.Counter[str] = collections.Counter()
    first_step: list[int] = []

    def after_step(*_: object) -> dict[str, Any]:
        first_step.append(len(caught))
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            pipe(
                "ab",
                image=picture,
                mask=hole,
                num_inference_steps=6,
                output_type="latent",
                callback_on_step_end=after_step,
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught[first_step[0] :]:
        if any(room in warning.filename for room in ROOMS) and "site-packages" not in warning.filename:
            places[f"{Path(warning.filename).name}:{warning.lineno}"] += 1
    # One look at all latents behind the last step is ours, and wanted: see _Call.check_halves.
    at_most("waits of our own", sum(places.values()), 1)
    return dict(places)


def speed(bench: Bench) -> dict[str, Any]:
    """Milliseconds and TFLOP/s of a guided step: eager, channels-last, compiled."""
    found: dict[str, Any] = {}
    for family in UNETS:
        unet, branch = bench.networks(family, bench.half)
        for form in ("eager", "channels-last", "compiled"):
            if form == "compiled" and not bench.on_cuda:
                continue
            if form == "channels-last":
                unet, branch = (network.to(memory_format=torch.channels_last) for network in (unet, branch))
            if form == "compiled":
                unet.compile_repeated_blocks()
            for batch in (1, 4, 16) if form != "compiled" else (4,):
                inputs = bench.inputs(family, batch)
                run = functools.partial(guided_step, bench, unet, branch, inputs, family == "sd15")
                if form == "eager":
                    with FlopCounterMode(display=False) as counter:
                        run()
                    flops = counter.get_total_flops()
                    found[f"{family} {batch} TFLOP"] = flops / 1e12
                found[f"{family} {batch} {form} ms"] = 1e3 * bench.seconds(run, 3)
        del unet, branch
    for family in UNETS:
        alone, sixteen = (found[f"{family} {batch} eager ms"] for batch in (1, 16))
        if bench.on_cuda:
            at_most(f"{family}: ms per image at batch 16 over batch 1", sixteen / 16 / alone, 1.0)
    return found


def autoencoder(bench: Bench) -> dict[str, Any]:
    """Time and peak memory of the float32 autoencoder on 16 images."""
    torch.manual_seed(0)
    if bench.tiny:
        vae = tiny_pipelines.make_vae().to(bench.device)
    else:
        with bench.device:
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            ).eval().requires_grad_(False)  # fmt: skip
    found: dict[str, Any] = {}
    for side in (32, 64) if bench.tiny else (512, 1024):
        pictures = np.random.default_rng(0).integers(0, 256, (16, side, side, 3), dtype=np.uint8)
        latents = torch.randn(16, 4, side // 8, side // 8, device=bench.device)
        for name, run in (
            ("encode", lambda p=pictures: encode_scaled(vae, p)),
            ("decode", lambda z=latents: decode_scaled(vae, z)),
        ):
            found[f"{name} {side} GiB"] = bench.peak(run)
            found[f"{name} {side} s"] = bench.seconds(run, 1)
            at_most(f"peak of {name} at {side}, GiB", found[f"{name} {side} GiB"], 8.0)
    return found


def evaluation(bench: Bench) -> dict[str, Any]:
    """``eval`` with 2 repeats: generation and scoring apart, and the share of it in which the card works."""
    how: dict[str, Any] = {"device": str(bench.device), "repeats": 2, "batch_size": 16, "out": bench.scratch / "eval"}
    start = time.perf_counter()
    run = brushbench.evaluate("brushnet,steps=4", bench.bench, metrics="none", **how)
    generated = time.perf_counter()
    run = brushbench.evaluate("brushnet,steps=4", bench.bench, metrics="psnr,ssim,lpips", **how)
    found = {"generate s": generated - start, "score s": time.perf_counter() - generated}
    if run.pictures()["ok"] != 2 * len(bench.bench):
        raise FailedError(f"got {run.pictures()}")
    if bench.on_cuda:
        from torch.profiler import ProfilerActivity, profile

        method = Method(brushbench.load_inpainter("brushnet,steps=4", str(bench.device)))
        samples = [bench.bench[i] for i in range(16)]
        method.answers(samples, list(range(16)), "")
        start = time.perf_counter()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            method.answers(samples, list(range(16)), "")
        wall = time.perf_counter() - start
        found["busy share"] = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / wall
    return found


class Stopping:
    """A method that is interrupted after some calls."""

    def __init__(self, inner: Any, calls: int) -> None:
        self.inner, self.calls, self.capabilities = inner, calls, inner.capabilities

    def describe(self) -> Mapping[str, Any]:
        return self.inner.describe()

    def inpaint(self, requests: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.inner.inpaint(requests)


def equality(bench: Bench) -> dict[str, Any]:
    """The same pixels from a second run, an interrupted and resumed one, and two shards."""
    inner = brushbench.load_inpainter("brushnet,steps=3", str(bench.device))

    def hashes(name: str, calls: int = 1000, shards: tuple[str | None, ...] = (None,)) -> list[str]:
        for shard in shards:
            how: dict[str, Any] = {"out": bench.scratch / name, "metrics": "none", "batch_size": 2, "shard": shard}
            try:
                run = brushbench.evaluate(Stopping(inner, calls), bench.bench, overwrite=False, **how)
            except KeyboardInterrupt:
                run = brushbench.evaluate(Stopping(inner, 1000), bench.bench, overwrite=False, **how)
        return [row.sha256 for row in run.picture_rows()]

    whole = hashes("whole")
    ways = {
        "a second run": hashes("second"),
        "killed and resumed": hashes("killed", 1),
        "two shards": hashes("shards", shards=("1/2", "2/2")),
    }
    for name, other in ways.items():
        if sorted(other) != sorted(whole):
            raise FailedError(f"{name}: {len(set(whole) - set(other))} of {len(whole)} images differ")
    return {"images": len(whole)}


class Greedy:
    """Takes a fifth of the free memory per request: 16 do not fit, one does."""

    capabilities = Capabilities(text=False, batch=16)

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def describe(self) -> dict[str, Any]:
        return {}

    def inpaint(self, requests: list[InpaintRequest]) -> list[np.ndarray]:
        if self.bench.on_cuda:
            free, _ = torch.cuda.mem_get_info(self.bench.device)
            activations = [torch.empty(free // 5, dtype=torch.uint8, device=self.bench.device) for _ in requests]
            activations.clear()
        elif len(requests) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [request.image.copy() for request in requests]


def out_of_memory(bench: Bench) -> dict[str, Any]:
    """Memory for one image and not for 16: none fails."""
    hole = np.zeros((8, 8), dtype=bool)
    hole[2:4, 2:4] = True
    samples = [Sample(str(i), np.full((8, 8, 3), 40 + i, np.uint8), hole, "", "inside") for i in range(16)]
    answers = Method(Greedy(bench)).answers(samples, list(range(16)), "")
    failed = [answer for answer in answers if not isinstance(answer, np.ndarray)]
    if failed:
        raise FailedError(f"{len(failed)} of 16 images failed: {failed[0]}")
    return {"failed": 0}


def offload(bench: Bench) -> dict[str, Any]:
    """Offloading gives the images that it gives without."""
    if not bench.on_cuda:
        raise SkippedError("there is nothing to offload from; tests.emulated_cuda checks it without a card")
    picture, hole = tiny_pipelines.make_picture()
    how = {"image": picture, "mask": hole, "num_inference_steps": 4, "output_type": "latent"}
    found = {}
    for make in (tiny_pipelines.make_pipe, tiny_pipelines.make_xl_pipe):
        reference = make().to(bench.device)("ab", generator=tiny_pipelines.generator(0), **how).images
        for mode in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
            pipe = make()
            getattr(pipe, mode)(device=bench.device)
            name = f"{type(pipe).__name__}.{mode}"
            found[name] = relative(pipe("ab", generator=tiny_pipelines.generator(0), **how).images, reference)
            at_most(name, found[name], 1e-3)
    return found


def metric_models(bench: Bench) -> dict[str, Any]:
    """Metric models of the published sizes with random weights: the device against the CPU, and seconds per image."""
    root = bench.scratch / "metrics"
    folders = (metric_throughput.tiny_folders if bench.tiny else metric_throughput.full_size_folders)(root)
    samples = [bench.bench[i] for i in range(4)]
    pictures = [255 - sample.image for sample in samples]
    found: dict[str, Any] = {}
    for name, folder in (("clip_score", "clip"), ("hps_v2.1", "hps"), ("image_reward", "reward")):
        there, here = (
            brushbench.load_metric(name, "standard", folders[folder], device) for device in ("cpu", str(bench.device))
        )
        reference, ours = (torch.tensor(np.array(metric(pictures, samples), float)) for metric in (there, here))
        found[f"{name} error"] = relative(ours, reference)
        found[f"{name} s per image"] = bench.seconds(functools.partial(here, pictures, samples), 3) / len(samples)
        at_most(f"{name}: relative error", found[f"{name} error"], 1e-3)
    return found


def training(bench: Bench) -> dict[str, Any]:
    """Train 4 steps in mixed precision in one go, and again from the checkpoint at step 2."""
    precision = "fp16" if bench.on_cuda else "no"

    def fit(out: Path, resume: bool = False) -> Mapping[str, Tensor]:
        config = FitConfig(
            out, max_steps=4, batch_size=2, warmup=1, save_every=2, picture_every=0, mixed_precision=precision,
            resume=resume, cpu=not bench.on_cuda,
        )  # fmt: skip
        train_brushnet(config, BrushNetRecipe())
        return torch.load(out / "checkpoints" / "step-0000004.pt", weights_only=True, map_location="cpu")["weights"]

    start = time.perf_counter()
    whole, cut = bench.scratch / "train", bench.scratch / "train-cut"
    first = fit(whole)
    found = {"seconds of 4 steps": time.perf_counter() - start}
    shutil.copytree(whole, cut)
    (cut / "checkpoints" / "step-0000004.pt").unlink()
    second = fit(cut, resume=True)
    found["equal"] = all(torch.equal(first[name], second[name]) for name in first)
    worst = max(relative(second[name], first[name]) for name in first if bool(first[name].any()))
    at_most("resumed weights against those of one go", worst, 1e-3)  # backward passes of cuDNN may add in any order
    return found


ITEMS: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    versions, tiny_family, step_error, waits, speed, autoencoder, evaluation, equality, out_of_memory, offload,
    metric_models, training,
)  # fmt: skip


# Report ---------------------------------------------------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """Leave progress and warnings of the libraries out."""
    before, progress.show_progress = progress.show_progress, False
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        progress.show_progress = before


def accept(bench: Bench, only: list[str]) -> list[dict[str, Any]]:
    """Run the items, print a line for each, and return them with their numbers."""
    lines, begun = [], time.monotonic()
    for item in ITEMS:
        if only and item.__name__ not in only:
            continue
        start = time.monotonic()
        line: dict[str, Any] = {"item": item.__name__, "verdict": "PASS"}
        try:
            if start - begun > SECONDS and not only:
                raise FailedError(f"not reached within {SECONDS} s")
            line["numbers"] = item(bench)
        except SkippedError as error:
            line |= {"verdict": "SKIP", "reason": str(error)}
        except Exception as error:  # one item's failure must not hide the others
            line |= {"verdict": "FAIL", "reason": f"{type(error).__name__}: {error}"}
        if bench.on_cuda:
            torch.cuda.empty_cache()
        line["seconds"] = time.monotonic() - start
        lines.append(line)
        shown = line.get("reason") or ", ".join(f"{k} {_short(v)}" for k, v in line["numbers"].items())
        print(f"{line['verdict']}  {item.__name__}: {shown}  [{line['seconds']:.1f} s]", flush=True)
    return lines


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu together with --tiny")
    parser.add_argument("--tiny", action="store_true", help="small networks: shows that this script works")
    parser.add_argument("--only", nargs="+", default=[], choices=[item.__name__ for item in ITEMS])
    parser.add_argument("--json", type=Path, help="file to write")
    told = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, quiet():
        lines = accept(Bench(choose_device(told.device), told.tiny, Path(folder)), told.only)
    if told.json:
        told.json.write_text(
            json.dumps({"device": told.device, "tiny": told.tiny, "items": lines}, indent=1, default=str) + "\n"
        )
    failed = [line["item"] for line in lines if line["verdict"] == "FAIL"]
    print(
        f"{len(lines) - len(failed)} of {len(lines)} items without failure{': ' if failed else ''}{', '.join(failed)}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
