"""Kernel distance of two sets of images."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar

from brushbench.metrics.sets import SEED, SetMetric, given_features

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brushbench.metrics.sets import Vectors
    from brushbench.types import JSON

__all__ = ["KID"]

SUBSETS = 50
LARGEST_SUBSET = 1000


class KID(SetMetric):
    """KID (Binkowski et al. 2018) of a method's images against the references; lower is better.

    The squared maximum mean discrepancy with the kernel (x·y / D + 1)³, by torchmetrics' ``KernelInceptionDistance``:
    the mean over 50 random subsets of min(1000, n / 2) images. Unbiased for independent sets. Ours are paired, the same
    scenes: near copies of the references come out below 0.
    """

    name = "kid"
    display = ("x10³", 1e3)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "one number for the set; near copies of the references are below 0"
    }

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256."""
        return {**super().describe(), "subsets": SUBSETS, "largest_subset": LARGEST_SUBSET}

    def _distance(self, made: Vectors, real: Vectors) -> float:
        import torch
        from torchmetrics.image.kid import KernelInceptionDistance

        size = min(LARGEST_SUBSET, len(made) // 2)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
            torch.manual_seed(SEED)
            metric = given_features(
                made, real, lambda extractor: KernelInceptionDistance(extractor, subsets=SUBSETS, subset_size=size)
            )
            return float(metric.compute()[0])
