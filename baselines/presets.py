"""Presets: families of weights. Where they lie, what they run with, and what identifies them.

Imports no torch, so that the command line may read the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError, UnknownNameError, UsageError
from brushbench.types import JSON
from brushbench.weights import sha256_file

__all__ = [
    "PRESETS",
    "SCHEDULERS",
    "Preset",
    "describe_base",
    "find_base",
    "make_scheduler",
    "preset_named",
    "reads_pooled_text",
]

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
EMBEDDED = "data/"


@dataclass(frozen=True)
class Preset:
    """A family of weights. Places are looked in in order: an asset of this repository, or hub ids (mirrors).

    Attributes:
        base: places of the base model.
        branches: places of what runs beside it, by name; ``segmentation`` and ``random`` are BrushNet's.
        side: height and width that it was trained for, pixels.
        steps: denoising steps, unless told otherwise.
        guidance: weight of classifier-free guidance, unless told otherwise.
        benchmark: the benchmark that it goes with.
    """

    base: tuple[str, ...]
    branches: Mapping[str, tuple[str, ...]]
    side: int
    steps: int
    guidance: float
    benchmark: str

    def settings(self, steps: int | None, guidance: float | None) -> tuple[int, float]:
        """Return steps and guidance, its own where none are given.

        Raises:
            UsageError: no steps, or a guidance that is no finite number.
        """
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
            raise UsageError(f"steps is {steps!r}, expected a whole number from 1 to {MOST_STEPS}.")
        if not math.isfinite(guidance):
            raise UsageError(f"guidance is {guidance}, expected a finite number; up to 1 means none.")
        return steps, guidance


MOST_STEPS = 1000  # the noise levels that Stable Diffusion is trained with

PRESETS: Mapping[str, Preset] = {
    "tiny": Preset(
        base=("data/tiny/base",),
        branches={"segmentation": ("data/tiny/brushnet_segmentation",), "random": ("data/tiny/brushnet_random",)},
        side=64,
        steps=20,
        guidance=4.0,  # what its model card measures it with
        benchmark="shapes",
    ),
    "sd15": Preset(
        base=("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
        branches={"segmentation": ("Sanster/brushnet_segmentation_mask",), "random": ("Sanster/brushnet_random_mask",)},
        side=512,
        steps=50,
        guidance=7.5,
        benchmark="brushbench",
    ),
    "sdxl": Preset(
        base=("stabilityai/stable-diffusion-xl-base-1.0",),
        branches={"segmentation": (), "random": ()},
        side=1024,
        steps=50,
        guidance=7.5,
        benchmark="brushbench",
    ),
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
        raise MissingWeightsError(f"{place} could not be downloaded from the hub ({type(error).__name__})") from None


def reads_pooled_text(folder: Path) -> bool:
    """Say whether a saved pipeline is of the SDXL family: two text encoders, pooled text and sizes."""
    index = json.loads((folder / "model_index.json").read_text())
    return (index.get("text_encoder_2") or [None])[0] is not None


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
