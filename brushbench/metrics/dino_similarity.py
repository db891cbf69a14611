"""How like the reference the hole's content is, to DINOv2."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.base import in_groups
from brushbench.metrics.clip_crop import hole_box
from brushbench.metrics.dinov2 import DINOV2_BASE, Dinov2Backbone, as_published
from brushbench.metrics.removal import RemovalMetric, cosine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.metrics.base import Needs
    from brushbench.types import Picture, Sample, Score

__all__ = ["DinoSimilarity"]


class DinoSimilarity(RemovalMetric):
    """Cosine of DINOv2's embeddings of the hole's box in the image and in the reference; 1 if equal, higher is better.

    The field has no standard form: DreamBooth (Ruiz et al. 2023, sec. 4.1) compares the class tokens of whole images.
    Here they are those of the hole's box, square where the image allows, so that kept pixels do not decide. The box
    goes through DINOv2's published processor: shortest side to 256 (Pillow's bicubic), the middle 224x224.

    ``weights`` is a folder of transformers' Dinov2Model of any size; the hash that is recorded says which.
    """

    name = "dino_similarity"
    higher_is_better = True
    needs: ClassVar[tuple[Needs, ...]] = (DINOV2_BASE,)
    needs_kept: ClassVar[bool] = False
    caveats: ClassVar[Mapping[str, str]] = {"standard": "rewards a copy of the reference: other good content is lower"}

    def _open(self) -> None:
        self._dino = Dinov2Backbone(self.weights, self.needs[0].what, self.device, self.torch_dtype)

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        boxes = [hole_box(sample.hole) for sample in samples]
        pairs = zip(pictures, samples, boxes, strict=True)
        crops = [(picture[box], sample.image[box]) for picture, sample, box in pairs if box is not None]
        made, real = (self._embedded(store, [pair[side] for pair in crops]) for side in (0, 1))
        return [cosine(one, other) for one, other in zip(made, real, strict=True)]

    def _embedded(self, store: Features, crops: Sequence[Picture]) -> list[npt.NDArray[np.float64]]:
        found: dict[int, npt.NDArray[np.float64]] = {}
        for group in in_groups(crops):
            pixels = np.stack([as_published(crops[i]) for i in group])
            found.update(zip(group, self._dino.embeddings(store, pixels), strict=True))
        return [found[i] for i in range(len(crops))]
