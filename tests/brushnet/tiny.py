"""Small U-Nets of the real topologies with random weights, and branches whose residuals are not zero."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from brushnet import BrushNetModel

SD = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32, 32),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 8 + 6 * 4,
}
MIXED = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16, 24),
    "attention_head_dim": (2, 2, 3),
}
TEXT_FREE = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
}
SINGLE = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (16,),
}
TOPOLOGIES = {"sd": SD, "sdxl": SDXL, "mixed": MIXED, "text-free": TEXT_FREE, "single": SINGLE}


def make_unet(topology: str = "sd", **changes: Any) -> UNet2DConditionModel:
    """A frozen U-Net in evaluation mode; the same one for the same arguments."""
    options: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        **TOPOLOGIES[topology],
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**options).eval().requires_grad_(False)


def make_branch(unet: UNet2DConditionModel, **options: Any) -> BrushNetModel:
    """The U-Net's branch, after some imagined training: its zero convolutions are not zero."""
    brushnet = BrushNetModel.from_unet(unet, **options).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for conv in zero_convs(brushnet):
        for parameter in conv.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    weight = brushnet.conv_in_condition.weight
    weight[:, 4:] += 0.2 * torch.randn(weight[:, 4:].shape, generator=generator)
    return brushnet


def zero_convs(brushnet: BrushNetModel) -> list[nn.Conv2d]:
    return [*brushnet.brushnet_down_blocks, brushnet.brushnet_mid_block, *brushnet.brushnet_up_blocks]


def make_inputs(unet: UNet2DConditionModel, batch: int = 2, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    """What a U-Net call takes; ``brushnet_cond`` apart from it is :func:`make_cond`."""
    generator = torch.Generator().manual_seed(2)
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, unet.config.in_channels, *size, generator=generator),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
    }
    if unet.config.addition_embed_type:
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 8, generator=generator),
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(batch, 1),
        }
    return inputs


def make_cond(batch: int = 2, size: tuple[int, int] = (8, 8)) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 4, *size, generator=generator)
    keep = (torch.rand(batch, 1, *size, generator=generator) > 0.5).float()
    return torch.cat([latents, keep], dim=1)


def relative(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())
