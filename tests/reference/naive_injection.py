"""The published U-Net with BrushNet's additions, walked layer by layer: the oracle of the hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor


def predict(
    unet: UNet2DConditionModel,
    inputs: dict[str, Any],
    down: Sequence[Tensor],
    mid: Tensor,
    up: Sequence[Tensor],
    controlnet: tuple[Sequence[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the noise prediction of a plain U-Net call to which the residuals are added at the published places."""
    down, up = list(down), list(up)
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    emb = unet.time_embedding(unet.time_proj(inputs["timestep"].expand(len(sample))))
    aug = unet.get_aug_embed(emb, text, inputs.get("added_cond_kwargs"))
    emb = emb if aug is None else emb + aug

    hidden = unet.conv_in(sample)
    skips = [hidden]  # the first skip: before the first residual
    hidden = hidden + down.pop(0)
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            hidden = resnet(hidden, emb)
            if hasattr(block, "attentions"):
                hidden = block.attentions[i](hidden, encoder_hidden_states=text).sample
            hidden = hidden + down.pop(0)
            skips.append(hidden)
        if block.downsamplers is not None:
            hidden = block.downsamplers[0](hidden) + down.pop(0)
            skips.append(hidden)
    assert not down

    hidden = unet.mid_block(hidden, emb, encoder_hidden_states=text)
    if controlnet is not None:
        skips = [skip + extra for skip, extra in zip(skips, controlnet[0], strict=True)]
        hidden = hidden + controlnet[1]
    hidden = hidden + mid

    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), emb)
            if hasattr(block, "attentions"):
                hidden = block.attentions[i](hidden, encoder_hidden_states=text).sample
            hidden = hidden + up.pop(0)
        if block.upsamplers is not None:
            hidden = block.upsamplers[0](hidden, skips[-1].shape[-2:]) + up.pop(0)
    assert not up
    assert not skips
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
