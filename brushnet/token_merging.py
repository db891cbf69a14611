"""Tokens of a self-attention that are alike are merged before it, and each gets the result of its group.

Bolya and Hoffman, CVPR workshops 2023 (arXiv 2303.17604): in every cell of 2 x 2 tokens one is a destination; of the
others, those most like some destination (cosine) are averaged into it. As there, queries, keys and values are merged,
in the largest self-attention alone. Where we differ: the published code draws the destinations at random; here the
corner of the cell goes round with the steps, so that an image depends on nothing else. On CUDA the sums of merged
tokens may differ in the last bits from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MOST_MERGED", "Merging", "grid_of", "plan_merging"]

MOST_MERGED = 75  # percent: the share of tokens that are no destination


@dataclass(frozen=True)
class Merging:
    """Which tokens are merged into which.

    Attributes:
        destinations: (D,) places of the tokens that others are merged into.
        sources: (S,) places of the others.
        kept: (B, S - r) which sources stay as they are.
        merged: (B, r) which sources are merged.
        into: (B, r) into which destination.
    """

    destinations: Tensor
    sources: Tensor
    kept: Tensor
    merged: Tensor
    into: Tensor

    def merge(self, tokens: Tensor) -> Tensor:
        """Return (B, N - r, C): sources that were kept, then destinations, each the mean of its group."""
        sources, destinations = tokens[:, self.sources], tokens[:, self.destinations]
        means = destinations.scatter_reduce(
            1, _wide(self.into, tokens), _pick(sources, self.merged), "mean", include_self=True
        )
        return torch.cat([_pick(sources, self.kept), means], dim=1)

    def unmerge(self, tokens: Tensor) -> Tensor:
        """Return (B, N, C): every token gets what its group got."""
        kept, means = tokens.split([self.kept.shape[1], len(self.destinations)], dim=1)
        sources = tokens.new_empty(len(tokens), len(self.sources), tokens.shape[2])
        sources.scatter_(1, _wide(self.kept, tokens), kept)
        sources.scatter_(1, _wide(self.merged, tokens), _pick(means, self.into))
        whole = tokens.new_empty(len(tokens), len(self.sources) + len(self.destinations), tokens.shape[2])
        whole[:, self.sources], whole[:, self.destinations] = sources, means
        return whole


def plan_merging(tokens: Tensor, grid: tuple[int, int], percent: int, step: int = 0) -> Merging:
    """Choose which tokens are merged.

    Args:
        tokens: (B, N, C), what the attention reads.
        grid: height and width of the N tokens, each at least 2.
        percent: of the N tokens that are merged, up to :data:`MOST_MERGED`.
        step: of denoising; one of four corners of a cell is its destination, in turn.
    """
    height, width = grid
    places = torch.arange(height * width, device=tokens.device).view(height, width)
    top, left = divmod(step % 4, 2)
    destinations = places[top::2, left::2].flatten()
    is_source = torch.ones(height * width, dtype=torch.bool, device=tokens.device)
    is_source[destinations] = False
    sources = places.flatten()[is_source]
    unit = F.normalize(tokens, dim=-1)
    likeness, nearest = (unit[:, sources] @ unit[:, destinations].mT).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    count = min(len(sources), tokens.shape[1] * percent // 100)
    merged, kept = order[:, :count], order[:, count:]
    return Merging(destinations, sources, kept, merged, nearest.gather(1, merged))


def grid_of(count: int, latents: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of an attention's tokens under latents of a size; None where they form no grid of it."""
    height, width = latents
    for factor in (1, 2, 4, 8, 16):
        grid = (-(-height // factor), -(-width // factor))
        if grid[0] * grid[1] == count and min(grid) >= 2:
            return grid
    return None


def _pick(tokens: Tensor, places: Tensor) -> Tensor:
    return tokens.gather(1, _wide(places, tokens))


def _wide(places: Tensor, tokens: Tensor) -> Tensor:
    return places[..., None].expand(-1, -1, tokens.shape[2])
