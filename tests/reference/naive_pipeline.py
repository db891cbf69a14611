"""A straightforward BrushNet denoising loop: no hooks, no sharing of halves, no stock pipeline.

The branch runs on both guidance halves at every step, also at scale 0, as the published code does, and the U-Net is
walked layer by layer.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.reference.naive_injection import predict


def naive_conditioning(vae, image: np.ndarray, hole: np.ndarray) -> torch.Tensor:
    """Encode one uint8 (H, W, 3) picture and its bool hole at a size that needs no resizing: (1, 5, h, w)."""
    masked = np.where(hole[..., None], 0, image)
    pixels = torch.from_numpy(masked.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    block = image.shape[0] // latents.shape[-2]
    keep = torch.from_numpy(~hole[::block, ::block]).float()[None, None]
    return torch.cat([latents, keep], dim=1)


@torch.no_grad()
def naive_denoise(
    unet,
    brushnet,
    scheduler,
    latents,
    cond,
    text,
    steps,
    guidance=7.5,
    scale=1.0,
    start=0.0,
    end=1.0,
    guess=False,
    added=None,
    keep_steps=None,
    step_kwargs=None,
) -> list[torch.Tensor]:
    """Return the latents after every step.

    ``text``, ``cond`` and the tensors of ``added`` have 2B rows [unconditional, conditional] if guidance > 1, else B
    (``cond`` may have B in any case). ``keep_steps`` stops early, as ``denoising_end`` does.
    """
    guided = guidance > 1
    scheduler.set_timesteps(steps)
    latents = latents * scheduler.init_noise_sigma
    if guided and len(cond) == len(latents):
        cond = torch.cat([cond, cond])
    results = []
    count = len(scheduler.timesteps)
    for i, t in enumerate(scheduler.timesteps[:keep_steps]):
        active = not (i / count < start or (i + 1) / count > end)
        sample = scheduler.scale_model_input(torch.cat([latents, latents]) if guided else latents, t)
        down, mid, up = brushnet(
            sample,
            t,
            cond,
            conditioning_scale=scale * active,
            added_cond_kwargs=added,
            guess_mode=guess,
            return_dict=False,
        )
        if guess and guided:
            for residual in (*down, mid, *up):
                residual[: len(latents)] = 0
        inputs = {"sample": sample, "timestep": t, "encoder_hidden_states": text, "added_cond_kwargs": added or {}}
        noise = predict(unet, inputs, down, mid, up)
        if guided:
            without, with_text = noise.chunk(2)
            noise = without + guidance * (with_text - without)
        latents = scheduler.step(noise, t, latents, return_dict=False, **(step_kwargs or {}))[0]
        results.append(latents)
    return results
