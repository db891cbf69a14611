"""Read the recorded pipeline cases (``brushnet/pipeline_*`` of the golden folder) and build pipelines from them."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from brushnet import BrushNetModel, StableDiffusionBrushNetPipeline, StableDiffusionXLBrushNetPipeline

if TYPE_CHECKING:
    from pathlib import Path

# Their pictures' holes were not blacked, or not where the mask says: no pipeline that blacks the hole reproduces them.
OTHER_PICTURES = ("ddim_softmask", "ddim_unmasked_image")


def variants(golden: Path) -> list[tuple[str, str]]:
    """List (case, variant) of every recorded pipeline call."""
    found = golden.glob("brushnet/pipeline_*/variants/*.json")
    return sorted((path.parent.parent.name, path.stem) for path in found)


def _module(kind: type, folder: Path, name: str) -> Any:
    config = json.loads((folder / f"{name}_config.json").read_text())
    model = kind.from_config({key: value for key, value in config.items() if not key.startswith("_")})
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval()


@functools.cache
def components(folder: Path) -> dict[str, Any]:
    """Load the networks of one case, once."""
    return {
        "unet": _module(diffusers.UNet2DConditionModel, folder, "unet"),
        "brushnet": _module(BrushNetModel, folder, "brushnet"),
        "vae": _module(diffusers.AutoencoderKL, folder, "vae"),
    }


def scheduler(facts: dict[str, Any]) -> Any:
    """Build a recorded scheduler on stock diffusers; the fork's UniPC always ended at the smallest sigma."""
    kind = getattr(diffusers, facts["scheduler_class"])
    more = {"final_sigmas_type": "sigma_min"} if facts["scheduler_class"].startswith("UniPC") else {}
    return kind.from_config(facts["scheduler_config"], **more)


def pipeline(folder: Path, facts: dict[str, Any]) -> Any:
    """Build the pipeline of one recorded call, without text encoders."""
    parts = components(folder) | {"scheduler": scheduler(facts), "text_encoder": None, "tokenizer": None}
    if folder.name == "pipeline_sdxl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        pipe = StableDiffusionXLBrushNetPipeline(**parts)
    else:
        pipe = StableDiffusionBrushNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the recorded keyword arguments, with the tensors that the record stores aside."""
    arguments = {
        name: tensors[f"call.{name}"] if isinstance(value, str) and value.startswith("tensor") else value
        for name, value in facts["call"].items()
    }
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in facts["generator_seeds"]]
    return arguments | {"generator": generators[0] if len(generators) == 1 else generators}


def pictures(folder: Path, names: list[str], form: str) -> Any:
    """Return recorded pictures in the form in which the call got them."""
    arrays = [np.asarray(Image.open(folder / "img" / f"{name}.png").convert("RGB")) for name in names]
    if form == "pil":
        opened = [Image.fromarray(array) for array in arrays]
        return opened if len(opened) > 1 else opened[0]
    stacked = np.stack(arrays).astype(np.float32) / 255
    return stacked if form == "np4d" else torch.from_numpy(stacked).permute(0, 3, 1, 2)
