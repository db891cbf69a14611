"""Does the hole hold an object of the named colour and shape? Judged by a small classifier of rendered scenes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError, WeightsError
from brushbench.masks import square_around
from brushbench.metrics.base import ModelMetric
from brushbench.tiny.scenes import COLOURS, SHAPES
from brushbench.types import JSON, Picture, Region, Sample, Score, Unscored
from brushbench.weights import Needs, WeightFile, read_json, read_tensors

if TYPE_CHECKING:
    from brushbench.features import Features

__all__ = [
    "COLOUR_CLASSES",
    "CROP_SIDE",
    "SHAPE_CLASSES",
    "AttributeAccuracy",
    "AttributeClassifier",
    "crop_box",
    "crop_pictures",
    "judge",
    "load_classifier",
]

NOTHING = "nothing"
COLOUR_CLASSES = (*COLOURS, NOTHING)
SHAPE_CLASSES = (*SHAPES, NOTHING)
CROP_SIDE = 32
CONTEXT = 1.3  # side of the crop over the longer side of the judged box
LEAST_CROP = 16 / 64  # of the picture's side

ASSET = "data/tiny/attributes"
NOT_NAMED = Unscored("no colour and shape are named for this hole")

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of the picture's width and height


class AttributeAccuracy(ModelMetric):
    """1.0 if colour and shape in the hole are as the caption names them, else 0.0; the mean is the share that is right.

    Definition, for the benchmark ``shapes``:

    * ``inside``: the object that the hole was made for. Judged is the square crop around the hole's bounding box,
      1.3 times its longer side (at least a quarter of the picture), moved inside the picture where it sticks out.
    * ``brush``: the object of which the hole covers at least 60 % (``shapes`` names it in ``brush_colour``,
      ``brush_shape`` and ``brush_box``). A hole that covers so much of no object or of several is ``Unscored``.
    * ``outside``: the background is repainted and the objects are kept, so there is nothing to judge: ``Unscored``.

    The crop is brought to 32 x 32 with Pillow's antialiased bilinear resize, so pictures of any size can be judged. The
    whole crop is seen, with kept pixels, so raw and blended pictures are judged alike. Colour and shape must both be
    the classifier's first choice among eight colours, five shapes and ``nothing``.

    The score is 0.0 or 1.0 per picture and carries no unit; tables show the mean in per cent. A benchmark takes part by
    carrying ``target_colour`` and ``target_shape`` in ``Sample.meta``; elsewhere every score is ``Unscored``.
    """

    name = "attribute_accuracy"
    higher_is_better = True
    region: Region = "hole"
    display = ("%", 1e2)
    required_meta: ClassVar[tuple[str, ...]] = (
        "target_colour",
        "target_shape",
    )  # elsewhere `--metrics auto` leaves it out
    needs: ClassVar[tuple[Needs, ...]] = (
        Needs(
            what="the colour and shape classifier",
            files=("model.safetensors",),
            size="0.2 MB",
            licence="Apache-2.0",
            source="data/tiny/attributes of this repository (brushbench train tiny attributes makes it anew)",
        ),
    )

    @classmethod
    def _find(cls, weights: str | Path | None, download: bool = True) -> WeightFile:
        """Return the classifier's file; ``None`` and ``"tiny"`` are the one of this repository."""
        if weights is None or str(weights) == "tiny":
            try:
                weights = assets.path(ASSET)
            except BrushbenchError as error:
                raise MissingWeightsError(f"The colour and shape classifier is not here. {error}") from None
        return super()._find(weights, download)

    def _open(self) -> None:
        """Nothing to check: the file is small and is read at the first call."""

    @functools.cached_property
    def _model(self) -> AttributeClassifier:
        return load_classifier(self.weights.path.parent).to(self.device, self.torch_dtype)

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        asked = [target(sample) for sample in samples]
        places = [i for i, question in enumerate(asked) if not isinstance(question, Unscored)]
        scores: list[Score] = [q if isinstance(q, Unscored) else NOT_NAMED for q in asked]
        for i in places:  # one at a time: the answer for a picture may not depend on its neighbours
            colour, shape, box = asked[i]  # type: ignore[misc]
            answer = judge(self._model, crop_pictures([pictures[i]], [box]))[0]
            scores[i] = float(answer == (colour, shape))
        return scores


def target(sample: Sample) -> tuple[str, str, Box] | Unscored:
    """Return the named colour, the named shape and the box to judge, or why there is nothing to judge."""
    if sample.split == "outside":
        return Unscored("the background is repainted: no named object lies in the hole")
    prefix = "target" if sample.split == "inside" else "brush"
    colour, shape = sample.meta.get(f"{prefix}_colour"), sample.meta.get(f"{prefix}_shape")
    if colour not in COLOURS or shape not in SHAPES:
        reason = "the brush hole covers 60 % of no object, or of several" if "target_colour" in sample.meta else ""
        return Unscored(reason) if reason and sample.split == "brush" else NOT_NAMED
    if sample.split == "brush":
        height, width = sample.hole.shape
        x0, y0, x1, y1 = (float(number) for number in sample.meta["brush_box"].split())
        return colour, shape, (x0 / width, y0 / height, x1 / width, y1 / height)
    if not sample.hole.any():
        return Unscored("the hole is empty")
    return colour, shape, crop_box(sample.hole)


def crop_box(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Box:
    """Return the square to judge around a mask's bounding box, in fractions of the picture.

    Args:
        mask: bool (H, W), with at least one True.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = square_around(mask, CONTEXT, LEAST_CROP * min(height, width))
    return x0 / width, y0 / height, x1 / width, y1 / height


def crop_pictures(pictures: Sequence[Picture], boxes: Sequence[Box]) -> Tensor:
    """Return float32 (n, 3, 32, 32) in [-1, 1]: the boxes of uint8 (H, W, 3) pictures, antialiased bilinear."""
    from PIL import Image

    crops = []
    for picture, (x0, y0, x1, y1) in zip(pictures, boxes, strict=True):
        height, width = picture.shape[:2]
        box = (x0 * width, y0 * height, min(x1 * width, width), min(y1 * height, height))
        small = Image.fromarray(picture).resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR, box=box)
        crops.append(np.asarray(small))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


class AttributeClassifier(nn.Module):
    """A small convolutional network with two answers: colour and shape, each with ``nothing`` as the last class."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = (3, width, 2 * width, 4 * width, 4 * width)
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            stages += [nn.Conv2d(before, after, 3, stride=1 if index == 0 else 2, padding=1)]
            stages += [nn.GroupNorm(4, after), nn.SiLU()]
        self.body = nn.Sequential(*stages, nn.Flatten())  # position is kept: the judged object lies in the middle
        reach = 4 * width * (CROP_SIDE // 8) ** 2
        self.hidden = nn.Sequential(nn.Linear(reach, 4 * width), nn.SiLU())
        self.colour = nn.Linear(4 * width, len(COLOUR_CLASSES))
        self.shape = nn.Linear(4 * width, len(SHAPE_CLASSES))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, 9) of the colour and (n, 6) of the shape for crops (n, 3, 32, 32) in [-1, 1]."""
        features = self.hidden(self.body(crops))
        return self.colour(features), self.shape(features)


@torch.no_grad()
def judge(model: AttributeClassifier, crops: Tensor) -> list[tuple[str, str]]:
    """Return the first choice of colour and shape for each crop."""
    first = next(model.parameters())
    colours, shapes = model(crops.to(first.device, first.dtype))
    pairs = zip(colours.argmax(dim=1).tolist(), shapes.argmax(dim=1).tolist(), strict=True)
    return [(COLOUR_CLASSES[c], SHAPE_CLASSES[s]) for c, s in pairs]


def load_classifier(folder: Path) -> AttributeClassifier:
    """Return the classifier of a folder with ``model.safetensors`` and ``config.json``, in float32, for judging.

    Raises:
        WeightsError: it is not there, or is of other classes or shapes.
    """
    config: Mapping[str, JSON] = read_json(folder / "config.json")
    if config.get("colours") != list(COLOUR_CLASSES) or config.get("shapes") != list(SHAPE_CLASSES):
        raise WeightsError(f"{folder} holds a classifier of other colours or shapes. Train it anew.")
    width = config.get("width")
    if type(width) is not int or width % 4 or not 4 <= width <= 1024:
        raise WeightsError(f"{folder / 'config.json'}: width is {width!r}, expected a multiple of 4. Train it anew.")
    model = AttributeClassifier(width)
    tensors = {name: tensor.float() for name, tensor in read_tensors(folder / "model.safetensors").items()}
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{folder / 'model.safetensors'} does not fit its config: {error}") from None
    return model.eval()
