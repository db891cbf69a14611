"""PAIntA: in self-attention, a known place counts for the hole as far as it fits the prompt (sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Tokens", "attention_scores", "coefficients", "painta", "painta_block", "token_weights"]

Tokens: TypeAlias = "Sequence[int] | Sequence[Sequence[int]]"


def token_weights(tokens: Tokens, batch: int, length: int) -> Tensor:
    """Return (batch, length), 1 at the tokens, from the positions that serve all samples or from one list for each."""
    lists = [tokens] * batch if isinstance(tokens[0], int) else tokens
    weights = torch.zeros(batch, length)
    for row, positions in zip(weights, lists, strict=True):
        row[list(positions)] = 1  # type: ignore[arg-type]
    return weights


def attention_scores(attention: Any, queries_of: Tensor, keys_of: Tensor) -> Tensor:
    """Return an attention layer's scores before the softmax, (B, heads, n, m), in float32."""
    queries, keys = (
        projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2).float()
        for projected in (attention.to_q(queries_of), attention.to_k(keys_of))
    )
    scores: Tensor = queries @ keys.transpose(-1, -2) * attention.scale
    return scores


def coefficients(
    block: BasicTransformerBlock, hidden_states: Tensor, text: Tensor, tokens: Tokens, shape: tuple[int, int]
) -> Tensor:
    """Return how well each place fits the prompt: c of Eq. (4), 0..1.

    The cross-attention of the conditional half, as it would be after plain self-attention; its mean over the heads,
    summed over the tokens; smoothed by a 3 x 3 Gaussian (exp(-d²/(2·0.5)²), as released); less its median, by its
    greatest value, clipped.

    Args:
        block: a stock transformer block with self- and cross-attention.
        hidden_states: (2, n, width), [unconditional, conditional], before the block's first norm.
        text: (2, tokens, width), the same.
        tokens: positions in the text, from :func:`baselines.hd_painter.token_indices`.
        shape: (h, w) with h · w = n.

    Returns:
        (n,).
    """
    attended = self_attention(block, hidden_states)
    weights = token_weights(tokens, 1, text.shape[1]).to(hidden_states)
    return _coefficients(block, hidden_states, attended, text, weights, shape)[0]


def self_attention(block: BasicTransformerBlock, hidden_states: Tensor) -> Tensor:
    """Return what the block's own self-attention would add."""
    attended: Tensor = block.attn1(block.norm1(hidden_states))
    return attended


def _coefficients(
    block: BasicTransformerBlock,
    hidden_states: Tensor,
    attended: Tensor,
    text: Tensor,
    weights: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    """Return (B, n) for hidden states (2B, n, width); see :func:`coefficients`."""
    conditional = (hidden_states + attended).chunk(2)[1]
    scores = attention_scores(block.attn2, block.norm2(conditional), text.chunk(2)[1])
    fit = (scores.softmax(dim=-1).mean(dim=1) @ weights.float().unsqueeze(-1)).reshape(-1, 1, *shape)
    squared = torch.tensor([[2.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 2.0]], device=fit.device)
    kernel = torch.exp(-squared)
    fit = F.conv2d(fit, (kernel / kernel.sum())[None, None], padding=1).flatten(1)
    median, greatest = fit.median(dim=1, keepdim=True).values, fit.amax(dim=1, keepdim=True)
    return ((fit - median) / greatest).clamp(0, 1)


def painta_block(
    block: BasicTransformerBlock, hidden_states: Tensor, text: Tensor, tokens: Tokens, hole: Tensor
) -> Tensor:
    """Return the output of a transformer block whose self-attention is PAIntA's.

    Args:
        block: a stock transformer block with self- and cross-attention.
        hidden_states: (2B, n, width), [unconditional, conditional], before the block's first norm.
        text: (2B, tokens, width), the same.
        tokens: positions in the text; for B samples with different prompts one list each.
        hole: (B, 1, h, w), 1 = hole, h · w = n.

    Returns:
        (2B, n, width).
    """
    weights = token_weights(tokens, len(hole), text.shape[1]).to(hidden_states)
    return _painted(block, hidden_states, text, weights, hole.to(hidden_states))


def _painted(
    block: BasicTransformerBlock, hidden_states: Tensor, text: Tensor, weights: Tensor, hole: Tensor
) -> Tensor:
    """Return the block's output; the coefficients of the conditional half serve both (released code)."""
    attention = block.attn1
    normed = block.norm1(hidden_states)
    scores = attention_scores(attention, normed, normed)
    values = attention.to_v(normed).unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    def joined(own_scores: Tensor) -> Tensor:
        mixed = own_scores.softmax(dim=-1).to(values) @ values
        projected: Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
        return projected

    factors = _coefficients(block, hidden_states, joined(scores), text, weights, (hole.shape[2], hole.shape[3]))
    inside = hole.flatten(2)  # (B, 1, n)
    # Eq. (5): only scores from a place in the hole (rows) to a known place (columns) are scaled, before the softmax.
    scaled = inside.transpose(1, 2) * (1 - inside)
    factors = 1 + scaled * (factors.unsqueeze(1) - 1)
    hidden_states = hidden_states + joined(scores * torch.cat([factors, factors]).unsqueeze(1))

    hidden_states = hidden_states + block.attn2(block.norm2(hidden_states), encoder_hidden_states=text)
    output: Tensor = hidden_states + block.ff(block.norm3(hidden_states))
    return output


@contextmanager
def painta(unet: Any, weights: Tensor, holes: Mapping[int, Tensor]) -> Iterator[None]:
    """Run the U-Net's transformer blocks with PAIntA for the length of a ``with`` block.

    Args:
        unet: ``UNet2DConditionModel``.
        weights: (B, tokens), from :func:`token_weights`.
        holes: by the number of places n that a block attends to; blocks of other sizes stay as they are.

    Raises:
        ValueError: the U-Net has no block of the stock kind.
    """
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    if not blocks or any(block.norm_type != "layer_norm" or block.attn2 is None for block in blocks):
        raise ValueError(
            "PAIntA needs transformer blocks with layer norm, self- and cross-attention, as in SD 1 and 2."
        )
    for block in blocks:
        block.forward = partial(_forward, block, weights, holes)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _forward(
    block: BasicTransformerBlock,
    weights: Tensor,
    holes: Mapping[int, Tensor],
    hidden_states: Tensor,
    *args: Any,
    encoder_hidden_states: Tensor,
    **kwargs: Any,
) -> Tensor:
    """Stand in for a block's own ``forward``."""
    hole = holes.get(hidden_states.shape[1])
    if hole is None:
        plain: Tensor = type(block).forward(
            block, hidden_states, *args, encoder_hidden_states=encoder_hidden_states, **kwargs
        )
        return plain
    return _painted(block, hidden_states, encoder_hidden_states, weights.to(hidden_states), hole.to(hidden_states))
