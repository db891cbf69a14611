"""Train the tiny family's autoencoder: ``AutoencoderKL`` with a factor of 4, 64x64 pictures to 16x16x4 latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brushbench.tiny.scenes import BACKGROUNDS, render, sample_scene
from brushbench.training.loop import Draw, contact_sheet, fit
from brushbench.training.settings import FitConfig, FitResult
from brushbench.types import JSON, Picture

__all__ = [
    "VaeTask",
    "build_vae",
    "decode_unscaled",
    "encode_unscaled",
    "held_out_pictures",
    "psnr_by_background",
    "to_tensor",
    "train_vae",
]

HELD_OUT_SEED = 1


def build_vae(channels: tuple[int, int, int] = (16, 32, 64)) -> Any:
    """Return an untrained ``AutoencoderKL``: three levels, one layer a block, no attention."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


class VaeObjective(nn.Module):
    """L1 + 5 MSE on pictures in [-1, 1], plus a small KL per latent number that keeps the latents near unit scale."""

    def __init__(self, vae: nn.Module, kl_weight: float = 5e-4) -> None:
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts for float (B, 3, H, W) in [-1, 1] and noise (B, 4, H/4, W/4)."""
        posterior = self.vae.encode(images).latent_dist  # type: ignore[operator]
        output = self.vae.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        error = output - images
        mse = error.square().mean()
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
        psnr = -10.0 * torch.log10(error.detach().square().mean(dim=(1, 2, 3)) / 4.0).mean()
        return error.abs().mean() + 5.0 * mse + self.kl_weight * kl, {"mse": mse, "kl": kl, "psnr": psnr}


@dataclass
class VaeTask:
    """The autoencoder on the training stream of scenes."""

    vae: Any

    def __post_init__(self) -> None:
        self.objective = VaeObjective(self.vae)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return the stream's next pictures and the posterior's noise."""
        images = np.stack([render(sample_scene(draw.seed, draw.first + i)).image for i in range(draw.size)])
        side = images.shape[1] // 4
        noise = torch.randn((draw.size, 4, side, side), generator=draw.generator())
        return {"images": to_tensor(images), "noise": noise}

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": "vae"}

    def pictures(self) -> Picture:
        """Return held-out scenes above their reconstructions."""
        images = held_out_pictures(16)[0]
        pairs = np.concatenate([images, decode_unscaled(self.vae, encode_unscaled(self.vae, images))], axis=1)
        return contact_sheet(pairs, 8)

    def save(self, folder: Path) -> None:
        """Set the scaling factor to 1 / std of held-out latents and write the folder in half precision."""
        import copy

        latents = encode_unscaled(self.vae, held_out_pictures(256)[0])
        self.vae.register_to_config(scaling_factor=round(float(1.0 / latents.std()), 5))
        copy.deepcopy(self.vae).half().save_pretrained(folder, safe_serialization=True)


def train_vae(config: FitConfig) -> FitResult:
    """Train the autoencoder; the weights end under ``config.out / "model"``."""
    torch.manual_seed(config.seed)
    return fit(VaeTask(build_vae()), config)


# --------------------------------------------------------------------------------------------------------- shared tools


def to_tensor(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """Return float32 (B, 3, H, W) in [-1, 1] from uint8 (B, H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


@torch.no_grad()
def encode_unscaled(vae: Any, images: np.ndarray[Any, np.dtype[np.uint8]], batch_size: int = 32) -> Tensor:
    """Return the posterior's mean, float32 (B, 4, h, w), NOT scaled, for uint8 (B, H, W, 3)."""
    parts = [
        vae.encode(to_tensor(images[i : i + batch_size]).to(vae.device)).latent_dist.mean
        for i in _starts(images, batch_size)
    ]
    return torch.cat(parts)


@torch.no_grad()
def decode_unscaled(vae: Any, latents: Tensor, batch_size: int = 32) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8 (B, H, W, 3) from unscaled latents (B, 4, h, w)."""
    parts = [vae.decode(latents[i : i + batch_size].to(vae.device)).sample for i in _starts(latents, batch_size)]
    pixels = torch.cat(parts).float().add(1.0).mul(127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _starts(items: Any, size: int) -> range:
    return range(0, len(items), size)


def held_out_pictures(count: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[str]]:
    """Return the first held-out scenes as uint8 (count, 64, 64, 3) and the background of each."""
    scenes = [sample_scene(HELD_OUT_SEED, index, domain="held-out") for index in range(count)]
    return np.stack([render(scene).image for scene in scenes]), [scene.background for scene in scenes]


def psnr_by_background(vae: Any, count: int = 512) -> dict[str, float]:
    """Return the mean PSNR in dB of reconstructed held-out scenes for each background, and for ``all``."""
    images, backgrounds = held_out_pictures(count)
    errors = images.astype(np.float64) - decode_unscaled(vae, encode_unscaled(vae, images)).astype(np.float64)
    psnr = -10.0 * np.log10(np.maximum(np.square(errors).mean(axis=(1, 2, 3)) / 255.0**2, 1e-10))
    table = {name: float(psnr[[b == name for b in backgrounds]].mean()) for name in BACKGROUNDS}
    return {**table, "all": float(psnr.mean())}
