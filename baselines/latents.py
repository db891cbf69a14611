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

from brushbench.errors import WeightsError
from brushbench.types import Picture
from brushnet.conditioning import vae_factor

__all__ = [
    "Reduction",
    "decode_scaled",
    "encode_pixels",
    "encode_scaled",
    "load_vae",
    "reduce_hole",
    "unreadable",
    "vae_factor",
]

Reduction: TypeAlias = Literal["any", "nearest"]


def load_vae(folder: Path, device: torch.device | str = "cpu") -> Any:
    """Load a saved pipeline's ``AutoencoderKL`` alone, in float32, frozen.

    Raises:
        WeightsError: it cannot be loaded.
    """
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable(folder / "vae", "an AutoencoderKL", error) from error
    return vae.to(device).requires_grad_(False).eval()


def unreadable(folder: Path, what: str, error: Exception) -> WeightsError:
    """Return the error for a folder that does not load as ``what``."""
    return WeightsError(f"{folder} does not load as {what}: {error}. Save it again with save_pretrained.")


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
    latents: Tensor = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist.mode() * vae.config.scaling_factor
    return latents


@torch.no_grad()
def decode_scaled(vae: Any, latents: Tensor) -> list[Picture]:
    """Return uint8 (H, W, 3) RGB pictures of scaled latents (B, 4, h, w)."""
    pixels = vae.decode(latents.to(vae.device, torch.float32) / vae.config.scaling_factor).sample
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
