"""Writes a saved pipeline as a single file in the original names, for tests of reading one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def write_single_file(folder: Path, file: Path) -> Path:
    """Write the pipeline of ``folder``, of Stable Diffusion 1's kind with any number of levels and widths."""
    weights: dict[str, torch.Tensor] = {}
    for part, rename, prefix in (
        ("unet", _unet, "model.diffusion_model."),
        ("vae", _vae, "first_stage_model."),
        ("text_encoder", lambda key, _: f"transformer.{_text(key)}", "cond_stage_model."),
    ):
        (source,) = (folder / part).glob("*.safetensors")
        tensors = load_file(source)
        config = json.loads((folder / part / "config.json").read_text())
        for key, value in tensors.items():
            shape = value[:, :, None, None] if part == "vae" and _is_attention(key) and value.ndim == 2 else value
            weights[prefix + rename(key, config)] = shape.contiguous()
    save_file(weights, file)
    return file


def _text(key: str) -> str:
    return key if key.startswith("text_model.") else f"text_model.{key}"


def _is_attention(key: str) -> bool:
    return ".attentions.0." in key


def _unet(key: str, config: dict[str, Any]) -> str:
    layers = config["layers_per_block"]
    head, _, rest = key.partition(".")
    fixed = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
             "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    for ours, theirs in fixed.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    if head == "mid_block":
        kind, place, inner = rest.split(".", 2)
        return f"middle_block.1.{inner}" if kind == "attentions" else f"middle_block.{2 * int(place)}.{_resnet(inner)}"
    level, kind, place, inner = rest.split(".", 3)
    if head == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.{inner.replace('conv', 'op')}"
        block = 1 + int(level) * (layers + 1) + int(place)
        return f"input_blocks.{block}.{'1.' + inner if kind == 'attentions' else '0.' + _resnet(inner)}"
    block = int(level) * (layers + 1) + int(place)
    if kind == "upsamplers":
        block = int(level) * (layers + 1) + layers
        slot = 2 if "CrossAttn" in config["up_block_types"][int(level)] else 1
        return f"output_blocks.{block}.{slot}.{inner}"
    return f"output_blocks.{block}.{'1.' + inner if kind == 'attentions' else '0.' + _resnet(inner)}"


def _resnet(inner: str) -> str:
    name, _, rest = inner.partition(".")
    return f"{RESNET[name]}.{rest}"


def _vae(key: str, config: dict[str, Any]) -> str:
    levels = len(config["block_out_channels"])
    side, _, rest = key.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return key
    rest = rest.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if rest.startswith("mid_block.resnets."):
        place, inner = rest.removeprefix("mid_block.resnets.").split(".", 1)
        return f"{side}.mid.block_{int(place) + 1}.{inner}"
    if rest.startswith("mid_block.attentions.0."):
        inner = rest.removeprefix("mid_block.attentions.0.")
        for ours, theirs in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        ):
            if inner.startswith(f"{ours}."):
                return f"{side}.mid.attn_1.{inner.replace(ours, theirs, 1)}"
    if rest.startswith(("down_blocks.", "up_blocks.")):
        direction, level, kind, place, inner = rest.split(".", 4)
        name = direction.removesuffix("_blocks")
        place_of = int(level) if name == "down" else levels - 1 - int(level)
        if kind in ("downsamplers", "upsamplers"):
            return f"{side}.{name}.{place_of}.{kind.removesuffix('rs').removesuffix('e')}e.{inner}"
        return f"{side}.{name}.{place_of}.block.{place}.{inner}"
    return f"{side}.{rest}"
