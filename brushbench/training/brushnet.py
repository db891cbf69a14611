"""Train BrushNet: the data side. The step itself is :mod:`brushnet.training`, the loop :mod:`brushbench.training.loop`.

One trainer for every size: the embedded base on rendered scenes, Stable Diffusion 1.5 or XL on BrushData. Pictures are
brought to size by their shorter side and cropped in the middle; the published script swaps width and height in
``cv2.resize`` and so squeezes every picture that is not square. Holes follow the published recipe
(TencentARC/BrushNet 0f9d9e5, ``train_brushnet.py``): one of the picture's masks, three in ten opened with a square of
8 x 8 at 512 pixels, half of them inverted; or random brush strokes.
"""

from __future__ import annotations

import copy
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from baselines.brushnet import describe_branch
from baselines.diffusion import load_base
from baselines.latents import decode_scaled, vae_factor
from baselines.presets import PRESETS, describe_base, find_base, make_scheduler, preset_named
from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError
from brushbench.training.card import model_card
from brushbench.training.holes import HOLES, draw_hole, stream_rng
from brushbench.training.loop import Draw, contact_sheet, fit
from brushbench.training.settings import FitConfig, FitResult
from brushbench.training.streams import PictureStream, open_pictures, to_square
from brushbench.types import JSON, NEUTRAL_GREY, Picture
from brushnet import BrushNetModel
from brushnet.checkpoints import load_brushnet
from brushnet.training import BrushNetTrainingStep, inpainting_pipeline

__all__ = ["BrushNetRecipe", "BrushNetTask", "start_task", "train_brushnet"]

DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}
SHOWN = 3  # purpose of the random numbers of a sheet's holes


@dataclass(frozen=True)
class BrushNetRecipe:
    """What is trained; how is :class:`~brushbench.training.loop.FitConfig`'s.

    Attributes:
        base: a preset of :data:`baselines.presets.PRESETS`, a folder of a stock pipeline or a hub id. SDXL is
            recognised.
        data: ``scenes`` (the endless stream of :mod:`brushbench.tiny.scenes`), BrushData's folder, tar or hub id, or a
            benchmark by name or folder.
        masks: ``segmentation`` (a picture's own masks) | ``random`` (brush strokes).
        resolution: side in pixels; None takes the base's own.
        blobs: share of segmentation holes that are an uneven disc round the instance instead of its outline, so that
            the outline does not tell the shape. 0 as published.
        caption_dropout: share of captions replaced by the empty one. The published script drops none.
        sample_posterior: draw from the autoencoder's posterior, as published, instead of taking its mode.
        mask_channel: False is the ablation without mask; see :class:`brushnet.training.BrushNetTrainingStep`.
        injection: ``full`` | ``encoder`` (the ablation with the encoder half only).
        gradient_checkpointing: save memory at the price of time.
        adam_8bit: 8-bit Adam of bitsandbytes (extra ``adam8bit``).
        half: save the weights in float16.
        guidance: classifier-free guidance of the pictures on the sheets; None takes the preset's.
        init_from: folder of a branch to go on from, with a fresh optimizer.
    """

    base: str = "tiny"
    data: str = "scenes"
    masks: str = "segmentation"
    resolution: int | None = None
    blobs: float = 0.0
    caption_dropout: float = 0.1
    sample_posterior: bool = False
    mask_channel: bool = True
    injection: str = "full"
    gradient_checkpointing: bool = False
    adam_8bit: bool = False
    half: bool = False
    guidance: float | None = None
    init_from: str | None = None


# -------------------------------------------------------------------------------------------------------------- task


class BrushNetTask:
    """The branch on a stream of pictures, for :func:`brushbench.training.loop.fit`.

    While a step runs, the next batch is made beside it: pictures are decoded and resized without the interpreter's
    lock. What a batch holds depends on its draw alone, so this changes no number.
    """

    def __init__(
        self,
        step: BrushNetTrainingStep,
        pictures: PictureStream,
        recipe: BrushNetRecipe,
        folder: Path,
        accumulation: int = 1,
    ) -> None:
        """Take the step, its data, the folder of the base model and the loop's micro-batches a step."""
        self.objective = step
        self.source, self.recipe, self.folder, self.accumulation = pictures, recipe, folder, accumulation
        self.side = _side(recipe, step)
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._ahead: tuple[Draw, Future[dict[str, Tensor]]] | None = None
        self._last: Draw | None = None

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return the tensors of :meth:`brushnet.training.BrushNetTrainingStep.batch` for a draw."""
        self._wait()
        ready, self._ahead = self._ahead, None
        batch = ready[1].result() if ready and ready[0] == draw else self._make(draw)
        if self._last is not None and draw.first > self._last.first:
            # The loop's draws follow each other at equal distance, the same number of them in each step.
            distance = draw.first - self._last.first
            first = draw.first + distance
            following = Draw(draw.seed, first // distance // self.accumulation, first, draw.size)
            self._ahead = following, self._worker.submit(self._make, following)
        self._last = draw
        return batch

    def _wait(self) -> None:
        """Let the worker end: pictures are read, and captions cut into tokens, by one thread at a time."""
        if self._ahead is not None:
            self._ahead[1].exception()

    def _make(self, draw: Draw) -> dict[str, Tensor]:
        examples = []
        for place, picture in enumerate(self.source.take(draw.seed, draw.first, draw.size), start=draw.first):
            square = to_square(picture, self.side)
            hole = draw_hole(square, self.recipe.masks, self.recipe.blobs, stream_rng(draw.seed, place, HOLES))
            examples.append((square.image, hole, square.caption))
        return self.objective.batch(examples, draw.generator())

    def pictures(self) -> Picture:
        """Return rows of input | result | reference, made by the BrushNet pipeline with 20 UniPC steps."""
        self._wait()
        shown = [to_square(picture, self.side) for picture in self.source.shown(8 if self.side <= 256 else 4)]
        holes = [
            draw_hole(picture, self.recipe.masks, self.recipe.blobs, stream_rng(place, SHOWN))
            for place, picture in enumerate(shown)
        ]
        inputs = [
            np.where(hole[..., None], np.uint8(NEUTRAL_GREY), p.image) for p, hole in zip(shown, holes, strict=True)
        ]
        base = self.objective.base
        pipe = inpainting_pipeline(base, self.objective.brushnet, make_scheduler("unipc", base.scheduler))
        pipe.set_progress_bar_config(disable=True)
        latents = pipe(
            prompt=[picture.caption for picture in shown],
            image=[Image.fromarray(picture) for picture in inputs],
            mask=[Image.fromarray(hole) for hole in holes],
            num_inference_steps=20,
            guidance_scale=_guidance(self.recipe),
            generator=[torch.Generator().manual_seed(place) for place in range(len(shown))],
            output_type="latent",
        ).images
        results = decode_scaled(base.vae, latents)
        rows = [part for three in zip(inputs, results, [p.image for p in shown], strict=True) for part in three]
        return contact_sheet(np.stack(rows), 6)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and the weights, as every BrushNet loads them, with ``recipe.json`` and a card."""
        self._wait()
        branch = copy.deepcopy(self.objective.brushnet).to("cpu", torch.float16 if self.recipe.half else torch.float32)
        branch.register_to_config(_name_or_path="")  # where its first weights lay is nobody's business
        branch.save_pretrained(folder, safe_serialization=True)
        recipe = {**self.identity(), **self.source.describe()}
        (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
        (folder / "README.md").write_text(model_card(recipe), "utf-8")

    def identity(self) -> dict[str, JSON]:
        """Return what must be equal for a checkpoint to be continued; where weights lie does not matter."""
        elsewhere = ("base", "data", "guidance", "half", "init_from")
        told = {name: value for name, value in asdict(self.recipe).items() if name not in elsewhere}
        init_from = describe_branch(Path(self.recipe.init_from)) if self.recipe.init_from else None
        return {
            "model": "brushnet",
            **told,
            **self.source.identity(),
            "init_from": dict(init_from) if init_from else None,
            "resolution": self.side,
            "base_weights": dict(describe_base(self.folder)),
        }


def start_task(config: FitConfig, recipe: BrushNetRecipe) -> BrushNetTask:
    """Load the base, make or load the branch and open the data.

    Raises:
        UsageError: invalid settings.
        MissingWeightsError: base or branch are not there.
        DataError: the data cannot be read.
    """
    _check(config, recipe)
    try:
        folder = find_base(**_place_of(recipe.base))
    except MissingWeightsError as error:  # its advice names the option of a method
        raise MissingWeightsError(str(error).replace("base=", "--base ")) from None
    base = load_base(folder)
    if recipe.init_from is None:
        brushnet = BrushNetModel.from_unet(base.unet)
    else:
        try:
            brushnet = load_brushnet(recipe.init_from)
        except OSError as error:
            raise MissingWeightsError(f"--init-from {recipe.init_from}: {error}") from error
    try:
        step = BrushNetTrainingStep(
            brushnet,
            base,
            caption_dropout=recipe.caption_dropout,
            sample_posterior=recipe.sample_posterior,
            mask_channel=recipe.mask_channel,
            injection=cast("Any", recipe.injection),
            gradient_checkpointing=recipe.gradient_checkpointing,
            dtype=DTYPES[config.mixed_precision],
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    return BrushNetTask(step, open_pictures(recipe.data, recipe.masks), recipe, folder, config.accumulation)


def train_brushnet(config: FitConfig, recipe: BrushNetRecipe) -> FitResult:
    """Train the branch; ``config.out / "model"`` loads in the pipelines and as ``brushnet,checkpoint=…`` at once.

    Raises:
        UsageError: invalid settings, or 8-bit Adam without bitsandbytes.
        MissingWeightsError: base or branch are not there.
        DataError: the data cannot be read.
        ConfigMismatchError: what is to be resumed was made by another recipe.
    """
    optimizer = _adam_8bit(config) if recipe.adam_8bit else None
    task = start_task(config, recipe)
    return fit(task, config, optimizer)


def _check(config: FitConfig, recipe: BrushNetRecipe) -> None:
    choices = {"masks": ("segmentation", "random"), "injection": ("full", "encoder")}
    for name, known in choices.items():
        if getattr(recipe, name) not in known:
            raise UnknownNameError(name, getattr(recipe, name), known)
    if config.mixed_precision not in DTYPES:
        raise UnknownNameError("mixed precision", config.mixed_precision, DTYPES)
    for name in ("blobs", "caption_dropout"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise UsageError(f"{name} is {getattr(recipe, name)}, expected a share in 0..1.")


def _place_of(base: str) -> dict[str, str]:
    """Return the arguments of :func:`baselines.presets.find_base` for a preset, a folder or a hub id."""
    if base in PRESETS:
        return {"preset": base}
    if "/" not in base and not Path(base).exists():
        raise UnknownNameError("base", base, [*PRESETS, "a folder of a stock pipeline", "a hub id"])
    return {"base": base}


def _guidance(recipe: BrushNetRecipe) -> float:
    if recipe.guidance is not None:
        return recipe.guidance
    return preset_named(_place_of(recipe.base).get("preset", "sd15")).guidance


def _side(recipe: BrushNetRecipe, step: BrushNetTrainingStep) -> int:
    """Return the pictures' side in pixels."""
    factor = vae_factor(step.base.vae)
    side: int = recipe.resolution or step.base.unet.config.sample_size * factor
    if side < 8 or side % factor:
        raise UsageError(f"resolution is {side}, expected a multiple of {factor} pixels, the autoencoder's factor.")
    return side


def _adam_8bit(config: FitConfig) -> Any:
    """Return what makes the optimizer of the trained weights.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UsageError(
            "8-bit Adam needs bitsandbytes, which is not installed. Run pip install 'brushbench[adam8bit]', or leave "
            "--adam-8bit out."
        ) from None
    return lambda weights: AdamW8bit(
        weights, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )
