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


def save_methods(folder: Path) -> Path:
    """Write a base and what every method has beside it, with random weights, in the layouts of the published files."""
    from diffusers import ControlNetModel, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextModel

    from tests.brushnet.tiny import make_branch

    base = save_base(folder / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)
    encoder = CLIPTextModel.from_pretrained(base / "text_encoder")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
        control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8))
        for parameter in control.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        words = {word: torch.randn(4, 32) for word in ("P_ctxt", "P_shape", "P_obj")}
    wide.save_pretrained(folder / "sd_inpainting" / "unet")
    control.save_pretrained(folder / "controlnet")
    make_branch(unet).save_pretrained(folder / "brushnet")
    make_branch(unet).save_pretrained(folder / "brushedit" / "brushnetX")

    inner = "text_model.embeddings.token_embedding"
    state = {
        key if key.startswith("text_model.") else f"text_model.{key}": v for key, v in encoder.state_dict().items()
    }
    state[f"{inner}.wrapped.weight"] = state.pop(f"{inner}.weight")
    state |= {f"{inner}.trainable_embeddings.{word}": rows for word, rows in words.items()}
    for place in ("powerpaint/unet", "powerpaint/text_encoder", "powerpaint_v2/PowerPaint_Brushnet"):
        (folder / place).mkdir(parents=True)
    wide.save_config(folder / "powerpaint" / "unet")
    save_file(wide.state_dict(), folder / "powerpaint" / "unet" / "unet.safetensors")
    save_file(state, folder / "powerpaint" / "text_encoder" / "text_encoder.safetensors")
    make_branch(unet, cross_attention=True).save_pretrained(folder / "powerpaint_v2" / "PowerPaint_Brushnet")
    torch.save(state, folder / "powerpaint_v2" / "PowerPaint_Brushnet" / "pytorch_model.bin")
    return folder
