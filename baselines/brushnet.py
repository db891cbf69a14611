"""BrushNet (Ju et al., ECCV 2024): a text-free branch beside a frozen text-to-image U-Net.

Two branches were released, for object-shaped holes and for free-form ones. As in the paper's tables the first serves
the inside and outside holes of BrushBench, the second the brush holes. The pictures are raw: blending comes later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor, nn

from baselines.diffusion import PLACE, Batch, DiffusionInpainter, refused
from baselines.presets import find_branch, reads_pooled_text
from brushbench.errors import UsageError, WeightsError
from brushbench.types import JSON
from brushbench.weights import sha256_file
from brushnet import StableDiffusionBrushNetPipeline, StableDiffusionXLBrushNetPipeline
from brushnet.acceleration import prepare_branch
from brushnet.checkpoints import load_brushnet
from brushnet.files import find_files
from brushnet.guidance import Window

__all__ = ["BrushNet", "describe_branch", "find_checkpoint"]

Masks: TypeAlias = Literal["segmentation", "random"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
PUBLISHED = "https://drive.google.com/drive/folders/1fqmS1CEOvXCxNWFrsSYd_jHYXxrydh1n"


@dataclass(eq=False)
class BrushNet(DiffusionInpainter):
    """Generate under the branch's guidance.

    The masked picture enters at the mode of the autoencoder's posterior, its hole black.

    Args:
        checkpoint: the branch instead of the preset's: a folder, file or hub id of one, which then serves every split;
            or a folder that holds one for each kind of mask, named as published (``segmentation_mask_…``,
            ``random_mask_…``).
        masks: which branch: ``auto`` takes the one for random masks for the split ``brush``, the one for segmentation
            masks for all else; ``segmentation`` and ``random`` take that one always.
        scale: factor of the branch's residuals.
        guess_mode: weaken the early residuals and guide only the conditional half.
        start: share of the steps before which the branch is not active.
        end: share of the steps after which it is not.

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.

    Raises:
        UsageError: invalid settings.
        MissingWeightsError: base model or branch are not here; says how to get them.
        WeightsError: a branch that is damaged, or of another base model.
    """

    checkpoint: str | None = field(default=None, metadata=PLACE)
    masks: Literal["auto", "segmentation", "random"] = "auto"
    scale: float = 1.0
    guess_mode: bool = False
    start: float = 0.0
    end: float = 1.0

    method = "BrushNet"
    has_branch = True

    def __post_init__(self) -> None:
        """Check the options, find the branches, load the base model; a branch is loaded when it is first needed."""
        if not math.isfinite(self.scale):
            raise UsageError(f"scale is {self.scale}, expected a finite number; 1 is the published one.")
        try:
            Window(self.start, self.end)
        except ValueError:
            raise UsageError(f"start is {self.start} and end {self.end}, expected 0 <= start < end <= 1.") from None
        self.checkpoints = self.places()
        self._pipes: dict[Path, Any] = {}
        super().__post_init__()

    def places(self) -> Mapping[Masks, Path]:
        """Return where the branch for each kind of mask lies."""
        kinds: tuple[Masks, ...] = ("segmentation", "random") if self.masks == "auto" else (self.masks,)
        return {kind: find_checkpoint(self.preset, kind, self.checkpoint) for kind in kinds}

    @property
    def multiple(self) -> int:
        """BrushNet's own pipelines take every multiple of the autoencoder's factor."""
        return self.factor

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings, and the SHA-256 of the base model and of every branch."""
        branches: dict[str, JSON] = {kind: describe_branch(place) for kind, place in self.checkpoints.items()}
        return {**super().describe(), "branches": branches}

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        return self.run(
            self.pipe_for(self.kind(batch)),
            batch,
            image=[Image.fromarray(picture) for picture in batch.pictures],
            mask=list(batch.holes),
            brushnet_conditioning_scale=self.scale,
            guess_mode=self.guess_mode,
            control_guidance_start=self.start,
            control_guidance_end=self.end,
        )

    def kind(self, batch: Batch) -> Masks:
        """Return for which kind of mask the branch is taken."""
        if self.masks != "auto":
            return self.masks
        return "random" if batch.split == "brush" else "segmentation"

    def branches(self, batch: Batch) -> Sequence[nn.Module]:
        """Return the branch for a batch."""
        return (self.pipe_for(self.kind(batch)).brushnet,)

    def pipe_for(self, kind: Masks) -> Any:
        """Return the pipeline with the branch for a kind of mask; the branch is loaded when first asked for.

        Raises:
            WeightsError: the branch is damaged, or belongs to another base model.
        """
        place = self.checkpoints[kind]
        if place not in self._pipes:
            unet = self.pipe.unet
            try:
                branch = load_brushnet(place, dtype=unet.dtype, device=unet.device).requires_grad_(False)
                self._pipes[place] = self._with_branch(branch)
            except (OSError, ValueError) as error:
                raise WeightsError(f"The BrushNet checkpoint for {kind} masks does not load: {error}") from error
            with refused():
                prepare_branch(branch, self.acceleration)
        return self._pipes[place]

    def _with_branch(self, branch: Any) -> Any:
        parts = {**self.pipe.components, "brushnet": branch}
        pipe: Any
        if reads_pooled_text(self.folder):
            zeros = self.pipe.config.force_zeros_for_empty_prompt
            pipe = StableDiffusionXLBrushNetPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
        else:
            pipe = StableDiffusionBrushNetPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def find_checkpoint(preset: str, kind: Masks, checkpoint: str | None = None) -> Path:
    """Return the folder or file of a branch; a hub id is downloaded unless cached.

    Args:
        preset: a key of :data:`~baselines.presets.PRESETS`.
        kind: ``segmentation`` | ``random``.
        checkpoint: where to look instead of the preset's places.

    Raises:
        UnknownNameError: no such preset.
        MissingWeightsError: nothing there; the message says where it was looked for and what to do.
    """
    other = "segmentation" if kind == "random" else "random"
    return find_branch(
        preset,
        kind,
        _of_kind(checkpoint, kind),
        holds=("config.json", "model_index.json"),
        patterns=("config.json", WEIGHTS),
        what=f"BrushNet checkpoint for {kind} masks",
        advice=_advice(preset, other),
    )


def _advice(preset: str, other: str) -> str:
    """Return where the authors' checkpoints are, which no hub mirrors for SDXL."""
    if preset == "sdxl":
        return (
            f"Fetch the folders segmentation_mask_brushnet_ckpt_sdxl_v1 and random_mask_brushnet_ckpt_sdxl_v0 by hand "
            f"from {PUBLISHED} into one folder, and pass that: it serves both kinds of masks."
        )
    return f"The authors' BrushNet checkpoints are at {PUBLISHED}; masks={other} does without this one."


def _of_kind(checkpoint: str | None, kind: Masks) -> str | Path | None:
    """Return a place as it is, and of a folder that holds branches of both kinds the one asked for."""
    path = Path(checkpoint or "").expanduser()
    if not checkpoint or not path.is_dir():
        return checkpoint
    kinds = sorted(part for part in path.iterdir() if part.name.startswith(kind) and part.is_dir())
    if kinds:
        return kinds[0]
    try:
        files = find_files(path)
    except OSError:
        return path
    return files.weights[0].parent if files.config else files.weights[0]


def describe_branch(place: Path) -> Mapping[str, JSON]:
    """Return the SHA-256 of a branch's weight files by name. Where they lie does not identify them.

    Raises:
        WeightsError: there are none, or they cannot be read.
    """
    try:
        return {file.name: sha256_file(file) for file in find_files(place).weights}
    except OSError as error:
        raise WeightsError(f"The BrushNet checkpoint does not load: {error}") from error
