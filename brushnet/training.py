"""One training step of the branch: pictures, holes and captions in, the loss out (BrushNet, sec. 3.2 and 4.1).

::

    step = BrushNetTrainingStep(BrushNetModel.from_unet(pipe.unet), pipe)      # pipe: a stock SD or SDXL pipeline
    batch = step.batch([(image, hole, caption), ...], torch.Generator().manual_seed(0))
    loss, parts = step(**batch)
    loss.backward()                                                            # gradients reach the branch alone

The objective is the base model's own: it predicts the noise (or the velocity, as its scheduler says), and the plain
mean squared error over the *whole* latent, hole and kept part alike, is minimised over the branch's weights. Base
U-Net, autoencoder and text encoders are frozen; gradients pass through the U-Net into the residuals.

Source: TencentARC/BrushNet 0f9d9e5, ``train_brushnet.py`` and ``train_brushnet_sdxl.py``. Mended here:

* the branch shares ``conv_in``'s bias with the U-Net there, so that freezing and casting the U-Net freezes and casts
  it: ``from_unet`` copies it, and it is trained;
* captions are never dropped there (``proportion_empty_prompts`` is 0), though inference uses classifier-free guidance:
  here ``caption_dropout`` is 0.1;
* ``cv2.resize(image, (height, width))`` there swaps the sides, so that pictures that are not square are squeezed: this
  step takes pictures at their final size and resizes nothing;
* the posterior's noise comes from the global generator there: here the posterior is taken at its mode, as the pipelines
  take it, or drawn from the batch's own generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brushnet.checks import check_fit
from brushnet.conditioning import draw_noise, encode_moments, vae_factor
from brushnet.injection import inject
from brushnet.model import BrushNetModel, BrushNetOutput

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["BrushNetTrainingStep", "Example", "inpainting_pipeline"]

# uint8 (H, W, 3) RGB, bool (H, W) with True = repaint, and the caption.
Example: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], str]

TARGETS = ("epsilon", "v_prediction")


class BrushNetTrainingStep(nn.Module):
    """The loss of the branch on a batch of examples, beside a frozen base.

    Only the branch is a submodule: ``parameters()`` and ``state_dict()`` are its own, and the base follows the batch to
    its device.

    Attributes:
        brushnet: the branch, the only thing that is trained.
        base: the frozen stock pipeline.
    """

    def __init__(
        self,
        brushnet: BrushNetModel,
        base: DiffusionPipeline,
        *,
        caption_dropout: float = 0.1,
        sample_posterior: bool = False,
        mask_channel: bool = True,
        injection: Literal["full", "encoder"] = "full",
        gradient_checkpointing: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Freeze the base and prepare the branch.

        Args:
            brushnet: usually from :meth:`BrushNetModel.from_unet`; float32.
            base: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``; which of them it is, its parts say.
            caption_dropout: share of captions replaced by the empty one (for SDXL bases that ask for it, by zeros).
            sample_posterior: draw the latents of picture and masked picture from the autoencoder's posterior, as
                published, instead of taking its mode.
            mask_channel: False is the ablation without mask: the channel is zero, and so are its weights from the start
                to the end, so that the saved branch does not look at the mask in any pipeline.
            injection: ``encoder`` is the ablation with the encoder half only, as a ControlNet has it: the residuals of
                the way up are zero, and so are their convolutions in the saved branch. (Where the other residuals enter
                stays as it is; a ControlNet's enter the skips alone.)
            gradient_checkpointing: save memory in branch and U-Net at the price of a second forward pass.
            dtype: of the frozen U-Net and text encoders, for mixed precision; None leaves them. The autoencoder
                computes in float32, outside autocast: SDXL's overflows in float16.

        Raises:
            ValueError: a branch of another base, a scheduler that predicts something else, an unknown injection, or a
                share outside 0..1.
        """
        super().__init__()
        parts = cast("Any", base)
        self.prediction = parts.scheduler.config.get("prediction_type", "epsilon")
        if self.prediction not in TARGETS:
            raise ValueError(f"The base predicts {self.prediction!r}; expected {' or '.join(TARGETS)}.")
        if injection not in ("full", "encoder"):
            raise ValueError(f"injection is {injection!r}; expected 'full' or 'encoder'.")
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {caption_dropout}; expected a share in 0..1.")
        check_fit(brushnet, parts.unet)
        self.brushnet, self.base = brushnet, base
        self.caption_dropout, self.sample_posterior = caption_dropout, sample_posterior
        self.mask_channel, self.injection = mask_channel, injection
        self.noise_schedule = _noise_schedule(parts.scheduler)
        self._place: torch.device | None = None

        brushnet.requires_grad_(True)
        _ablate(brushnet, mask_channel, injection)
        for name, part in self._frozen():
            part.requires_grad_(False).eval()
            wanted = torch.float32 if name == "vae" else dtype
            if wanted not in (None, part.dtype):
                part.to(dtype=wanted)
        if gradient_checkpointing:
            brushnet.enable_gradient_checkpointing()
            parts.unet.enable_gradient_checkpointing()

    # ------------------------------------------------------------------------------------------------------- data

    def batch(self, examples: Iterable[Example], generator: torch.Generator) -> dict[str, Tensor]:
        """Make the tensors that :meth:`forward` takes, on the CPU; everything random of a step is drawn here.

        Args:
            examples: (image, hole, caption): uint8 (H, W, 3) RGB, bool (H, W) with True = repaint, text; all of one
                size, divisible by the autoencoder's factor.
            generator: a CPU generator: of the noise, the timesteps, the dropped captions and the posterior.

        Returns:
            ``images`` uint8 (B, 3, H, W), ``keep`` bool (B, 1, H, W) with True = keep, ``noise`` (B, 4, h, w),
            ``timesteps`` int64 (B,), ``dropped`` bool (B,), ``input_ids`` int64 (B, encoders, tokens) and, if it is to
            be sampled, ``posterior`` (2B, 4, h, w).

        Raises:
            TypeError: arrays of another dtype.
            ValueError: no example, or sizes that do not fit.
        """
        pictures, holes, captions = _checked(list(examples), vae_factor(self._part("vae")))
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        keep = ~torch.from_numpy(np.stack(holes))[:, None]
        factor, channels = vae_factor(self._part("vae")), self._part("vae").config.latent_channels
        shape = (len(images), channels, images.shape[2] // factor, images.shape[3] // factor)
        noise = draw_noise(shape, generator)
        steps = self.noise_schedule.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(images),), generator=generator)
        dropped = torch.rand(len(images), generator=generator) < self.caption_dropout
        kept = ["" if drop else caption for caption, drop in zip(captions, dropped.tolist(), strict=True)]
        batch = {
            "images": images,
            "keep": keep,
            "noise": noise,
            "timesteps": timesteps,
            "dropped": dropped,
            "input_ids": self._tokens(kept),
        }
        if self.sample_posterior:
            batch["posterior"] = draw_noise((2 * shape[0], *shape[1:]), generator)
        return batch

    def _tokens(self, captions: Sequence[str]) -> Tensor:
        """Return int64 (B, encoders, tokens), padded as the stock pipelines pad."""
        ids = [
            tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer, _ in self._encoders()
        ]
        return torch.stack(ids, dim=1)

    # ------------------------------------------------------------------------------------------------------- loss

    def forward(
        self,
        images: Tensor,
        keep: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        dropped: Tensor,
        input_ids: Tensor,
        posterior: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of one batch; the arguments are those of :meth:`batch`, on one device.

        Returns:
            The mean squared error over the whole latent, with gradients for the branch, and the same error inside the
            holes and outside them, for the log.
        """
        self._follow(images.device)
        unet = self._part("unet")

        # Frozen: pictures to latents, captions to embeddings.
        with torch.no_grad():
            latents, conditioning = self.encode_pictures(images, keep, posterior)
            text, added = self.encode_text(input_ids, dropped, images.shape[-2:])
            noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
            target = noise
            if self.prediction == "v_prediction":
                target = self.noise_schedule.get_velocity(latents, noise, timesteps)

        # Trained: the branch. Frozen again, but passed through by the gradients: the U-Net.
        residuals: BrushNetOutput = self.brushnet(noisy, timesteps, conditioning, added_cond_kwargs=added)
        with inject(unet, residuals):
            predicted = unet(
                noisy.to(unet.dtype), timesteps, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False
            )[0]

        # The base model's own loss, || epsilon - epsilon_theta(z_t, t, c) ||^2, over hole and kept part alike;
        # in train_brushnet.py: F.mse_loss(model_pred.float(), target.float(), reduction="mean").
        error = (predicted.float() - target).square()
        kept = conditioning[:, -1:] if self.mask_channel else _at_latent_size(keep, latents)
        with torch.no_grad():
            parts = {"loss_hole": _mean_where(error, 1 - kept), "loss_keep": _mean_where(error, kept)}
        return error.mean(), parts

    def encode_pictures(self, images: Tensor, keep: Tensor, posterior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the latents of the pictures, and the branch's conditioning as the pipelines make it.

        Args:
            images: uint8 (B, 3, H, W).
            keep: bool (B, 1, H, W), True = keep.
            posterior: standard normal (2B, 4, h, w), of the pictures and then of the masked ones; None takes the modes.

        Returns:
            float32 (B, 4, h, w), scaled, and (B, 5, h, w): scaled latents of the pictures with black holes, then keep.
        """
        pixels = images.float() / 255 * 2 - 1
        vae = self._part("vae")
        with torch.autocast(images.device.type, enabled=False):
            mean, std = encode_moments(vae, torch.cat([pixels, pixels.where(keep, -1.0)]))
            drawn = mean if posterior is None else mean + std * posterior
        latents, masked = (drawn * vae.config.scaling_factor).chunk(2)
        channel = _at_latent_size(keep, latents) * float(self.mask_channel)
        return latents, torch.cat([masked, channel], dim=1)

    def encode_text(
        self, input_ids: Tensor, dropped: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return what the U-Net reads of the captions, as the stock pipelines compute it.

        Args:
            input_ids: int64 (B, encoders, tokens).
            dropped: bool (B,): captions that were dropped.
            size: height and width in pixels.

        Returns:
            The embeddings (B, tokens, width); for SDXL also ``text_embeds`` (B, width), pooled, and ``time_ids`` (B, 6)
            with the picture's size as original and target size and no crop, as the pipelines have it.
        """
        encoders = [encoder for _, encoder in self._encoders()]
        if len(encoders) == 1:
            return encoders[0](input_ids[:, 0])[0], None
        outputs = [encoder(input_ids[:, i], output_hidden_states=True) for i, encoder in enumerate(encoders)]
        text = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        pooled = outputs[-1][0]
        if cast("Any", self.base).config.get("force_zeros_for_empty_prompt", False):
            text = text * ~dropped[:, None, None]
            pooled = pooled * ~dropped[:, None]
        sizes = torch.tensor([[*size, 0, 0, *size]], device=text.device, dtype=text.dtype)
        return text, {"text_embeds": pooled, "time_ids": sizes.repeat(len(text), 1)}

    # ------------------------------------------------------------------------------------------------ frozen parts

    def _part(self, name: str) -> Any:
        return getattr(self.base, name)

    def _encoders(self) -> list[tuple[Any, Any]]:
        """Return the (tokenizer, text encoder) pairs: one, or SDXL's two."""
        pairs = [(self._part("tokenizer"), self._part("text_encoder"))]
        if getattr(self.base, "text_encoder_2", None) is not None:
            pairs.append((self._part("tokenizer_2"), self._part("text_encoder_2")))
        return pairs

    def _frozen(self) -> list[tuple[str, Any]]:
        names = ("unet", "vae", "text_encoder", "text_encoder_2")
        parts = [(name, getattr(self.base, name, None)) for name in names]
        return [(name, part) for name, part in parts if part is not None]

    def _follow(self, device: torch.device) -> None:
        """Move the base to where the batch is; the trainer moves the branch."""
        if self._place != device:
            for _, part in self._frozen():
                part.to(device)
            self._place = device


def inpainting_pipeline(base: DiffusionPipeline, brushnet: BrushNetModel, scheduler: Any = None) -> Any:
    """Return the BrushNet pipeline of a stock base and a branch; the parts are shared, not copied.

    Args:
        base: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        brushnet: the branch.
        scheduler: instead of the base's.

    Raises:
        ValueError: a branch that was made for another base.
    """
    from brushnet.pipeline import StableDiffusionBrushNetPipeline
    from brushnet.pipeline_sdxl import StableDiffusionXLBrushNetPipeline

    parts = {**base.components, "brushnet": brushnet}
    if scheduler is not None:
        parts["scheduler"] = scheduler
    if "text_encoder_2" in parts:
        zeros = cast("Any", base).config.get("force_zeros_for_empty_prompt", True)
        return StableDiffusionXLBrushNetPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    parts["safety_checker"] = None
    return StableDiffusionBrushNetPipeline(**parts, requires_safety_checker=False)


def _noise_schedule(scheduler: Any) -> Any:
    """Return the training schedule behind whatever scheduler a pipeline was saved with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(scheduler.config)


@torch.no_grad()
def _ablate(brushnet: BrushNetModel, mask_channel: bool, injection: str) -> None:
    """Zero what an ablation leaves out. Zero weights under zero inputs get no gradient, so they stay zero."""
    if not mask_channel:
        brushnet.conv_in_condition.weight[:, -1:] = 0
    if injection == "encoder":
        for conv in brushnet.brushnet_up_blocks.parameters():
            conv.zero_()
        brushnet.up_blocks.requires_grad_(False)
        brushnet.brushnet_up_blocks.requires_grad_(False)


def _at_latent_size(keep: Tensor, latents: Tensor) -> Tensor:
    """Reduce (B, 1, H, W) as the pipelines do: each block's top-left pixel."""
    return F.interpolate(keep.to(latents.dtype), size=latents.shape[-2:], mode="nearest")


def _mean_where(error: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of (B, 4, h, w) where (B, 1, h, w) is 1; 0 where it is 1 nowhere."""
    return (error * weight).sum() / (weight.sum() * error.shape[1]).clamp(min=1)


def _checked(examples: list[Example], factor: int) -> tuple[Any, Any, Any]:
    """Return pictures, holes and captions of one size, or raise."""
    if not examples:
        raise ValueError("Got no example; expected at least one (image, hole, caption).")
    first = examples[0][0].shape
    for image, hole, _ in examples:
        if image.dtype != np.uint8 or hole.dtype != np.bool_:
            raise TypeError(f"Got image {image.dtype} and hole {hole.dtype}; expected uint8 and bool (True = repaint).")
        if image.ndim != 3 or image.shape[2] != 3 or image.shape != first or hole.shape != image.shape[:2]:
            raise ValueError(
                f"Got image {image.shape} and hole {hole.shape} in a batch of {first}; expected (H, W, 3) and (H, W) "
                "of one size. Crop the pictures first."
            )
    if first[0] % factor or first[1] % factor:
        raise ValueError(f"Got pictures of {first[0]}x{first[1]} pixels; expected multiples of {factor}.")
    return tuple(zip(*examples, strict=True))  # type: ignore[return-value]
