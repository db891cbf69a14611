"""BrushNet inside any stock diffusers pipeline: text-to-image, image-to-image, ControlNet, SDXL."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from brushnet.checks import check_fit
from brushnet.conditioning import encode_conditioning, vae_factor
from brushnet.guidance import Guide, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from brushnet.conditioning import Generators
    from brushnet.model import BrushNetModel
    from brushnet.pictures import Pictures

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
    control_guidance_start: float = 0.0,
    control_guidance_end: float = 1.0,
) -> Iterator[DiffusionPipeline]:
    """Let BrushNet guide a stock pipeline for the length of a ``with`` block.

    ::

        with attach(pipe, brushnet, image=picture, mask=hole):
            pipe("a cat on the sofa").images[0]

    Every call of ``pipe.unet`` first runs the branch on the same latents, timestep and (SDXL) added conditions, once
    for both guidance halves where they are equal (:func:`brushnet.guidance.guided_residuals`). On exit, also by an
    exception, pipeline and U-Net are as before. What lies outside the hole is guided, not pasted: see
    :func:`brushnet.blend`. To compile the U-Net, open a :func:`brushnet.inject` around, compile there, attach inside.
    Attach in the thread that calls the pipeline; threads may share a U-Net if each attaches its own branch to it.

    Args:
        pipe: any pipeline with a ``UNet2DConditionModel`` as ``unet`` and, if pictures are given, a ``vae``.
        brushnet: the branch for that base model, on the pipeline's device.
        image: images as in :func:`brushnet.encode_conditioning`, N of them for a multiple of N samples. They are
            resized to the size of the generated image.
        mask: white = repaint, as in :func:`brushnet.encode_conditioning`.
        conditioning_scale: factor of the residuals; 0 leaves the pipeline as it is.
        guess_mode: see :meth:`brushnet.BrushNetModel.forward`; guides only the conditional half.
        generator: None takes the mode of the VAE's posterior; else draws from it.
        conditioning_latents: instead of ``image`` and ``mask``: (N, 5, h, w) scaled latents, then keep (1 = keep).
        encoder_hidden_states: text for a branch with cross-attention; None gives it the U-Net's own.
        control_guidance_start: share of the scheduler's steps before which the branch is not active.
        control_guidance_end: share of the scheduler's steps after which it is not.

    Yields:
        ``pipe``.

    Raises:
        ValueError: neither or both of pictures and ``conditioning_latents``, latents of another shape, pictures without
            a VAE, a branch made for another base model, or a window other than 0 <= start < end <= 1; in a call of the
            pipeline, more pictures than samples, or NaN in the first residuals or prediction.
        TypeError: a pipeline whose ``unet`` is not a ``UNet2DConditionModel``, or a scale that is not a number.
        RuntimeError: a U-Net that was compiled outside of an :func:`brushnet.inject`; in a call of the pipeline, it is
            called by a thread that attached nothing.
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
    check_fit(brushnet, pipe.unet)
    conditioning = _Conditioning(pipe, (image, mask), generator, conditioning_latents)
    guide = Guide(
        pipe,
        brushnet,
        conditioning,
        conditioning_scale,
        Window(control_guidance_start, control_guidance_end),
        guess_mode,
        encoder_hidden_states,
    )
    with guide.at_work(claims_unet=True):
        yield pipe


@dataclass
class _Conditioning:
    """What the branch reads beside the latents, in one attachment."""

    pipe: DiffusionPipeline
    pictures: tuple[Pictures | None, Pictures | None]
    generator: Generators | None
    given: Tensor | None
    encoded: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def __call__(self, sample: Tensor) -> tuple[Tensor, bool]:
        """Return the conditioning for latents (rows, 4, h, w), and whether their rows are [uncond., conditional]."""
        guided, parts = _parts(self.pipe)
        if len(sample) % parts:  # some pipelines also call the U-Net on one part alone
            guided, parts = False, 1
        rows = self.rows(len(sample) // parts, *sample.shape[-2:])
        return (rows, True) if guided and parts == 2 else (rows.repeat(parts, 1, 1, 1), False)

    def rows(self, samples: int, height: int, width: int) -> Tensor:
        """Return the conditioning (samples, 5, height, width), encoded when first asked for at this size of latents."""
        key = (samples, height, width)
        if self.given is not None:
            if self.given.shape[-2:] != (height, width) or samples % len(self.given):
                raise ValueError(
                    f"conditioning_latents are {tuple(self.given.shape)}; the pipeline works on {samples} samples of "
                    f"{height}x{width} latents. Pass one row, or one per sample, of that size."
                )
            if key not in self.encoded:
                self.encoded[key] = self.given.repeat_interleave(samples // len(self.given), dim=0)
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


def _parts(pipe: DiffusionPipeline) -> tuple[bool, int]:
    """Return whether the call is under classifier-free guidance, and how many rows the U-Net has per sample."""
    guided = bool(getattr(pipe, "do_classifier_free_guidance", False))
    perturbed = bool(getattr(pipe, "do_perturbed_attention_guidance", False))
    return guided, 1 + guided + perturbed
