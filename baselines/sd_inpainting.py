"""Stable Diffusion Inpainting: a U-Net of nine channels that reads hole and masked picture beside the latents.

Rombach et al., CVPR 2022, sec. 4.5; the weights' model card (``stable-diffusion-inpainting``). The noise of a step is
predicted from [noisy latents 4, hole 1, latents of the masked picture 4]; nothing is pasted, so the kept pixels are
what the decoder returns. As published but for one thing: the masked picture enters at the mode of the posterior, where
``StableDiffusionInpaintPipeline`` draws from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.diffusion import PLACE, Batch
from baselines.guided import GuidedInpainter, load_network
from baselines.latents import Reduction, encode_pixels, reduce_hole
from baselines.presets import find_branch, hashes_of
from baselines.sampling import OnStep, both, guided_denoise, text_rows
from brushbench.errors import WeightsError
from brushbench.types import JSON

__all__ = ["SdInpainting", "condition", "denoise", "masked_image", "nine_channels"]


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


@dataclass(eq=False)
class SdInpainting(GuidedInpainter):
    """Generate under the hole and the masked picture, by a U-Net of nine channels trained for it.

    Args:
        checkpoint: the inpainting model instead of the preset's: the folder or hub id of a saved pipeline, whose
            autoencoder and text encoder serve too; or a folder or file of the U-Net alone.
        reduce: how the hole is reduced to latents: ``nearest`` looks at the top-left pixel under a latent, as
            published; ``any`` at all of them.

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.
    """

    checkpoint: str | None = field(default=None, metadata=PLACE)
    reduce: Reduction = "nearest"

    method = "Stable Diffusion Inpainting"

    def __post_init__(self) -> None:
        """Check the options, find the weights, load them."""
        self.branch = find_branch(
            self.preset, "sd-inpainting", self.checkpoint, holds=("model_index.json", "unet/config.json", "config.json")
        )
        if (self.branch / "model_index.json").is_file():
            self.base = str(self.branch)  # a whole pipeline
        super().__post_init__()

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the pipeline whose U-Net has nine channels."""
        pipe = super().load(device, dtype)
        if self.branch != self.folder:
            pipe.unet = nine_channels(pipe.unet, self.branch).to(device, dtype)
        if pipe.unet.config.in_channels != 9:
            raise WeightsError(
                f"The U-Net of {self.branch} reads {pipe.unet.config.in_channels} channels, expected 9: latents, hole "
                "and masked picture. Is it a text-to-image model?"
            )
        return pipe

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the SHA-256 of all weights."""
        own = {} if self.branch == self.folder else {"branches": {"unet": hashes_of(self.branch)}}
        return {**super().describe(), **own}

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        pipe = self.pipe
        return denoise(
            pipe.unet,
            pipe.scheduler,
            self.start_noise(batch),
            condition(pipe.vae, batch, self.factor, self.reduce),
            **self.embeds(batch),
            **self.settings,
            generators=batch.generators,
        )


def condition(vae: Any, batch: Batch, factor: int, reduce: Reduction) -> Tensor:
    """Return what the U-Net reads beside the latents, (B, 5, h, w): hole, latents of the masked picture."""
    masked = torch.cat([masked_image(*pair) for pair in zip(batch.pictures, batch.holes, strict=True)])
    latents = encode_pixels(vae, masked)
    return torch.cat([reduce_hole(batch.holes, factor, reduce).to(latents), latents], dim=1)


def nine_channels(unet: Any, place: Path) -> Any:
    """Return an inpainting U-Net of the size of a text-to-image one, from a folder or file of it alone, or ``unet/``.

    Raises:
        WeightsError: damaged, incomplete, or weights of another network.
    """
    from diffusers import UNet2DConditionModel

    inner = place / "unet" if (place / "unet").is_dir() else place
    return load_network(UNet2DConditionModel, inner, {**unet.config, "in_channels": 9}, unlike="another base model")
