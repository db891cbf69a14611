"""BrushNet on Stable Diffusion XL: the stock text-to-image pipeline with one more component."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

# diffusers resolves the annotations of __init__ at run time, so its names are imported for good.
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from brushnet.model import BrushNetModel
from brushnet.preparation import BranchOptions, BrushNetPipelineMixin, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers.image_processor import PipelineImageInput
    from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
    from torch import Tensor

    from brushnet.conditioning import Generators
    from brushnet.pictures import Pictures

__all__ = ["StableDiffusionXLBrushNetPipeline"]


class StableDiffusionXLBrushNetPipeline(BrushNetPipelineMixin, StableDiffusionXLPipeline):
    """Text-guided inpainting with a BrushNet branch beside a Stable Diffusion XL U-Net.

    A :class:`diffusers.StableDiffusionXLPipeline` with ``brushnet=`` as one more component; everything said of
    :class:`brushnet.StableDiffusionBrushNetPipeline` holds, but for three things. The branch reads the pooled text and
    the sizes as the U-Net does, so it runs on both guidance halves unless those are equal. A float16 VAE whose config
    says ``force_upcast`` encodes and decodes in float32. There is no safety checker.

    Source: TencentARC/BrushNet 0f9d9e5, ``pipeline_brushnet_sd_xl.py``.
    """

    _optional_components: ClassVar[list[str]] = [*StableDiffusionXLPipeline._optional_components, "vae"]
    _callback_tensor_inputs: ClassVar[list[str]] = [
        *StableDiffusionXLPipeline._callback_tensor_inputs,
        "negative_prompt_embeds",
    ]
    _text_components: ClassVar[tuple[str, ...]] = ("tokenizer_2", "text_encoder_2")

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        text_encoder_2: CLIPTextModelWithProjection | None,
        tokenizer: CLIPTokenizer | None,
        tokenizer_2: CLIPTokenizer | None,
        unet: UNet2DConditionModel,
        brushnet: BrushNetModel,
        scheduler: KarrasDiffusionSchedulers,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
    ) -> None:
        """Take the stock components and the branch.

        Raises:
            ValueError: a branch that was made for another base model.
        """
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )
        self._add_branch(brushnet)

    def check_inputs(self, prompt: Any, prompt_2: Any, height: int, width: int, *others: Any, **named: Any) -> None:
        """Check as the stock pipeline does, but sizes by the VAE's own factor."""
        self._check_sizes(height, width)
        super().check_inputs(prompt, prompt_2, 8, 8, *others, **named)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        image: Pictures | None = None,
        mask: Pictures | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        denoising_end: float | None = None,
        guidance_scale: float = 5.0,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        brushnet_conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        conditioning_latents: Tensor | None = None,
        sample_posterior: bool = False,
        guidance_rescale: float = 0.0,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        **unknown: Any,
    ) -> StableDiffusionXLPipelineOutput | tuple[Any, ...]:
        """Repaint the holes of images.

        For more on the arguments see :meth:`brushnet.StableDiffusionBrushNetPipeline.__call__`.

        Args:
            prompt: one text, or P of them.
            prompt_2: for the second text encoder; None repeats ``prompt``.
            image: the image, or one per prompt.
            mask: the hole, **white = repaint**, of the image's size; one, or one per prompt.
            height: pixels, divisible by the VAE's factor (8); None takes the image's, rounded down.
            width: as ``height``.
            num_inference_steps: denoising steps, 1 up to the scheduler's ``num_train_timesteps`` (1000).
            denoising_end: share of the schedule after which to stop; ``control_guidance_*`` still count on all of it.
            guidance_scale: weight of classifier-free guidance; up to 1 means none.
            negative_prompt: what the image must not show.
            negative_prompt_2: for the second text encoder.
            num_images_per_prompt: images per prompt, N; prompts a, b give a, a, b, b.
            eta: DDIM's noise share.
            generator: one, or a list with one per sample (P x N).
            latents: (P x N, 4, h, w) standard normal noise instead of a draw.
            prompt_embeds: (P, tokens, width) instead of ``prompt``, with ``pooled_prompt_embeds``.
            negative_prompt_embeds: as ``prompt_embeds``, with ``negative_pooled_prompt_embeds``.
            pooled_prompt_embeds: (P, width).
            negative_pooled_prompt_embeds: (P, width).
            ip_adapter_image: for a loaded IP adapter.
            ip_adapter_image_embeds: for a loaded IP adapter, instead of ``ip_adapter_image``.
            output_type: ``pil`` | ``np`` | ``pt`` | ``latent`` (the tensor itself in ``.images``).
            return_dict: return an output object rather than a tuple.
            cross_attention_kwargs: for the U-Net's attention processors.
            brushnet_conditioning_scale: factor of the branch's residuals; 0 is the plain base model, exactly.
            guess_mode: weaken the early residuals and guide only the conditional half.
            control_guidance_start: share of the steps before which the branch is not active.
            control_guidance_end: share of the steps after which it is not.
            original_size: (height, width) that the model is told; None means the size of the generated image.
            crops_coords_top_left: (top, left) that the model is told.
            target_size: (height, width) that the model is told; None means the size of the generated image.
            negative_original_size: ``original_size`` of the unconditional half, if ``negative_target_size`` is given
                too. With several samples the stock pipeline orders these numbers differently from the texts; so do the
                published one and this one.
            negative_crops_coords_top_left: ``crops_coords_top_left`` of the unconditional half.
            negative_target_size: ``target_size`` of the unconditional half.
            clip_skip: layers of the text encoders to leave out.
            callback_on_step_end: called as ``callback(pipe, step, timestep, tensors)`` after each step.
            callback_on_step_end_tensor_inputs: names of the tensors it gets.
            conditioning_latents: (B or 2B, 5, h, w) instead of ``image`` and ``mask``, B = P x N.
            sample_posterior: draw from the VAE's posterior instead of taking its mode.
            guidance_rescale: rescaling of the guided prediction.
            timesteps: own descending timesteps.
            sigmas: own sigmas.
            **unknown: refused; the message says which argument is meant.

        Returns:
            ``StableDiffusionXLPipelineOutput`` (``images``), or its tuple.

        Raises:
            TypeError: an unknown argument, or a prompt, picture, scale or window of no known type.
            ValueError: numbers, sizes or values that do not fit; the message says which and what to do.
        """
        refuse_unknown(unknown, inspect.signature(self.__call__).parameters)
        stock = {
            "prompt": prompt,
            "prompt_2": prompt_2,
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "sigmas": sigmas,
            "denoising_end": denoising_end,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "negative_prompt_2": negative_prompt_2,
            "num_images_per_prompt": num_images_per_prompt,
            "eta": eta,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
            "ip_adapter_image": ip_adapter_image,
            "ip_adapter_image_embeds": ip_adapter_image_embeds,
            "output_type": output_type,
            "return_dict": return_dict,
            "cross_attention_kwargs": cross_attention_kwargs,
            "guidance_rescale": guidance_rescale,
            "original_size": original_size and tuple(original_size),
            "crops_coords_top_left": tuple(crops_coords_top_left),
            "target_size": target_size and tuple(target_size),
            "negative_original_size": negative_original_size and tuple(negative_original_size),
            "negative_crops_coords_top_left": tuple(negative_crops_coords_top_left),
            "negative_target_size": negative_target_size and tuple(negative_target_size),
            "clip_skip": clip_skip,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
        }
        branch = BranchOptions(
            image=image,
            mask=mask,
            conditioning_latents=conditioning_latents,
            height=height,
            width=width,
            latents=latents,
            generator=generator,
            sample_posterior=sample_posterior,
            scale=brushnet_conditioning_scale,
            guess_mode=guess_mode,
            start=control_guidance_start,
            end=control_guidance_end,
        )
        return self._inpaint(super().__call__, stock, branch)
