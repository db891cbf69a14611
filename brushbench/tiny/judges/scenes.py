"""What the judges learn from: rendered scenes, captions that are wrong by one attribute, pictures that are spoilt.

Every number is drawn from the seed, the place in the stream and the judge's own stream, so that no judge shares a scene
with another, with the diffusion models, with the attribute classifier (for seeds under a thousand) or with a benchmark.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.metrics.clip_model import normalised
from brushbench.tiny.attributes import any_scene
from brushbench.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    STYLES,
    TONES,
    Scene,
    SceneRng,
    caption,
    render,
)
from brushbench.training.loop import Draw
from brushbench.types import Picture

__all__ = [
    "ATTRIBUTES",
    "HARD",
    "SPOILS",
    "STREAMS",
    "Drawn",
    "Hints",
    "SceneStream",
    "alternatives",
    "hint_tensors",
    "pixels",
    "spoil",
    "wrong_captions",
]

STREAMS = {"clip": 1001, "aesthetic": 1002, "hps": 1003, "image_reward": 1004, "lpips": 1005}
ATTRIBUTES = ("colour", "shape", "size", "relation", "background", "tone", "style")
HARD = (*("shape", "relation") * 3, "style")  # what the two reward models learn last: each name is one chance
SPOILS = ("blur", "noise", "jpeg", "cast", "paste", "seam")
PATCH = 8  # pixels; the grid on which the hints name objects
_HUES = ((1.0, 0.1, 0.1), (1.0, 0.9, 0.1), (0.1, 0.9, 0.2), (0.1, 0.9, 1.0), (0.2, 0.2, 1.0), (1.0, 0.2, 0.9))
_Labels = npt.NDArray[np.int64]


# ------------------------------------------------------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Drawn:
    """One picture to learn from.

    Attributes:
        scene: what it shows.
        image: uint8 (64, 64, 3) RGB.
        patches: int64 (8, 8, 3): colour, shape and size of the object in each patch, counted from 1; 0 = none.
    """

    scene: Scene
    image: Picture
    patches: _Labels

    def mirrored(self) -> Drawn:
        """Return the picture and its scene with left and right exchanged.

        The scene then serves for its caption alone: textures and angles are not exchanged in it.
        """
        things = tuple(replace(thing, x=SIDE - thing.x) for thing in self.scene.objects)
        image = np.ascontiguousarray(self.image[:, ::-1])
        return Drawn(replace(self.scene, objects=things), image, self.patches[:, ::-1])


@dataclass
class SceneStream:
    """The scenes of one judge: every colour and shape pair, half of the pictures mirrored.

    Attributes:
        name: a key of ``STREAMS``.
        cache_scenes: go round and round in the first so many scenes, each time with other wrong captions, other damage
            and mirrored anew; 0 = never repeat.
    """

    name: str
    cache_scenes: int = 0
    _cache: dict[tuple[int, int], Drawn] = field(default_factory=dict)

    def take(self, draw: Draw) -> tuple[list[Drawn], SceneRng]:
        """Return the scenes of one micro-batch, and the random stream of all that is done with them."""
        rng = SceneRng(STREAMS[self.name], draw.seed, draw.step, draw.first)
        drawn = [self._one(draw.seed, draw.first + i) for i in range(draw.size)]
        return [one.mirrored() if rng.uniform() < 0.5 else one for one in drawn], rng

    def _one(self, seed: int, index: int) -> Drawn:
        key = seed, index % self.cache_scenes if self.cache_scenes else index
        if key in self._cache:
            return self._cache[key]
        scene = any_scene("train", seed + STREAMS[self.name], key[1])[0]
        rendering = render(scene)
        drawn = Drawn(scene, rendering.image, _patch_labels(scene, rendering.masks))
        if self.cache_scenes:
            self._cache[key] = drawn
        return drawn


def _patch_labels(scene: Scene, masks: npt.NDArray[np.bool_]) -> _Labels:
    """Name the object that covers most of a patch, if it covers over a quarter of it."""
    grid = SIDE // PATCH
    cover = masks.reshape(len(masks), grid, PATCH, grid, PATCH).mean(axis=(2, 4))
    names = [
        (1 + list(COLOURS).index(o.colour), 1 + SHAPES.index(o.shape), 1 + list(SIZES).index(o.size))
        for o in scene.objects
    ]
    labels: _Labels = np.asarray(names, dtype=np.int64)[cover.argmax(axis=0)]
    labels[cover.max(axis=0) <= 0.25] = 0
    return labels


# ----------------------------------------------------------------------------------------------------------- captions


def alternatives(scene: Scene) -> dict[str, list[str]]:
    """Return every caption that is wrong by one attribute, by the attribute that is wrong.

    ``relation`` is that of the first two objects exchanged, and is absent where there is only one object.
    """
    found: dict[str, list[str]] = {name: [] for name in ATTRIBUTES}
    choices: Mapping[str, Sequence[str]] = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}
    for number, thing in enumerate(scene.objects):
        for name, values in choices.items():
            for value in values:
                if value != getattr(thing, name):
                    others = list(scene.objects)
                    others[number] = replace(thing, **{name: value})  # type: ignore[arg-type]  # all three are strings
                    found[name].append(caption(replace(scene, objects=tuple(others))))
    grounds: Mapping[str, Sequence[str]] = {"background": BACKGROUNDS, "tone": tuple(TONES), "style": STYLES}
    for name, values in grounds.items():
        found[name] += [
            caption(replace(scene, **{name: value}))  # type: ignore[arg-type]  # all three are strings
            for value in values
            if value != getattr(scene, name)
        ]
    if len(scene.objects) > 1:
        first, second, *rest = scene.objects
        moved = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y), *rest)
        found["relation"].append(caption(replace(scene, objects=moved)))
    return {name: captions for name, captions in found.items() if captions}


def wrong_captions(scene: Scene, rng: SceneRng, count: int, more: Sequence[str] = ()) -> list[str]:
    """Return captions that are wrong by one attribute, which is drawn first.

    Args:
        scene: what the right caption would name.
        rng: where the choices come from.
        count: captions.
        more: attributes that get further chances beside the one that each has, such as ``HARD``.
    """
    known = alternatives(scene)
    names = (*known, *(name for name in more if name in known))
    return [rng.pick(known[rng.pick(names)]) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------------- damage


def spoil(image: Picture, kind: str, rng: SceneRng, other: Picture) -> Picture:
    """Return a damaged copy of a picture.

    Args:
        image: uint8 (H, W, 3) RGB.
        kind: one of ``SPOILS``.
        rng: where and how much.
        other: picture of the same size that ``paste`` cuts from.
    """
    if kind == "blur":
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(rng.uniform(0.9, 2.0)))
        return np.asarray(blurred)
    if kind == "jpeg":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=4 + rng.below(13))
        return np.asarray(Image.open(file, formats=("JPEG",)).convert("RGB"))
    values = image.astype(np.float64)
    if kind == "noise":
        pair = rng.array(2, *image.shape)
        values += (pair[0] + pair[1] - 1.0) * np.sqrt(6.0) * rng.uniform(12.0, 36.0)
    elif kind == "cast":
        strength = rng.uniform(0.2, 0.4)
        values += strength * (255.0 * np.asarray(rng.pick(_HUES)) - values)
    elif kind == "paste":
        there, here = _box(image, rng, (16, 28)), _box(image, rng, (16, 28))
        height, width = (min(a.stop - a.start, b.stop - b.start) for a, b in zip(there, here, strict=True))
        (y, x), (v, u) = ((box[0].start, box[1].start) for box in (here, there))
        values[y : y + height, x : x + width] = other[v : v + height, u : u + width]
    else:  # the edge of a hole whose filling has another brightness
        sign = 1.0 if rng.uniform() < 0.5 else -1.0
        change = sign * rng.uniform(16.0, 32.0) + 16.0 * (rng.array(3) - 0.5)
        values[_box(image, rng, (20, 40))] += change
    return np.rint(np.clip(values, 0.0, 255.0)).astype(np.uint8)


def _box(image: Picture, rng: SceneRng, sides: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a rectangle inside the picture, its sides given for a picture of 64 pixels."""
    box = []
    for length in image.shape[:2]:
        side = max(1, round((sides[0] + rng.below(sides[1] - sides[0] + 1)) * length / SIDE))
        start = rng.below(length - side + 1)
        box.append(slice(start, start + side))
    return box[0], box[1]


# --------------------------------------------------------------------------------------------------------------- hints


def pixels(images: Sequence[Picture]) -> Tensor:
    """Return float32 (n, 3, H, W) as CLIP and ImageReward see pictures of their own side."""
    values = [normalised(image.transpose(2, 0, 1).astype(np.float32) / np.float32(255)) for image in images]
    return torch.from_numpy(np.stack(values))


def hint_tensors(drawn: Sequence[Drawn], patch: int) -> dict[str, Tensor]:
    """Return what the hints teach: ``patches`` (n, P, 3) and ``ground`` (n, 3), class numbers.

    Args:
        drawn: the pictures.
        patch: side of the judge's patches, a multiple of 8; a larger one takes the label of its middle.
    """
    step = patch // PATCH
    labels = np.stack([one.patches[step // 2 :: step, step // 2 :: step] for one in drawn])
    grounds = [
        (BACKGROUNDS.index(s.background), list(TONES).index(s.tone), STYLES.index(s.style))
        for s in (one.scene for one in drawn)
    ]
    return {
        "patches": torch.from_numpy(np.ascontiguousarray(labels.reshape(len(drawn), -1, 3))),
        "ground": torch.tensor(grounds),
    }


class Hints(nn.Module):
    """Linear read-outs that tell a young image encoder what there is to see; thrown away after training.

    Each patch names its object; the picture's summary names background, tone and style, and says whether the picture is
    clean.
    """

    def __init__(self, patch_width: int, summary_width: int) -> None:
        super().__init__()
        self.patch_classes = (1 + len(COLOURS), 1 + len(SHAPES), 1 + len(SIZES))
        self.ground_classes = (len(BACKGROUNDS), len(TONES), len(STYLES))
        self.patch = nn.Linear(patch_width, sum(self.patch_classes))
        self.ground = nn.Linear(summary_width, sum(self.ground_classes))
        self.clean = nn.Linear(summary_width, 1)

    def forward(
        self, tokens: Tensor, summary: Tensor, patches: Tensor, ground: Tensor, clean: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses, and the share of object patches named rightly.

        Args:
            tokens: (n, P, patch_width).
            summary: (n, summary_width).
            patches: int64 (n, P, 3).
            ground: int64 (n, 3).
            clean: float (n,), 1 = clean, 0 = spoilt.
        """
        seen = self.patch(tokens).split(self.patch_classes, dim=-1)
        loss: Any = sum(F.cross_entropy(s.flatten(0, 1), patches[..., i].flatten()) for i, s in enumerate(seen))
        told = self.ground(summary).split(self.ground_classes, dim=-1)
        loss = loss + sum(F.cross_entropy(t, ground[:, i]) for i, t in enumerate(told)) / len(told)
        loss = loss + F.binary_cross_entropy_with_logits(self.clean(summary)[:, 0], clean)
        things = patches[..., 0] > 0
        named = torch.stack([s.argmax(dim=-1) == patches[..., i] for i, s in enumerate(seen)]).all(dim=0)
        return loss, {"patches": (named & things).sum() / things.sum().clamp(min=1)}
