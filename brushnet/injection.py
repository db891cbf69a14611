"""Residuals into an unmodified stock U-Net, by forward hooks.

Where they enter (BrushNet, fig. 3; published ``unet_2d_condition.py`` and ``unet_2d_blocks.py``, commit 0f9d9e5):

* the first one after ``conv_in``, behind the first skip: **that skip stays clean**;
* one after every resnet + attention pair and after every down- and upsampler, so that all other skips carry residuals;
* one after the mid block. (The published code adds it behind ControlNet's; the sum is the same up to rounding.)
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import WeakKeyDictionary

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from brushnet.checks import DOWN_BLOCKS, UP_BLOCKS
from brushnet.model import BrushNetOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.utils.hooks import RemovableHandle

__all__ = ["Slot", "inject", "open_slot"]

Residuals: TypeAlias = "BrushNetOutput | tuple[Sequence[Tensor], Tensor, Sequence[Tensor]]"


class Slot:
    """What one injection adds, in the thread that opened it. An empty slot leaves the U-Net as it is."""

    def __init__(self, installation: _Installation, claims_unet: bool | None) -> None:
        """Belong to an ``installation`` and to this thread; see :func:`open_slot`."""
        self._installation = installation
        self._claims_unet = claims_unet
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
        counts = self._installation.counts
        if (len(down), len(up)) != counts:
            raise ValueError(
                f"Got {len(down)} residuals for the way down and {len(up)} for the way up; this U-Net takes "
                f"{counts[0]} and {counts[1]}. Is the branch made for another base model?"
            )
        self.residuals = (*down, mid, *up)

    @property
    def is_mine(self) -> bool:
        """Was the slot opened by the thread that asks?"""
        return self in self._installation.mine.slots

    @property
    def claims_unet(self) -> bool:
        """May a thread without a slot of its own not call the U-Net now?"""
        return self.residuals is not None if self._claims_unet is None else self._claims_unet


class _OfThread(threading.local):
    """The slots that the current thread opened; every thread sees its own list."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []


@dataclass
class _Installation:
    """The hooks of one U-Net, shared by all injections into it."""

    counts: tuple[int, int]
    all_slots: list[Slot] = field(default_factory=list)
    mine: _OfThread = field(default_factory=_OfThread)
    handles: list[RemovableHandle] = field(default_factory=list)

    def add(self, hidden: Tensor, place: int) -> Tensor:
        """Return ``hidden`` plus what every filled slot of this thread holds for this ``place``."""
        slots = self.mine.slots
        if not slots and any(slot.claims_unet for slot in self.all_slots):
            raise RuntimeError(
                "Another thread injects BrushNet's residuals into this U-Net, and this thread has no injection of its "
                "own. Open attach or inject in the thread that calls the U-Net, or give each thread its own U-Net."
            )
        for slot in slots:
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
_INSTALLING = threading.Lock()


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
    the hooks are gone. Residuals are cast to the dtype and device of the features they join. They are added in the
    thread that opened the injection; threads may share a U-Net if each opens its own.

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
        RuntimeError: the U-Net was compiled before; in a call of the U-Net, another thread calls it, which opened no
            injection.
    """
    with open_slot(unet, claims_unet=None) as slot:
        slot.set(output)
        yield slot


@contextmanager
def open_slot(unet: UNet2DConditionModel, claims_unet: bool | None) -> Iterator[Slot]:
    """Open a slot as :func:`inject` does, and say what calls of the U-Net by other threads mean.

    Residuals are added in the thread that opened their slot. A thread with slots of its own uses those. For a thread
    without, it is not known whether it wants the residuals: a refusal, unless the slot's owner alone uses it.

    Args:
        unet: see :func:`inject`.
        claims_unet: True refuses calls by threads without a slot while this one is open; None, while it is filled;
            False leaves such calls as they are.

    Yields:
        The slot, empty.

    Raises:
        TypeError: as :func:`inject`.
        ValueError: as :func:`inject`.
        RuntimeError: as :func:`inject`.
    """
    base = getattr(unet, "_orig_mod", unet)
    with _INSTALLING:
        installation = _INSTALLED[base] if base in _INSTALLED else _install(unet, base)
        slot, mine = Slot(installation, claims_unet), installation.mine.slots
        installation.all_slots.append(slot)
    mine.append(slot)
    try:
        yield slot
    finally:
        mine.remove(slot)
        with _INSTALLING:
            installation.all_slots.remove(slot)
            if not installation.all_slots:  # the last one out
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
    def add_residual(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None:  # torch adds and removes a hook in two steps; a call of another thread came between them
            return None
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
    """Raise RuntimeError if a hook would sit inside compiled code, where torch ignores it silently."""
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules):
        raise RuntimeError(
            "The U-Net was compiled before the injection, so its hooks would be ignored. Compile it inside one: "
            "with inject(unet): compiled = torch.compile(unet); …"
        )
