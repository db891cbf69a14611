"""Any inpainting pipeline of the installed diffusers, called as a user would call it, at its own recommended settings.

A pipeline has its own class, scheduler and kind of guidance (classifier-free, distilled, "true"), so guidance numbers
of two of them say nothing side by side. Strength is 1.0 wherever the class takes one: below it, latents of the picture,
hole included, are mixed into the start. diffusers' defaults are 0.6 to 0.9999; the model card of SDXL inpainting
prefers 0.99 for sharpness.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from baselines.diffusion import PLACE, asked_speed, refuse_idle, refused
from baselines.presets import find_branch, hashes_of
from brushbench.devices import choose_device, choose_dtype
from brushbench.errors import UsageError, WeightsError
from brushbench.types import JSON, Capabilities, InpaintRequest
from brushnet.acceleration import Speed, prepare_denoiser, prepare_unet

__all__ = ["FACTS", "DiffusersPipeline", "Facts", "FluxFill", "SdxlInpainting", "pipeline_class"]


@dataclass(frozen=True)
class Facts:
    """What is particular about a pipeline class. Steps and guidance are those that its documentation recommends.

    Attributes:
        kind: how it knows what to keep.
        steps: denoising steps.
        guidance: its weight.
        guided_by: the argument that takes it.
        negative: what stands for no negative prompt; False: it reads none at these settings.
        multiple: what height and width must be divisible by.
        native: height and width that its weights were trained for, pixels.
        batch: requests at once.
        cuda: the dtype that ``auto`` means on CUDA.
    """

    kind: str
    steps: int
    guidance: float
    guided_by: str = "guidance_scale"
    negative: str | Literal[False] | None = None
    multiple: int = 16
    native: int = 1024
    batch: int = 1
    cuda: str = "bfloat16"


CHANNELS = "hole and masked picture as channels (latent blending with a four-channel U-Net)"
BLENDING = "latent blending on a text-to-image model"
REFERENCE = "the picture as reference, and latent blending"

FACTS: Mapping[str, Facts] = {
    "StableDiffusionInpaintPipeline": Facts(CHANNELS, 50, 7.5, multiple=8, native=512, batch=4, cuda="float16"),
    "StableDiffusionXLInpaintPipeline": Facts(CHANNELS, 50, 7.5, multiple=8, batch=4, cuda="float16"),
    "FluxFillPipeline": Facts("hole and masked picture as packed channels", 50, 30.0, negative=False, batch=4),
    "FluxInpaintPipeline": Facts(BLENDING, 28, 7.0, negative=False),
    "FluxKontextInpaintPipeline": Facts(REFERENCE, 28, 3.5, negative=False),
    "Flux2KleinInpaintPipeline": Facts(REFERENCE, 50, 8.0, negative=False),
    "ChromaInpaintPipeline": Facts(BLENDING, 28, 7.0),
    "StableDiffusion3InpaintPipeline": Facts(BLENDING, 50, 7.0, batch=4),
    # Without a negative prompt there is no true guidance; a blank is what the model card writes.
    "QwenImageInpaintPipeline": Facts(BLENDING, 50, 4.0, guided_by="true_cfg_scale", negative=" "),
    "QwenImageEditInpaintPipeline": Facts(REFERENCE, 50, 4.0, guided_by="true_cfg_scale", negative=" "),
    "ZImageInpaintPipeline": Facts(BLENDING, 50, 5.0),
    # Blends with the first picture of a batch alone.
    "KandinskyV22InpaintCombinedPipeline": Facts(CHANNELS, 100, 4.0, multiple=64, native=768, cuda="float16"),
}

# Classes that cannot be asked for one picture by prompt, picture and hole, and why.
REFUSED: Mapping[str, str] = {
    "StableDiffusion3ControlNetInpaintingPipeline": "it draws from the global generator, so no sample has its own seed",
    "QwenImageControlNetInpaintPipeline": "it draws from the global generator, so no sample has its own seed",
    "KandinskyInpaintPipeline": "it takes image embeddings; KandinskyV22InpaintCombinedPipeline makes its own",
    "KandinskyV22InpaintPipeline": "it takes image embeddings; KandinskyV22InpaintCombinedPipeline makes its own",
    "IFInpaintingSuperResolutionPipeline": "it enlarges the result of another pipeline",
}


def pipeline_class(name: str) -> Any:
    """Return an inpainting pipeline class of the installed diffusers; nothing else is imported.

    Raises:
        UsageError: no such class, or one that takes more than prompt, picture and hole.
    """
    import diffusers

    known = sorted(n for n in dir(diffusers) if n.endswith("Pipeline") and ("Inpaint" in n or "Fill" in n))
    if name not in known:
        raise UsageError(f"diffusers has no inpainting pipeline {name!r}. It has {', '.join(known)}.")
    if name in REFUSED:
        raise UsageError(f"{name} cannot be run here: {REFUSED[name]}.")
    cls = getattr(diffusers, name)
    takes = inspect.signature(cls.__call__).parameters
    lacks = [argument for argument in ("prompt", "image", "mask_image", "generator") if argument not in takes]
    wants = [argument for argument in ("control_image", "original_image", "image_embeds") if argument in takes]
    if lacks or wants or not issubclass(cls, diffusers.DiffusionPipeline):
        problem = f"takes no {lacks[0]}" if lacks else f"asks for {wants[0] if wants else 'other things'} besides"
        raise UsageError(f"{name} cannot be run here: it {problem}; expected prompt, image, mask_image and generator.")
    return cls


def facts_of(cls: Any) -> Facts:
    """Return what is known of a class; of one that is not in the table, its signature's own defaults."""
    if cls.__name__ in FACTS:
        return FACTS[cls.__name__]
    takes = inspect.signature(cls.__call__).parameters
    default = {name: parameter.default for name, parameter in takes.items()}
    negative: Literal[False] | None = None if "negative_prompt" in takes else False
    return Facts("not in our table", default["num_inference_steps"], default["guidance_scale"], negative=negative)


@dataclass(eq=False)
class DiffusersPipeline:
    """Generate by an inpainting pipeline class of the installed diffusers.

    Args:
        class_: name of the class, written ``class=``: ``FluxFillPipeline`` and so on.
        model: folder or hub id of the saved pipeline.
        steps: denoising steps; None takes what the class recommends.
        guidance: weight of its own kind of guidance; None takes what the class recommends.
        strength: share of the noise that the start has, where the class takes one.
        size: ``own`` works at each picture's own size; ``native`` brings its shorter side to the size that the model
            was trained for, and the result back.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``.
        speed: ``published``, or names of :mod:`brushnet.acceleration` joined by ``+``: ``exact``, ``bf16``,
            ``compiled`` …; ``guidance-2`` and ``deep-2`` where the class has a stock U-Net. What does nothing on the
            class, or cannot work on it, is refused.

    Raises:
        UsageError: a class that cannot be run here, or invalid settings.
        MissingWeightsError: no model there; says how to get it.
        WeightsError: a model of another class.
    """

    class_: str
    model: str = field(metadata=PLACE)
    steps: int | None = None
    guidance: float | None = None
    strength: float = 1.0
    size: Literal["own", "native"] = "own"
    device: str = field(default="auto", metadata=PLACE)
    dtype: str = "auto"
    speed: str = "published"

    def __post_init__(self) -> None:
        """Check the options, load the pipeline."""
        cls = pipeline_class(self.class_)
        self.facts = facts_of(cls)
        self.steps = self.facts.steps if self.steps is None else self.steps
        self.guidance = self.facts.guidance if self.guidance is None else self.guidance
        if not 1 <= self.steps <= 1000 or not 0 < self.strength <= 1 or not np.isfinite(self.guidance):
            raise UsageError(
                f"steps is {self.steps}, strength {self.strength} and guidance {self.guidance}; expected 1 to 1000 "
                "steps, a strength above 0 and up to 1, and a finite guidance."
            )
        self.acceleration = asked_speed(self.speed, self.class_, self.dtype, self.guidance)
        self.takes = inspect.signature(cls.__call__).parameters
        self.folder = find_branch(
            "sd15", self.class_, self.model, holds=("model_index.json",), what=f"model for {self.class_}",
            option="model", advice="A gated model asks you to accept its licence on its page and to log in first.",
        )  # fmt: skip
        device = choose_device(self.device)
        self.pipe = self._load(cls, self._dtype(device)).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser = self._denoiser()
        self.capabilities = Capabilities(
            text=True,
            negative_prompt=self.facts.negative is not False,
            batch=self.facts.batch,
            native_size=self.facts.native if self.size == "native" else None,
            multiple=self.facts.multiple,
            background="latent-blend" if self.facts.kind == BLENDING else "free",
        )

    def _dtype(self, device: torch.device) -> torch.dtype:
        """Return the dtype of all networks.

        Raises:
            UsageError: ``speed`` asks for the one that they have here anyway.
        """
        auto = self.facts.cuda if device.type == "cuda" else "float32"
        if self.acceleration.dtype == auto:
            raise UsageError(
                f"speed={self.speed}: {self.class_} computes in {auto} on {device.type} anyway. Leave it out."
            )
        asked = self.acceleration.dtype or self.dtype
        return choose_dtype(auto if asked == "auto" else asked, device)

    def _denoiser(self) -> Any:
        """Return the network that runs in every step, with what ``speed`` asks of it switched on.

        Raises:
            UsageError: something that does nothing on it, or cannot work on it.
        """
        network = self.pipe.components.get("unet") or self.pipe.components.get("transformer")
        if self.acceleration == Speed():
            return network
        if network is None:
            raise UsageError(f"speed={self.speed}: {self.class_} has no unet and no transformer. Leave it out.")
        is_stock_unet = type(network).__name__ == "UNet2DConditionModel"
        if self.acceleration.approximate and not is_stock_unet:
            raise UsageError(
                f"speed={self.speed}: {', '.join(self.acceleration.approximate)} work on a UNet2DConditionModel, and "
                f"{self.class_} has a {type(network).__name__}. Leave them out."
            )
        with refused():
            (prepare_unet if is_stock_unet else prepare_denoiser)(network, self.acceleration)
        return network

    def _load(self, cls: Any, dtype: torch.dtype) -> Any:
        """Return the pipeline, without safety checker and watermark: a blackened picture is no answer."""
        parts = inspect.signature(cls.__init__).parameters
        off = {"safety_checker": None, "requires_safety_checker": False, "add_watermarker": False}
        try:
            return cls.from_pretrained(
                self.folder, dtype=dtype, **{name: value for name, value in off.items() if name in parts}
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(f"{self.folder} does not load as {cls.__name__}: {error}") from error

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the SHA-256 of all weights."""
        speed: dict[str, JSON] = {} if self.acceleration == Speed() else {"speed": str(self.acceleration)}
        return {
            **speed,
            "method": f"diffusers.{self.class_}",
            "kind": self.facts.kind,
            "steps": self.steps,
            "guidance": self.guidance,
            "guided_by": self.facts.guided_by,
            "strength": self.strength if "strength" in self.takes else None,
            "scheduler": type(self.pipe.scheduler).__name__,
            "dtype": str(self.pipe.dtype).removeprefix("torch."),
            "weights": hashes_of(self.folder),
        }

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Image.Image]:
        """Return one picture per request.

        Raises:
            UsageError: the class drew random numbers without the samples' generators, or ``speed`` left nothing out.
        """
        height, width = requests[0].image.shape[:2]
        negative = [request.negative_prompt or self.facts.negative or "" for request in requests]
        asked: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "negative_prompt": negative if any(negative) else None,
            "image": [Image.fromarray(request.image) for request in requests],
            "mask_image": [Image.fromarray(request.hole.astype(np.uint8) * 255) for request in requests],
            "height": height,
            "width": width,
            "strength": self.strength,
            "num_inference_steps": self.steps,
            self.facts.guided_by: self.guidance,
            "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            "output_type": "pil",
        }
        speed = self.acceleration.at_work(self.denoiser, (), len(requests))
        with no_global_draws(self.class_), speed as left_out:
            result = self.pipe(**{name: value for name, value in asked.items() if name in self.takes})
        refuse_idle(self.acceleration, left_out, self.steps)
        pictures: list[Image.Image] = result.images
        return pictures


@contextmanager
def no_global_draws(name: str) -> Iterator[None]:
    """Refuse a call that draws from torch's global generators: its pictures would depend on what ran before.

    Raises:
        UsageError: it did; the generators are put back.
    """
    with torch.random.fork_rng():
        before = _states()
        yield
        drawn = any(not torch.equal(old, new) for old, new in zip(before, _states(), strict=True))
    if drawn:
        raise UsageError(
            f"{name} drew random numbers without the samples' own generators, so its pictures cannot be repeated. "
            "Save the model with a deterministic scheduler, or choose another class."
        )


def _states() -> list[torch.Tensor]:
    """Return the states of torch's global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *cuda]


@dataclass(eq=False)
class SdxlInpainting(DiffusersPipeline):
    """Generate by Stable Diffusion XL Inpainting, nine channels, at 1024 pixels.

    Args:
        model: folder or hub id of the saved pipeline.

    The other options are those of :class:`DiffusersPipeline`.
    """

    class_: str = field(default="StableDiffusionXLInpaintPipeline", init=False)
    model: str = field(default="diffusers/stable-diffusion-xl-1.0-inpainting-0.1", metadata=PLACE)
    size: Literal["own", "native"] = "native"


@dataclass(eq=False)
class FluxFill(DiffusersPipeline):
    """Generate by FLUX.1 Fill, at 1024 pixels. The weights are gated and not for commercial use.

    Args:
        model: folder or hub id of the saved pipeline.

    The other options are those of :class:`DiffusersPipeline`.
    """

    class_: str = field(default="FluxFillPipeline", init=False)
    model: str = field(default="black-forest-labs/FLUX.1-Fill-dev", metadata=PLACE)
    size: Literal["own", "native"] = "native"
