"""Peak signal-to-noise ratio over the kept pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from brushbench.metrics.base import BaseMetric
from brushbench.metrics.mse import keep_mse
from brushbench.types import Picture, Region, Sample, Score, Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from brushbench.features import Features

__all__ = ["PSNR"]

PUBLISHED_PERFECT = 1000.0  # what the published script returns for pictures that are equal in the kept pixels
PUBLISHED_FLOOR = 1e-10  # … that is, below this error


class PSNR(BaseMetric):
    """10 log10(1 / MSE) of the kept pixels, in dB.

    ``standard``: of the mean over values; infinite for identical pictures, and shown so.

    ``brushnet-paper``: of the published error (see :func:`brushbench.metrics.mse.keep_mse`), so 10 log10(3) = 4.771 dB
    lower; 1000 where that error is below 1e-10, and the published table averages those 1000s in.
    """

    name = "psnr"
    unit = "dB"
    higher_is_better = True
    region: Region = "keep"
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "infinite where the kept pixels are identical",
        "brushnet-paper": "4.77 dB low (see mse); identical kept pixels count as 1000 dB",
    }

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        errors = [keep_mse(picture, sample, self.protocol) for picture, sample in zip(pictures, samples, strict=True)]
        return [error if isinstance(error, Unscored) else self._decibels(error) for error in errors]

    def _decibels(self, mse: float) -> float:
        if self.protocol == "brushnet-paper" and mse < PUBLISHED_FLOOR:
            return PUBLISHED_PERFECT
        return 10 * math.log10(1 / mse) if mse > 0 else math.inf
