"""What the two pipelines share: the branch beside a stock pipeline's U-Net, and what goes in before the first step.

The denoising loop itself is the stock pipeline's. For the length of one call a hook in front of the U-Net runs the
branch on exactly what the U-Net is about to read (after ``scheduler.scale_model_input``, which matters for Euler) and
puts the residuals where :func:`brushnet.injection.inject` adds them.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from brushnet.conditioning import draw_noise, encode_conditioning, picture_size, split_pictures
from brushnet.injection import check_scale, guided_residuals, inject
from brushnet.model import BrushNetModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from diffusers import DiffusionPipeline, UNet2DConditionModel

    from brushnet.conditioning import Generators, Pictures
    from brushnet.injection import Slot

__all__ = ["BranchOptions", "BrushNetPipelineMixin", "Window", "steered"]

# How the published fork's model_index.json names the branch. Ours says the same, so that the fork loads it too.
PUBLISHED_COMPONENT = ("diffusers", "BrushNetModel")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True)
class Window:
    """The share of the steps during which the branch is heard.

    Step ``i`` of ``n`` counts if ``start <= i / n`` and ``(i + 1) / n <= end``, as published: a window that holds no
    whole step silences the branch.

    Attributes:
        start: in 0..1.
        end: in 0..1, after ``start``.

    Raises:
        ValueError: not 0 <= start < end <= 1.
    """

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"Got control_guidance_start={self.start} and control_guidance_end={self.end}; "
                "expected 0 <= start < end <= 1."
            )

    def holds(self, step: int, steps: int) -> bool:
        """Is the branch heard at this step, counted from 0?"""
        return not (step / steps < self.start or (step + 1) / steps > self.end)


@dataclass(frozen=True)
class BranchOptions:
    """What a call of a BrushNet pipeline asks for beyond the stock pipeline's arguments; described there.

    Attributes:
        image: 1 or P pictures for P prompts.
        mask: 1 or P masks, white = repaint.
        conditioning_latents: (B or, under guidance, 2B, 5, h, w) instead of image and mask.
        height: pixels, divisible by the VAE's factor, or None.
        width: likewise.
        latents: (B, 4, h, w), or None to draw them.
        generator: of the noise, of the posterior if asked for, and of the scheduler.
        sample_posterior: draw from the VAE's posterior instead of taking its mode.
        scale: factor of the residuals.
        guess_mode: see :func:`brushnet.injection.guided_residuals`.
        start: of the :class:`Window`.
        end: of the :class:`Window`.
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
        """Load ``model_index.json`` as the stock class does, and find the branch where it lives: not in diffusers."""
        loaded = super().load_config(*args, **kwargs)  # type: ignore[misc]
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if list(config.get("brushnet") or ()) == list(PUBLISHED_COMPONENT):
            config["brushnet"] = [BrushNetModel.__module__, BrushNetModel.__name__]
        return loaded

    def _inpaint(self: Any, stock_call: Callable[..., Any], stock: dict[str, Any], branch: BranchOptions) -> Any:
        """Run the stock pipeline with the branch at its side.

        Args:
            stock_call: the stock class's ``__call__``.
            stock: its arguments, but for those that the branch's options decide.
            branch: those options.
        """
        self._check_parts(stock, branch)
        _check_choices(stock["output_type"], stock.get("denoising_end"))
        prompts = count_prompts(stock["prompt"], stock["prompt_embeds"])
        guided = stock["guidance_scale"] > 1 and self.unet.config.time_cond_proj_dim is None
        self._check_text(stock, guided)
        check_scale(branch.scale)
        images = _whole("num_images_per_prompt", stock["num_images_per_prompt"])
        for side in ("height", "width"):
            if getattr(branch, side) is not None:
                _whole(side, getattr(branch, side))
        start = _one_number("control_guidance_start", branch.start)
        window = Window(start, _one_number("control_guidance_end", branch.end))
        generator = branch.generator
        if generator is None:
            generator = fresh_generator()
        elif not isinstance(generator, torch.Generator):
            generator = list(generator)
        branch = replace(branch, generator=generator)

        batch = prompts * images
        inputs = prepare(self, branch, prompts, batch, guided)
        guess_mode = branch.guess_mode or self.brushnet.config.global_pool_conditions
        if stock["clip_skip"] is not None:
            _restore_text_model(self.text_encoder)
        with steered(self, inputs.conditioning, batch, branch.scale, window, guess_mode):
            return stock_call(
                **stock, height=inputs.height, width=inputs.width, latents=inputs.latents, generator=generator
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


def _check_choices(output_type: object, denoising_end: object) -> None:
    """Refuse values that the stock pipelines pass over in silence, as if another had been asked for.

    Raises:
        ValueError: an unknown ``output_type``, or a ``denoising_end`` that is no number in (0, 1].
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"Got output_type={output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}.")
    if denoising_end is not None and not (isinstance(denoising_end, Real) and 0 < float(denoising_end) <= 1):
        raise ValueError(f"Got denoising_end={denoising_end!r}; expected a share above 0 and at most 1.")


def _one_number(name: str, value: object) -> float:
    """Return a number, or the one in a list of one, which the published pipelines take too.

    Raises:
        TypeError: anything else.
    """
    number = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(number, Real):
        raise TypeError(f"Got {name}={value!r}; expected one number.")
    return float(number)


def _whole(name: str, value: object) -> int:
    """Return a whole number from 1 on.

    Raises:
        TypeError: not a whole number.
        ValueError: below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Got {name}={value!r}; expected a whole number.")
    number = int(value)
    if number < 1:
        raise ValueError(f"Got {name}={number}; expected at least 1.")
    return number


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


def check_fit(brushnet: BrushNetModel, unet: UNet2DConditionModel) -> None:
    """Refuse a branch that was made for another family of base models.

    Raises:
        ValueError: the widths of the two networks differ, or only one of them reads SDXL's pooled text and sizes.
    """
    for name, meaning in (("block_out_channels", "widths"), ("addition_embed_type", "added embedding")):
        ours, theirs = brushnet.config.get(name), unet.config.get(name)
        ours, theirs = (tuple(value) if isinstance(value, list) else value for value in (ours, theirs))
        if ours != theirs:
            raise ValueError(
                f"The branch has the {meaning} {ours}, the U-Net {theirs}: they belong to different base models. "
                "Use an SD 1.5 branch with an SD 1.5 base, an SDXL branch with an SDXL base."
            )


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
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, list):
        raise TypeError(f"prompt is a {type(prompt).__name__}; expected a text or a list of texts.")
    if not prompt:
        raise ValueError("Got an empty list of prompts; pass at least one.")
    return len(prompt)


def fresh_generator() -> torch.Generator:
    """Return a CPU generator seeded by the operating system, so that torch's global generator is left alone."""
    generator = torch.Generator("cpu")
    generator.seed()
    return generator


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
    """Split pictures into a list of one for all prompts, or one for each."""
    parts: list[Any] = split_pictures(pictures, name)
    if len(parts) not in (1, prompts):
        raise ValueError(f"Got {len(parts)} {name}s for {prompts} prompts; pass one, or one for each prompt.")
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


@contextmanager
def steered(
    pipe: DiffusionPipeline, conditioning: Tensor, batch: int, scale: float, window: Window, guess_mode: bool
) -> Iterator[None]:
    """Let ``pipe.brushnet`` speak at every step that the stock pipeline takes inside the ``with`` block.

    Outside the window the branch does not run: its residuals would be exactly zero.

    Args:
        pipe: with ``unet``, ``brushnet`` and ``scheduler``.
        conditioning: (B or 2B, 5, h, w).
        batch: B; a U-Net batch of 2B is [unconditional, conditional].
        scale: factor of the residuals.
        window: the steps during which the branch is heard, a share of the whole schedule.
        guess_mode: see :func:`brushnet.injection.guided_residuals`.

    Raises:
        ValueError: the first residuals or the first prediction hold NaN.
    """
    with inject(pipe.unet) as slot:
        branch = _Branch(pipe, conditioning, batch, scale, window, guess_mode, slot)
        # Under torch.compile the hooks themselves stay plain Python; what they call may be compiled.
        before = torch.compiler.disable(branch.before_unet, recursive=False)
        after = torch.compiler.disable(branch.after_unet, recursive=False)
        handles = (
            pipe.unet.register_forward_pre_hook(before, with_kwargs=True),
            pipe.unet.register_forward_hook(after),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class _Branch:
    """The branch's part in one call of a pipeline."""

    pipe: DiffusionPipeline
    conditioning: Tensor
    batch: int
    scale: float
    window: Window
    guess_mode: bool
    slot: Slot
    step: int = 0
    heard: bool = False

    def before_unet(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the branch on what the U-Net is about to read, and hand over its residuals."""
        sample, timestep = args
        # The whole schedule counts, also when denoising_end cuts it.
        active = self.window.holds(self.step, len(self.pipe.scheduler.timesteps))
        self.step += 1
        guided = len(sample) == 2 * self.batch
        added = kwargs.get("added_cond_kwargs") or {}
        output = guided_residuals(
            self.pipe.brushnet,
            sample,
            timestep,
            # A callback that ends the guidance halves the batch: the conditional half remains.
            self.conditioning if guided else self.conditioning[-self.batch :],
            guided=guided,
            encoder_hidden_states=kwargs.get("encoder_hidden_states"),
            conditioning_scale=self.scale if active else 0.0,
            added_cond_kwargs={name: added[name] for name in ("text_embeds", "time_ids") if name in added},
            guess_mode=self.guess_mode,
        )
        if output is not None and not self.heard:
            self.heard = True
            residuals = (*output.down_block_res_samples, output.mid_block_res_sample, *output.up_block_res_samples)
            _refuse_nan("BrushNet's residuals", residuals)
        self.slot.set(output)

    def after_unet(self, _: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        """Look at the first prediction."""
        if self.step == 1:
            _refuse_nan("the U-Net's prediction", output[:1])


def _refuse_nan(name: str, tensors: Sequence[Tensor]) -> None:
    """Stop at the first step before NaN becomes a black picture."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ValueError(
            f"At the first step {name} hold NaN or infinity: weights or inputs are damaged, or {tensors[0].dtype} "
            "overflows; load the weights again, or in float32."
        )
