"""Ways to damage a reference on purpose: each makes an image, or asks a question, that is worse than the original."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from brushbench.types import Metric, Picture, Region, Sample

__all__ = ["DAMAGES", "ORDERS", "Damage", "Kind", "Order", "blended", "is_for", "levels", "smeared"]

Question: TypeAlias = "tuple[Picture, Sample]"
Kind: TypeAlias = Literal["hole", "whole", "caption", "question", "order"]
# Of which pixels a metric speaks, and so which damage it is there to see.
KINDS: Mapping[Region, frozenset[Kind]] = {
    "keep": frozenset({"whole"}),
    "hole": frozenset({"hole", "order"}),
    "boundary": frozenset({"hole", "order"}),
    "whole": frozenset({"hole", "whole", "order"}),
}


@dataclass(frozen=True)
class Damage:
    """One way to damage a reference.

    Attributes:
        make: of a sample, another one of the same size, and chance: the picture, and the sample it is scored against.
        kind: what is damaged: the ``hole`` alone, the ``whole`` image, the ``caption``, or the ``question``: the image
            stays and the hole moves, which no metric is asked to notice.
    """

    make: Callable[[Sample, Sample, np.random.Generator], Question]
    kind: Kind = "hole"


@dataclass(frozen=True)
class Order:
    """Two damages of which people find one worse, for metrics that judge an image without its caption.

    Attributes:
        worse, better: keys of :data:`DAMAGES`.
    """

    worse: str
    better: str


def is_for(metric: Metric, kind: Kind) -> bool:
    """Whether a metric is there to see a kind of damage; that it does not see another kind is no fault of its."""
    if kind == "caption":
        return metric.reads_caption
    if kind == "order" and (metric.reads_caption or metric.required_meta):
        return False  # to a reader of the caption both contents are wrong
    return kind in KINDS[metric.region]


def levels(values: npt.NDArray[np.generic]) -> Picture:
    """Return grey levels, rounded and limited to 0 to 255, as uint8."""
    rounded: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded


def _in_hole(sample: Sample, changed: npt.NDArray[np.generic], whole: bool = False) -> Question:
    values = levels(changed)
    return (values if whole else np.where(sample.hole[..., None], values, sample.image)), sample


def _blurred(sample: Sample, sd: float) -> Question:
    return _in_hole(sample, np.asarray(Image.fromarray(sample.image).filter(ImageFilter.GaussianBlur(sd))))


def _jpeg(sample: Sample, quality: int) -> Question:
    buffer = io.BytesIO()
    Image.fromarray(sample.image).save(buffer, "JPEG", quality=quality)
    return _in_hole(sample, np.asarray(Image.open(buffer, formats=["JPEG"])))


def _noisy(sample: Sample, rng: np.random.Generator, sd: float) -> Question:
    return _in_hole(sample, sample.image + rng.normal(0, sd, sample.image.shape))


def _scaled(sample: Sample, what: str, factor: float, whole: bool) -> Question:
    image = sample.image.astype(np.float64)
    grey = {"brightness": 0.0, "contrast": image.mean(), "saturation": image.mean(axis=2, keepdims=True)}[what]
    return _in_hole(sample, grey + factor * (image - grey), whole)


def _neighbour(sample: Sample) -> Question:
    """Copy what lies beside the hole into it, by its own width."""
    columns = np.flatnonzero(sample.hole.any(axis=0))
    shift = int(columns[-1] - columns[0] + 1) if columns.size else 1
    return _in_hole(sample, np.roll(sample.image, min(shift, sample.image.shape[1] // 2), axis=1))


def _moved_hole(sample: Sample) -> Question:
    step = max(1, round(16 * min(sample.hole.shape) / 512))
    return sample.image, replace(sample, hole=np.roll(sample.hole, (step, step), axis=(0, 1)))


def _enlarged(sample: Sample) -> Question:
    height, width = sample.image.shape[:2]
    middle = sample.image[height // 4 : height - height // 4, width // 4 : width - width // 4]
    return np.asarray(Image.fromarray(middle).resize((width, height), Image.Resampling.BICUBIC)), sample


def smeared(sample: Sample) -> Picture:
    """Return the image with its hole filled from the border inwards (OpenCV's Telea)."""
    return np.asarray(cv2.inpaint(sample.image, sample.hole.astype(np.uint8), 5, cv2.INPAINT_TELEA))


def blended(sample: Sample, content: Picture) -> Picture:
    """Return the image with other content in its hole, blended in without a seam (OpenCV's gradient-domain cloning).

    Kept pixels at the hole's border change a little.

    Args:
        sample: image and hole.
        content: uint8 (H, W, 3), of the image's size.
    """
    if not sample.hole.any():
        return sample.image
    # Padded, because the cloned region may not touch the edge
    image, other = (cv2.copyMakeBorder(a, 2, 2, 2, 2, cv2.BORDER_REPLICATE) for a in (sample.image, content))
    mask = np.pad(sample.hole, 2).astype(np.uint8) * 255
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    centre = int((columns[0] + columns[-1] + 1) // 2), int((rows[0] + rows[-1] + 1) // 2)
    return np.asarray(cv2.seamlessClone(other, image, mask, centre, cv2.NORMAL_CLONE)[2:-2, 2:-2])


def _toned(what: str, factor: float, whole: bool) -> Damage:
    return Damage(lambda s, _, __: _scaled(s, what, factor, whole), "whole" if whole else "hole")


DAMAGES: dict[str, Damage] = {
    "blur 1": Damage(lambda s, _, __: _blurred(s, 1.0)),
    "blur 2": Damage(lambda s, _, __: _blurred(s, 2.0)),
    "blur 4": Damage(lambda s, _, __: _blurred(s, 4.0)),
    "JPEG 50": Damage(lambda s, _, __: _jpeg(s, 50)),
    "JPEG 20": Damage(lambda s, _, __: _jpeg(s, 20)),
    "noise 5": Damage(lambda s, _, rng: _noisy(s, rng, 5.0)),
    "noise 15": Damage(lambda s, _, rng: _noisy(s, rng, 15.0)),
    **{
        f"{what} x{factor} {'everywhere' if whole else 'in the hole'}": _toned(what, factor, whole)
        for what in ("brightness", "contrast", "saturation")
        for factor in (0.8, 1.2)
        for whole in (False, True)
    },
    "step of 12 levels": Damage(lambda s, _, __: _in_hole(s, s.image + 12.0)),
    "neighbourhood copied in": Damage(lambda s, _, __: _neighbour(s)),
    "another image's content": Damage(lambda s, o, _: _in_hole(s, o.image)),
    "another image's content, blended": Damage(lambda s, o, _: (blended(s, o.image), s)),
    "smeared hole": Damage(lambda s, _, __: (smeared(s), s)),
    "noise hole": Damage(lambda s, _, rng: _in_hole(s, rng.integers(0, 256, s.image.shape))),
    "grey hole": Damage(lambda s, _, __: _in_hole(s, np.full_like(s.image, 127))),
    "black image": Damage(lambda s, _, __: (np.zeros_like(s.image), s), "whole"),
    "another image's caption": Damage(lambda s, o, _: (s.image, replace(s, prompt=o.prompt)), "caption"),
    "hole moved": Damage(lambda s, _, __: _moved_hole(s), "question"),
    "middle enlarged twice": Damage(lambda s, _, __: _enlarged(s), "whole"),
}
ORDERS: dict[str, Order] = {
    "grey hole, against blended content": Order("grey hole", "another image's content, blended"),
    "smeared hole, against blended content": Order("smeared hole", "another image's content, blended"),
}
