"""Base models of the tiny family's kind with random weights, saved as stock pipelines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from brushbench.tiny import text_to_image, vae
from brushbench.types import InpaintRequest, Sample


def save_base(folder: Path) -> Path:
    """Write a Stable Diffusion pipeline of 64 x 64 pixels, four pixels a latent, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = text_to_image.build_tokenizer()
        text_encoder = text_to_image.build_text_encoder(tokenizer, hidden=32, layers=1)
        autoencoder = vae.build_vae((8, 8, 16))
        text_to_image.TextToImageTask(
            autoencoder, tokenizer, text_encoder, text_to_image.build_unet((32, 32, 32), 32)
        ).save(folder)
    return folder


def save_xl_base(folder: Path) -> Path:
    """Write a Stable Diffusion XL pipeline of 32 x 32 pixels, eight pixels a latent, the same each time."""
    from diffusers import StableDiffusionXLPipeline

    from tests.brushnet.tiny_pipelines import make_xl_pipe

    components = dict(make_xl_pipe().components)
    components.pop("brushnet")
    StableDiffusionXLPipeline(**components, add_watermarker=False).save_pretrained(folder)
    return folder


def make_sample(number: int = 0, height: int = 64, width: int = 64, prompt: str = "a red star on plain grey") -> Sample:
    rng = np.random.default_rng(number)
    hole = np.zeros((height, width), dtype=bool)
    hole[height // 4 : height // 2, width // 3 : width - 6] = True
    return Sample(f"s{number}", rng.integers(0, 256, (height, width, 3), dtype=np.uint8), hole, prompt, "inside")


def make_request(number: int = 0, height: int = 64, width: int = 64, negative: str = "") -> InpaintRequest:
    return make_sample(number, height, width).request(100 + number, negative)
