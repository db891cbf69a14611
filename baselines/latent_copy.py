"""Plain sampling-strategy modification: the bare text-to-image model, the kept latents pasted at every step.

The oldest way to inpaint with a diffusion model (RePaint without resampling, Lugmayr et al. 2022, Alg. 1; Blended
Latent Diffusion without its extras, Avrahami et al. 2023, Alg. 1) and what BrushNet's paper sets itself against
(sec. 2). No weights beyond the base model's. Two differences from the released Blended Latent Diffusion script: the
picture is encoded with its hole grey, so that nothing of the truth leaks, and what is pasted after a step has the noise
level that the latents have *after* that step (the script pastes one level behind, which leaves noise in the kept part).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.bases import (
    BATCH,
    decode,
    describe_base,
    encode,
    find_base,
    in_batches,
    load_base,
    make_scheduler,
    negative_prompts,
    pad_to_multiple,
    preset_named,
    vae_factor,
)
from brushbench.devices import choose_device, choose_dtype
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture
from brushnet.conditioning import draw_noise


class LatentCopy:
    """Generate from the text alone, and after each step replace the kept latents by the noised ones of the picture.

    What is pasted carries the running latents' own noise level and the sample's own initial noise; after the last step
    it is the clean latents. Initial noise comes from a CPU generator of each request's seed.

    Args:
        preset: ``tiny`` | ``sd15`` | ``sdxl``: base model and, unless given, steps and guidance.
        base: folder or hub id of a base model instead of the preset's.
        steps: denoising steps.
        guidance: weight of classifier-free guidance.
        scheduler: ``unipc`` | ``ddim`` | ``dpm++`` | ``euler`` | ``euler_a`` | ``pndm``.
        reduce: how the hole comes to latent size: ``any`` repaints a latent if any pixel under it is hole, so that no
            grey is pasted; ``nearest`` looks at its top-left pixel, as BrushNet does.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``, of U-Net and text encoders.
    """

    def __init__(
        self,
        preset: str = "tiny",
        base: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str = "unipc",
        reduce: Literal["any", "nearest"] = "any",
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.steps, self.guidance = preset_named(preset).settings(steps, guidance)
        self.scheduler, self.reduce = scheduler, reduce
        place = choose_device(device)
        self.folder = find_base(preset, base)
        self.pipe: Any = load_base(self.folder, place, choose_dtype(dtype, place))
        self.pipe.scheduler = make_scheduler(scheduler, self.pipe.scheduler)
        self.capabilities = Capabilities(
            text=True,
            negative_prompt=True,
            batch=BATCH,
            native_size=self.pipe.unet.config.sample_size * vae_factor(self.pipe.vae),
            background="latent-blend",
        )

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the base model's SHA-256."""
        return {
            "method": "latents of the kept part pasted at every step",
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "reduce": self.reduce,
            "dtype": str(self.pipe.unet.dtype).removeprefix("torch."),
            "weights": describe_base(self.folder),
        }

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one picture a request, of its size."""
        return in_batches(requests, self._inpaint)

    @torch.no_grad()
    def _inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        pipe, factor = self.pipe, vae_factor(self.pipe.vae)
        multiple = max(8, factor)  # the stock pipelines take multiples of 8 of any autoencoder
        height, width = requests[0].image.shape[:2]
        clean = encode(pipe.vae, [pad_to_multiple(request.image, multiple) for request in requests])
        hole = self._latent_hole([pad_to_multiple(request.hole, multiple) for request in requests], factor).to(clean)
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        noise = draw_noise(clean.shape, generators).to(clean)

        latents = pipe(
            prompt=[request.prompt for request in requests],
            negative_prompt=negative_prompts(requests),
            height=clean.shape[2] * factor,
            width=clean.shape[3] * factor,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            latents=noise.to(pipe.unet.dtype),
            output_type="latent",
            callback_on_step_end=_paste(clean, noise, hole),
            callback_on_step_end_tensor_inputs=["latents"],
        ).images
        return [picture[:height, :width] for picture in decode(pipe.vae, latents)]

    def _latent_hole(self, holes: Sequence[np.ndarray[Any, np.dtype[np.bool_]]], factor: int) -> Tensor:
        """Return float (B, 1, h, w), 1 = hole."""
        full = torch.from_numpy(np.stack(holes)).float()[:, None]
        return F.max_pool2d(full, factor) if self.reduce == "any" else full[:, :, ::factor, ::factor]


def _paste(clean: Tensor, noise: Tensor, hole: Tensor) -> Any:
    """Return the callback that keeps the hole of the latents and replaces the rest."""

    def callback(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents, timesteps = tensors["latents"], pipe.scheduler.timesteps
        kept = clean
        if step + 1 < len(timesteps):
            kept = pipe.scheduler.add_noise(clean, noise, timesteps[step + 1].repeat(len(clean)))
        return {"latents": (hole * latents + (1 - hole) * kept).to(latents.dtype)}

    return callback
