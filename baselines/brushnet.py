"""BrushNet (Ju et al., ECCV 2024): a text-free branch beside a frozen text-to-image U-Net.

Two branches were released, for object-shaped holes and for free-form ones. As in the paper's tables the first serves
the inside and outside holes of BrushBench, the second the brush holes. The pictures are raw: blending comes later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from PIL import Image

from baselines.bases import (
    BATCH,
    decode,
    describe_base,
    find_base,
    in_batches,
    load_base,
    make_scheduler,
    negative_prompts,
    pad_to_multiple,
    preset_named,
    reads_pooled_text,
    vae_factor,
)
from brushbench import assets
from brushbench.devices import choose_device, choose_dtype
from brushbench.errors import BrushbenchError, MissingWeightsError, UsageError, WeightsError
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture
from brushbench.weights import sha256_file
from brushnet import StableDiffusionBrushNetPipeline, StableDiffusionXLBrushNetPipeline
from brushnet.checkpoints import load_brushnet
from brushnet.denoising import Window

__all__ = ["CHECKPOINTS", "BrushNet", "describe_branch"]

Masks: TypeAlias = Literal["segmentation", "random"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Where each preset's branches are looked for, in order: an asset of this repository, or hub ids (mirrors).
CHECKPOINTS: Mapping[str, Mapping[Masks, tuple[str, ...]]] = {
    "tiny": {"segmentation": ("data/tiny/brushnet_segmentation",), "random": ("data/tiny/brushnet_random",)},
    "sd15": {"segmentation": ("Sanster/brushnet_segmentation_mask",), "random": ("Sanster/brushnet_random_mask",)},
    "sdxl": {"segmentation": (), "random": ()},
}
PUBLISHED = "https://drive.google.com/drive/folders/1fqmS1CEOvXCxNWFrsSYd_jHYXxrydh1n"


class BrushNet:
    """Generate under the branch's guidance, from each request's own seed.

    The masked picture enters at the mode of the autoencoder's posterior, its hole black; initial noise and any noise of
    the scheduler come from a CPU generator of the request's seed.

    Args:
        preset: ``tiny`` | ``sd15`` | ``sdxl``: base model, branches and, unless given, steps and guidance.
        base: folder or hub id of a base model instead of the preset's.
        checkpoint: the branch instead of the preset's: a folder, file or hub id of one, which then serves every split;
            or a folder that holds one for each kind of mask, named as published (``segmentation_mask_…``,
            ``random_mask_…``).
        masks: which branch: ``auto`` takes the one for random masks for the split ``brush``, the one for segmentation
            masks for all else; ``segmentation`` and ``random`` take that one always.
        scale: factor of the branch's residuals.
        steps: denoising steps.
        guidance: weight of classifier-free guidance.
        scheduler: ``unipc`` | ``ddim`` | ``dpm++`` | ``euler`` | ``euler_a`` | ``pndm``.
        guess_mode: weaken the early residuals and guide only the conditional half.
        start: share of the steps before which the branch is silent.
        end: share of the steps after which it is.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``auto``, ``float32``, ``float16`` or ``bfloat16``, of U-Net, branch and text encoders.

    Raises:
        UsageError: an option that cannot be right.
        MissingWeightsError: base model or branch are not here; says how to get them.
        WeightsError: a branch that is damaged, or of another base model.
    """

    def __init__(
        self,
        preset: str = "tiny",
        base: str | None = None,
        checkpoint: str | None = None,
        masks: Literal["auto", "segmentation", "random"] = "auto",
        scale: float = 1.0,
        steps: int | None = None,
        guidance: float | None = None,
        scheduler: str = "unipc",
        guess_mode: bool = False,
        start: float = 0.0,
        end: float = 1.0,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.masks, self.scale, self.guess_mode, self.start, self.end = masks, scale, guess_mode, start, end
        self.steps, self.guidance = preset_named(preset).settings(steps, guidance)
        self.scheduler = scheduler
        self._check_options()
        kinds: tuple[Masks, ...] = ("segmentation", "random") if masks == "auto" else (masks,)
        self.checkpoints = {kind: find_checkpoint(preset, kind, checkpoint) for kind in kinds}
        self.folder = find_base(preset, base)
        place = choose_device(device)
        self._base: Any = load_base(self.folder, place, choose_dtype(dtype, place))
        self._base.scheduler = make_scheduler(scheduler, self._base.scheduler)
        self._pipes: dict[Path, Any] = {}
        self.capabilities = Capabilities(
            text=True,
            negative_prompt=True,
            batch=BATCH,
            native_size=self._base.unet.config.sample_size * vae_factor(self._base.vae),
        )

    def _check_options(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError(f"scale is {self.scale}, expected a finite number; 1 is the published one.")
        try:
            Window(self.start, self.end)
        except ValueError:
            raise UsageError(f"start is {self.start} and end {self.end}, expected 0 <= start < end <= 1.") from None

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings, and the SHA-256 of the base model and of every branch."""
        return {
            "method": "BrushNet",
            "masks": self.masks,
            "scale": self.scale,
            "steps": self.steps,
            "guidance": self.guidance,
            "scheduler": self.scheduler,
            "guess_mode": self.guess_mode,
            "start": self.start,
            "end": self.end,
            "dtype": str(self._base.unet.dtype).removeprefix("torch."),
            "weights": describe_base(self.folder),
            "branches": {kind: describe_branch(place) for kind, place in self.checkpoints.items()},
        }

    def for_split(self, split: str) -> BrushNetForMasks:
        """Return the method with the branch that serves a split."""
        kind: Masks = "random" if split == "brush" else "segmentation"
        return BrushNetForMasks(self, kind if self.masks == "auto" else self.masks)

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one picture a request, of its size; without a split, ``auto`` means segmentation masks."""
        return self.for_split("inside").inpaint(requests)

    def pipe_for(self, kind: Masks) -> Any:
        """Return the pipeline with the branch for a kind of mask; the branch is loaded when first asked for.

        Raises:
            WeightsError: the branch is damaged, or belongs to another base model.
        """
        place = self.checkpoints[kind]
        if place not in self._pipes:
            unet = self._base.unet
            try:
                branch = load_brushnet(place, dtype=unet.dtype, device=unet.device).requires_grad_(False)
                self._pipes[place] = self._with_branch(branch)
            except (OSError, ValueError) as error:
                raise WeightsError(f"The BrushNet checkpoint for {kind} masks does not load: {error}") from error
        return self._pipes[place]

    def _with_branch(self, branch: Any) -> Any:
        parts = {**self._base.components, "brushnet": branch}
        pipe: Any
        if reads_pooled_text(self.folder):
            zeros = self._base.config.force_zeros_for_empty_prompt
            pipe = StableDiffusionXLBrushNetPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
        else:
            pipe = StableDiffusionBrushNetPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe


@dataclass(frozen=True)
class BrushNetForMasks:
    """:class:`BrushNet` with the branch for one kind of mask.

    Attributes:
        method: the method with all its branches.
        kind: ``segmentation`` | ``random``.
    """

    method: BrushNet
    kind: Masks

    @property
    def capabilities(self) -> Capabilities:
        """Those of the method."""
        return self.method.capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the method's description."""
        return self.method.describe()

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one picture a request, of its size."""
        return in_batches(requests, self._batch)

    @torch.no_grad()
    def _batch(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        method, pipe = self.method, self.method.pipe_for(self.kind)
        height, width = requests[0].image.shape[:2]
        factor = vae_factor(pipe.vae)
        latents = pipe(
            prompt=[request.prompt for request in requests],
            negative_prompt=negative_prompts(requests),
            image=[Image.fromarray(pad_to_multiple(request.image, factor)) for request in requests],
            mask=[pad_to_multiple(request.hole, factor) for request in requests],
            num_inference_steps=method.steps,
            guidance_scale=method.guidance,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            brushnet_conditioning_scale=method.scale,
            guess_mode=method.guess_mode,
            control_guidance_start=method.start,
            control_guidance_end=method.end,
            output_type="latent",
        ).images
        return [picture[:height, :width] for picture in decode(pipe.vae, latents)]


def find_checkpoint(preset: str, kind: Masks, checkpoint: str | None = None) -> Path:
    """Return the folder or file of a branch; a hub id is downloaded unless cached.

    Args:
        preset: a key of :data:`CHECKPOINTS`.
        kind: ``segmentation`` | ``random``.
        checkpoint: where to look instead of the preset's places.

    Raises:
        MissingWeightsError: nothing there; the message says where it was looked for and what to do.
    """
    places = (checkpoint,) if checkpoint else CHECKPOINTS[preset][kind]
    reasons = []
    for place in places:
        try:
            found = assets.path(place) if place.startswith("data/") and not checkpoint else _local(place, kind)
        except (BrushbenchError, OSError, ValueError) as error:
            reasons.append(str(error))
            continue
        if found.is_file() or (found / "config.json").is_file() or (found / "model_index.json").is_file():
            return found
        reasons.append(f"{found} holds no config.json")
    other = "segmentation" if kind == "random" else "random"
    raise MissingWeightsError(
        f"No BrushNet checkpoint for {kind} masks ({'; '.join(reasons) or f'{preset} has no known hub id'}). "
        f"Pass checkpoint=FOLDER: the authors' are at {PUBLISHED}; masks={other} does without this one."
    )


def _local(place: str, kind: Masks) -> Path:
    """Return a file or folder as it is, of a folder of both kinds the one asked for, and a hub id's snapshot."""
    path = Path(place).expanduser()
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "model_index.json", WEIGHTS)):
        kinds = sorted(part for part in path.iterdir() if part.name.startswith(kind) and part.is_dir())
        return kinds[0] if kinds else path
    if path.exists() or path.is_absolute() or place.startswith(".") or place.count("/") != 1:
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=["config.json", WEIGHTS]))
    except Exception as error:  # the hub, its transport and the file system each raise kinds of their own
        raise MissingWeightsError(f"{place} could not be had from the hub ({type(error).__name__})") from None


def describe_branch(place: Path) -> Mapping[str, JSON]:
    """Return the SHA-256 of a branch's weight files by name. Where they lie does not identify them."""
    if place.is_file():
        return {place.name: sha256_file(place)}
    folder = place / "brushnet" if (place / "model_index.json").is_file() else place
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return {file.name: sha256_file(file) for file in files}
