"""Structural similarity over the kept pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brushbench.metrics.base import NOTHING_KEPT, BaseMetric, at_reference_size
from brushbench.types import Picture, Region, Sample, Score, Unscored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brushbench.features import Features

__all__ = ["SSIM"]

WINDOW = 11  # side of the Gaussian window at sigma 1.5, cut off at 3.5 sigma


class SSIM(BaseMetric):
    """SSIM of Wang et al. 2004: Gaussian window (sigma 1.5), K1 = 0.01, K2 = 0.03, population covariance.

    The hole is filled from the reference in the picture, so that windows across its edge see the same hole and the
    score depends on the kept pixels alone. The map, averaged over R, G, B, is then averaged over the kept pixels.
    1 for identical pictures; higher is better. BrushEdit and NTN-Diff print an SSIM of the kept region without its
    code, so there is no published protocol.
    """

    name = "ssim"
    higher_is_better = True
    region: Region = "keep"
    display = ("x10²", 1e2)

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:  # noqa: ARG002
        return [self._one(picture, sample) for picture, sample in zip(pictures, samples, strict=True)]

    def _one(self, picture: Picture, sample: Sample) -> Score:
        from skimage.metrics import structural_similarity

        compared = at_reference_size(picture, sample, self.protocol)
        if isinstance(compared, Unscored):
            return compared
        keep = sample.keep
        if not keep.any():
            return NOTHING_KEPT
        if min(keep.shape) < WINDOW:
            return Unscored(f"the picture is smaller than the {WINDOW}x{WINDOW} window of SSIM")
        filled = np.where(keep[..., None], compared, sample.image)
        _, similarity = structural_similarity(
            sample.image.astype(np.float64),
            filled.astype(np.float64),
            data_range=255.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            full=True,
        )
        return float(similarity[keep].mean(dtype=np.float64))
