"""The small classifier behind ``attribute_accuracy``: colour and shape of the object in a crop.

Apart from the metric, so that listing the metrics imports no torch.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from brushbench.errors import WeightsError
from brushbench.tiny.scenes import COLOURS, SHAPES
from brushbench.weights import read_json, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from brushbench.metrics.attribute_accuracy import Box
    from brushbench.types import JSON, Picture

__all__ = [
    "COLOUR_CLASSES",
    "CROP_SIDE",
    "SHAPE_CLASSES",
    "AttributeClassifier",
    "crop_pictures",
    "judge",
    "load_classifier",
]

NOTHING = "nothing"
COLOUR_CLASSES = (*COLOURS, NOTHING)
SHAPE_CLASSES = (*SHAPES, NOTHING)
CROP_SIDE = 32


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
