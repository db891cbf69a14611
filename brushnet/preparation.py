"""What the two pipelines share: how a call is checked, and what is prepared before the first step."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from difflib import get_close_matches
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from brushnet.checks import check_fit, check_scale, check_texts, one_number, whole_number
from brushnet.conditioning import draw_noise, encode_conditioning, picture_size
from brushnet.guidance import Guide, Window
from brushnet.model import BrushNetModel
from brushnet.pictures import split_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from diffusers import DiffusionPipeline

    from brushnet.conditioning import Generators
    from brushnet.pictures import Pictures

__all__ = ["BranchOptions", "BrushNetPipelineMixin", "refuse_unknown"]

# How the published fork's model_index.json names the branch. Ours says the same, so that the fork loads it too.
PUBLISHED_COMPONENT = ("diffusers", "BrushNetModel")
# The libraries of a pipeline's parts; stable_diffusion is diffusers' own name for its safety checker's.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", BrushNetModel.__module__, None)
_ENCODING = threading.Lock()
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# What other inpainting pipelines of diffusers call these arguments.
OTHER_NAMES = {
    "mask_image": "mask",
    "masks": "mask",
    "init_image": "image",
    "control_image": "image",
    "images": "image",
    "conditioning_scale": "brushnet_conditioning_scale",
    "controlnet_conditioning_scale": "brushnet_conditioning_scale",
}


@dataclass(frozen=True)
class BranchOptions:
    """What a call of a BrushNet pipeline asks for beyond the stock pipeline's arguments; described there.

    Attributes:
        image: 1 or P pictures for P prompts.
        mask: 1 or P masks, white = repaint.
        conditioning_latents: (B or, under guidance, 2B, 5, h, w) instead of image and mask.
        height: pixels, divisible by the VAE's factor, or None.
        width: as ``height``.
        latents: (B, 4, h, w), or None to draw them.
        generator: of the noise, of the posterior if asked for, and of the scheduler.
        sample_posterior: draw from the VAE's posterior instead of taking its mode.
        scale: factor of the residuals.
        guess_mode: see :func:`brushnet.guidance.guided_residuals`.
        start: of the :class:`brushnet.guidance.Window`.
        end: of the :class:`brushnet.guidance.Window`.
    """

    image: Pictures | None
    mask: Pictures | None
    conditioning_latents: Tensor | None
    height: int | None
    width: int | None
    latents: Tensor | None
    generator: Generators | None
    sample_posterior: bool
    scale: float
    guess_mode: bool
    start: float
    end: float


class BrushNetPipelineMixin:
    """What a stock pipeline needs to become a BrushNet pipeline. Mixed in before the stock class."""

    _text_components: ClassVar[tuple[str, ...]] = ()

    def _add_branch(self: Any, brushnet: BrushNetModel) -> None:
        """Register the branch, under the name by which the published fork's ``model_index.json`` knows it."""
        if brushnet is not None and self.unet is not None:
            check_fit(brushnet, self.unet)
            ours, theirs = brushnet.config.in_channels, self.unet.config.in_channels
            if ours != theirs:
                raise ValueError(
                    f"The U-Net reads {theirs} channels, the branch {ours}; give the base model's text-to-image U-Net. "
                    "An inpainting U-Net keeps its own pipeline: see brushnet.attach."
                )
        self.register_modules(brushnet=brushnet)
        self.register_to_config(brushnet=PUBLISHED_COMPONENT)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """Load ``model_index.json`` as the stock class does, and find the branch where it lives: not in diffusers.

        Raises:
            ValueError: it names a library that no such pipeline has parts of: what a file names is not imported.
        """
        loaded = super().load_config(*args, **kwargs)  # type: ignore[misc]
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if config.get("brushnet") in (list(PUBLISHED_COMPONENT), PUBLISHED_COMPONENT):
            config["brushnet"] = [BrushNetModel.__module__, BrushNetModel.__name__]
        for name, part in config.items():
            if isinstance(part, list | tuple) and len(part) == 2 and not name.startswith("_"):
                library = part[0]
                if library not in LIBRARIES:
                    raise ValueError(
                        f"model_index.json takes {name} from {library!r}, which is not imported; expected one of "
                        f"{', '.join(map(str, LIBRARIES))}. Write [null, null] there, load that part yourself, and "
                        f"pass it as {name}=…."
                    )
        return loaded

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """Encode as the stock class does, one thread at a time: a tokenizer keeps the padding it was last asked for."""
        with _ENCODING:
            return super().encode_prompt(*args, **kwargs)  # type: ignore[misc]

    def _inpaint(self: Any, stock_call: Callable[..., Any], stock: dict[str, Any], branch: BranchOptions) -> Any:
        """Run the stock pipeline with the branch at its side.

        Args:
            stock_call: the stock class's ``__call__``.
            stock: its arguments, but for those that the branch's options decide.
            branch: those options.
        """
        self._check_parts(stock, branch)
        _check_choices(stock["output_type"], stock.get("denoising_end"))
        _check_numbers(stock, self.scheduler.config.get("num_train_timesteps"))
        prompts = count_prompts(stock["prompt"], stock["prompt_embeds"])
        for name in ("prompt_2", "negative_prompt", "negative_prompt_2"):
            if stock.get(name) is not None:
                check_texts(name, stock[name])
        guided = stock["guidance_scale"] > 1 and self.unet.config.time_cond_proj_dim is None
        self._check_text(stock, guided)
        check_scale(branch.scale)
        images = whole_number("num_images_per_prompt", stock["num_images_per_prompt"])
        for side in ("height", "width"):
            if getattr(branch, side) is not None:
                whole_number(side, getattr(branch, side))
        start = one_number("control_guidance_start", branch.start)
        window = Window(start, one_number("control_guidance_end", branch.end))
        generator = _generators(branch.generator)
        branch = replace(branch, generator=generator)

        batch = prompts * images
        inputs = prepare(self, branch, prompts, batch, guided)
        if stock["clip_skip"] is not None:
            _restore_text_model(self.text_encoder)

        def conditioning(sample: Tensor) -> tuple[Tensor, bool]:
            # A callback that ends the guidance halves the batch: the conditional half remains.
            both = len(sample) == 2 * batch
            return (inputs.conditioning if both else inputs.conditioning[-batch:]), both

        guide = Guide(self, self.brushnet, conditioning, branch.scale, window, branch.guess_mode)
        with guide.at_work(claims_unet=False):
            return stock_call(
                **stock | _unguided_callback(stock, guide),
                height=inputs.height,
                width=inputs.width,
                latents=inputs.latents,
                generator=generator,
            )

    def _check_sizes(self: Any, height: int, width: int) -> None:
        """Refuse sizes that no whole number of latents covers; the stock check asks for multiples of 8 of any VAE."""
        if height % self.vae_scale_factor or width % self.vae_scale_factor:
            raise ValueError(f"Got {height}x{width} pixels; expected multiples of {self.vae_scale_factor}.")

    def _check_text(self: Any, stock: dict[str, Any], guided: bool) -> None:
        """Refuse a text without an encoder before anything is computed."""
        zeros = self.config.get("force_zeros_for_empty_prompt", False) and stock["negative_prompt"] is None
        encodes_negative = guided and stock["negative_prompt_embeds"] is None and not zeros
        missing = [name for name in self._text_components if getattr(self, name) is None]
        if missing and (stock["prompt"] is not None or encodes_negative):
            wanted = "prompt_embeds" if stock["prompt"] is not None else "negative_prompt_embeds"
            raise ValueError(
                f"The pipeline has no {' and no '.join(missing)}; pass {wanted}, or load the missing part."
            )

    def _check_parts(self: Any, stock: dict[str, Any], branch: BranchOptions) -> None:
        """Refuse what only a branch or a VAE that is not there can do, before anything is computed."""
        if self.brushnet is None:
            raise ValueError("The pipeline has no brushnet; load it with brushnet=BrushNetModel.from_pretrained(…).")
        if self.vae is None:
            for lacking, wanted in (
                (branch.conditioning_latents is None, "conditioning_latents"),
                (stock["output_type"] != "latent", 'output_type="latent"'),
            ):
                if lacking:
                    raise ValueError(f"The pipeline has no vae; pass {wanted}, or load the missing part.")


def _unguided_callback(stock: dict[str, Any], guide: Guide) -> dict[str, Any]:
    """Return the callback's arguments so that calls of the U-Net inside of it are its own, without residuals."""
    callback, names = stock["callback_on_step_end"], stock["callback_on_step_end_tensor_inputs"]
    if callback is None:
        return {}
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):  # as the stock pipelines do with these
        names = callback.tensor_inputs

    def unguided(*args: Any) -> Any:
        with guide.paused():
            return callback(*args)

    return {"callback_on_step_end": unguided, "callback_on_step_end_tensor_inputs": names}


def refuse_unknown(unknown: Collection[str], known: Collection[str]) -> None:
    """Refuse arguments that a call does not have, and name the one that was meant.

    Raises:
        TypeError: there are any.
    """
    for name in unknown:
        close = [OTHER_NAMES[name]] if name in OTHER_NAMES else get_close_matches(name, set(known) - {"unknown"}, 1)
        hint = f"; is {close[0]}= meant?" if close else "."
        raise TypeError(f"A BrushNet pipeline has no argument {name!r}{hint}")


def _check_numbers(stock: dict[str, Any], train_timesteps: int | None) -> None:
    """Refuse numbers that the stock pipelines take in silence, or with an exception that says nothing.

    Raises:
        TypeError: not a number of the right kind.
        ValueError: out of range, NaN or infinity.
    """
    if stock["timesteps"] is None and stock["sigmas"] is None:
        whole_number("num_inference_steps", stock["num_inference_steps"], most=train_timesteps)
    for name in ("guidance_scale", "eta", "guidance_rescale"):
        if isinstance(stock[name], list | tuple):
            raise TypeError(f"Got {name}={stock[name]!r}; expected one number.")
        one_number(name, stock[name])
    if stock["clip_skip"] is not None:
        whole_number("clip_skip", stock["clip_skip"], least=0)


def _check_choices(output_type: object, denoising_end: object) -> None:
    """Refuse values that the stock pipelines pass over in silence, as if another had been asked for.

    Raises:
        ValueError: an unknown ``output_type``, or a ``denoising_end`` that is no number in (0, 1].
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"Got output_type={output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}.")
    if denoising_end is not None and not (isinstance(denoising_end, Real) and 0 < float(denoising_end) <= 1):
        raise ValueError(f"Got denoising_end={denoising_end!r}; expected a share above 0 and at most 1.")


@dataclass(frozen=True)
class Inputs:
    """What the stock pipeline and the branch need before the first step.

    Attributes:
        conditioning: (B or 2B, 5, h, w), see :func:`brushnet.conditioning.encode_conditioning`.
        latents: (B, 4, h, w) standard normal noise, not yet scaled by the scheduler.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
    """

    conditioning: Tensor
    latents: Tensor
    height: int
    width: int


def _restore_text_model(text_encoder: torch.nn.Module | None) -> None:
    """Give a CLIP text encoder of transformers 5 the ``text_model`` that stock ``clip_skip`` still reaches through."""
    if text_encoder is not None and not hasattr(text_encoder, "text_model"):
        # Past nn.Module's own setter: a module registered in itself would never end its traversals.
        object.__setattr__(text_encoder, "text_model", text_encoder)


def count_prompts(prompt: str | Sequence[str] | None, prompt_embeds: Tensor | None) -> int:
    """Return the number of prompts, given as text or as embeddings.

    Raises:
        TypeError: a prompt that is neither a text nor a list of texts.
        ValueError: neither or both are given, or an empty list.
    """
    if (prompt is None) == (prompt_embeds is None):
        got = "neither" if prompt is None else "both"
        raise ValueError(f"Got {got} of prompt and prompt_embeds; pass exactly one of them.")
    if prompt_embeds is not None:
        return len(prompt_embeds)
    check_texts("prompt", prompt)
    if isinstance(prompt, str):
        return 1
    if not prompt:
        raise ValueError("Got an empty list of prompts; pass at least one.")
    return len(prompt)


def _generators(given: Generators | None) -> Generators:
    """Return the generator, or a list of them; None gets a fresh CPU one, so that torch's global one is left alone.

    Raises:
        TypeError: anything else.
    """
    if given is None:
        generator = torch.Generator("cpu")
        generator.seed()
        return generator
    if isinstance(given, torch.Generator):
        return given
    if isinstance(given, list | tuple) and all(isinstance(one, torch.Generator) for one in given):
        return list(given)
    raise TypeError(
        f"generator is {given!r:.80}; expected a torch.Generator or a list of them: torch.Generator().manual_seed(0)."
    )


def prepare(pipe: DiffusionPipeline, branch: BranchOptions, prompts: int, batch: int, guided: bool) -> Inputs:
    """Draw the initial noise and encode the conditioning, or check the given ones.

    Args:
        pipe: with ``vae``, ``unet`` and ``brushnet``.
        branch: options with a generator.
        prompts: number of prompts P.
        batch: number of samples B, in the order a, a, b, b.
        guided: is the U-Net's batch 2B, [unconditional, conditional]?

    Raises:
        ValueError: numbers or sizes that do not fit together; the message names them.
    """
    image, mask, conditioning, factor = branch.image, branch.mask, branch.conditioning_latents, pipe.vae_scale_factor
    if conditioning is not None:
        _check_conditioning(pipe, conditioning, batch, guided, branch.height, branch.width)
        height, width = factor * conditioning.shape[2], factor * conditioning.shape[3]
    elif image is None or mask is None:
        missing = "image" if image is None else "mask"
        raise ValueError(f"Got no {missing}; pass image and mask (white = repaint), or conditioning_latents.")
    else:
        image, mask = _one_or_each(image, "image", prompts), _one_or_each(mask, "mask", prompts)
        height, width = picture_size(image, factor, branch.height, branch.width)

    # The noise first, so that drawing from the posterior too leaves it as it was.
    shape = (batch, pipe.unet.config.in_channels, height // factor, width // factor)
    latents = draw_noise(shape, cast("Generators", branch.generator)) if branch.latents is None else branch.latents
    if tuple(latents.shape) != shape:
        raise ValueError(f"Got latents of shape {tuple(latents.shape)}; these pictures and prompts ask for {shape}.")

    if conditioning is None:
        posterior = branch.generator if branch.sample_posterior else None
        size = {"height": branch.height, "width": branch.width, "batch_size": batch}
        conditioning = encode_conditioning(pipe.vae, cast("Pictures", image), cast("Pictures", mask), posterior, **size)
    device = pipe._execution_device
    return Inputs(
        conditioning=conditioning.to(device, pipe.brushnet.dtype),
        latents=latents.to(device, pipe.unet.dtype),
        height=height,
        width=width,
    )


def _one_or_each(pictures: Pictures, name: Literal["image", "mask"], prompts: int) -> list[Any]:
    """Split images into a list of one for all prompts, or one per prompt."""
    parts: list[Any] = split_pictures(pictures, name)
    if len(parts) not in (1, prompts):
        raise ValueError(f"Got {len(parts)} {name}s for {prompts} prompts; pass one, or one per prompt.")
    return parts


def _check_conditioning(
    pipe: DiffusionPipeline, given: Tensor, batch: int, guided: bool, height: int | None, width: int | None
) -> None:
    """Refuse ready conditioning of another shape than (B or 2B, 5, h, w)."""
    channels, factor = pipe.brushnet.config.conditioning_channels, pipe.vae_scale_factor
    rows = (batch, 2 * batch) if guided else (batch,)
    if given.ndim != 4 or given.shape[1] != channels or given.shape[0] not in rows:
        raise ValueError(
            f"Got conditioning_latents of shape {tuple(given.shape)}; expected ({' or '.join(map(str, rows))}, "
            f"{channels}, h, w): prompts times images per prompt, or twice that for [unconditional, conditional]."
        )
    for name, side, own in (("height", height, given.shape[2]), ("width", width, given.shape[3])):
        if side not in (None, own * factor):
            raise ValueError(f"Got {name}={side}, but conditioning_latents of {own * factor} pixels; leave {name} out.")
