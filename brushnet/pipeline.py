"""BrushNet on Stable Diffusion 1.x and 2.x: the stock text-to-image pipeline with one more component."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

# diffusers resolves the annotations of __init__ at run time, so its names are imported for good.
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from brushnet.model import BrushNetModel
from brushnet.preparation import BranchOptions, BrushNetPipelineMixin, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers.image_processor import PipelineImageInput
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
    from torch import Tensor

    from brushnet.conditioning import Generators
    from brushnet.pictures import Pictures

__all__ = ["StableDiffusionBrushNetPipeline"]


class StableDiffusionBrushNetPipeline(BrushNetPipelineMixin, StableDiffusionPipeline):
    """Text-guided inpainting with a BrushNet branch beside a Stable Diffusion U-Net.

    A :class:`diffusers.StableDiffusionPipeline` with ``brushnet=`` as one more component; LoRA, textual inversion,
    IP adapters, single-file loading, callbacks, offloading and schedulers are the stock ones. Text encoder and
    tokenizer may be None if calls pass embeddings, the VAE if they pass ``conditioning_latents`` and ask for latents.

    The published pipeline runs UniPC, which in its diffusers always ends at the smallest sigma. Stock UniPC ends at
    zero; for the published numbers build it with ``final_sigmas_type="sigma_min"``::

        pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, final_sigmas_type="sigma_min")

    Folders that the published fork saved load too, as do base models without a branch::

        pipe = StableDiffusionBrushNetPipeline.from_pretrained(base, brushnet=BrushNetModel.from_pretrained(branch))

    or a base model in one file, in the original layout::

        pipe = StableDiffusionBrushNetPipeline.from_single_file("model.safetensors", brushnet=branch)

    Threads may share the parts if each has a pipeline and a scheduler of its own.

    Source: TencentARC/BrushNet 0f9d9e5, ``pipeline_brushnet.py``. Here the pipeline itself blacks out the hole, the
    VAE's posterior is taken at its mode and not drawn from torch's global generator, and the branch runs once per step.
    """

    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionPipeline._optional_components,
        "vae",
        "text_encoder",
        "tokenizer",
    ]
    _text_components: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel,
        brushnet: BrushNetModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
    ) -> None:
        """Take the stock components and the branch.

        Raises:
            ValueError: a branch that was made for another base model.
        """
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self._add_branch(brushnet)

    def check_inputs(self, prompt: Any, height: int, width: int, *others: Any, **named: Any) -> None:
        """Check as the stock pipeline does, but sizes by the VAE's own factor."""
        self._check_sizes(height, width)
        super().check_inputs(prompt, 8, 8, *others, **named)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Pictures | None = None,
        mask: Pictures | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: list[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        brushnet_conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        conditioning_latents: Tensor | None = None,
        sample_posterior: bool = False,
        guidance_rescale: float = 0.0,
        sigmas: list[float] | None = None,
        **unknown: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Any, ...]:
        """Repaint the holes of images.

        Other arguments are those of :class:`diffusers.StableDiffusionPipeline`.

        Args:
            prompt: one text, or P of them.
            image: the image, or one per prompt: PIL, uint8 or float 0..1 arrays (H, W, 3) or (P, H, W, 3),
                tensors (P, 3, H, W) in 0..1, or a list; RGB. The content of the hole has no effect: it is blacked out
                at the image's own size, before any resizing.
            mask: the hole, **white, 1 or True = repaint** (from 128 of 255 on), of the image's size, in the same forms
                with one or three channels, or bool arrays; opaque; one, or one per prompt.
            height: pixels, divisible by the VAE's factor (8); None takes the image's, rounded down.
            width: as ``height``.
            num_inference_steps: denoising steps, 1 up to the scheduler's ``num_train_timesteps`` (1000).
            timesteps: own descending timesteps.
            guidance_scale: weight of classifier-free guidance; up to 1 means none.
            negative_prompt: what the image must not show.
            num_images_per_prompt: images per prompt, N; prompts a, b give a, a, b, b.
            eta: DDIM's noise share.
            generator: one for the whole batch, or a list with one per sample (P x N), which makes a sample
                independent of its neighbours. Latents are drawn in float32 where the generator lives, then cast: a CPU
                generator means the same noise on every device. None: a fresh one, seeded by the operating system.
            latents: (P x N, 4, h, w) standard normal noise instead of a draw.
            prompt_embeds: (P, tokens, width) instead of ``prompt``.
            negative_prompt_embeds: (P, tokens, width) instead of ``negative_prompt``.
            ip_adapter_image: for a loaded IP adapter.
            ip_adapter_image_embeds: for a loaded IP adapter, instead of ``ip_adapter_image``.
            output_type: ``pil`` | ``np`` | ``pt`` | ``latent`` (the tensor itself in ``.images``).
            return_dict: return an output object rather than a tuple.
            cross_attention_kwargs: for the U-Net's attention processors.
            brushnet_conditioning_scale: factor of the branch's residuals; 0 is the plain base model, exactly.
            guess_mode: weaken the early residuals and guide only the conditional half.
            control_guidance_start: share of the steps before which the branch is not active.
            control_guidance_end: share of the steps after which it is not.
            clip_skip: layers of the text encoder to leave out.
            callback_on_step_end: called as ``callback(pipe, step, timestep, tensors)`` after each step.
            callback_on_step_end_tensor_inputs: names of the tensors it gets.
            conditioning_latents: (B or 2B, 5, h, w) with B = P x N, as :func:`brushnet.encode_conditioning` makes it:
                4 scaled latents of the masked picture, then keep (1 = keep). Instead of ``image`` and ``mask``. With
                2B rows, [unconditional, conditional], each guidance half uses its own.
            sample_posterior: draw the masked picture's latents from the VAE's posterior with ``generator`` (after the
                initial noise) instead of taking its mode.
            guidance_rescale: rescaling of the guided prediction.
            sigmas: own sigmas.
            **unknown: refused; the message says which argument is meant.

        Returns:
            ``StableDiffusionPipelineOutput`` (``images``, ``nsfw_content_detected``), or its tuple.

        Raises:
            TypeError: an unknown argument, or a prompt, picture, scale or window of no known type.
            ValueError: numbers, sizes or values that do not fit; the message says which and what to do.
        """
        refuse_unknown(unknown, inspect.signature(self.__call__).parameters)
        stock = {
            "prompt": prompt,
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "sigmas": sigmas,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "eta": eta,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "ip_adapter_image": ip_adapter_image,
            "ip_adapter_image_embeds": ip_adapter_image_embeds,
            "output_type": output_type,
            "return_dict": return_dict,
            "cross_attention_kwargs": cross_attention_kwargs,
            "guidance_rescale": guidance_rescale,
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
