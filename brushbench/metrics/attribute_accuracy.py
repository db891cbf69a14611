"""Does the hole hold an object of the named colour and shape? Judged by a small classifier of rendered scenes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError
from brushbench.masks import square_around
from brushbench.metrics.base import ModelMetric
from brushbench.tiny.scenes import COLOURS, SHAPES
from brushbench.types import Picture, Region, Sample, Score, Unscored
from brushbench.weights import Needs, WeightFile

if TYPE_CHECKING:
    from brushbench.features import Features
    from brushbench.metrics.attribute_classifier import AttributeClassifier

__all__ = ["AttributeAccuracy", "crop_box"]

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
        from brushbench.metrics.attribute_classifier import load_classifier

        return load_classifier(self.weights.path.parent).to(self.device, self.torch_dtype)

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        from brushbench.metrics.attribute_classifier import crop_pictures, judge

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
