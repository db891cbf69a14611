"""Quicker ways to run a diffusion U-Net and a branch beside it.

Exact ones change nothing but the order in which numbers are added; approximate ones leave work out. All work by hooks
of our own on stock networks, for the length of a ``with`` block, and are counted: an option that did nothing says so.

Sources: DeepCache (Ma et al., CVPR 2024) for the reuse of deep features; the reuse of the guidance's difference is that
of FasterCache (Lv et al., ICLR 2025), sec. 3.3, without its weights per frequency; tokens are merged by
:mod:`brushnet.token_merging`.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from brushnet.token_merging import MOST_MERGED, grid_of, plan_merging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["ALIASES", "INTERVALS", "SHARES", "SWITCHES", "Speed", "prepare_branch", "prepare_denoiser", "prepare_unet"]

INTERVALS: Mapping[str, str] = {
    "branch": "the branch runs in every k-th step; between them its residuals are used again",
    "guidance": "the unconditional half runs in every k-th step; between them its difference is used again",
    "deep": "the deep blocks of the U-Net run in every k-th step; between them their features are used again",
}
SHARES: Mapping[str, str] = {
    "merge": "that percentage of the tokens of the largest self-attention are merged with others that are like them",
}
SWITCHES: Mapping[str, str] = {
    "fused": "one product for query, key and value; exact",
    "channels-last": "the channels of a pixel lie side by side in memory; exact",
    "prepacked": "on a CPU, the weights of large convolutions are laid out once and not at every pass; exact",
    "compiled": "transformer blocks compiled by torch.compile; exact",
    "bf16": "U-Net, branch and text encoders in bfloat16",
    "fp16": "U-Net, branch and text encoders in float16",
}
ALIASES: Mapping[str, str] = {"exact": "fused+channels-last", "fast": "branch-2+guidance-4"}
# Where diffusers computes with fused projections; in other networks it makes them and goes on with the separate ones.
FUSED = ("UNet2DConditionModel", "FluxTransformer2DModel", "SD3Transformer2DModel")
MOST = 1000  # steps
PACKED = 2**23  # numbers of a convolution's weight from which laying it out takes longer than it saves time elsewhere
_CLAIMED: WeakSet[nn.Module] = WeakSet()  # networks that a call leaves work out of
_CLAIM = threading.Lock()


@dataclass(frozen=True)
class Speed:
    """What is done to be quicker.

    Attributes:
        intervals: by name of :data:`INTERVALS`, every how many steps the work is done; 2 to 1000.
        switches: names of :data:`SWITCHES`.
        shares: by name of :data:`SHARES`, percent; 1 to 75.
    """

    intervals: Mapping[str, int] = field(default_factory=dict)
    switches: tuple[str, ...] = ()
    shares: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Speed:
        """Read names joined by ``+``: ``branch-2+merge-50``, ``bf16``, ``fast``; empty or ``published`` is nothing.

        Raises:
            ValueError: an unknown name, an interval outside 2..1000, a percentage outside 1..75, or a name twice.
        """
        if text in ("", "published"):
            return cls()
        numbers: dict[str, int] = {}
        switches: list[str] = []
        for part in "+".join(ALIASES.get(name, name) for name in text.split("+")).split("+"):
            name, _, number = part.rpartition("-")
            if part in SWITCHES and part not in switches:
                switches.append(part)
            elif name in (*INTERVALS, *SHARES) and name not in numbers and re.fullmatch("[0-9]{1,4}", number):
                numbers[name] = int(number)
            else:
                counted = [*(f"{each}-2" for each in INTERVALS), *(f"{each}-50" for each in SHARES)]
                known = ", ".join([*ALIASES, *counted, *SWITCHES])
                raise ValueError(f"speed {text!r}: got {part!r}, expected each of these at most once: {known}.")
        for name, given in numbers.items():
            least, most = (2, MOST) if name in INTERVALS else (1, MOST_MERGED)
            if not least <= given <= most:
                raise ValueError(f"speed {text!r}: {name} is {given}, expected {least} to {most}.")
        intervals, shares = ({n: numbers[n] for n in numbers if n in names} for names in (INTERVALS, SHARES))
        return cls(intervals, tuple(sorted(switches)), shares)

    @property
    def dtype(self) -> str | None:
        """The dtype that is asked for, if any."""
        return {"bf16": "bfloat16", "fp16": "float16"}.get(next((s for s in self.switches if s.endswith("16")), ""))

    @property
    def approximate(self) -> tuple[str, ...]:
        """The names of what leaves work out of a call, and is counted there."""
        return (*self.intervals, *self.shares)

    def __str__(self) -> str:
        parts = [f"{name}-{number}" for name, number in sorted({**self.intervals, **self.shares}.items())]
        return "+".join([*parts, *self.switches]) or "published"

    @contextmanager
    def at_work(self, unet: nn.Module, branches: Sequence[nn.Module], rows: int) -> Iterator[Counter[str]]:
        """Leave work out in one call of a pipeline; calls of other threads on these networks meanwhile run in full.

        Args:
            unet: a stock ``UNet2DConditionModel``.
            branches: networks that run beside it in every step.
            rows: images of the call; under guidance the U-Net reads twice as many.

        Yields:
            How often the work of each name in :attr:`approximate` was left out. A name that stays away did nothing.

        Raises:
            ValueError: another call leaves work out of one of these networks now.
        """
        steps = _Steps(self.intervals, rows)
        with ExitStack() as stack:
            if not self.approximate:
                yield steps.left_out
                return
            stack.enter_context(_claimed([unet, *branches]))
            stack.callback(unet.register_forward_pre_hook(steps.before, with_kwargs=True).remove)
            if "branch" in self.intervals:
                for branch in branches:
                    stack.enter_context(_reused(branch, steps, "branch"))
            if "deep" in self.intervals:
                for block in deep_blocks(unet):
                    stack.enter_context(_reused(block, steps, "deep"))
            if "merge" in self.shares:
                for block in _transformer_blocks(unet):
                    stack.enter_context(_merged(block.attn1, steps, self.shares["merge"]))
            stack.callback(unet.register_forward_hook(steps.after).remove)
            yield steps.left_out


def _transformer_blocks(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, BasicTransformerBlock)]


def deep_blocks(unet: Any) -> list[nn.Module]:
    """Return what lies below the first and above the last block: most of the work, and slow to change.

    Raises:
        ValueError: the U-Net has no such blocks.
    """
    if len(unet.down_blocks) < 2 or unet.mid_block is None:
        raise ValueError(
            f"The U-Net has {len(unet.down_blocks)} block(s) on its way down: there is nothing deep in it."
        )
    return [*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]]


@contextmanager
def _claimed(networks: Sequence[nn.Module]) -> Iterator[None]:
    with _CLAIM:
        if any(network in _CLAIMED for network in networks):
            raise ValueError(
                "Another call, perhaps of another thread, leaves work out of the same U-Net or branch now. Let it end "
                "first, give each thread networks of its own, or leave speed out."
            )
        _CLAIMED.update(networks)
    try:
        yield
    finally:
        with _CLAIM:
            _CLAIMED.difference_update(networks)


@dataclass
class _Steps:
    """Where one call of a pipeline stands, in the thread that makes it."""

    intervals: Mapping[str, int]
    rows: int
    left_out: Counter[str] = field(default_factory=Counter)
    step: int = -1
    timestep: object = None
    halved: bool = False
    difference: Tensor | None = None
    latents: tuple[int, int] = (0, 0)  # height and width of what the U-Net reads
    tokens: int = 0  # of the first self-attention of this call of the U-Net, the largest
    thread: int = field(default_factory=threading.get_ident)

    @property
    def is_mine(self) -> bool:
        """Is this the call's own thread?"""
        return threading.get_ident() == self.thread

    def is_due(self, name: str) -> bool:
        """Is a name's work done in this step?"""
        return self.step % self.intervals.get(name, 1) == 0

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Count the step; where the unconditional half is left out, take its rows out of all that the U-Net reads.

        torch adds and removes a hook in two steps; a call of another thread between them comes without ``kwargs``.
        """
        if kwargs is None or not self.is_mine:
            return None
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        if timestep is not self.timestep:  # a step may call the U-Net several times
            self.timestep, self.step = timestep, self.step + 1
        sample = args[0] if args else kwargs["sample"]
        self.latents, self.tokens = tuple(sample.shape[-2:]), 0
        self.halved = len(sample) == 2 * self.rows and self.difference is not None and not self.is_due("guidance")
        return (_last_rows(args, self.rows), _last_rows(kwargs, self.rows)) if self.halved else None

    def after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """Keep what guidance adds, or add what was kept."""
        if not self.is_mine:
            return output
        prediction: Tensor = output[0]
        if not self.halved or self.difference is None:
            if "guidance" in self.intervals and len(prediction) == 2 * self.rows:
                unconditional, conditional = prediction.chunk(2)
                self.difference = unconditional - conditional
            return output
        self.left_out["guidance"] += 1
        whole = torch.cat([prediction + self.difference, prediction])
        return (whole, *output[1:]) if isinstance(output, tuple) else type(output)(sample=whole)


def _last_rows(value: Any, rows: int) -> Any:
    """Return arguments with the conditional half of every tensor that has both."""
    if isinstance(value, Tensor):
        return value[-rows:] if value.dim() and len(value) == 2 * rows else value
    if isinstance(value, tuple | list):
        return type(value)(_last_rows(part, rows) for part in value)
    if isinstance(value, dict):
        return {name: _last_rows(part, rows) for name, part in value.items()}
    return value


@contextmanager
def _reused(module: nn.Module, steps: _Steps, name: str) -> Iterator[None]:
    """Give a module's last output again in the steps in which its work is left out."""
    run: Callable[..., Any] = module.forward
    kept: dict[str, Any] = {}

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not steps.is_mine:
            return run(*args, **kwargs)
        rows = _rows_of((args, kwargs))
        if steps.is_due(name) or "output" not in kept or kept["rows"] < rows:
            kept.update(output=run(*args, **kwargs), rows=rows)
            return kept["output"]
        steps.left_out[name] += 1
        return kept["output"] if kept["rows"] == rows else _last_rows(kept["output"], rows)

    module.forward = forward
    try:
        yield
    finally:
        module.forward = run


@contextmanager
def _merged(attention: nn.Module, steps: _Steps, percent: int) -> Iterator[None]:
    """Merge tokens before a self-attention, if it is one of the largest, and give each its group's result."""
    run: Callable[..., Tensor] = attention.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]  # a mask, or other tokens
        if not steps.is_mine or others:
            return run(hidden_states, *args, **kwargs)
        steps.tokens = steps.tokens or hidden_states.shape[1]
        grid = grid_of(hidden_states.shape[1], steps.latents) if hidden_states.shape[1] == steps.tokens else None
        if grid is None:
            return run(hidden_states, *args, **kwargs)
        merging = plan_merging(hidden_states, grid, percent, steps.step)
        steps.left_out["merge"] += 1
        return merging.unmerge(run(merging.merge(hidden_states), *args, **kwargs))

    attention.forward = forward
    try:
        yield
    finally:
        attention.forward = run


def _rows_of(value: Any) -> int:
    """Return how many rows the first tensor of more than one dimension has among arguments."""
    if isinstance(value, Tensor):
        return len(value) if value.dim() > 1 else 0
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((rows for part in parts if (rows := _rows_of(part))), 0)


def prepare_unet(unet: Any, speed: Speed) -> None:
    """Switch on what lasts in a stock U-Net: memory format, fused projections, compilation.

    Only transformer blocks are compiled: BrushNet's residuals enter behind them, by hooks that stay plain Python.

    Raises:
        ValueError: something that does nothing on this U-Net.
    """
    if "deep" in speed.intervals:
        deep_blocks(unet)
    for name in ("fused", "compiled", "merge"):
        if name in (*speed.switches, *speed.shares) and not _transformer_blocks(unet):
            raise ValueError(f"The U-Net has no attention, and {name!r} does nothing on it. Leave it out.")
    if "merge" in speed.shares and "compiled" in speed.switches:
        raise ValueError("'merge' changes attention that 'compiled' has fixed. Leave one out.")
    prepare_denoiser(unet, speed)


def prepare_denoiser(network: Any, speed: Speed) -> None:
    """Switch on what lasts in any network of diffusers that predicts the noise: a U-Net or a transformer.

    Raises:
        ValueError: something that does nothing on this network, or cannot work on it.
    """
    name = type(network).__name__
    if "fused" in speed.switches and name not in FUSED:
        raise ValueError(f"'fused' works on {', '.join(FUSED)}, and does nothing on a {name}. Leave it out.")
    prepare_branch(network, speed)
    if "fused" in speed.switches:
        with _possible("fused", name):
            network.fuse_qkv_projections()
    if "compiled" in speed.switches:
        with _possible("compiled", name):
            network.compile_repeated_blocks()


@contextmanager
def _possible(switch: str, name: str) -> Iterator[None]:
    """Name switch and network where diffusers refuses."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{switch!r} cannot work on this {name} ({error}). Leave it out.") from None


def prepare_branch(branch: nn.Module, speed: Speed) -> None:
    """Switch on what lasts in a branch: memory format, prepacked weights.

    Raises:
        ValueError: something that does nothing on this branch.
    """
    if "channels-last" in speed.switches:
        if not any(isinstance(part, nn.Conv2d) for part in branch.modules()):
            raise ValueError(
                f"{type(branch).__name__} has no convolution, and 'channels-last' does nothing on it. Leave it out."
            )
        branch.to(memory_format=torch.channels_last)
    if "prepacked" in speed.switches:
        large = [part for part in branch.modules() if isinstance(part, nn.Conv2d) and _can_be_packed(part)]
        if not large:
            raise ValueError(
                f"{type(branch).__name__} has no convolution on a CPU in float32 with a weight of {PACKED} numbers or "
                "more: 'prepacked' does nothing on it. Leave it out."
            )
        for conv in large:
            _prepack(conv)


def _can_be_packed(conv: nn.Conv2d) -> bool:
    weight = conv.weight
    plain = conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return plain and on_cpu and weight.numel() >= PACKED


def _prepack(conv: nn.Conv2d) -> None:
    """Keep a convolution's weight in oneDNN's own layout, as ``torch.compile`` does for frozen weights.

    Laying it out takes longer than the product where images are small: at 8 x 8 latents a pass takes half the time. The
    weight is laid out again where it has changed. Where gradients are wanted, the convolution runs as ever.
    """
    run: Callable[[Tensor], Tensor] = conv.forward
    packed: dict[str, Any] = {}
    geometry = [list(pair) for pair in (conv.padding, conv.stride, conv.dilation)]

    def forward(hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return run(hidden)
        key = (conv.weight.data_ptr(), conv.weight._version, hidden.shape)
        if packed.get("key") != key:
            layout = torch.ops.mkldnn._reorder_convolution_weight
            packed.update(key=key, weight=layout(conv.weight, *geometry, 1, list(hidden.shape)))
        convolve = torch.ops.mkldnn._convolution_pointwise
        result: Tensor = convolve(hidden, packed["weight"], conv.bias, *geometry, 1, "none", [], "")
        return result

    conv.forward = forward  # type: ignore[method-assign, assignment]
