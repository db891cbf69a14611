"""ControlNet for inpainting: a copy of the U-Net's encoder that reads the picture with its hole at -1.

Zhang et al., ICCV 2023; weights ``control_v11p_sd15_inpaint``. Two rows of the published tables (BrushEdit, Tab. IV):
CNI drives a plain text-to-image model, and nothing forces the kept part; CNI* pastes the kept latents after every step,
as Blended Latent Diffusion does. Differences from lllyasviel/ControlNet-v1-1-nightly e2b4415, ``gradio_inpaint.py``: no
blur of the mask, no words added to the prompts, the scheduler is the preset's; CNI* pastes at the noise level that the
latents have *after* the step, as ``StableDiffusionControlNetInpaintPipeline`` of diffusers 0.42.1 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.sampling import OnStep, Predict, both, guided_denoise, keep_latents, text_rows
from baselines.sd_inpainting import is_hole

__all__ = ["control_image", "denoise"]


def control_image(picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> Tensor:
    """Return the picture as the ControlNet reads it.

    Args:
        picture: uint8 (H, W, 3) RGB.
        hole: uint8 (H, W), hole from 128 on; or bool (H, W), True = hole.

    Returns:
        float32 (1, 3, H, W) in 0..1, and -1 in the hole.
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    return pixels.masked_fill(is_hole(hole), -1.0)


def denoise(
    unet: Any,
    controlnet: Any,
    scheduler: Any,
    latents: Tensor,
    control: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    steps: int,
    guidance: float,
    scale: float = 1.0,
    keep: tuple[Tensor, Tensor, Tensor] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise under the ControlNet's residuals.

    Args:
        unet: ``UNet2DConditionModel`` of four input channels.
        controlnet: ``ControlNetModel``.
        scheduler: a stock scheduler.
        latents: (B, 4, h, w) standard normal noise.
        control: (B, 3, H, W), from :func:`control_image`.
        prompt_embeds: (B, tokens, width).
        negative_prompt_embeds: the same.
        steps: denoising steps.
        guidance: weight of classifier-free guidance; up to 1 means none.
        scale: factor of the residuals.
        keep: None for CNI. For CNI*: scaled latents of the picture (B, 4, h, w), the noise that they get (the same
            shape, the same in all steps), and the hole (B, 1, h, w), 1 = hole.
        generators: one for each sample, for schedulers that add noise in a step.
        on_step: called with the step's number and the latents after it.

    Returns:
        (B, 4, h, w) scaled latents.
    """
    text = text_rows(prompt_embeds, negative_prompt_embeds, guidance)
    return guided_denoise(
        _predict(unet, controlnet, control, text, scale),
        scheduler,
        latents,
        steps=steps,
        guidance=guidance,
        generators=generators,
        after_step=keep_latents(scheduler, *keep) if keep else None,
        on_step=on_step,
    )


def _predict(unet: Any, controlnet: Any, control: Tensor, text: Tensor, scale: float) -> Predict:
    """Return what predicts the noise of a step under the ControlNet's residuals."""

    def predict(sample: Tensor, timestep: Tensor) -> Tensor:
        down, mid = controlnet(
            sample,
            timestep,
            encoder_hidden_states=text,
            controlnet_cond=both(control, len(sample)).to(sample),
            conditioning_scale=scale,
            return_dict=False,
        )
        noise_pred: Tensor = unet(
            sample,
            timestep,
            encoder_hidden_states=text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        return noise_pred

    return predict
