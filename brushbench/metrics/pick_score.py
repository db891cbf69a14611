"""PickScore: which of several images people picked for a caption."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.errors import WeightsError
from brushbench.metrics.base import CAPTION_CUT, ModelMetric, Needs, with_remarks
from brushbench.metrics.clip_model import ClipBackbone, cropped, transformers_ids, unit
from brushbench.weights import read_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Picture, Region, Sample, Score

__all__ = ["PickScore"]

ARCHITECTURE = "ViT-H-14"  # plain GELU


class PickScore(ModelMetric):
    """exp(logit_scale) cos(image, caption) under PickScore_v1, a CLIP ViT-H/14 (Kirstain et al. 2023), about 18..24.

    As the README of yuvalkirstain/PickScore @f79607ff computes it: the whole image, shortest side to 224 (Pillow's
    bicubic), centre crop; a caption of more than 77 tokens keeps its end token. No clamp. Differences between methods
    matter, not the level. ``weights`` is a folder of transformers' CLIPModel.
    """

    name = "pick_score"
    higher_is_better = True
    region: Region = "whole"
    auto_protocols: ClassVar[tuple[str, ...]] = ()  # 4 GB: only where it is named
    reads_caption: ClassVar[bool] = True
    needs: ClassVar[tuple[Needs, ...]] = (
        Needs(
            what="PickScore_v1, a CLIP ViT-H/14",
            files=("model.safetensors", "pytorch_model.bin"),
            size="4 GB",
            licence="MIT",
            source="yuvalkirstain/PickScore_v1 (hub)",
            hub=("yuvalkirstain/PickScore_v1",),
        ),
    )
    caveats: ClassVar[Mapping[str, str]] = {"standard": "judges the kept pixels too"}

    def _open(self) -> None:
        self._clip = ClipBackbone(self.weights, ARCHITECTURE, self.needs[0].what, self.device, self.torch_dtype)
        logit_scale = float(read_tensor(self.weights.path, "logit_scale"))  # not from the model: that may be bfloat16
        if not -20 < logit_scale < 20:
            raise WeightsError(f"{self.weights.path}: logit_scale is {logit_scale}, expected about 4.6.")
        self._scale = math.exp(logit_scale)

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        images = unit(self._clip.pictures(store, pictures, self._pixels))
        captions = [transformers_ids(sample.prompt, self._clip.context, keep_end=True) for sample in samples]
        texts = unit(np.stack([self._clip.text(store, ids) for ids, _ in captions]))
        scores = [self._scale * float(cosine) for cosine in (images * texts).sum(axis=1)]
        return with_remarks(scores, (CAPTION_CUT if cut else "" for _, cut in captions))

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        return cropped(picture, self._clip.side, "down")
