"""The two pipelines, and ``attach`` to stock ones, on the pretended GPU: against float32 on the CPU."""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from baselines.presets import SCHEDULERS, make_scheduler
from brushnet import attach, encode_conditioning
from brushnet.conditioning import draw_noise
from tests.brushnet import tiny_pipelines
from tests.emulated_cuda.device import Wait, gpus, waits
from tests.emulated_cuda.report import MOST, DefectError, check, demand, distance, short

__all__ = ["Tiny", "attachments", "emulation", "options", "schedulers", "step_waits"]


def emulation() -> str:
    """The pretended device keeps CUDA's rules."""
    with gpus():
        a = torch.tensor([1.0, 2.0], device="cuda")
        for wrong in (
            lambda: a + torch.ones(2), lambda: torch.cat([a, torch.ones(2)]),
            lambda: a + torch.ones(2, device="cuda:1"),
            lambda: torch.randn(2, device="cuda", generator=torch.Generator()), lambda: torch.ones(2)[a.long() > 0],
            lambda: torch.nn.Linear(2, 2)(a), lambda: a.to("cuda:9"),
        ):  # fmt: skip
            try:
                wrong()
            except RuntimeError:
                continue
            raise DefectError("the emulation let a forbidden operation pass")
        try:
            np.asarray(a)
        except TypeError:
            pass
        else:
            raise DefectError("the emulation gave a CUDA tensor to numpy")
        with waits() as seen:
            assert float(a.sum()) == 3.0
            assert torch.equal(a, a)
            assert a[a > 1].tolist() == [2.0]
        assert [kind for kind, *_ in seen] == [".item()", "torch.equal", "boolean index", "copy to the host"], seen
    return ""


class Tiny:
    """The tests' pipelines with random weights, and a call of them."""

    def __init__(self) -> None:
        self.kit = tiny_pipelines
        self.makers = {"sd": tiny_pipelines.make_pipe, "sdxl": tiny_pipelines.make_xl_pipe}
        self.picture, self.hole = tiny_pipelines.make_picture()
        self.image, self.mask = PIL.Image.fromarray(self.picture), PIL.Image.fromarray(self.hole)
        self.known: dict[tuple[str, str], torch.Tensor] = {}

    def make(self, family: str, dtype: torch.dtype = torch.float16, vae: torch.dtype | None = None) -> Any:
        pipe = self.makers[family]()
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                part.to(dtype=vae if name == "vae" and vae else dtype)
        return pipe

    def call(self, pipe: Any, **changes: Any) -> Any:
        seeds = [self.kit.generator(1), self.kit.generator(2)]
        options = {
            "prompt": ["ab", "c"], "image": [self.image] * 2, "mask": [self.mask] * 2, "num_inference_steps": 4,
            "guidance_scale": 5.0, "generator": seeds, "output_type": "pt",
        }  # fmt: skip
        return pipe(**{**options, **changes}).images

    def expected(self, family: str, output: str = "pt") -> torch.Tensor:
        if (family, output) not in self.known:
            self.known[family, output] = self.call(self.makers[family](), output_type=output)
        return self.known[family, output]


def step_waits(
    tiny: Tiny, family: str, name: str, dtype: torch.dtype = torch.float16, **options: Any
) -> tuple[torch.Tensor, list[Wait]]:
    """Return the latents of a call on the GPU, and where the host waits in its third step."""
    marks: list[int] = []
    with gpus(), waits() as seen:
        pipe = tiny.make(family, dtype, vae=torch.float32)
        pipe.scheduler = make_scheduler(name, pipe.scheduler)
        pipe.to("cuda")

        def after_step(*_: object) -> dict[str, object]:
            marks.append(len(seen))
            return {}

        options = {"num_inference_steps": 6, "output_type": "latent", "callback_on_step_end": after_step, **options}
        ours = tiny.call(pipe, **options)
    return ours, seen[marks[1] : marks[2]]


def schedulers(tiny: Tiny, show_waits: bool) -> None:
    """Every scheduler in every dtype, with what makes the host wait in one step of the loop: nothing of our own."""

    def one(family: str, name: str, dtype: torch.dtype) -> str:
        plain = tiny.makers[family]()
        plain.scheduler = make_scheduler(name, plain.scheduler)
        reference = tiny.call(plain, num_inference_steps=6, output_type="latent")
        ours, step = step_waits(tiny, family, name, dtype)
        with gpus():
            told = demand(distance(ours, reference), MOST[dtype])
        if show_waits:
            for wait, n in collections.Counter(step).items():
                print(f"            {n} x {wait.kind} at {wait.place}")
        if own := [wait for wait in step if wait.is_own]:
            raise DefectError(f"the host waits in a step: {own}")
        return f"{told}; waits in a step: none of ours, {len(step)} of diffusers'"

    for family, name, dtype in itertools.product(tiny.makers, SCHEDULERS, MOST):
        check(f"pipeline {family}, {name}, {short(dtype)}", functools.partial(one, family, name, dtype))


def inputs_and_outputs(tiny: Tiny, family: str) -> None:
    """Pictures, masks, noise and outputs in their forms, in half precision."""

    def on_gpu(dtype: torch.dtype = torch.float16, **changes: Any) -> str | None:
        with gpus():
            moved = {
                k: v.to("cuda") if isinstance(v, torch.Tensor) and k != "latents" else v for k, v in changes.items()
            }
            ours = tiny.call(tiny.make(family, dtype).to("cuda"), **moved)
            output = str(changes.get("output_type", "pt"))
            if output in ("pt", "latent") and set(changes) <= {"image", "mask", "output_type"}:
                return demand(distance(ours, tiny.expected(family, output)), 4 * MOST[dtype])
            if isinstance(ours, torch.Tensor) and not bool(torch.isfinite(ours.cpu()).all()):
                raise DefectError("NaN or infinity")
            return None

    pixels = torch.from_numpy(tiny.picture).permute(2, 0, 1)
    holes = torch.from_numpy(tiny.hole)[None].float()
    cases: dict[str, dict[str, Any]] = {
        **{f"output {kind}": {"output_type": kind} for kind in ("pil", "np", "pt", "latent")},
        "picture and mask on the GPU": {"image": pixels, "mask": holes},
        "picture on the GPU, mask in PIL": {"image": pixels, "mask": tiny.mask},
        "picture in PIL, mask on the GPU": {"image": tiny.image, "mask": holes},
        "given noise on the CPU": {"latents": torch.randn(2, 4, 4, 4, generator=tiny.kit.generator(3))},
        "posterior drawn from CPU generators": {"sample_posterior": True},
        "guess mode": {"guess_mode": True},
        "scale 0": {"brushnet_conditioning_scale": 0.0},
        "no guidance": {"guidance_scale": 1.0},
        "eta": {"eta": 0.5},
        "clip_skip": {"clip_skip": 1},
    }
    for name, changes in cases.items():
        check(f"pipeline {family}, {name}", functools.partial(on_gpu, **changes))
    check(f"pipeline {family}, output pil in bfloat16", functools.partial(on_gpu, torch.bfloat16, output_type="pil"))

    def ready(on_cpu: bool) -> str:
        with gpus():
            pipe = tiny.make(family).to("cuda")
            rows = encode_conditioning(pipe.vae, tiny.image, tiny.mask, batch_size=2)
            ours = tiny.call(pipe, image=None, mask=None, conditioning_latents=rows.cpu() if on_cpu else rows)
            return demand(distance(ours, tiny.expected(family)), 4e-2)

    for on_cpu in (False, True):
        title = f"pipeline {family}, ready conditioning on the {'CPU' if on_cpu else 'GPU'}"
        check(title, functools.partial(ready, on_cpu))


FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float16}


def _upcast(pipe: Any) -> Any:
    pipe.vae.register_to_config(force_upcast=True)
    return pipe.to("cuda")


def _offload_branch(pipe: Any) -> Any:
    pipe.to("cuda").brushnet.enable_group_offload(
        onload_device=torch.device("cuda"), offload_device=torch.device("cpu"), offload_type="block_level",
        num_blocks_per_group=1,
    )  # fmt: skip
    return pipe


def _channels_last(pipe: Any) -> Any:
    pipe.to("cuda")
    for network in (pipe.unet, pipe.brushnet):
        network.to(memory_format=torch.channels_last)
    return pipe


def _switched(part: str, method: str, **how: Any) -> Callable[[Any], Any]:
    """Return what calls a method of a pipeline, or of a part of it, and moves the pipeline unless it is offloaded."""

    def change(pipe: Any) -> Any:
        getattr(getattr(pipe, part) if part else pipe, method)(**how)
        return pipe if method.endswith("offload") else pipe.to("cuda")

    return change


SWITCHES: dict[str, Callable[[Any], Any]] = {
    "float16 VAE that must be upcast": _upcast,
    "branch in float32 beside float16": lambda pipe: (pipe.brushnet.to(dtype=torch.float32), pipe.to("cuda"))[1],
    "model offload": _switched("", "enable_model_cpu_offload"),
    "model offload to cuda:1": _switched("", "enable_model_cpu_offload", gpu_id=1),
    "sequential offload": _switched("", "enable_sequential_cpu_offload"),
    "group offload of the branch": _offload_branch,
    "float8 storage of the branch": _switched("brushnet", "enable_layerwise_casting", **FP8),
    "attention slicing": _switched("", "enable_attention_slicing"),
    "fused projections": _switched("", "fuse_qkv_projections"),
    "channels last": _channels_last,
}


def options(tiny: Tiny) -> None:
    """Inputs, outputs and switches of the two pipelines on a GPU in half precision."""

    def changed(family: str, change: Callable[[Any], Any]) -> str:
        with gpus():
            return demand(distance(tiny.call(change(tiny.make(family))), tiny.expected(family)), 4e-2)

    for family in tiny.makers:
        inputs_and_outputs(tiny, family)
        group = _switched("", "enable_group_offload", onload_device=torch.device("cuda"), offload_type="leaf_level")
        for name, change in {**SWITCHES, "group offload of all parts": group}.items():
            check(f"pipeline {family}, {name}", functools.partial(changed, family, change))


def attachments(tiny: Tiny) -> None:
    """``attach`` to stock pipelines on a GPU."""

    def stock(family: str) -> Any:
        parts = dict(tiny.make(family).components)
        branch = parts.pop("brushnet")
        if family == "sdxl":
            pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
        else:
            pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe, branch

    def one(family: str, place: Callable[[Any, Any], Any]) -> str:
        with gpus():
            pipe, branch = stock(family)
            place(pipe, branch)
            # Stock pipelines draw in the U-Net's dtype, which gives other numbers from release to release of torch.
            noise = draw_noise((2, 4, 4, 4), [tiny.kit.generator(1), tiny.kit.generator(2)]).half()
            with attach(pipe, branch, image=tiny.image, mask=tiny.mask):
                ours = pipe(
                    prompt=["ab", "c"], num_inference_steps=4, guidance_scale=5.0, output_type="pt", height=32,
                    width=32, latents=noise,
                ).images  # fmt: skip
            return demand(distance(ours, tiny.expected(family)), 4e-2)

    places: dict[str, Callable[[Any, Any], Any]] = {
        "both on the GPU": lambda p, b: (p.to("cuda"), b.to("cuda")),
        "base offloaded as models": lambda p, b: (p.enable_model_cpu_offload(), b.to("cuda")),
        "base offloaded by layers": lambda p, b: (p.enable_sequential_cpu_offload(), b.to("cuda")),
        "branch stored in float8": lambda p, b: (p.to("cuda"), b.enable_layerwise_casting(**FP8), b.to("cuda")),
        "branch offloaded in groups": lambda p, b: (
            p.to("cuda"), b.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level"),
        ),
    }  # fmt: skip
    for family, (name, place) in itertools.product(tiny.makers, places.items()):
        check(f"attach {family}, {name}", functools.partial(one, family, place))
