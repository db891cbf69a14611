"""Pictures and holes to latents and back. Every latent here is scaled: multiplied by the autoencoder's factor.

The autoencoder always computes in float32: it is a small part of the time, and SDXL's overflows in float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.presets import single_file_config, variant_of
from brushbench.stock import loading
from brushbench.types import Picture
from brushnet.conditioning import encode_moments, in_parts, vae_factor

__all__ = [
    "Reduction",
    "decode_scaled",
    "encode_pixels",
    "encode_scaled",
    "load_single_file",
    "load_vae",
    "reduce_hole",
    "vae_factor",
]

Reduction: TypeAlias = Literal["any", "nearest"]


def load_single_file(cls: Any, file: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load a class of diffusers from a single file in the original names.

    What the networks are like is read from a saved pipeline beside the file; else the embedded base's, if the file is
    of its width; else diffusers downloads the configuration that fits the file.

    Args:
        cls: a pipeline, or ``AutoencoderKL``.
        file: the weights.
        dtype: what they are cast to.
        **options: of ``from_single_file``.

    Raises:
        WeightsError: it does not load.
    """
    remedy = (
        "Save it as a folder with save_pretrained, or put the file beside a model_index.json and its configurations"
    )
    with loading(file, f"a {cls.__name__}", remedy):
        return cls.from_single_file(str(file), config=single_file_config(file), dtype=dtype, **options)


def load_vae(folder: Path, device: torch.device | str = "cpu") -> Any:
    """Load a base model's ``AutoencoderKL`` alone, in float32, frozen.

    Raises:
        WeightsError: it cannot be loaded.
    """
    from diffusers import AutoencoderKL

    if folder.is_file():
        vae = load_single_file(AutoencoderKL, folder, torch.float32, subfolder="vae")
    else:
        with loading(folder / "vae", "an AutoencoderKL"):
            variant = variant_of(folder, ("vae",))
            vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32, variant=variant)
    return vae.to(device).requires_grad_(False).eval()


@torch.no_grad()
def encode_scaled(vae: Any, pictures: Sequence[Picture] | npt.NDArray[np.uint8]) -> Tensor:
    """Return the mode of the posterior, times the scaling factor.

    Args:
        vae: a float32 ``AutoencoderKL``.
        pictures: uint8 (H, W, 3) RGB of one size, divisible by the VAE's factor; a list, or stacked (B, H, W, 3).

    Returns:
        float32 (B, 4, h, w) on the VAE's device.
    """
    return encode_pixels(vae, torch.from_numpy(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0)


@torch.no_grad()
def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Return the mode of the posterior, times the scaling factor, (B, 4, h, w) of pixels (B, 3, H, W) in -1..1."""
    mode, _ = encode_moments(vae, pixels.to(vae.device, torch.float32))  # a normal distribution's mode is its mean
    factor: float = vae.config.scaling_factor
    return mode * factor


@torch.no_grad()
def decode_scaled(vae: Any, latents: Tensor) -> list[Picture]:
    """Return uint8 (H, W, 3) RGB pictures of scaled latents (B, 4, h, w)."""
    inputs = latents.to(vae.device, torch.float32) / vae.config.scaling_factor
    size = inputs.shape[-2] * inputs.shape[-1] * vae_factor(vae) ** 2
    pixels = in_parts(lambda part: vae.decode(part).sample, inputs, size)
    levels = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())


def reduce_hole(holes: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_], factor: int, how: Reduction) -> Tensor:
    """Bring holes to the size of latents.

    Args:
        holes: bool (H, W) of one size, True = repaint; a list, or stacked (B, H, W).
        factor: pixels that a latent spans along a side.
        how: ``any``: a latent is hole if any pixel under it is; ``nearest``: if its top-left pixel is, as in BrushNet
            and ``F.interpolate``.

    Returns:
        float32 (B, 1, h, w), 1 = hole, on the CPU.
    """
    full = torch.from_numpy(np.asarray(holes)).float()[:, None]
    return F.max_pool2d(full, factor) if how == "any" else full[:, :, ::factor, ::factor]
