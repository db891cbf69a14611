"""Base models: where a preset's weights lie, how a stock pipeline is made of them, and what identifies them.

Shared by every method that runs on a Stable Diffusion U-Net. The autoencoder always computes in float32: it is a small
part of the time, and SDXL's overflows in float16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError, UnknownNameError, UsageError, WeightsError
from brushbench.types import JSON, Hole, InpaintRequest, Picture
from brushbench.weights import sha256_file
from brushnet.conditioning import vae_factor

__all__ = [
    "BATCH",
    "PRESETS",
    "SCHEDULERS",
    "Preset",
    "decode",
    "describe_base",
    "encode",
    "find_base",
    "in_batches",
    "load_base",
    "load_vae",
    "make_scheduler",
    "negative_prompts",
    "pad_to_multiple",
    "preset_named",
    "reads_pooled_text",
    "vae_factor",
]

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
EMBEDDED = "data/"
BATCH = 16  # requests at once, unless a method knows better


@dataclass(frozen=True)
class Preset:
    """A family of weights.

    Attributes:
        base: where its base model is looked for, in order: an asset of this repository, or hub ids.
        side: height and width it was trained for, pixels.
        steps: denoising steps, unless told otherwise.
        guidance: weight of classifier-free guidance, unless told otherwise.
    """

    base: tuple[str, ...]
    side: int
    steps: int
    guidance: float

    def settings(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        """Return steps and guidance, its own where none are given.

        Raises:
            UsageError: no steps, or a guidance that is no finite number.
        """
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        if steps < 1:
            raise UsageError(f"steps is {steps}, expected at least 1.")
        if not math.isfinite(guidance):
            raise UsageError(f"guidance is {guidance}, expected a finite number; up to 1 means none.")
        return steps, guidance


PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(("data/tiny/base",), 64, 20, 4.0),  # the guidance that its model card measures it with
    "sd15": Preset(("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"), 512, 50, 7.5),
    "sdxl": Preset(("stabilityai/stable-diffusion-xl-base-1.0",), 1024, 50, 7.5),
}

# Scheduler by name: diffusers' class, and what is set beyond the base model's own configuration.
SCHEDULERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # The published pipeline's UniPC ends at the smallest sigma; stock diffusers would end at zero.
    "unipc": ("UniPCMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


def preset_named(name: str) -> Preset:
    """Return a preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


def find_base(preset: str = "tiny", base: str | Path | None = None) -> Path:
    """Return the local folder of a base model, a saved stock pipeline; a hub id is downloaded unless cached.

    Args:
        preset: a key of :data:`PRESETS`.
        base: a folder or a hub id (owner/name) instead of the preset's.

    Raises:
        UnknownNameError: no such preset.
        MissingWeightsError: nothing there; the message says where it was looked for.
    """
    places = (str(base),) if base else preset_named(preset).base
    reasons = []
    for place in places:
        try:
            folder = assets.path(place) if place.startswith(EMBEDDED) and not base else _local(place)
        except BrushbenchError as error:
            reasons.append(str(error))
            continue
        if (folder / "model_index.json").is_file():
            return folder
        reasons.append(f"{folder} holds no model_index.json")
    raise MissingWeightsError(
        f"No base model in {' or '.join(places)}: {'; '.join(reasons)}. Pass base=FOLDER, a folder that a stock "
        "diffusers pipeline was saved to."
    )


def _local(place: str) -> Path:
    """Return a folder as it is, and a hub id's snapshot."""
    folder = Path(place).expanduser()
    if folder.is_dir() or folder.is_absolute() or place.count("/") != 1 or place.startswith("."):
        return folder
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(place))
    except Exception as error:  # the hub, its transport and the file system each raise kinds of their own
        raise MissingWeightsError(f"{place} could not be had from the hub ({type(error).__name__})") from None


def reads_pooled_text(folder: Path) -> bool:
    """Say whether a saved pipeline is of the SDXL family: two text encoders, pooled text and sizes."""
    index = json.loads((folder / "model_index.json").read_text())
    return (index.get("text_encoder_2") or [None])[0] is not None


def load_base(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """Load a saved pipeline as a stock text-to-image pipeline, without safety checker and watermark.

    Args:
        folder: from :func:`find_base`.
        device: where it goes.
        dtype: of U-Net and text encoders; the autoencoder is float32.

    Returns:
        ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, its networks in evaluation mode and frozen.

    Raises:
        WeightsError: the folder cannot be loaded.
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    vae = load_vae(folder, device)
    try:
        if reads_pooled_text(folder):
            pipe = StableDiffusionXLPipeline.from_pretrained(folder, vae=vae, dtype=dtype, add_watermarker=False)
        else:
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, vae=vae, dtype=dtype, safety_checker=None, requires_safety_checker=False
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, "a Stable Diffusion pipeline", error) from error
    for name in PARTS:
        part = getattr(pipe, name, None)
        if part is not None:
            part.to(device).requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_vae(folder: Path, device: torch.device | str = "cpu") -> Any:
    """Load a saved pipeline's ``AutoencoderKL`` alone, in float32, frozen.

    Raises:
        WeightsError: it cannot be loaded.
    """
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(folder / "vae", "an AutoencoderKL", error) from error
    return vae.to(device).requires_grad_(False).eval()


def _unreadable(folder: Path, what: str, error: Exception) -> WeightsError:
    return WeightsError(f"{folder} does not load as {what}: {error}. Save it again with save_pretrained.")


def make_scheduler(name: str, base: Any) -> Any:
    """Return a fresh scheduler with the noise schedule of a base model.

    Args:
        name: a key of :data:`SCHEDULERS`.
        base: the base model's own scheduler.

    Raises:
        UnknownNameError: no such scheduler.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise UnknownNameError("scheduler", name, SCHEDULERS)
    cls, changes = SCHEDULERS[name]
    return getattr(diffusers, cls).from_config(base.config, **changes)


def describe_base(folder: Path) -> Mapping[str, JSON]:
    """Return what identifies a base model: the SHA-256 of every weight file. Where it lies does not."""
    return {
        part: {file.name: sha256_file(file) for file in _weight_files(folder / part)}
        for part in PARTS
        if (folder / part).is_dir()
    }


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    return files or sorted(folder.glob("*.bin"))


# ------------------------------------------------------------------------------------------------------------- pixels


@torch.no_grad()
def encode(vae: Any, pictures: Sequence[Picture]) -> Tensor:
    """Return the posterior's mode times the scaling factor.

    Args:
        vae: a float32 ``AutoencoderKL``.
        pictures: uint8 (H, W, 3) RGB of one size, divisible by the VAE's factor.

    Returns:
        float32 (B, 4, h, w) on the VAE's device.
    """
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(vae.device, torch.float32) / 127.5 - 1.0
    latents: Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> list[Picture]:
    """Return uint8 (H, W, 3) pictures from scaled latents (B, 4, h, w)."""
    pixels = vae.decode(latents.to(vae.device, torch.float32) / vae.config.scaling_factor).sample
    levels = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())


def pad_to_multiple(array: Picture | Hole, multiple: int) -> Any:
    """Return a picture or hole with its last row and column repeated until both sides are divisible."""
    height, width = array.shape[:2]
    margins = [(0, -height % multiple), (0, -width % multiple)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, margins, mode="edge")


def in_batches(items: Sequence[Any], work: Callable[[Sequence[Any]], list[Picture]]) -> list[Picture]:
    """Apply ``work`` to items that may share a batch of at most 16, and return its pictures in the items' order.

    Requests or samples of one picture size go together; those with and without a negative prompt never do: SDXL reads
    no negative prompt as zeros, not as empty text, and a picture must not depend on its neighbours.

    Args:
        items: of requests, or of samples.
        work: makes the pictures of one batch.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault((item.image.shape, bool(getattr(item, "negative_prompt", ""))), []).append(place)
    pictures: dict[int, Picture] = {}
    for places in groups.values():
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            pictures.update(zip(some, work([items[place] for place in some]), strict=True))
    return [pictures[place] for place in range(len(items))]


def negative_prompts(requests: Sequence[InpaintRequest]) -> list[str] | None:
    """Return the negative prompts of a batch of :func:`in_batches`; None if they have none."""
    texts = [request.negative_prompt for request in requests]
    return texts if any(texts) else None
