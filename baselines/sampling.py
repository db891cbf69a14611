"""One denoising loop, for the methods that need more than a stock pipeline offers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["OnStep", "Predict", "both", "guide", "guided_denoise", "keep_latents", "text_rows"]

Predict: TypeAlias = Callable[[Tensor, Tensor], Tensor]
OnStep: TypeAlias = Callable[..., object]


def guide(noise_pred: Tensor, guidance: float) -> Tensor:
    """Return (B, …) of [unconditional, conditional] (2B, …): Ho and Salimans 2022, Eq. (6)."""
    unconditional, conditional = noise_pred.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def guided_denoise(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    *,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator] | None = None,
    after_step: Callable[[int, Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise as the stock Stable Diffusion pipelines do (diffusers 0.42.1, ``StableDiffusionPipeline.__call__``).

    Args:
        predict: takes the U-Net's input (rows, 4, h, w), after ``scale_model_input``, and the timestep; returns the
            predicted noise of the same shape. Under guidance the rows are 2B, [unconditional, conditional]; a guidance
            of at most 1 means none, and the rows are B.
        scheduler: a stock scheduler; its timesteps are set here.
        latents: (B, 4, h, w) standard normal noise, not yet scaled to the scheduler's first noise level.
        steps: denoising steps.
        guidance: weight of classifier-free guidance.
        generators: one for each sample, for schedulers that add noise in a step.
        after_step: takes the step's number and the latents, returns the latents to go on with.
        on_step: called with the step's number and the latents, after ``after_step``.

    Returns:
        (B, 4, h, w) scaled latents.
    """
    scheduler.set_timesteps(steps, device=latents.device)
    latents = latents * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": list(generators)} if generators is not None and takes_generator else {}
    guided = guidance > 1
    for number, timestep in enumerate(scheduler.timesteps):
        rows = torch.cat([latents, latents]) if guided else latents
        noise_pred = predict(scheduler.scale_model_input(rows, timestep), timestep)
        noise_pred = guide(noise_pred, guidance) if guided else noise_pred
        latents = scheduler.step(noise_pred, timestep, latents, **options, return_dict=False)[0]
        if after_step is not None:
            latents = after_step(number, latents)
        if on_step is not None:
            on_step(number, latents)
    return latents


def text_rows(prompt_embeds: Tensor, negative_prompt_embeds: Tensor, guidance: float) -> Tensor:
    """Return the U-Net's text: [unconditional, conditional] under guidance, else the conditional alone."""
    return torch.cat([negative_prompt_embeds, prompt_embeds]) if guidance > 1 else prompt_embeds


def both(tensor: Tensor, rows: int) -> Tensor:
    """Return a (B, …) tensor repeated for each half of a batch with 2B rows, or as it is for one with B."""
    return tensor if len(tensor) == rows else torch.cat([tensor, tensor])


def keep_latents(scheduler: Any, clean: Tensor, noise: Tensor, hole: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return the ``after_step`` that replaces the kept latents by those of the picture, at the running noise level.

    After the last step what is kept is clean (diffusers 0.42.1, the blending of its four-channel inpainting pipelines).

    Args:
        scheduler: the loop's own.
        clean: (B, 4, h, w) scaled latents of the picture.
        noise: the same shape; it serves all steps.
        hole: (B, 1, h, w), 1 = hole.
    """

    def after_step(number: int, latents: Tensor) -> Tensor:
        kept = clean
        if number + 1 < len(scheduler.timesteps):
            kept = scheduler.add_noise(clean, noise, scheduler.timesteps[number + 1].repeat(len(clean)))
        return (hole * latents + (1 - hole) * kept).to(latents.dtype)

    return after_step
