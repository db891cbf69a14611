"""Human preference score, versions 2 and 2.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.base import CAPTION_CUT, ModelMetric, Needs, with_remarks
from brushbench.metrics.clip_model import ClipBackbone, normalised, open_clip_ids, unit
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import JSON, Picture, Region, Sample, Score

__all__ = ["HpsV2", "HpsV21"]

ARCHITECTURE = "ViT-H-14"  # plain GELU, unlike OpenAI's models


class _Hps(ModelMetric):
    """cos(picture, caption) under a CLIP ViT-H/14 tuned on human choices (Wu et al. 2023, HPSv2), about 0.2..0.3.

    Preprocessing as in hpsv2.img_score: the longest side to 224 (bicubic, on the float tensor, values not clamped),
    padded with black to a square, then CLIP's mean and deviation. Captions are cleaned and cut to 77 tokens with their
    end token. No logit scale.

    ``brushnet-paper``: resized without antialias, as torchvision 0.13.1 of the published setting did.
    ``standard``: with antialias, as today's torchvision does.
    """

    higher_is_better = True
    region: Region = "whole"
    display = ("x10²", 1e2)
    reads_caption: ClassVar[bool] = True
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "judges the kept pixels too",
        "brushnet-paper": "judges the kept pixels too; resized without antialias",
    }

    def _open(self) -> None:
        self.antialias = self.protocol == "standard"
        self._clip = ClipBackbone(self.weights, ARCHITECTURE, self.needs[0].what, self.device, self.torch_dtype)

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "antialias": self.antialias}

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        if not self.antialias:
            self._warn_once(
                "pictures are resized without antialias, as torchvision before 0.17 did in the published setting; "
                "the standard protocol resizes with it"
            )
        store = self._features(features)
        images = unit(self._clip.pictures(store, pictures, self._pixels))
        captions = [open_clip_ids(sample.prompt, self._clip.context) for sample in samples]
        texts = unit(np.stack([self._clip.text(store, ids) for ids, _ in captions]))
        scores = [float(cosine) for cosine in (images * texts).sum(axis=1)]
        return with_remarks(scores, (CAPTION_CUT if cut else "" for _, cut in captions))

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        fault = super()._fault(picture, sample)
        if fault is None and 0 in self._size(picture):
            height, width = picture.shape[:2]
            return Unscored(
                f"the picture is {width}x{height}: of its shorter side nothing is left at {self._clip.side}"
            )
        return fault

    def _size(self, picture: Picture) -> tuple[int, int]:
        """Return height and width of the picture with its longest side brought to the model's."""
        height, width = picture.shape[:2]
        longest = max(height, width)
        return round(height * self._clip.side / longest), round(width * self._clip.side / longest)

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        """Return what the model sees, float32 (3, S, S)."""
        import torch

        side = self._clip.side
        size = self._size(picture)
        values = torch.from_numpy(picture.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(values, size, mode="bicubic", antialias=self.antialias)[0]
        square = np.zeros((3, side, side), dtype=np.float32)
        top, left = (side - size[0]) // 2, (side - size[1]) // 2
        square[:, top : top + size[0], left : left + size[1]] = resized.numpy()
        return normalised(square)


class HpsV2(_Hps):
    """Human preference score v2 (Wu et al. 2023): the cosine under its CLIP ViT-H/14. Not comparable with v2.1."""

    name = "hps_v2"
    needs: ClassVar[tuple[Needs, ...]] = (
        Needs(
            what="HPS v2, a CLIP ViT-H/14",
            files=("HPS_v2_compressed.pt",),
            size="1,972,484,501 bytes",
            licence="Apache-2.0",
            source="xswu/HPSv2 (hub)",
            hub=("xswu/HPSv2",),
            tiny="hps",
        ),
    )


class HpsV21(_Hps):
    """Human preference score v2.1, the one that the paper's tables print; computed as v2 is, from other weights."""

    name = "hps_v2.1"
    needs: ClassVar[tuple[Needs, ...]] = (
        Needs(
            what="HPS v2.1, a CLIP ViT-H/14",
            files=("HPS_v2.1_compressed.pt",),
            size="2 GB",
            licence="Apache-2.0",
            source="xswu/HPSv2 (hub)",
            hub=("xswu/HPSv2",),
            tiny="hps",
        ),
    )
