"""Plain sampling-strategy modification: the bare text-to-image model, the kept latents pasted at every step.

The oldest way to inpaint with a diffusion model (RePaint without resampling, Lugmayr et al. 2022, Alg. 1; Blended
Latent Diffusion without its extras, Avrahami et al. 2023, Alg. 1) and what BrushNet's paper compares itself with
(sec. 2). No weights beyond the base model's. Two differences from the released Blended Latent Diffusion script: the
picture is encoded with its hole grey, so that nothing of the truth leaks, and what is pasted after a step has the noise
level that the latents have *after* that step (the script pastes one level behind, which leaves noise in the kept part).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from baselines.diffusion import Batch, DiffusionInpainter
from baselines.latents import Reduction, encode_scaled, reduce_hole
from baselines.sampling import keep_latents

__all__ = ["LatentCopy"]


@dataclass(eq=False)
class LatentCopy(DiffusionInpainter):
    """Generate from the text alone, and after each step replace the kept latents by the noised ones of the picture.

    What is pasted carries the running latents' own noise level and the sample's own initial noise; after the last step
    it is the clean latents.

    Args:
        reduce: how the hole is reduced to latents: ``any`` repaints a latent if any pixel under it is hole, so that no
            grey is pasted; ``nearest`` looks at its top-left pixel, as BrushNet does.

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.
    """

    reduce: Reduction = "any"

    method = "latents of the kept part pasted at every step"
    background = "latent-blend"

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        clean = encode_scaled(self.pipe.vae, batch.pictures)
        hole = reduce_hole(batch.holes, self.factor, self.reduce).to(clean)
        return self.run(
            self.pipe,
            batch,
            height=batch.height,
            width=batch.width,
            callback_on_step_end=_paste(keep_latents(self.pipe.scheduler, clean, batch.noise.to(clean), hole)),
            callback_on_step_end_tensor_inputs=["latents"],
        )


def _paste(after_step: Callable[[int, Tensor], Tensor]) -> Any:
    """Return the stock pipelines' callback that changes the latents after a step."""

    def callback(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": after_step(step, tensors["latents"])}

    return callback
