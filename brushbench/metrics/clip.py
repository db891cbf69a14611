"""CLIP similarity of picture and caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.base import CAPTION_CUT, ModelMetric, Needs, with_remarks
from brushbench.metrics.clip_model import (
    CLIP_VIT_L14,
    PUBLISHED,
    ClipBackbone,
    cropped,
    transformers_ids,
    unit,
)
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Picture, Region, Sample, Score

__all__ = ["ClipScore"]


class ClipScore(ModelMetric):
    """max(100 cos(picture, caption), 0) under CLIP ViT-L/14 of OpenAI: CLIPScore as torchmetrics 1.9 computes it.

    The whole picture, shortest side to 224 (Pillow's bicubic), centre crop. Both protocols differ only where a caption
    is longer than 77 tokens: ``standard`` keeps its end token; ``brushnet-paper`` slices it off as the published
    script does, so that all such captions count as one and the same text.
    """

    name = "clip_score"
    higher_is_better = True
    region: Region = "whole"
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    reads_caption: ClassVar[bool] = True
    keeps_end_token: ClassVar[Mapping[str, bool]] = {"standard": True, "brushnet-paper": False}  # of a long caption
    needs: ClassVar[tuple[Needs, ...]] = (CLIP_VIT_L14,)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "judges the kept pixels too",
        "brushnet-paper": "judges the kept pixels too; all captions over 77 tokens count as one",
    }

    def _open(self) -> None:
        self._clip = ClipBackbone(self.weights, PUBLISHED, CLIP_VIT_L14.what, self.device, self.torch_dtype)

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        images = unit(self._clip.pictures(store, pictures, self._pixels))
        captions = [self._ids(sample.prompt) for sample in samples]
        texts = unit(np.stack([self._clip.text(store, ids) for ids, _ in captions]))
        scores = [max(100 * float(cosine), 0.0) for cosine in (images * texts).sum(axis=1)]
        return with_remarks(scores, (CAPTION_CUT if cut else "" for _, cut in captions))

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        return cropped(picture, self._clip.side, "down")

    def _ids(self, prompt: str) -> tuple[list[int], bool]:
        """Return the token ids of a caption, and whether it was cut."""
        keep_end = self.keeps_end_token[self.protocol]
        ids, cut = transformers_ids(prompt, self._clip.context, keep_end=keep_end)
        if cut and not keep_end:
            self._warn_once(
                f"a caption of more than {self._clip.context} tokens loses its end token, as in the published script, "
                "so all such captions get the same embedding"
            )
        return ids, cut

    def _other_size(self, picture: Picture, sample: Sample) -> Unscored | None:
        """Return why the hole cannot be found in a picture of another size; for metrics of the hole's box."""
        if picture.shape[:2] == sample.hole.shape:
            return None
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        return Unscored(f"the picture is {size}, its hole {sample.hole.shape[1]}x{sample.hole.shape[0]}")
