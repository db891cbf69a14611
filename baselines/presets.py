"""Presets: families of weights. Where they lie, what they run with, and what identifies them.

Imports no torch, so that the command line may read the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError, UnknownNameError, UsageError
from brushbench.types import JSON
from brushbench.weights import find_place, sha256_file

__all__ = [
    "PRESETS",
    "SCHEDULERS",
    "Preset",
    "describe_base",
    "find_base",
    "find_branch",
    "hashes_of",
    "make_scheduler",
    "preset_named",
    "reads_pooled_text",
    "single_file_config",
    "variant_of",
]

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
EMBEDDED = "data/"
TRAINED_HERE = ("sd-inpainting", "controlnet", "powerpaint")  # by ``brushbench train tiny``, beside BrushNet


@dataclass(frozen=True)
class Preset:
    """A family of weights. Places are looked in in order: an asset of this repository, or hub ids (mirrors).

    Attributes:
        base: places of the base model.
        branches: places of what runs beside it, by name; ``segmentation`` and ``random`` are BrushNet's, the others are
            named after their methods.
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
        branches={
            "segmentation": ("data/tiny/brushnet_segmentation",),
            "random": ("data/tiny/brushnet_random",),
            "sd-inpainting": ("data/tiny/sd_inpainting",),
            "controlnet": ("data/tiny/controlnet",),
            "powerpaint": ("data/tiny/powerpaint",),
        },
        side=64,
        steps=20,
        guidance=4.0,  # what its model card measures it with
        benchmark="shapes",
    ),
    "sd15": Preset(
        base=("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"),
        branches={
            "segmentation": ("Sanster/brushnet_segmentation_mask",),
            "random": ("Sanster/brushnet_random_mask",),
            "sd-inpainting": (
                "stable-diffusion-v1-5/stable-diffusion-inpainting",
                "botp/stable-diffusion-v1-5-inpainting",
            ),
            "controlnet": ("lllyasviel/control_v11p_sd15_inpaint",),
            "powerpaint": ("JunhaoZhuang/PowerPaint-v1",),
            "powerpaint-v2": ("JunhaoZhuang/PowerPaint-v2-1", "JunhaoZhuang/PowerPaint_v2"),
            "brushedit": ("TencentARC/BrushEdit",),
        },
        side=512,
        steps=50,
        guidance=7.5,
        benchmark="brushbench",
    ),
    "sdxl": Preset(
        base=("stabilityai/stable-diffusion-xl-base-1.0",),
        branches={},
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
    """Return where a base model lies: the folder of a saved stock pipeline, or a single file of its weights.

    Args:
        preset: a key of :data:`PRESETS`.
        base: a folder, a ``.safetensors`` file or a hub id (owner/name) instead of the preset's; a hub id is downloaded
            unless cached.

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
        if (folder / "model_index.json").is_file() or (base and folder.is_file()):
            return folder
        reasons.append(f"{folder} holds no model_index.json")
    raise MissingWeightsError(
        f"No base model in {' or '.join(places)}: {'; '.join(reasons)}. Pass base=FOLDER, a folder that a stock "
        "diffusers pipeline was saved to, or base=FILE.safetensors."
    )


def find_branch(
    preset: str,
    name: str,
    checkpoint: str | Path | None = None,
    *,
    holds: Sequence[str] = ("config.json", "model_index.json"),
    patterns: Sequence[str] = (),
    what: str = "",
    option: str = "checkpoint",
    advice: str = "",
) -> Path:
    """Return the local folder or file of what runs beside a base model; a hub id is downloaded unless cached.

    Args:
        preset: a key of :data:`PRESETS`.
        name: a key of its ``branches``.
        checkpoint: a folder, a file or a hub id (owner/name) instead of the preset's.
        holds: a folder must hold one of these files.
        patterns: of the files to download; none take what a saved pipeline needs.
        what: what it is, for the message; by default ``weights of`` its name.
        option: what the option is called that ``checkpoint`` was given by.
        advice: what to do where there is nothing, a sentence.

    Raises:
        UnknownNameError: no such preset.
        MissingWeightsError: nothing there; the message says where it was looked for and how to get the weights.
    """
    places = (str(checkpoint),) if checkpoint else preset_named(preset).branches.get(name, ())
    reasons = []
    for place in places:
        try:
            found = assets.path(place) if place.startswith(EMBEDDED) and not checkpoint else _local(place, patterns)
        except BrushbenchError as error:
            reasons.append(str(error).removesuffix("."))
            continue
        if found.is_file() or any((found / file).is_file() for file in holds):
            return found
        reasons.append(f"{found} holds no {' or '.join(holds)}")
    raise MissingWeightsError(
        f"No {what or f'weights of {name}'} ({'; '.join(reasons) or f'the preset {preset} has none on the hub'}). "
        f"{_way_to(preset, name, option)} {advice}".rstrip()
    )


def _way_to(preset: str, name: str, option: str) -> str:
    """Return how to get the weights that a preset lacks. Those of another preset are of another size."""
    urls = " and ".join(f"https://huggingface.co/{place}" for place in PRESETS["sd15"].branches.get(name, ()))
    if preset == "sd15" and urls:
        return f"Pass {option}=FOLDER or FILE: published at {urls}."
    here = (
        f": brushbench train tiny {name} trains them in a checkout" if preset == "tiny" and name in TRAINED_HERE else ""
    )
    published = f" The published ones go with preset=sd15: {urls}." if preset == "tiny" and urls else ""
    return f"Pass {option}=FOLDER or FILE{here}.{published}"


def _local(place: str, patterns: Sequence[str] = ()) -> Path:
    """Return a folder or file as it is, of a training its model, and a hub id's snapshot."""

    def download(hub_id: str) -> str:
        from diffusers import DiffusionPipeline
        from huggingface_hub import snapshot_download

        if patterns:
            return snapshot_download(hub_id, allow_patterns=list(patterns))
        found: str = DiffusionPipeline.download(hub_id)
        return found

    return find_place(place, download)


def reads_pooled_text(folder: Path) -> bool:
    """Say whether a base model is of the SDXL family: two text encoders, pooled text and sizes."""
    if folder.is_file():
        return any(key.startswith("conditioner.embedders.") for key in _keys(folder))
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
    if folder.is_file():
        return {part: hashes_of(folder) for part in ("file", "vae")}
    return {
        part: {file.name: sha256_file(file) for file in _weight_files(folder / part)}
        for part in PARTS
        if (folder / part).is_dir()
    }


def hashes_of(place: Path) -> Mapping[str, JSON]:
    """Return the SHA-256 of a weight file, or of every one in a folder, by its name below it."""
    if place.is_file():
        return {place.name: sha256_file(place)}
    files = sorted([*place.rglob("*.safetensors"), *place.rglob("*.bin"), *place.rglob("*.pth")])
    return {file.relative_to(place).as_posix(): sha256_file(file) for file in files}


def _keys(file: Path) -> list[str]:
    """Return the names of the tensors in a single file; none of one that is no safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            return list(weights.keys())
    except (SafetensorError, OSError):
        return []


def single_file_config(file: Path) -> str | None:
    """Return the folder whose configurations describe a single file; None if diffusers has to find out."""
    if (file.parent / "model_index.json").is_file():
        return str(file.parent)
    tiny = assets.path(PRESETS["tiny"].base[0])
    width = json.loads((tiny / "unet" / "config.json").read_text())["block_out_channels"][0]
    return str(tiny) if _width(file) == width else None


def _width(file: Path) -> int | None:
    """Return the channels of the first convolution of a U-Net in a single file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as weights:
            return int(weights.get_slice("model.diffusion_model.input_blocks.0.0.weight").get_shape()[0])
    except (SafetensorError, OSError):
        return None


def variant_of(folder: Path, parts: Sequence[str] = PARTS) -> str | None:
    """Return the variant of a saved pipeline's files, such as ``fp16``, if some part has no files without one."""
    for part in parts:
        names = [file.name for pattern in ("*.safetensors", "*.bin") for file in (folder / part).glob(pattern)]
        variants = {name.split(".")[1] for name in names if name.count(".") > 1 and "-of-" not in name.split(".")[1]}
        if names and len(variants) == 1 and all(f".{next(iter(variants))}." in name for name in names):
            return variants.pop()
    return None


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    return files or sorted(folder.glob("*.bin"))
