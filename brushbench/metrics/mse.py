"""Mean squared error over the kept pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.base import NOTHING_KEPT, BaseMetric, at_reference_size
from brushbench.types import Picture, Region, Sample, Score, Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from brushbench.features import Features

__all__ = ["MSE", "keep_mse"]

LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)  # of uint8 pixels on the 0..1 scale


def keep_mse(picture: Picture, sample: Sample, protocol: str) -> float | Unscored:
    """Return the mean squared error of the kept pixels on the 0..1 scale.

    ``standard``: the mean over kept pixels and their three values.

    ``brushnet-paper``: as evaluate_brushnet.py of BrushNet @0f9d9e5 has it: the sum over the three values, divided by
    the number of kept *pixels*. That is three times the mean. Differences are float32 as there; the sum is float64.

    Args:
        picture: uint8 (H, W, 3) RGB.
        sample: its reference and hole (True = repaint).
        protocol: ``standard`` | ``brushnet-paper``.

    Returns:
        0 for identical pictures; lower is better. ``Unscored`` where nothing is kept or the sizes differ.
    """
    compared = at_reference_size(picture, sample, protocol)
    if isinstance(compared, Unscored):
        return compared
    keep = sample.keep
    pixels = int(np.count_nonzero(keep))
    if pixels == 0:
        return NOTHING_KEPT
    if protocol == "brushnet-paper":
        kept = np.flatnonzero(keep)
        levels = LEVELS[compared.reshape(-1, 3).take(kept, axis=0)]
        levels -= LEVELS[sample.image.reshape(-1, 3).take(kept, axis=0)]
        return float(np.square(levels).sum(dtype=np.float64)) / pixels
    difference = np.maximum(compared, sample.image) - np.minimum(compared, sample.image)
    difference *= keep[..., None]
    return int(np.square(difference, dtype=np.uint16).sum(dtype=np.int64)) / (3 * pixels * 255**2)


class MSE(BaseMetric):
    """Mean squared error of the kept pixels on the 0..1 scale; the published one is three times as large."""

    name = "mse"
    higher_is_better = False
    region: Region = "keep"
    display = ("x10³", 1e3)
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    caveats: ClassVar[Mapping[str, str]] = {
        "brushnet-paper": "3 times the mean: the sum over R, G, B is divided by pixels, not by values"
    }

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        return [keep_mse(picture, sample, self.protocol) for picture, sample in zip(pictures, samples, strict=True)]
