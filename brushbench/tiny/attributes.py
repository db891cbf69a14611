"""Train the classifier behind ``attribute_accuracy``: crops of rendered scenes, half of them through the VAE.

Every colour and shape pair occurs, the ones that the diffusion models never see included: the judge must know them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.metrics.attribute_accuracy import Box, crop_box
from brushbench.metrics.attribute_classifier import (
    COLOUR_CLASSES,
    CROP_SIDE,
    SHAPE_CLASSES,
    AttributeClassifier,
    crop_pictures,
    judge,
)
from brushbench.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    STYLES,
    Scene,
    SceneRng,
    compose,
    render,
    scene_rng,
)
from brushbench.tiny.vae import decode_unscaled, encode_unscaled
from brushbench.training.loop import Draw, contact_sheet, fit
from brushbench.training.settings import FitConfig, FitResult
from brushbench.types import JSON, Picture

__all__ = ["AttributeTask", "any_scene", "held_out_accuracy", "train_attributes"]

EMPTY_SHARE = 0.15  # crops around a place where no object is
STREAM = 7  # keeps these scenes apart from those the diffusion models learn from
HELD_OUT_SEED = 11


def any_scene(domain: str, seed: int, index: int) -> tuple[Scene, SceneRng]:
    """Return a scene whose first object is any of the forty pairs, and the stream it came from."""
    rng = scene_rng(domain, seed, index)
    target = (rng.pick(tuple(COLOURS)), rng.pick(SHAPES), rng.pick(tuple(SIZES)))
    count = 1 + rng.below(3)
    return compose(rng, count=count, style=rng.pick(STYLES), background=rng.pick(BACKGROUNDS), target=target), rng


class AttributeObjective(nn.Module):
    """The sum of the two cross entropies."""

    def __init__(self, model: AttributeClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: Tensor, colours: Tensor, shapes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for crops (n, 3, 32, 32) and the class numbers (n,), and the share that is right."""
        colour, shape = self.model(crops)
        right = (colour.argmax(dim=1) == colours) & (shape.argmax(dim=1) == shapes)
        return F.cross_entropy(colour, colours) + F.cross_entropy(shape, shapes), {"right": right.float().mean()}


@dataclass
class AttributeTask:
    """The classifier on scenes of all pairs.

    Attributes:
        model: trained.
        vae: trained autoencoder; every second block of scenes goes through it. None = clean renders only.
        cache_scenes: number of scenes that are gone round and round, each time with other crops; a multiple of the
            batch size. 0 = never repeat.
    """

    model: AttributeClassifier
    vae: Any = None
    cache_scenes: int = 0
    _cache: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objective = AttributeObjective(self.model)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return one crop a scene: around one of its objects, a little off, or around an empty place."""
        first = draw.first % self.cache_scenes if self.cache_scenes else draw.first
        images, masks, scenes = self._block(first, draw)
        rng = SceneRng(STREAM, draw.seed, draw.step, draw.first)
        boxes: list[Box] = []
        labels: list[tuple[int, int]] = []
        for scene, mask in zip(scenes, masks, strict=True):
            empty = _empty_box(mask, rng) if rng.uniform() < EMPTY_SHARE else None
            if empty is not None:
                boxes.append(empty)
                labels.append((len(COLOUR_CLASSES) - 1, len(SHAPE_CLASSES) - 1))
                continue
            number = rng.below(len(scene.objects))
            boxes.append(_shaken(crop_box(mask[number]), rng))
            thing = scene.objects[number]
            labels.append((COLOUR_CLASSES.index(thing.colour), SHAPE_CLASSES.index(thing.shape)))
        colours, shapes = torch.tensor(labels).unbind(dim=1)
        return {"crops": crop_pictures(images, boxes), "colours": colours, "shapes": shapes}

    def _block(self, first: int, draw: Draw) -> Any:
        if first in self._cache:
            return self._cache[first]
        scenes = [any_scene("train", draw.seed + STREAM, first + i)[0] for i in range(draw.size)]
        drawn = [render(scene) for scene in scenes]
        images = np.stack([rendering.image for rendering in drawn])
        if self.vae is not None and (first // draw.size) % 2:
            images = decode_unscaled(self.vae, encode_unscaled(self.vae, images))
        block = images, [rendering.masks for rendering in drawn], scenes
        if self.cache_scenes:
            self._cache[first] = block
        return block

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": "attributes", "round_trips": self.vae is not None, "cache_scenes": self.cache_scenes}

    def pictures(self) -> Picture:
        """Return the crops of one batch."""
        crops = self.batch(Draw(HELD_OUT_SEED, 0, 0, 32))["crops"]
        pixels = crops.add(1.0).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return contact_sheet(pixels, 8)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` (half precision) and ``config.json``."""
        from safetensors.torch import save_file

        save_file({k: v.half().contiguous() for k, v in self.model.state_dict().items()}, folder / "model.safetensors")
        width = self.model.colour.in_features // 4
        config = {"width": width, "crop": CROP_SIDE, "colours": list(COLOUR_CLASSES), "shapes": list(SHAPE_CLASSES)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _shaken(box: Box, rng: SceneRng) -> Box:
    """Enlarge a square box up to 1.7 times and move it a little, as the holes that are blobs do."""
    x0, y0, x1, y1 = box
    side = min(1.0, (x1 - x0) * rng.uniform(0.9, 1.7))
    slack = 0.12 * (x1 - x0)
    left = (x0 + x1) / 2 + rng.uniform(-slack, slack) - side / 2
    top = (y0 + y1) / 2 + rng.uniform(-slack, slack) - side / 2
    left, top = min(max(left, 0.0), 1.0 - side), min(max(top, 0.0), 1.0 - side)
    return left, top, left + side, top + side


def _empty_box(masks: np.ndarray[Any, np.dtype[np.bool_]], rng: SceneRng) -> Box | None:
    """Return a square whose middle half holds no object, or None when none was found quickly."""
    taken = np.asarray(masks.any(axis=0))
    for _ in range(8):
        side = SIDE * rng.uniform(0.25, 0.65)
        x0, y0 = rng.uniform(0.0, SIDE - side), rng.uniform(0.0, SIDE - side)
        quarter = side / 4
        middle = taken[int(y0 + quarter) : int(y0 + 3 * quarter) + 1, int(x0 + quarter) : int(x0 + 3 * quarter) + 1]
        if not middle.any():
            return x0 / SIDE, y0 / SIDE, (x0 + side) / SIDE, (y0 + side) / SIDE
    return None


def train_attributes(config: FitConfig, *, vae: Path | None = None, cache_scenes: int = 0) -> FitResult:
    """Train the classifier; the weights end under ``config.out / "model"``.

    Args:
        config: how to train.
        vae: folder of the trained autoencoder; None trains on clean renders only.
        cache_scenes: see :class:`AttributeTask`.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(config.seed)
    network = AutoencoderKL.from_pretrained(vae, dtype=torch.float32).eval() if vae else None
    return fit(AttributeTask(AttributeClassifier(), network, cache_scenes), config)


def held_out_accuracy(model: AttributeClassifier, vae: Any = None, count: int = 1000) -> float:
    """Return the share of held-out objects, of all pairs, whose colour and shape are both right.

    Args:
        model: the classifier.
        vae: None judges clean renders, an autoencoder its round trips.
        count: number of scenes; the first object of each is judged, cropped as the metric crops.
    """
    scenes = [any_scene("held-out", HELD_OUT_SEED, index)[0] for index in range(count)]
    drawn = [render(scene) for scene in scenes]
    images = np.stack([rendering.image for rendering in drawn])
    if vae is not None:
        images = decode_unscaled(vae, encode_unscaled(vae, images))
    answers = judge(model, crop_pictures(list(images), [crop_box(rendering.masks[0]) for rendering in drawn]))
    named = [(scene.objects[0].colour, scene.objects[0].shape) for scene in scenes]
    return float(np.mean([answer == name for answer, name in zip(answers, named, strict=True)]))
