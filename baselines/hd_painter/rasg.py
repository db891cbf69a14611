"""RASG: the noise of a DDIM step is replaced by the gradient of a score of the cross-attention (sec. 3.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn import functional as F

from baselines.hd_painter.painta import Tokens, attention_scores, token_weights
from baselines.hd_painter.painta import painta as painta_in
from baselines.sampling import OnStep, guide

__all__ = ["Sigma", "denoise", "sigmas"]

Sigma: TypeAlias = Literal["released", "ddim"]
PAINTA_ABOVE = 500  # PAIntA is on while t is greater (sec. 4.1)
SHIFT = 1.0  # taken off the scores before the cross-entropy; only in the released code


def betas() -> Tensor:
    """Return Stable Diffusion's noise schedule, float64 (1000,)."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2


def sigmas(timestep: int, earlier: int, sigma: Sigma) -> float:
    """Return the deviation of a step's noise, for eta 1.

    Args:
        timestep: where the step starts.
        earlier: where it ends.
        sigma: ``ddim``: the paper's (DDIM, Song et al. 2021, Eq. (16)), of the cumulative alphas. ``released``: the
            code puts each step's own alpha = 1 - beta into that formula, which makes it 10 to 25 times smaller.
    """
    alphas = 1 - betas()
    if sigma == "ddim":
        alphas = alphas.cumprod(0)
    before, after = alphas[timestep].item(), alphas[earlier].item()
    return math.sqrt((1 - after) / (1 - before) * (1 - before / after))


def denoise(
    unet: Any,
    latents: Tensor,
    condition: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    *,
    holes: Mapping[str, Tensor],
    tokens: Tokens,
    steps: int,
    guidance: float,
    eta: float = 0.0,
    sigma: Sigma = "released",
    painta: bool = True,
    rasg: bool = True,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise by DDIM with PAIntA and RASG.

    Args:
        unet: ``UNet2DConditionModel`` of nine input channels, its weights without gradients.
        latents: (B, 4, h, w) standard normal noise.
        condition: (B, 5, h, w): hole (1 = hole), then the scaled latents of the masked picture.
        prompt_embeds: (B, tokens, width).
        negative_prompt_embeds: the same.
        holes: ``half`` (B, 1, h/2, w/2) and ``quarter`` (B, 1, h/4, w/4), 1 = hole.
        tokens: positions in the prompt; for different prompts one list each.
        steps: the steps are at ``range(999, 0, -(1000 // steps))``, as released, which is more than ``steps`` where
            1000 is not divisible; the clean latents that the last one predicts are the result.
        guidance: weight of classifier-free guidance.
        eta: weight of the gradient (0: plain DDIM).
        sigma: ``released`` | ``ddim``, see :func:`sigmas`.
        painta: with PAIntA, while t > 500.
        rasg: with RASG, at all steps.
        on_step: called with the step's number, the latents *before* it and, with RASG, ``gradient``, the score's.

    Returns:
        (B, 4, h, w) scaled latents.

    Raises:
        ValueError: a U-Net without cross-attention at a quarter of the latents' size; an eta so great that a step has
            more noise than there is.
    """
    text = torch.cat([negative_prompt_embeds, prompt_embeds])
    weights = token_weights(tokens, len(latents), text.shape[1]).to(latents)
    sizes = {name: hole.shape[-2] * hole.shape[-1] for name, hole in holes.items()}
    levels = {sizes[name]: holes[name].to(latents) for name in ("half", "quarter")}
    every = 1000 // steps
    cumulative = (1 - betas()).cumprod(0)
    clean = latents
    for number, timestep in enumerate(range(999, 0, -every)):
        with painta_in(unet, weights, levels) if painta and timestep > PAINTA_ABOVE else nullcontext():
            noise_pred, gradient = _predict(unet, latents, condition, text, timestep, weights, levels, sizes, rasg)
        if on_step is not None:
            on_step(number, latents, **({} if gradient is None else {"gradient": gradient}))
        noise_pred = guide(noise_pred, guidance)
        alpha = cumulative[timestep].item()
        clean = (latents - math.sqrt(1 - alpha) * noise_pred) / math.sqrt(alpha)
        if timestep > every:
            latents = _step(clean, noise_pred, gradient, timestep, timestep - every, eta, sigma)
    return clean


def _step(
    clean: Tensor, noise_pred: Tensor, gradient: Tensor | None, timestep: int, earlier: int, eta: float, sigma: Sigma
) -> Tensor:
    """Return the latents of the next step: Eq. (8), the gradient scaled to deviation 1 for each sample."""
    alpha = (1 - betas()).cumprod(0)[earlier].item()
    spread = eta * sigmas(timestep, earlier, sigma) if gradient is not None else 0.0
    if spread**2 > 1 - alpha:
        raise ValueError(
            f"eta is {eta}: the step from {timestep} to {earlier} would get noise of variance {spread**2:.3g}, and "
            f"there is {1 - alpha:.3g} in all. Take a smaller eta."
        )
    latents = math.sqrt(alpha) * clean + math.sqrt(1 - alpha - spread**2) * noise_pred
    if gradient is None:
        return latents
    return latents + spread * gradient / gradient.flatten(1).std(dim=1).view(-1, 1, 1, 1)


def _predict(
    unet: Any,
    latents: Tensor,
    condition: Tensor,
    text: Tensor,
    timestep: int,
    weights: Tensor,
    levels: Mapping[int, Tensor],
    sizes: Mapping[str, int],
    rasg: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the noise of [unconditional, conditional] and, with RASG, the gradient of the score to the latents."""
    with torch.set_grad_enabled(rasg):
        latents = latents.detach().requires_grad_(rasg)
        rows = torch.cat([latents, condition.to(latents)], dim=1)
        rows = torch.cat([rows, rows]).to(unet.dtype)
        with _score_maps(unet, sizes["quarter"] if rasg else 0) as maps:
            noise_pred = unet(rows, timestep, encoder_hidden_states=text.to(unet.dtype), return_dict=False)[0].float()
        if not rasg:
            return noise_pred, None
        if not maps:
            raise ValueError("This U-Net has no cross-attention at a quarter of the latents' size, where RASG looks.")
        # A sample's score depends on nothing but its own latents, so the gradient of their sum is each one's own.
        score = _score(torch.cat(maps, dim=1).mean(dim=1), levels[sizes["quarter"]], weights)
        return noise_pred.detach(), torch.autograd.grad(score.sum(), latents)[0]


def _score(maps: Tensor, hole: Tensor, weights: Tensor) -> Tensor:
    """Return S (B,), Eq. (7): how well the tokens' scores (B, n, tokens) tell the hole from the rest."""
    target = hole.flatten(1).unsqueeze(-1).expand_as(maps)
    losses = F.binary_cross_entropy_with_logits(maps - SHIFT, target, reduction="none").mean(dim=1)
    return -(losses * weights).sum(dim=1)


@contextmanager
def _score_maps(unet: Any, places: int) -> Iterator[list[Tensor]]:
    """Collect the cross-attention scores (B, heads, n, tokens) of the conditional half, where n is ``places``."""
    maps: list[Tensor] = []

    def collect(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if hidden_states.shape[1] == places:
            text = kwargs["encoder_hidden_states"]
            maps.append(attention_scores(attention, hidden_states.chunk(2)[1], text.chunk(2)[1]))

    handles = [
        module.attn2.register_forward_pre_hook(collect, with_kwargs=True)
        for module in unet.modules()
        if isinstance(module, BasicTransformerBlock)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
