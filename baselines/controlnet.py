"""ControlNet for inpainting: a copy of the U-Net's encoder that reads the picture with its hole at -1.

Zhang et al., ICCV 2023; weights ``control_v11p_sd15_inpaint``. Two rows of the published tables (BrushEdit, Tab. IV):
CNI drives a plain text-to-image model, and nothing forces the kept part; CNI* pastes the kept latents after every step,
as Blended Latent Diffusion does. Differences from lllyasviel/ControlNet-v1-1-nightly e2b4415, ``gradio_inpaint.py``: no
blur of the mask, no words added to the prompts, the scheduler is the preset's; CNI* pastes at the noise level that the
latents have *after* the step, as ``StableDiffusionControlNetInpaintPipeline`` of diffusers 0.42.1 does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.diffusion import PLACE, Batch
from baselines.guided import GuidedInpainter, load_network
from baselines.latents import Reduction, encode_scaled, reduce_hole
from baselines.presets import find_branch, hashes_of
from baselines.sampling import OnStep, Predict, both, guided_denoise, keep_latents, text_rows
from baselines.sd_inpainting import is_hole
from brushbench.errors import UsageError
from brushbench.types import JSON

__all__ = ["ControlNet", "ControlNetBlended", "control_image", "denoise"]


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


@dataclass(eq=False)
class ControlNet(GuidedInpainter):
    """Generate from the text under a ControlNet that reads the picture with its hole at -1 (CNI).

    Nothing forces the kept part, so its PSNR is low: blend, or use ``controlnet-blended``.

    Args:
        checkpoint: the ControlNet instead of the preset's: a folder, a file or a hub id.
        scale: factor of its residuals; 1 as upstream (diffusers' inpainting pipeline has 0.5 by default).

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.
    """

    checkpoint: str | None = field(default=None, metadata=PLACE)
    scale: float = 1.0

    method = "ControlNet"

    def __post_init__(self) -> None:
        """Check the options, find the weights, load them."""
        if not math.isfinite(self.scale):
            raise UsageError(f"scale is {self.scale}, expected a finite number; 1 is the published one.")
        files = ("config.json", "diffusion_pytorch_model.safetensors")
        self.branch = find_branch(self.preset, "controlnet", self.checkpoint, holds=files[:1], patterns=files)
        super().__post_init__()

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the text-to-image pipeline; the ControlNet stands beside it."""
        from diffusers import ControlNetModel

        pipe = super().load(device, dtype)
        alike = ControlNetModel.from_unet(pipe.unet, load_weights_from_unet=False).config
        self.controlnet = load_network(ControlNetModel, self.branch, alike).to(device, dtype)
        return pipe

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the SHA-256 of all weights."""
        return {**super().describe(), "branches": {"controlnet": hashes_of(self.branch)}}

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        pipe = self.pipe
        control = torch.cat([control_image(*pair) for pair in zip(batch.pictures, batch.holes, strict=True)])
        start = self.start_noise(batch)
        return denoise(
            pipe.unet,
            self.controlnet,
            pipe.scheduler,
            start,
            control.to(start),
            **self.embeds(batch),
            **self.settings,
            scale=self.scale,
            keep=self.keep(batch),
            generators=batch.generators,
        )

    def keep(self, _batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return what :func:`denoise` pastes."""
        return None


@dataclass(eq=False)
class ControlNetBlended(ControlNet):
    """Generate as ``controlnet`` does, and paste the kept latents after every step (CNI*).

    Args:
        reduce: how the hole is reduced to latents: ``nearest`` looks at the top-left pixel under a latent, as diffusers
            does; ``any`` at all of them, so that no grey of the hole is pasted.

    The other options are those of :class:`ControlNet`.
    """

    reduce: Reduction = "nearest"

    method = "ControlNet, latents of the kept part pasted at every step"
    background = "latent-blend"

    def keep(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the picture's latents, the start noise, and the hole at latent size."""
        clean = encode_scaled(self.pipe.vae, batch.pictures)
        return clean, batch.noise.to(clean), reduce_hole(batch.holes, self.factor, self.reduce).to(clean)
