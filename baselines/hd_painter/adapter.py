"""HD-Painter on the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.diffusion import PLACE, Batch
from baselines.hd_painter.inputs import condition, hole_masks, token_indices
from baselines.hd_painter.rasg import Sigma, denoise
from baselines.latents import Reduction
from baselines.sd_inpainting import SdInpainting
from brushbench.errors import UsageError

__all__ = ["HdPainter"]


@dataclass(eq=False)
class HdPainter(SdInpainting):
    """Generate by an inpainting U-Net whose attention and steps are led by the prompt.

    Where we differ: released for one picture at a time, here in batches, each sample with its own coefficients and its
    own gradient; a picture is padded by its last row and column, and not with black.

    Args:
        painta: with prompt-aware attention, while t > 500.
        rasg: with guidance by the attention scores; needs gradients, and 2 to 3 times the memory.
        eta: weight of that guidance.
        sigma: how a step's deviation is computed: ``released``, as the published code does, which is 10 to 25 times
            smaller than ``ddim``, the paper's.
        scheduler: ``ddim``.

    The other options are those of :class:`~baselines.sd_inpainting.SdInpainting`, without ``reduce``.
    """

    scheduler: str = "ddim"
    reduce: Reduction = field(default="any", init=False, metadata=PLACE)  # the method has its own way, hole_masks
    painta: bool = True
    rasg: bool = True
    eta: float = 0.1
    sigma: Sigma = "released"

    method = "HD-Painter"
    own_ddim = True
    needs_grad = True

    def __post_init__(self) -> None:
        """Check the options, find the weights, load them."""
        if not 0 <= self.eta < float("inf"):
            raise UsageError(f"eta is {self.eta}, expected a number from 0 on; 0.1 is the released one.")
        super().__post_init__()

    @property
    def multiple(self) -> int:
        """PAIntA and RASG look at latents of half and quarter size; the code pads to multiples of 64 pixels."""
        return 8 * self.factor

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        pairs = list(zip(batch.pictures, batch.holes, strict=True))
        return denoise(
            self.pipe.unet,
            batch.noise.to(self.pipe.unet.device),
            torch.cat([condition(self.pipe.vae, *pair) for pair in pairs]),
            **self.embeds(batch),
            holes=_stacked(batch.holes, self.factor),
            tokens=[token_indices(self.pipe.tokenizer, prompt) for prompt in batch.prompts],
            **self.settings,
            eta=self.eta,
            sigma=self.sigma,
            painta=self.painta,
            rasg=self.rasg,
        )


def _stacked(holes: npt.NDArray[np.bool_], factor: int) -> Mapping[str, Any]:
    """Return :func:`~baselines.hd_painter.inputs.hole_masks` of a batch."""
    each = [hole_masks(hole, factor) for hole in holes]
    return {name: torch.cat([masks[name] for masks in each]) for name in each[0]}
