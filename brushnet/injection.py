"""Residuals into an unmodified stock U-Net, by forward hooks; and the function that runs the branch for a guided step.

Where they enter (BrushNet, fig. 3; published ``unet_2d_condition.py`` and ``unet_2d_blocks.py``, commit 0f9d9e5):

* the first one after ``conv_in``, behind the first skip: **that skip stays clean**;
* one after every resnet + attention pair and after every down- and upsampler, so that all other skips carry residuals;
* one after the mid block. (The published code adds it behind ControlNet's; the sum is the same up to rounding.)
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from brushnet.model import DOWN_BLOCKS, UP_BLOCKS, BrushNetModel, BrushNetOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

__all__ = ["Slot", "check_scale", "guided_residuals", "inject"]

Residuals: TypeAlias = "BrushNetOutput | tuple[Sequence[Tensor], Tensor, Sequence[Tensor]]"


class Slot:
    """What one injection adds. Empty at first: an empty slot leaves the U-Net as it is."""

    def __init__(self, counts: tuple[int, int]) -> None:
        """Take the ``counts`` of the U-Net's places on the way down and on the way up."""
        self._counts = counts
        self.residuals: tuple[Tensor, ...] | None = None

    def set(self, output: Residuals | None) -> None:
        """Add ``output`` in every call of the U-Net from now on; ``None`` empties the slot.

        Args:
            output: a :class:`BrushNetOutput` or its tuple (down, mid, up). It is read, never emptied.

        Raises:
            ValueError: another number of residuals than the U-Net has places for.
        """
        if output is None:
            self.residuals = None
            return
        down, mid, up = output.to_tuple() if isinstance(output, BrushNetOutput) else output
        if (len(down), len(up)) != self._counts:
            raise ValueError(
                f"Got {len(down)} residuals for the way down and {len(up)} for the way up; this U-Net takes "
                f"{self._counts[0]} and {self._counts[1]}. Is the branch made for another base model?"
            )
        self.residuals = (*down, mid, *up)


@dataclass
class _Installation:
    """The hooks of one U-Net, shared by all injections into it."""

    counts: tuple[int, int]
    slots: list[Slot] = field(default_factory=list)
    handles: list[RemovableHandle] = field(default_factory=list)

    def add(self, hidden: Tensor, place: int) -> Tensor:
        """Return ``hidden`` plus what every filled slot holds for this ``place``."""
        for slot in self.slots:
            if slot.residuals is not None:
                residual = slot.residuals[place]
                if residual.shape != hidden.shape and residual.shape != (*hidden.shape[:2], 1, 1):
                    raise ValueError(
                        f"Residual {place} has the shape {tuple(residual.shape)}; the U-Net's layer gives "
                        f"{tuple(hidden.shape)}. Run the branch on the same latents, at the U-Net's batch size."
                    )
                hidden = hidden + residual.to(hidden)
        return hidden


_INSTALLED: WeakKeyDictionary[nn.Module, _Installation] = WeakKeyDictionary()


@contextmanager
def inject(unet: UNet2DConditionModel, output: Residuals | None = None) -> Iterator[Slot]:
    """Add BrushNet's residuals inside a stock U-Net for the length of a ``with`` block.

    ::

        with inject(unet, output):
            noise_pred = unet(latents, t, encoder_hidden_states=prompt_embeds).sample

        with inject(unet) as slot:
            for t in timesteps:
                slot.set(brushnet(latents, t, brushnet_cond))
                ...

    One output may serve several calls and several injections, and nested injections add. On exit, also by an exception,
    the hooks are gone. Residuals are cast to the dtype and device of the features they join.

    ``torch.compile`` does not see hooks that come after it. Compile inside an injection; injections nested in that one,
    such as the pipelines' own, need no new hooks::

        with inject(pipe.unet):
            pipe.unet = torch.compile(pipe.unet)
            pipe("a cat", image=image, mask=mask)

    Args:
        unet: a ``UNet2DConditionModel`` of ``(CrossAttn)DownBlock2D`` and ``(CrossAttn)UpBlock2D`` blocks.
        output: what to add, or None to fill the slot later.

    Yields:
        The slot, whose ``set`` changes what is added.

    Raises:
        TypeError: not a ``UNet2DConditionModel``.
        ValueError: other blocks, or residuals of another number or shape.
        RuntimeError: the U-Net was compiled before.
    """
    base = getattr(unet, "_orig_mod", unet)
    installation = _INSTALLED[base] if base in _INSTALLED else _install(unet, base)
    slot = Slot(installation.counts)
    installation.slots.append(slot)
    try:
        slot.set(output)
        yield slot
    finally:
        installation.slots.remove(slot)
        if not installation.slots:  # the last one out
            del _INSTALLED[base]
            for handle in installation.handles:
                handle.remove()


def _install(unet: nn.Module, base: nn.Module) -> _Installation:
    """Hook every place of the U-Net, in the order of the branch's residuals."""
    if not isinstance(base, UNet2DConditionModel):
        raise TypeError(f"inject needs diffusers' UNet2DConditionModel; got {type(base).__name__}. Unwrap it first.")
    _refuse_compiled(unet, base, *base.down_blocks, *base.up_blocks)
    down, mid, up = _places(base)
    _refuse_compiled(*down, mid, *up)

    installation = _Installation(counts=(1 + len(down), len(up)))
    before = base.down_blocks[0].register_forward_pre_hook(_hook_before(installation), with_kwargs=True)
    installation.handles.append(before)
    for place, module in enumerate([*down, mid, *up], start=1):
        installation.handles.append(module.register_forward_hook(_hook_after(installation, place)))
    _INSTALLED[base] = installation
    return installation


def _places(unet: UNet2DConditionModel) -> tuple[list[nn.Module], nn.Module, list[nn.Module]]:
    """Return the modules that take a residual behind their output: on the way down, the mid block, on the way up."""
    kinds = {type(block).__name__ for block in (*unet.down_blocks, *unet.up_blocks)}
    if foreign := sorted(kinds - {*DOWN_BLOCKS, *UP_BLOCKS}):
        known = ", ".join((*DOWN_BLOCKS, *UP_BLOCKS))
        raise ValueError(f"BrushNet has no residuals for {foreign[0]}; it knows {known}.")
    if unet.mid_block is None:
        raise ValueError("The U-Net has no mid block; BrushNet has a residual for it. Use a U-Net with one.")
    down = [layer for block in unet.down_blocks for layer in _layers(block, block.downsamplers)]
    up = [layer for block in unet.up_blocks for layer in _layers(block, block.upsamplers)]
    return down, unet.mid_block, up


def _layers(block: nn.Module, samplers: nn.ModuleList | None) -> Iterator[nn.Module]:
    """Yield what ends each step of a block: the attentions, or the resnets where there are none, and the sampler."""
    yield from cast("nn.ModuleList", getattr(block, "attentions", block.resnets))
    yield from samplers or ()


def _hook_before(installation: _Installation) -> Any:
    def add_residual(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": installation.add(kwargs["hidden_states"], 0)}
        return (installation.add(args[0], 0), *args[1:]), kwargs

    return add_residual


def _hook_after(installation: _Installation, place: int) -> Any:
    def add_residual(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # an attention, called with return_dict=False
            return (installation.add(output[0], place), *output[1:])
        return installation.add(output, place)

    return add_residual


def _refuse_compiled(*modules: nn.Module) -> None:
    """Raise RuntimeError if a hook would sit inside compiled code, where torch ignores it without a word."""
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules):
        raise RuntimeError(
            "The U-Net was compiled before the injection, so its hooks would be ignored. Compile it inside one: "
            "with inject(unet): compiled = torch.compile(unet); …"
        )


def guided_residuals(
    brushnet: BrushNetModel,
    sample: Tensor,
    timestep: Tensor | float,
    brushnet_cond: Tensor,
    *,
    guided: bool,
    encoder_hidden_states: Tensor | None = None,
    conditioning_scale: float = 1.0,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    guess_mode: bool = False,
) -> BrushNetOutput | None:
    """Run the branch for one step and return residuals for the whole of the U-Net's batch.

    Under classifier-free guidance that batch is [unconditional, conditional]. Where both halves of everything the
    branch reads are equal, so are its residuals, bit for bit (measured on the published code): the branch runs once, on
    one half. This is always so for SD 1.5 with common conditioning latents, and for SDXL only with equal pooled
    embeddings and sizes. In guess mode it runs on the conditional half alone, and the unconditional half gets zeros,
    as published.

    Args:
        brushnet: the branch; a compiled one will do.
        sample: (2B, 4, h, w) if ``guided``, else (B, 4, h, w): the U-Net's own input, after ``scale_model_input``.
        timestep: a number, or a tensor of shape () or with one number a row.
        brushnet_cond: (B or 2B, 5, h, w); B rows serve both halves. See :meth:`BrushNetModel.forward`.
        guided: is the U-Net's batch [unconditional, conditional]?
        encoder_hidden_states: (B or 2B, tokens, width), for a branch with cross-attention; else no effect.
        conditioning_scale: factor of the residuals; with 0 the branch does not run, which changes nothing exactly.
        added_cond_kwargs: SDXL: ``text_embeds`` and ``time_ids`` with B or 2B rows.
        guess_mode: see :meth:`BrushNetModel.forward`.

    Returns:
        Residuals with as many rows as ``sample``, ready for :meth:`Slot.set`; None if the scale is 0.

    Raises:
        TypeError: a scale that is not one finite number.
        ValueError: inputs whose rows fit neither B nor 2B.
    """
    check_scale(conditioning_scale)
    if conditioning_scale == 0:
        return None

    reads = _reads(brushnet, sample, timestep, brushnet_cond, encoder_hidden_states, added_cond_kwargs)

    # One half, both halves at once, or the conditional half alone.
    once = guided and (guess_mode or _halves_agree(reads))
    rows = len(sample) // 2 if once else len(sample)
    reads = {name: _rows(name, tensor, rows, len(sample), guided) for name, tensor in reads.items()}
    added = {name: reads.pop(name) for name in ("text_embeds", "time_ids") if name in reads}
    residuals = brushnet(
        **{"timestep": timestep, **reads},
        conditioning_scale=float(conditioning_scale),
        added_cond_kwargs=added or None,
        guess_mode=guess_mode,
        return_dict=False,  # accelerate's offloading hooks rebuild outputs, and can rebuild tuples only
    )
    output = BrushNetOutput(*residuals)
    if not once:
        return output
    return _map(output, lambda half: torch.cat([torch.zeros_like(half) if guess_mode else half, half]))


def check_scale(scale: object) -> None:
    """Refuse a scale that is not one finite number.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise TypeError(f"conditioning_scale must be one finite number; got {scale!r}.")


def _reads(
    brushnet: BrushNetModel,
    sample: Tensor,
    timestep: Tensor | float,
    brushnet_cond: Tensor,
    text: Tensor | None,
    added: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """Return everything the branch reads that has a row for each picture, by its name in ``forward``."""
    reads = {"sample": sample.to(brushnet.dtype), "brushnet_cond": brushnet_cond.to(sample.device, brushnet.dtype)}
    if isinstance(timestep, Tensor) and timestep.numel() > 1:
        reads["timestep"] = timestep
    if brushnet.uses_text and text is not None:
        reads["encoder_hidden_states"] = text.to(sample.device, brushnet.dtype)
    if brushnet.config.addition_embed_type is not None and added is not None:
        reads.update({name: added[name] for name in ("text_embeds", "time_ids") if name in added})
    return reads


def _halves_agree(reads: Mapping[str, Tensor]) -> bool:
    """Are the first and the second half of every tensor equal? One with B rows serves both halves and always agrees."""
    rows = len(reads["sample"])
    return all(torch.equal(*tensor.chunk(2)) for tensor in reads.values() if len(tensor) == rows)


def _rows(name: str, tensor: Tensor, rows: int, batch: int, guided: bool) -> Tensor:
    """Return the last ``rows`` rows of ``tensor``, which has ``batch`` of them, or half as many that serve twice."""
    if guided and 2 * len(tensor) == batch:
        tensor = torch.cat([tensor, tensor]) if rows == batch else tensor
    elif len(tensor) != batch:
        choices = f"{batch} or {batch // 2}" if guided else str(batch)
        raise ValueError(f"{name} has {len(tensor)} rows; the U-Net's batch of {batch} asks for {choices}.")
    return tensor[-rows:]


def _map(output: BrushNetOutput, change: Callable[[Tensor], Tensor]) -> BrushNetOutput:
    return BrushNetOutput(
        down_block_res_samples=tuple(map(change, output.down_block_res_samples)),
        mid_block_res_sample=change(output.mid_block_res_sample),
        up_block_res_samples=tuple(map(change, output.up_block_res_samples)),
    )
