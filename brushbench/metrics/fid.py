"""Fréchet distance of two sets of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.sets import SetMetric, given_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brushbench.metrics.sets import Vectors

__all__ = ["FID"]


class FID(SetMetric):
    """FID (Heusel et al. 2017) of a method's images against the references; 0 for equal sets, lower is better.

    |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½), of means and covariances of features, by torchmetrics'
    ``FrechetInceptionDistance``. With 600 images the bias is as large as the differences between methods: `kid` has
    none.
    """

    name = "fid"
    caveats: ClassVar[Mapping[str, str]] = {"standard": "one number for the set; biased upwards where n is small"}

    def _distance(self, made: Vectors, real: Vectors) -> float:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return float(given_features(made, real, lambda extractor: FrechetInceptionDistance(extractor)).compute())

    def _resampled(self, made: Vectors, real: Vectors) -> float:
        """Return the same number: the trace of (S1 S2)^½ is a sum of n singular values, not of 2048 square roots."""
        means = made.mean(axis=0), real.mean(axis=0)
        one, other = made - means[0], real - means[1]
        roots = np.linalg.svd(one @ other.T, compute_uv=False).sum()
        spread = np.square(one).sum() + np.square(other).sum() - 2 * roots
        return float(np.square(means[0] - means[1]).sum() + spread / (len(made) - 1))
