"""Stable Diffusion Inpainting: a U-Net of nine channels that reads hole and masked picture beside the latents.

Rombach et al., CVPR 2022, sec. 4.5; the weights' model card (``stable-diffusion-inpainting``). The noise of a step is
predicted from [noisy latents 4, hole 1, latents of the masked picture 4]; nothing is pasted, so the kept pixels are
what the decoder returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.sampling import OnStep, both, guided_denoise, text_rows

__all__ = ["denoise", "masked_image"]


def masked_image(picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> Tensor:
    """Return the picture with its hole at 0, which is mid-grey (not black).

    Args:
        picture: uint8 (H, W, 3) RGB.
        hole: uint8 (H, W), hole from 128 on; or bool (H, W), True = hole.

    Returns:
        float32 (1, 3, H, W) in -1..1.
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    return pixels * ~is_hole(hole)


def is_hole(hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> Tensor:
    """Return bool (1, 1, H, W), True = hole, from a mask that is True or at least 128 there."""
    return torch.from_numpy(np.array(hole if hole.dtype == np.bool_ else hole >= 128))[None, None]


def denoise(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    condition: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise under the hole and the masked picture, as ``StableDiffusionInpaintPipeline`` at strength 1 does.

    Args:
        unet: ``UNet2DConditionModel`` of nine input channels.
        scheduler: a stock scheduler.
        latents: (B, 4, h, w) standard normal noise.
        condition: (B, 5, h, w): hole (1 = hole), then the scaled latents of the masked picture.
        prompt_embeds: (B, tokens, width).
        negative_prompt_embeds: the same.
        steps: denoising steps.
        guidance: weight of classifier-free guidance; up to 1 means none.
        generators: one for each sample, for schedulers that add noise in a step.
        on_step: called with the step's number and the latents after it.

    Returns:
        (B, 4, h, w) scaled latents.
    """
    text = text_rows(prompt_embeds, negative_prompt_embeds, guidance)

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        rows = torch.cat([sample, both(condition, len(sample)).to(sample)], dim=1)
        noise_pred: Tensor = unet(rows, timestep, encoder_hidden_states=text, return_dict=False)[0]
        return noise_pred

    return guided_denoise(
        predict, scheduler, latents, steps=steps, guidance=guidance, generators=generators, on_step=on_step
    )
