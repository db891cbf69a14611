"""Blended Latent Diffusion: a text-to-image model; the kept latents are pasted at every step.

Avrahami et al., SIGGRAPH 2023, Alg. 1 and sec. 4.3; omriav/blended-latent-diffusion 09565c5. Two variants were
released, and stock diffusers holds a third:

=========  ====================================  =====================================  ==============================
variant    source                                pasted                                 start
=========  ====================================  =====================================  ==============================
paper      ``ldm/`` (LDM-256)                    before a step, at its noise level;     latents of the picture, noised
                                                 the last step is not pasted            to the first step
script     ``scripts/text_editing_SD2.py``       after a step, still at that step's     pure noise, at a quarter of
                                                 level, so that noise is left (t = 0)   the steps
diffusers  ``StableDiffusionInpaintPipeline``    after a step, at the level that the    pure noise, at the first step
           with a four-channel U-Net             latents then have; clean at the end
=========  ====================================  =====================================  ==============================

Only ``paper`` shrinks the mask while it denoises (sec. 4.3: thin masks). Where we differ: the original encodes the
whole picture, hole included; the method on the leaderboard sees the hole grey. The LDM code shares one noise between
the samples of a batch, and both released variants draw a fresh one at each step from the global generator; here a
sample's noises come from its own seed. Not implemented: ranking of several samples by CLIP, and tuning of the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from baselines.diffusion import Batch
from baselines.guided import NOISE_SCHEDULE, GuidedInpainter
from baselines.latents import encode_scaled
from baselines.sampling import OnStep, guide, guided_denoise, keep_latents, text_rows
from brushbench.errors import UsageError
from brushnet.conditioning import draw_noise

__all__ = ["BlendedLatent", "Variant", "decode", "denoise", "encode", "latent_masks"]

Variant: TypeAlias = Literal["paper", "script", "diffusers"]


def latent_masks(hole: npt.NDArray[np.uint8], size: tuple[int, int], *, variant: Variant, dilations: int = 0) -> Tensor:
    """Return the hole at latent size, the most dilated first (sec. 4.3).

    Args:
        hole: uint8 (H, W), 255 = hole.
        size: (h, w) of the latents.
        variant: ``script``: one mask, binary from one half on. ``paper``: the last one keeps its grey levels; the
            dilated ones, by squares of 3, 5, 7 … latents, count every level but 0.
        dilations: how many dilated masks there are before the last.

    Returns:
        float32 (dilations + 1, 1, h, w), 1 = hole. Pixels are picked, not averaged (PIL's nearest).
    """
    height, width = size
    levels = np.array(Image.fromarray(hole).resize((width, height), Image.Resampling.NEAREST), dtype=np.float32) / 255
    last = torch.from_numpy(levels)[None, None]
    if variant != "paper":
        last = (last >= 0.5).float()
    touched = (last > 0).float()
    dilated = [
        torch.nn.functional.max_pool2d(touched, 3 + 2 * number, stride=1, padding=1 + number)
        for number in reversed(range(dilations))
    ]
    return torch.cat([*dilated, last])


@torch.no_grad()
def denoise(
    unet: Any,
    clean: Tensor,
    masks: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    variant: Variant,
    steps: int,
    guidance: float,
    latents: Tensor,
    noises: Sequence[Tensor],
    start: float = 0.0,
    skip: int = 0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise by DDIM (eta 0) from the text alone, and paste the kept latents at every step.

    Args:
        unet: ``UNet2DConditionModel`` of four input channels.
        clean: (1 or B, 4, h, w) scaled latents of the picture.
        masks: (n, 1, h, w), from :func:`latent_masks`; or (n, B, 1, h, w), where the samples' differ. The steps are
            shared out among them, the first mask first.
        prompt_embeds: (B, tokens, width).
        negative_prompt_embeds: the same.
        variant: ``paper`` | ``script``, see above. (``diffusers`` runs by
            :func:`baselines.sampling.guided_denoise`.)
        steps: DDIM steps, those left out included.
        guidance: weight of classifier-free guidance.
        latents: (B, 4, h, w) to start from, at the noise level of the first step taken.
        noises: one tensor for each step taken, (1 or B, 4, h, w): what noises the kept latents.
        start: ``script``: share of the steps left out.
        skip: ``paper``: number of steps left out.
        on_step: called with the step's number and the latents after it, pasted where the pasting comes last.

    Returns:
        (B, 4, h, w) scaled latents.

    Raises:
        ValueError: another number of noises than of steps.
    """
    scheduler, timesteps = schedule(variant, steps, start, skip)
    if len(noises) != len(timesteps):
        raise ValueError(f"Got {len(noises)} noises for {len(timesteps)} steps; pass one for each.")
    text = text_rows(prompt_embeds, negative_prompt_embeds, guidance)
    each = len(timesteps) // len(masks) + 1  # steps of one mask, as the LDM code counts them
    for number, timestep in enumerate(timesteps):
        mask = masks[number // each].to(latents)
        kept = scheduler.add_noise(clean, noises[number], timestep.repeat(len(clean)))
        if variant == "paper":
            latents = mask * latents + (1 - mask) * kept
        rows = torch.cat([latents, latents]) if guidance > 1 else latents
        noise_pred = unet(rows, timestep, encoder_hidden_states=text, return_dict=False)[0]
        noise_pred = guide(noise_pred, guidance) if guidance > 1 else noise_pred
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        if variant == "script":
            latents = mask * latents + (1 - mask) * kept
        if on_step is not None:
            on_step(number, latents)
    return latents


def schedule(variant: Variant, steps: int, start: float = 0.0, skip: int = 0) -> tuple[Any, Tensor]:
    """Return the DDIM scheduler of a variant and the timesteps it takes, the noisiest first.

    The LDM code counts ``range(0, 1000, 1000 // steps) + 1``, which is more than ``steps`` where 1000 is not divisible.
    """
    from diffusers import DDIMScheduler

    offset = 1 if variant == "paper" else 0
    scheduler = DDIMScheduler(
        **NOISE_SCHEDULE,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=offset,
    )
    scheduler.set_timesteps(steps)
    if variant != "paper":
        return scheduler, scheduler.timesteps[int(len(scheduler.timesteps) * start) :]
    return scheduler, torch.arange(0, 1000, 1000 // steps).flip(0)[skip:] + offset


@torch.no_grad()
def encode(vae: Any, picture: npt.NDArray[np.uint8], noise: Tensor | None = None) -> Tensor:
    """Return scaled latents of a picture.

    Args:
        vae: ``AutoencoderKL``.
        picture: uint8 (H, W, 3) RGB, sides divisible by the VAE's factor.
        noise: None takes the posterior's mean (``script``); else (1, 4, h, w), which makes it a sample (``paper``).

    Returns:
        (1, 4, h, w).
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(vae.device, torch.float32) / 127.5 - 1
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
    scaled: Tensor = latents * vae.config.scaling_factor
    return scaled


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> npt.NDArray[np.uint8]:
    """Return uint8 (B, H, W, 3) pictures of scaled latents (B, 4, h, w), rounded (the LDM code truncates)."""
    pixels = vae.decode(latents / vae.config.scaling_factor).sample
    levels = pixels.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
    return np.asarray(levels.permute(0, 2, 3, 1).cpu())


# The options of each variant, as released.
DEFAULTS: Mapping[Variant, Mapping[str, float]] = {
    "paper": {"dilations": 0, "skip": 0},
    "script": {"start": 0.25},
    "diffusers": {},
}


@dataclass(eq=False)
class BlendedLatent(GuidedInpainter):
    """Generate from the text alone, and paste the kept latents at every step.

    Args:
        variant: ``paper`` | ``script`` | ``diffusers``, see the module.
        dilations: of ``paper``: number of dilated masks, one segment of the steps each, before the hole's own; 0 as
            released, 3 in the paper's section on thin masks.
        skip: of ``paper``: number of steps left out at the noisy end, 0 as released.
        start: of ``script``: share of the steps left out there, 0.25 as released.
        scheduler: ``ddim``; ``diffusers`` runs with all others too.

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.

    Raises:
        UsageError: an option of another variant, or out of its range.
    """

    scheduler: str = "ddim"
    variant: Variant = "paper"
    dilations: int | None = None
    skip: int | None = None
    start: float | None = None

    method = "Blended Latent Diffusion"
    background = "latent-blend"

    @property
    def own_ddim(self) -> bool:  # type: ignore[override]
        """Those of the released code bring their own DDIM."""
        return self.variant != "diffusers"

    def __post_init__(self) -> None:
        """Check the options, load the weights."""
        given = {"dilations": self.dilations, "skip": self.skip, "start": self.start}
        theirs = DEFAULTS[self.variant]
        foreign = [name for name, value in given.items() if value is not None and name not in theirs]
        if foreign:
            raise UsageError(f"variant={self.variant} has no {foreign[0]}. Leave it out.")
        for name, default in theirs.items():
            setattr(self, name, default if given[name] is None else given[name])
        super().__post_init__()
        if self.variant == "script" and not 0 <= cast("float", self.start) < 1:
            raise UsageError(f"start is {self.start}, expected a share of the steps from 0 to below 1.")
        if self.variant == "paper" and not (0 <= cast("int", self.skip) < cast("int", self.steps)):
            raise UsageError(f"skip is {self.skip}, expected 0 to {cast('int', self.steps) - 1} steps.")
        if self.variant == "paper" and not 0 <= cast("int", self.dilations) <= 10:
            raise UsageError(f"dilations is {self.dilations}, expected 0 to 10.")

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        clean = encode_scaled(self.pipe.vae, batch.pictures)
        size = (clean.shape[2], clean.shape[3])
        each = [
            latent_masks(hole.astype(np.uint8) * 255, size, variant=self.variant, dilations=self.dilations or 0)
            for hole in batch.holes
        ]
        masks = torch.stack(each, dim=1).to(clean)  # (n, B, 1, h, w)
        if self.variant == "diffusers":
            return self._as_diffusers(batch, clean, masks[0])
        start, skip = self.start or 0.0, self.skip or 0
        scheduler, timesteps = schedule(self.variant, self.settings["steps"], start, skip)
        first = self.start_noise(batch)
        noises = [draw_noise(clean.shape, batch.generators).to(clean) for _ in timesteps]
        if self.variant == "paper":
            first = scheduler.add_noise(clean.to(first), first, timesteps[:1].repeat(len(first)))
        return denoise(
            self.pipe.unet,
            clean.to(first),
            masks,
            **self.embeds(batch),
            **self.settings,
            variant=self.variant,
            latents=first,
            noises=[noise.to(first) for noise in noises],
            start=start,
            skip=skip,
        )

    def _as_diffusers(self, batch: Batch, clean: Tensor, hole: Tensor) -> Tensor:
        pipe, settings = self.pipe, self.settings
        text = text_rows(**self.embeds(batch), guidance=settings["guidance"])
        return guided_denoise(
            lambda sample, timestep: pipe.unet(sample, timestep, encoder_hidden_states=text, return_dict=False)[0],
            pipe.scheduler,
            self.start_noise(batch),
            **settings,
            generators=batch.generators,
            after_step=keep_latents(pipe.scheduler, clean, batch.noise.to(clean), hole),
        )
