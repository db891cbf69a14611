"""What every method on a Stable Diffusion U-Net shares: options, weights, start noise, identity.

A method is a dataclass that adds fields, its own options, and one method, :meth:`DiffusionInpainter.latents`::

    @dataclass(eq=False)
    class Plain(DiffusionInpainter):
        method = "text to image, the hole is not looked at"

        def latents(self, batch: Batch) -> Tensor:
            return self.run(self.pipe, batch, height=batch.height, width=batch.width)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from baselines.latents import decode_scaled, load_single_file, load_vae, vae_factor
from baselines.presets import (
    PARTS,
    describe_base,
    find_base,
    make_scheduler,
    preset_named,
    reads_pooled_text,
    variant_of,
)
from brushbench.devices import choose_device, choose_dtype
from brushbench.errors import UsageError
from brushbench.stock import loading
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture
from brushnet.acceleration import Speed, prepare_unet
from brushnet.conditioning import draw_noise

__all__ = ["PLACE", "Batch", "DiffusionInpainter", "asked_speed", "load_base", "refuse_idle", "refused"]

BATCH = 16  # requests at once, unless a method knows better
PLACE: Mapping[str, bool] = {"place": True}  # metadata of an option that says where something is: no part of identity


@contextmanager
def refused() -> Iterator[None]:
    """Make what :mod:`brushnet.acceleration` refuses an error of the command line."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None


def asked_speed(
    text: str, name: str, dtype: str, guidance: float | None, has_branch: bool = False, needs_grad: bool = False
) -> Speed:
    """Return what the option ``speed`` asks for.

    Args:
        text: the option.
        name: of the method, for messages.
        dtype: its option.
        guidance: its option.
        has_branch: whether a network runs beside the U-Net.
        needs_grad: whether every step is differentiated.

    Raises:
        UsageError: an unknown name, or something that does nothing on this method or is wrong for it.
    """
    with refused():
        wanted = Speed.parse(text)
    if wanted.dtype and dtype not in ("auto", wanted.dtype):
        raise UsageError(f"speed={text} computes in {wanted.dtype}, and dtype={dtype}. Leave one out.")
    if "branch" in wanted.intervals and not has_branch:
        raise UsageError(f"speed={text}: {name} has no branch that could rest. Leave branch-… out.")
    if "guidance" in wanted.intervals and (guidance or 0) <= 1:
        raise UsageError(f"speed={text}: with guidance={guidance} there is none. Leave guidance-… out.")
    if wanted.approximate and needs_grad:
        raise UsageError(f"speed={text}: {name} needs the gradient of every step. Leave {wanted} out.")
    return wanted


def refuse_idle(speed: Speed, left_out: Mapping[str, int], steps: int | None) -> None:
    """Refuse images of which nothing was left out.

    Args:
        speed: what was asked for.
        left_out: how often the work of each name was.
        steps: the method's.

    Raises:
        UsageError: the work of a name was never left out.
    """
    idle = [name for name in speed.approximate if not left_out.get(name)]
    if idle:
        raise UsageError(
            f"speed={speed}: {', '.join(idle)} left nothing out with steps={steps}. Leave it out, or take more steps."
        )


def load_base(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a saved pipeline as a stock text-to-image pipeline, without safety checker and watermark.

    Args:
        folder: from :func:`~baselines.presets.find_base`.
        device: where it goes.
        dtype: of U-Net and text encoders; the autoencoder is float32.

    Returns:
        ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, its networks in evaluation mode and frozen.

    Raises:
        WeightsError: the folder cannot be loaded.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    vae = load_vae(folder, device)
    cls, more = StableDiffusionPipeline, {"safety_checker": None, "requires_safety_checker": False}
    if reads_pooled_text(folder):
        cls, more = StableDiffusionXLPipeline, {"add_watermarker": False}
    if folder.is_file():
        pipe = load_single_file(cls, folder, dtype, vae=vae, **more)
    else:
        with loading(folder, "a Stable Diffusion pipeline"):
            pipe = cls.from_pretrained(folder, vae=vae, dtype=dtype, variant=variant_of(folder), **more)
    for name in PARTS:
        part = getattr(pipe, name, None)
        if part is not None:
            part.to(device).requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Batch:
    """Requests of one size and one split, stacked.

    Attributes:
        pictures: uint8 (B, H, W, 3) RGB, the hole grey 127; H and W are divisible by the method's ``multiple``.
        holes: bool (B, H, W), True = repaint.
        prompts: B texts.
        negative_prompts: B texts, or None if no request has one: SDXL reads none as zeros, not as empty text.
        noise: float32 (B, 4, h, w) on the CPU, standard normal: each sample's own start noise, the same for every
            method whose latents have this size.
        generators: B CPU generators, each seeded with its sample's own seed, from which ``noise`` was drawn first.
        split: ``inside`` | ``outside`` | ``brush``, or the benchmark's own.
    """

    pictures: npt.NDArray[np.uint8]
    holes: npt.NDArray[np.bool_]
    prompts: list[str]
    negative_prompts: list[str] | None
    noise: Tensor
    generators: list[torch.Generator]
    split: str

    @classmethod
    def of(cls, requests: Sequence[InpaintRequest], factor: int, multiple: int) -> Batch:
        """Stack requests.

        Args:
            requests: of one split and one size, all with a negative prompt or all without.
            factor: pixels that a latent spans along a side.
            multiple: what height and width must be divisible by.

        Raises:
            UsageError: requests that do not go together; :class:`brushbench.evaluation.sources.Method` groups them.
        """
        kinds = {(request.image.shape, request.split, bool(request.negative_prompt)) for request in requests}
        height, width = requests[0].image.shape[:2]
        if len(kinds) > 1 or height % multiple or width % multiple:
            raise UsageError(
                f"Got requests of {height} x {width} pixels and {len(kinds)} kinds; a call takes one size, divisible "
                f"by {multiple}, one split, and negative prompts for all or none. "
                "brushbench.evaluation.sources.Method(inpainter).ask(requests) sees to that."
            )
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        negative = [request.negative_prompt for request in requests]
        return cls(
            pictures=np.stack([request.image for request in requests]),
            holes=np.stack([request.hole for request in requests]),
            prompts=[request.prompt for request in requests],
            negative_prompts=negative if any(negative) else None,
            noise=draw_noise((len(requests), 4, height // factor, width // factor), generators),
            generators=generators,
            split=requests[0].split,
        )

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pictures.shape[1])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pictures.shape[2])


@dataclass(eq=False)
class DiffusionInpainter(ABC):
    """A method on a stock Stable Diffusion 1.x, 2.x or XL pipeline.

    Args:
        preset: ``tiny`` | ``sd15`` | ``sdxl``: base model and, unless given, steps and guidance.
        base: folder, single file (``.safetensors``) or hub id of a base model instead of the preset's.
        steps: denoising steps, 1 to 1000.
        guidance: weight of classifier-free guidance; up to 1 means none.
        scheduler: ``unipc`` | ``ddim`` | ``dpm++`` | ``euler`` | ``euler_a`` | ``pndm``.
        size: ``own`` works at each picture's own size; ``native`` brings its shorter side to the size that the base
            model was trained for, and the result back.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``, of U-Net and text encoders.
        speed: ``published``, ``exact``, ``fast``, or names joined by ``+``, such as ``branch-2+guidance-2``; see
            :mod:`brushnet.acceleration`. What does nothing on this method is refused.

    Raises:
        UsageError: invalid settings.
        MissingWeightsError: weights are not here; says how to get them.
        WeightsError: damaged weights.
    """

    preset: str = field(default="tiny", metadata=PLACE)
    base: str | None = field(default=None, metadata=PLACE)
    steps: int | None = None
    guidance: float | None = None
    scheduler: str = "unipc"
    size: Literal["own", "native"] = field(default="own", metadata=PLACE)  # recorded by the driver, which acts on it
    device: str = field(default="auto", metadata=PLACE)
    dtype: str = "auto"
    speed: str = field(default="published", metadata=PLACE)  # in describe() where it is another

    method: ClassVar[str]  # what it does, in words, for the run's identity
    background: ClassVar[Literal["exact", "latent-blend", "free"]] = "free"
    needs_grad: ClassVar[bool] = False
    has_branch: ClassVar[bool] = False  # a network beside the U-Net, run by hooks of it

    def __post_init__(self) -> None:
        """Check the options, load the weights."""
        self.steps, self.guidance = preset_named(self.preset).settings(self.steps, self.guidance)
        self.acceleration = asked_speed(
            self.speed, type(self).__name__, self.dtype, self.guidance, self.has_branch, self.needs_grad
        )
        device = choose_device(self.device)
        self.folder = find_base(self.preset, self.base)
        self.pipe: Any = self.load(device, choose_dtype(self.acceleration.dtype or self.dtype, device))
        with refused():
            prepare_unet(self.pipe.unet, self.acceleration)
        self.pipe.scheduler = make_scheduler(self.scheduler, self.pipe.scheduler)
        self.factor = vae_factor(self.pipe.vae)
        self.capabilities = Capabilities(
            text=True,
            negative_prompt=True,
            batch=BATCH,
            native_size=self.pipe.unet.config.sample_size * self.factor if self.size == "native" else None,
            multiple=self.multiple,
            needs_grad=self.needs_grad,
            background=self.background,
        )

    @property
    def multiple(self) -> int:
        """What height and width must be divisible by: the stock pipelines take multiples of 8 of any autoencoder."""
        return max(8, self.factor)

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the pipeline that runs; ``unet``, ``vae`` and ``scheduler`` are its own."""
        return load_base(self.folder, device, dtype)

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the SHA-256 of the base model. Where weights lie does not identify them."""
        settings = {
            option.name: getattr(self, option.name) for option in fields(self) if not option.metadata.get("place")
        }
        dtype = str(self.pipe.unet.dtype).removeprefix("torch.")
        speed: dict[str, JSON] = {} if self.acceleration == Speed() else {"speed": str(self.acceleration)}
        return {**settings, **speed, "method": self.method, "dtype": dtype, "weights": describe_base(self.folder)}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one picture per request.

        Raises:
            UsageError: requests of several sizes or splits, or of a size not divisible by ``capabilities.multiple``.
        """
        batch = Batch.of(requests, self.factor, self.multiple)
        with self.acceleration.at_work(self.pipe.unet, self.branches(batch), len(requests)) as left_out:
            latents = self.latents(batch)
        refuse_idle(self.acceleration, left_out, self.steps)
        return decode_scaled(self.pipe.vae, latents)

    def branches(self, batch: Batch) -> Sequence[nn.Module]:  # noqa: ARG002
        """Return the networks that run beside the U-Net for a batch; only where :attr:`has_branch` says so."""
        return ()

    @abstractmethod
    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""

    def run(self, pipe: Any, batch: Batch, **options: Any) -> Tensor:
        """Call a stock pipeline with the batch's texts, noise and generators, and this method's steps and guidance.

        Args:
            pipe: the pipeline.
            batch: what to make.
            **options: passed to the pipeline, which refuses those that it does not know.

        Returns:
            Scaled latents (B, 4, h, w).
        """
        shared = {
            "prompt": batch.prompts,
            "negative_prompt": batch.negative_prompts,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "generator": batch.generators,
            "latents": batch.noise.to(pipe.unet.device, pipe.unet.dtype),
            "output_type": "latent",
        }
        latents: Tensor = pipe(**{**shared, **options}).images
        return latents
