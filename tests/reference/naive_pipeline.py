"""A straightforward BrushNet denoising loop: no hooks, no sharing of halves, no stock pipeline.

The branch runs on both guidance halves at every step, also at scale 0, as the published code does. The U-Net is walked
layer by layer, so that the places of the residuals do not depend on the code under test.
"""

from __future__ import annotations

import numpy as np
import torch


def naive_conditioning(vae, image: np.ndarray, hole: np.ndarray) -> torch.Tensor:
    """Encode one uint8 (H, W, 3) picture and its bool hole at a size that needs no resizing: (1, 5, h, w)."""
    masked = np.where(hole[..., None], 0, image)
    pixels = torch.from_numpy(masked.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    block = image.shape[0] // latents.shape[-2]
    keep = torch.from_numpy(~hole[::block, ::block]).float()[None, None]
    return torch.cat([latents, keep], dim=1)


def naive_unet(unet, sample, t, text, down, mid, up, added=None) -> torch.Tensor:
    """Walk a stock U-Net and add the residuals by hand; skip 0 stays clean."""
    down, up = list(down), list(up)

    def pairs(block, hidden, skips=None):
        attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            hidden = resnet(hidden if skips is None else torch.cat([hidden, skips.pop()], dim=1), emb)
            if attention is not None:
                hidden = attention(hidden, encoder_hidden_states=text, return_dict=False)[0]
            yield (hidden := hidden + (down if skips is None else up).pop(0))

    emb = unet.time_embedding(unet.time_proj(torch.as_tensor(t).reshape(1).expand(len(sample))).to(sample.dtype))
    if added is not None:
        sizes = unet.add_time_proj(added["time_ids"].flatten()).reshape(len(sample), -1)
        emb = emb + unet.add_embedding(torch.cat([added["text_embeds"], sizes], dim=-1))

    hidden = unet.conv_in(sample)
    skips = [hidden]
    hidden = hidden + down.pop(0)
    for block in unet.down_blocks:
        skips += pairs(block, hidden)
        hidden = skips[-1]
        for sampler in block.downsamplers or []:
            hidden = sampler(hidden) + down.pop(0)
            skips.append(hidden)
    hidden = unet.mid_block(hidden, emb, encoder_hidden_states=text) + mid
    for block in unet.up_blocks:
        *_, hidden = pairs(block, hidden, skips)
        for sampler in block.upsamplers or []:
            hidden = sampler(hidden, skips[-1].shape[-2:]) + up.pop(0)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


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
        noise = naive_unet(unet, sample, t, text, down, mid, up, added)
        if guided:
            without, with_text = noise.chunk(2)
            noise = without + guidance * (with_text - without)
        latents = scheduler.step(noise, t, latents, return_dict=False, **(step_kwargs or {}))[0]
        results.append(latents)
    return results
