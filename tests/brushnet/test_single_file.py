"""Base models as one file in the original layout, as most of the web shares them, and the pipelines made of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from brushnet import StableDiffusionBrushNetPipeline, StableDiffusionXLBrushNetPipeline
from tests.brushnet.tiny_pipelines import generator, make_picture, make_pipe, make_xl_pipe

OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_layout(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """A U-Net's weights under the keys of the original Stable Diffusion code."""
    layers = unet.config.layers_per_block

    def place(name: str) -> str:
        for ours, theirs in OUTER.items():
            if name.startswith(ours + "."):
                return theirs + name.removeprefix(ours)
        if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
            kind, i, rest = found.groups()
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}.{inner(kind, rest)}"
        found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
        assert found is not None, name
        way, block, kind, j, rest = found.groups()
        if way == "down":
            number = 1 + int(block) * (layers + 1) + (layers if kind == "downsamplers" else int(j))
            return f"input_blocks.{number}.{int(kind == 'attentions')}.{inner(kind, rest)}"
        number = int(block) * (layers + 1) + (layers if kind == "upsamplers" else int(j))
        attends = "CrossAttn" in unet.config.up_block_types[int(block)]
        inside = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[kind]
        return f"output_blocks.{number}.{inside}.{inner(kind, rest)}"

    def inner(kind: str, rest: str) -> str:
        if kind == "resnets":
            part, _, leaf = rest.rpartition(".")
            return f"{RESNET[part]}.{leaf}"
        return rest.replace("conv.", "op.") if kind == "downsamplers" else rest

    return {f"model.diffusion_model.{place(name)}": tensor for name, tensor in unet.state_dict().items()}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_pipeline_from_a_single_file(tmp_path: Path, family: str) -> None:
    pipe = make_pipe() if family == "sd" else make_xl_pipe()
    kind = StableDiffusionBrushNetPipeline if family == "sd" else StableDiffusionXLBrushNetPipeline
    pipe.save_pretrained(tmp_path / "config")
    file = tmp_path / "model.safetensors"
    save_file({name: part.contiguous() for name, part in original_layout(pipe.unet).items()}, file)
    for weights in (tmp_path / "config" / "unet").glob("*.safetensors"):
        weights.unlink()  # nothing but the file has them

    others = {name: part for name, part in pipe.components.items() if name != "unet" and part is not None}
    loaded = kind.from_single_file(str(file), config=str(tmp_path / "config"), local_files_only=True, **others)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.brushnet is pipe.brushnet

    image, hole = make_picture()
    call = {"prompt": "a cat", "image": image, "mask": hole, "num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(**call, generator=generator(1)).images
    assert torch.equal(loaded(**call, generator=generator(1)).images, expected)
