"""The branch at work beside a U-Net: in which steps it is active, and how it runs under classifier-free guidance.

The pipelines and :func:`brushnet.attach` share one :class:`Guide`. The denoising loop is the stock pipeline's own: a
hook in front of the U-Net runs the branch on exactly what the U-Net is about to read (after
``scheduler.scale_model_input``, which matters for Euler) and hands its residuals to the hooks of
:func:`brushnet.injection.inject`.

Source: TencentARC/BrushNet 0f9d9e5, ``pipeline_brushnet.py``: ``control_guidance_start`` and ``_end``, ``guess_mode``.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from brushnet.checks import check_scale, check_weights
from brushnet.injection import open_slot
from brushnet.model import BrushNetModel, BrushNetOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from diffusers import DiffusionPipeline

    from brushnet.injection import Slot

__all__ = ["Guide", "Window", "guided_residuals"]


@dataclass(frozen=True)
class Window:
    """The share of the steps in which the branch is active.

    Step ``i`` of ``n`` counts if ``start <= i / n`` and ``(i + 1) / n <= end``, as published: in a window that contains
    no whole step the branch is never active.

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
        """Is the branch active at this step, counted from 0?"""
        return not (step / steps < self.start or (step + 1) / steps > self.end)


WHOLE = Window()


@dataclass
class Guide:
    """The branch beside one pipeline's U-Net, for the length of a ``with`` block.

    Outside its window the branch does not run: its residuals would be exactly zero.

    Attributes:
        pipe: any pipeline with ``unet`` and ``scheduler``.
        brushnet: the branch; a compiled one will do.
        conditioning: returns for the U-Net's latents (rows, 4, h, w) what the branch reads beside them, (rows or
            rows / 2, 5, h, w), and whether the rows are [unconditional, conditional].
        scale: factor of the residuals.
        window: the steps in which the branch is active, as a share of the scheduler's whole schedule.
        guess_mode: see :func:`guided_residuals`. A branch with ``global_pool_conditions`` switches it on, as published.
        text: for a branch with cross-attention, instead of the U-Net's own ``encoder_hidden_states``.

    Raises:
        TypeError: a scale that is not one finite number.
    """

    pipe: DiffusionPipeline
    brushnet: BrushNetModel
    conditioning: Callable[[Tensor], tuple[Tensor, bool]]
    scale: float = 1.0
    window: Window = WHOLE
    guess_mode: bool = False
    text: Tensor | None = None
    _slot: Slot = field(init=False, repr=False)
    _call: _Call | None = field(default=None, init=False, repr=False)
    _paused: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_scale(self.scale)
        self.guess_mode = self.guess_mode or self.brushnet.config.global_pool_conditions

    @contextmanager
    def at_work(self, *, claims_unet: bool) -> Iterator[Guide]:
        """Run the branch in every call of the U-Net by this thread inside the ``with`` block.

        Args:
            claims_unet: see :func:`brushnet.injection.open_slot`.

        Raises:
            ValueError: the first residuals or the first prediction of a call hold NaN or infinity.
            RuntimeError: the guidance halves were equal at the first step of a call, and differed at a later one.
        """
        unet = self.pipe.unet
        with open_slot(unet, claims_unet) as self._slot:
            # Under torch.compile the hooks themselves stay plain Python; what they call may be compiled.
            before = torch.compiler.disable(self._before_unet, recursive=False)
            after = torch.compiler.disable(self._after_unet, recursive=False)
            handles = (
                unet.register_forward_pre_hook(before, with_kwargs=True),
                unet.register_forward_hook(after),
            )
            try:
                yield self
                if self._call is not None:
                    self._call.check_halves()
            finally:
                for handle in handles:
                    handle.remove()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the U-Net alone inside the ``with`` block: its calls there belong to somebody else."""
        self._slot.set(None)
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _before_unet(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Run the branch on what the U-Net is about to read, and fill the slot with its residuals.

        torch adds and removes a hook in two steps; a call of another thread between them comes without ``kwargs``.
        """
        if kwargs is None or self._paused or not self._slot.is_mine:
            return
        call = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        progress = self._follow(call["timestep"])
        if self.scale == 0 or not progress.is_in(self.window):
            self._slot.set(None)
            return
        sample = call["sample"][:, : self.brushnet.config.in_channels]  # an inpainting U-Net reads more than latents
        conditioning, guided = self.conditioning(sample)
        inputs = _Inputs(
            sample,
            call["timestep"],
            conditioning,
            call.get("encoder_hidden_states") if self.text is None else self.text,
            call.get("added_cond_kwargs"),
            guided,
        )
        once = guided and (self.guess_mode or progress.halves_agree(self.brushnet, inputs))
        output = _run(self.brushnet, inputs, self.scale, self.guess_mode, once)
        if not progress.residuals_checked:
            progress.residuals_checked = True
            self._refuse_nan(output)
        self._slot.set(output)

    def _after_unet(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        """Look at the first prediction of a call."""
        if self._call is None or self._call.prediction_checked or self._paused or not self._slot.is_mine:
            return
        self._call.prediction_checked = True
        if not _finite(output[0]):
            raise ValueError(f"At the first step the U-Net's prediction holds NaN or infinity: {_remedy(output[0])}")

    def _follow(self, timestep: Tensor | float) -> _Call:
        """Return where the pipeline's call stands; a new schedule means a new call."""
        schedule = self.pipe.scheduler.timesteps
        if self._call is None or schedule is not self._call.schedule:
            if self._call is not None:
                self._call.check_halves()
            self._call = _Call(schedule, timestep)
            if self.window != WHOLE and schedule is not None:  # image-to-image starts in the middle of its schedule
                places = (schedule == timestep).nonzero()
                self._call.step = int(places[0]) if len(places) else 0
        elif timestep is not self._call.timestep:  # a step may call the U-Net several times
            self._call.timestep = timestep
            self._call.step += 1
        return self._call

    def _refuse_nan(self, output: BrushNetOutput) -> None:
        """Stop at the first active step before NaN becomes a black image; name the damaged weights, if it is they."""
        residuals = (*output.down_block_res_samples, output.mid_block_res_sample, *output.up_block_res_samples)
        if not _finite(*residuals):
            check_weights(self.brushnet)
            raise ValueError(f"At the first step BrushNet's residuals hold NaN or infinity: {_remedy(residuals[0])}")


@dataclass
class _Inputs:
    """What the branch reads in one call of the U-Net; the fields are those of :func:`guided_residuals`."""

    sample: Tensor
    timestep: Tensor | float
    brushnet_cond: Tensor
    encoder_hidden_states: Tensor | None
    added_cond_kwargs: Mapping[str, Tensor] | None
    guided: bool

    def reads(self, brushnet: BrushNetModel) -> dict[str, Tensor]:
        """Return everything the branch reads that has a row per sample, by its name in ``forward``."""
        reads = {"sample": self.sample, "brushnet_cond": self.brushnet_cond}
        if isinstance(self.timestep, Tensor) and self.timestep.numel() > 1:
            reads["timestep"] = self.timestep
        if brushnet.uses_text and self.encoder_hidden_states is not None:
            reads["encoder_hidden_states"] = self.encoder_hidden_states
        if brushnet.config.addition_embed_type is not None and self.added_cond_kwargs is not None:
            added = self.added_cond_kwargs
            reads.update({name: added[name] for name in ("text_embeds", "time_ids") if name in added})
        return reads


@dataclass
class _Call:
    """Where one call of a pipeline stands: from one schedule to the next."""

    schedule: Tensor | None
    timestep: Tensor | float
    step: int = 0
    residuals_checked: bool = False
    prediction_checked: bool = False
    _compared: tuple[tuple[Tensor, int], ...] = ()
    _rows: int = 0
    _agree: bool = False
    _differ_later: Tensor | None = None

    def is_in(self, window: Window) -> bool:
        """Is this step one in which the branch is active?"""
        if window == WHOLE:
            return True
        if self.schedule is None:
            raise ValueError("The scheduler has no timesteps, so there is no window of them; call set_timesteps first.")
        return window.holds(self.step, len(self.schedule))

    def halves_agree(self, brushnet: BrushNetModel, inputs: _Inputs) -> bool:
        """Are both guidance halves of all that the branch reads equal? Compared once, for comparing waits for a GPU.

        They are compared again when the pipeline passes other tensors, or another number of rows. The latents are new
        in each step: whether their halves stay equal is collected on their device, and looked at when the call ends.
        """
        reads = inputs.reads(brushnet)
        sample = reads.pop("sample")
        compared = tuple((tensor, 0 if tensor.is_inference() else tensor._version) for tensor in reads.values())
        same = len(compared) == len(self._compared) and all(
            new is old and version == before
            for (new, version), (old, before) in zip(compared, self._compared, strict=True)
        )
        if not same or len(sample) != self._rows:
            self._compared, self._rows = compared, len(sample)
            self._agree = _halves_agree({"sample": sample, **reads})
        elif self._agree:
            first, second = sample.nan_to_num().chunk(2)
            differ = (first != second).any()
            self._differ_later = differ if self._differ_later is None else self._differ_later | differ
        return self._agree

    def check_halves(self) -> None:
        """Raise RuntimeError if the branch ran on one half of latents whose halves differed."""
        if self._differ_later is not None and bool(self._differ_later):
            raise RuntimeError(
                "Both guidance halves of the U-Net's latents were equal at the first step of this call and differed at "
                "a later one, so the branch's residuals were wrong for one half. BrushNet cannot guide this pipeline."
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
        timestep: a number, or a tensor of shape () or with one number per row.
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
    inputs = _Inputs(sample, timestep, brushnet_cond, encoder_hidden_states, added_cond_kwargs, guided)
    once = guided and (guess_mode or _halves_agree(inputs.reads(brushnet)))
    return _run(brushnet, inputs, conditioning_scale, guess_mode, once)


def _run(
    brushnet: BrushNetModel, inputs: _Inputs, conditioning_scale: float, guess_mode: bool, once: bool
) -> BrushNetOutput:
    """Run the branch on one half (the conditional one), or on all rows; return residuals for all rows."""
    batch = len(inputs.sample)
    rows = batch // 2 if once else batch
    reads = {name: _rows(name, part, rows, batch, inputs.guided) for name, part in inputs.reads(brushnet).items()}
    for name in {"sample", "brushnet_cond", "encoder_hidden_states"} & reads.keys():
        reads[name] = reads[name].to(inputs.sample.device, brushnet.dtype)
    added = {name: reads.pop(name) for name in ("text_embeds", "time_ids") if name in reads}
    residuals = brushnet(
        **{"timestep": inputs.timestep, **reads},
        conditioning_scale=float(conditioning_scale),
        added_cond_kwargs=added or None,
        guess_mode=guess_mode,
        return_dict=False,  # accelerate's offloading hooks rebuild outputs, and can rebuild tuples only
    )
    output = BrushNetOutput(*residuals)
    if not once:
        return output
    return _map(output, lambda half: torch.cat([torch.zeros_like(half) if guess_mode else half, half]))


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


def _finite(*tensors: Tensor) -> bool:
    """Are all values finite? One wait for the device, however many tensors."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def _remedy(tensor: Tensor) -> str:
    return f"weights or inputs are damaged, or {tensor.dtype} overflows; load the weights again, or in float32."
