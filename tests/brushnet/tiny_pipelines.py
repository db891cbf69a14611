"""Small whole pipelines with random weights: VAE, text encoders and tokenizers beside the networks of ``tiny``."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from brushnet import StableDiffusionBrushNetPipeline, StableDiffusionXLBrushNetPipeline
from tests.brushnet.tiny import make_branch, make_unet

DDIM = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
TEXT = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}


def make_vae(levels: int = 4, **changes: Any) -> AutoencoderKL:
    """A VAE of 2 ** (levels - 1) pixels a latent."""
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (4,) * (levels - 1) + (8,),
        "latent_channels": 4,
        "norm_num_groups": 2,
        "scaling_factor": 0.25,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return AutoencoderKL(**options).eval().requires_grad_(False)


def make_tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocab = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=7)


def make_text_encoder(kind: type = CLIPTextModel, **changes: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=54,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
        max_position_embeddings=7,
        **(TEXT | changes),
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return kind(config).eval().requires_grad_(False)


def make_pipe(**components: Any) -> StableDiffusionBrushNetPipeline:
    """SD 1.5 in small; the same one for the same components."""
    unet = components.pop("unet", None) or make_unet("sd")
    parts = {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(),
        "tokenizer": make_tokenizer(),
        "unet": unet,
        "scheduler": DDIMScheduler(**DDIM),
        **components,
    }
    if "brushnet" not in parts:
        parts["brushnet"] = make_branch(unet)
    pipe = StableDiffusionBrushNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_xl_pipe(**components: Any) -> StableDiffusionXLBrushNetPipeline:
    """SDXL in small, two text encoders of 6 features each."""
    unet = components.pop("unet", None) or make_unet("sdxl")
    small = {"hidden_size": 6, "projection_dim": 8}
    parts = {
        "vae": make_vae(scaling_factor=0.13025),
        "text_encoder": make_text_encoder(**small),
        "text_encoder_2": make_text_encoder(CLIPTextModelWithProjection, **small),
        "tokenizer": make_tokenizer(),
        "tokenizer_2": make_tokenizer(),
        "unet": unet,
        "scheduler": DDIMScheduler(**DDIM),
        "add_watermarker": False,
        **components,
    }
    if "brushnet" not in parts:
        parts["brushnet"] = make_branch(unet)
    pipe = StableDiffusionXLBrushNetPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_picture(seed: int = 0, height: int = 32, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A uint8 (H, W, 3) picture and a bool hole in it."""
    rng = np.random.default_rng(seed)
    hole = np.zeros((height, width), dtype=bool)
    hole[height // 4 : height // 4 * 3, width // 4 : width // 2 + 8 * (seed % 2)] = True
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), hole


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def load_ip_adapter(unet: Any) -> None:
    """Give a U-Net an image prompt adapter with random weights, fed by embeddings of width 8."""
    draws = generator(6)
    projection = {
        "proj.weight": torch.randn(4 * 12, 8, generator=draws),
        "proj.bias": torch.zeros(4 * 12),
        "norm.weight": torch.ones(12),
        "norm.bias": torch.zeros(12),
    }
    crossing = [name.rsplit(".", 1)[0] for name in unet.attn_processors if name.endswith("attn2.processor")]
    keys_and_values = {
        f"{2 * i + 1}.{part}_ip.weight": torch.randn(unet.get_submodule(name).to_k.weight.shape, generator=draws)
        for i, name in enumerate(crossing)
        for part in ("to_k", "to_v")
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys_and_values}])
