"""Inpainting pipelines of diffusers with random weights, as small as their classes allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

WORDS = ["a", "b", "c", "d", "e", "r", "s", "t", "Ġ", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def save_pipeline(name: str, folder: Path) -> Path:
    """Write a pipeline of a class, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = MAKERS[name]()
        spread(*[part for part in parts.values() if isinstance(part, torch.nn.Module)])
        getattr(diffusers, name)(**parts).save_pretrained(folder)
    return folder


def spread(*modules: torch.nn.Module) -> None:
    """Make what starts at zero random, so that every input matters."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.detach().any():
                parameter.data = 0.1 * torch.randn_like(parameter)


def vae(channels: int = 4, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, sample_size=16, **more,
    )  # fmt: skip


def clip(cls: Any = transformers.CLIPTextModel) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=500, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=16, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return cls(config).eval()


def clip_tokenizer() -> Any:
    from brushbench.tiny.text_to_image import build_tokenizer

    return build_tokenizer()


def t5(width: int = 16) -> Any:
    config = transformers.T5Config(vocab_size=20, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcderst"]
    return transformers.T5Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)])


def qwen_tokenizer() -> Any:
    tokenizer = transformers.Qwen2Tokenizer(vocab={word: place for place, word in enumerate(WORDS)}, merges=[])
    tokenizer.chat_template = CHAT
    return tokenizer


QWEN = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip


def qwen3(layers: int = 2) -> Any:
    config = transformers.Qwen3Config(num_hidden_layers=layers, **QWEN)
    return transformers.Qwen3ForCausalLM(config).eval()


def unet(**more: Any) -> Any:
    options = {
        "sample_size": 8, "in_channels": 9, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **more,
    }  # fmt: skip
    return diffusers.UNet2DConditionModel(**options)


def ddim() -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def stable_diffusion() -> dict[str, Any]:
    return {
        "vae": vae(), "text_encoder": clip(), "tokenizer": clip_tokenizer(), "unet": unet(), "scheduler": ddim(),
        "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
    }  # fmt: skip


def sdxl() -> dict[str, Any]:
    wide = unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    return {
        "vae": vae(), "text_encoder": clip(), "text_encoder_2": clip(transformers.CLIPTextModelWithProjection),
        "tokenizer": clip_tokenizer(), "tokenizer_2": clip_tokenizer(), "unet": wide, "scheduler": ddim(),
    }  # fmt: skip


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def flux_fill() -> dict[str, Any]:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * (2 * 4 + 2 * 2), out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return {
        "scheduler": flow(), "vae": vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip(), "tokenizer": clip_tokenizer(), "text_encoder_2": t5(), "tokenizer_2": t5_tokenizer(),
        "transformer": transformer,
    }  # fmt: skip


def klein() -> dict[str, Any]:
    autoencoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    )  # fmt: skip
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, timestep_guidance_channels=8, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return {
        "scheduler": flow(), "vae": autoencoder, "text_encoder": qwen3(28), "tokenizer": qwen_tokenizer(),
        "transformer": transformer,
    }  # fmt: skip


def sd3() -> dict[str, Any]:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=16, out_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=32,
    )  # fmt: skip
    encoders = {f"text_encoder{n}": clip(transformers.CLIPTextModelWithProjection) for n in ("", "_2")}
    return {
        "transformer": transformer, "scheduler": flow(), "vae": vae(16, shift_factor=0.1), **encoders,
        "image_encoder": None, "feature_extractor": None, "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(), "text_encoder_3": t5(32), "tokenizer_3": t5_tokenizer(),
    }  # fmt: skip


def qwen_image() -> dict[str, Any]:
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**QWEN, "num_hidden_layers": 1, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )  # fmt: skip
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return {
        "scheduler": flow(), "vae": autoencoder, "text_encoder": encoder, "tokenizer": qwen_tokenizer(),
        "transformer": transformer,
    }  # fmt: skip


def z_image() -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[256, 64, 64],
    )  # fmt: skip
    return {
        "scheduler": flow(), "vae": vae(shift_factor=0.1), "text_encoder": qwen3(2), "tokenizer": qwen_tokenizer(),
        "transformer": transformer,
    }  # fmt: skip


MAKERS = {
    "StableDiffusionInpaintPipeline": stable_diffusion,
    "StableDiffusionXLInpaintPipeline": sdxl,
    "FluxFillPipeline": flux_fill,
    "Flux2KleinInpaintPipeline": klein,
    "StableDiffusion3InpaintPipeline": sd3,
    "QwenImageInpaintPipeline": qwen_image,
    "ZImageInpaintPipeline": z_image,
}
