"""BrushNet inside any stock diffusers pipeline: text-to-image, image-to-image, ControlNet, SDXL."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from brushnet.checkpoints import check_weights
from brushnet.conditioning import encode_conditioning, vae_factor
from brushnet.denoising import check_fit
from brushnet.injection import check_scale, guided_residuals, inject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from brushnet.conditioning import Generators, Pictures
    from brushnet.injection import Slot
    from brushnet.model import BrushNetModel

__all__ = ["attach"]


@contextmanager
def attach(
    pipe: DiffusionPipeline,
    brushnet: BrushNetModel,
    image: Pictures | None = None,
    mask: Pictures | None = None,
    conditioning_scale: float = 1.0,
    *,
    guess_mode: bool = False,
    generator: Generators | None = None,
    conditioning_latents: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
) -> Iterator[DiffusionPipeline]:
    """Let BrushNet guide a stock pipeline for the length of a ``with`` block.

    ::

        with attach(pipe, brushnet, image=picture, mask=hole):
            pipe("a cat on the sofa").images[0]

    Every call of ``pipe.unet`` first runs the branch on the same latents, timestep and (SDXL) added conditions, once
    for both guidance halves where they are equal (:func:`brushnet.injection.guided_residuals`). On exit, also by an
    exception, pipeline and U-Net are as before. What lies outside the hole is guided, not pasted: see
    :func:`brushnet.blend`. To compile the U-Net, open a :func:`brushnet.inject` around, compile there, attach inside.

    Args:
        pipe: any pipeline with a ``UNet2DConditionModel`` as ``unet`` and, if pictures are given, a ``vae``.
        brushnet: the branch for that base model, on the pipeline's device.
        image: pictures as in :func:`brushnet.encode_conditioning`; each serves as many samples as there are for it.
            They are brought to the size that the pipeline works at.
        mask: white = repaint, as in :func:`brushnet.encode_conditioning`.
        conditioning_scale: factor of the residuals; 0 leaves the pipeline as it is.
        guess_mode: see :meth:`brushnet.BrushNetModel.forward`; guides only the conditional half.
        generator: None takes the mode of the VAE's posterior; else draws from it.
        conditioning_latents: instead of ``image`` and ``mask``: (N, 5, h, w) scaled latents, then keep (1 = keep).
        encoder_hidden_states: text for a branch with cross-attention; None gives it the U-Net's own.

    Yields:
        ``pipe``.

    Raises:
        ValueError: neither or both of pictures and ``conditioning_latents``, latents of another shape, pictures without
            a VAE, a branch made for another base model, NaN in its weights, or more pictures than samples.
        TypeError: a pipeline whose ``unet`` is not a ``UNet2DConditionModel``, or a scale that is not a number.
        RuntimeError: a U-Net that was compiled outside of an :func:`brushnet.inject`.
    """
    given = tuple(part is not None for part in (image, mask, conditioning_latents))
    if given not in ((True, True, False), (False, False, True)):
        raise ValueError("Pass image and mask, or conditioning_latents, and not both.")
    if image is not None and getattr(pipe, "vae", None) is None:
        raise ValueError("The pipeline has no vae; pass conditioning_latents, or load the missing part.")
    if conditioning_latents is not None:
        shape, channels = tuple(conditioning_latents.shape), brushnet.config.conditioning_channels
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(f"Got conditioning_latents of shape {shape}; expected (N, {channels}, h, w).")
    check_scale(conditioning_scale)
    check_fit(brushnet, pipe.unet)
    check_weights(brushnet)
    guide = _Guide(
        pipe,
        brushnet,
        (image, mask),
        generator,
        conditioning_latents,
        encoder_hidden_states,
        conditioning_scale,
        guess_mode or brushnet.config.global_pool_conditions,
    )
    with inject(pipe.unet) as guide.slot:
        # Under torch.compile this hook stays plain Python; a branch that is compiled stays compiled.
        hook = torch.compiler.disable(guide.before_unet, recursive=False)
        handle = pipe.unet.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield pipe
        finally:
            handle.remove()


@dataclass
class _Guide:
    """The branch's part in one attachment."""

    pipe: DiffusionPipeline
    brushnet: BrushNetModel
    pictures: tuple[Pictures | None, Pictures | None]
    generator: Generators | None
    given: Tensor | None
    text: Tensor | None
    scale: float
    guess_mode: bool
    slot: Slot | None = None
    encoded: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def before_unet(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the branch on what the U-Net is about to read, and hand over its residuals."""
        call = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        sample = call["sample"][:, : self.brushnet.config.in_channels]  # an inpainting U-Net reads more than latents
        samples, parts = _samples(self.pipe, len(sample))
        output = guided_residuals(
            self.brushnet,
            sample,
            call["timestep"],
            self.rows(samples, *sample.shape[-2:]).repeat(parts, 1, 1, 1),
            guided=parts == 2,
            encoder_hidden_states=call["encoder_hidden_states"] if self.text is None else self.text,
            conditioning_scale=self.scale,
            added_cond_kwargs=call.get("added_cond_kwargs"),
            guess_mode=self.guess_mode,
        )
        cast("Slot", self.slot).set(output)

    def rows(self, samples: int, height: int, width: int) -> Tensor:
        """Return the conditioning (samples, 5, height, width), encoded when first asked for at this size of latents."""
        if self.given is not None:
            if self.given.shape[-2:] != (height, width) or samples % len(self.given):
                raise ValueError(
                    f"conditioning_latents are {tuple(self.given.shape)}; the pipeline works on {samples} samples of "
                    f"{height}x{width} latents. Pass one row, or one for each sample, of that size."
                )
            return self.given.repeat_interleave(samples // len(self.given), dim=0)
        key = (samples, height, width)
        if key not in self.encoded:
            image, hole = cast("tuple[Pictures, Pictures]", self.pictures)
            factor = vae_factor(self.pipe.vae)
            self.encoded[key] = encode_conditioning(
                self.pipe.vae,
                image,
                hole,
                self.generator,
                height=height * factor,
                width=width * factor,
                batch_size=samples,
            )
        return self.encoded[key]


def _samples(pipe: DiffusionPipeline, rows: int) -> tuple[int, int]:
    """Return the number of samples in a U-Net batch, and how many guidance parts each has: 2 under guidance."""
    flags = ("do_classifier_free_guidance", "do_perturbed_attention_guidance")
    parts = 1 + sum(bool(getattr(pipe, flag, False)) for flag in flags)
    # Some pipelines also call the U-Net on one part alone.
    return (rows // parts, parts) if rows % parts == 0 else (rows, 1)
