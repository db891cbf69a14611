"""The aesthetic score of LAION."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.metrics.base import ModelMetric, Needs
from brushbench.metrics.clip_model import CLIP_VIT_L14, PUBLISHED, ClipBackbone, cropped, unit
from brushbench.weights import WeightFile, locate, read_shapes, read_tensors, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import JSON, Picture, Region, Sample, Score

__all__ = ["Aesthetic"]

HEAD = Needs(
    what="the aesthetic head of LAION",
    files=("sa_0_4_vit_l_14_linear.pth",),
    size="4,071 bytes",
    licence="MIT",
    source="https://github.com/LAION-AI/aesthetic-predictor",
    sha256="2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    cache_folders=(".cache/emb_reader",),
    tiny="clip",
)


class Aesthetic(ModelMetric):
    """w f + b on the unit CLIP ViT-L/14 embedding f of the whole picture (LAION-AI/aesthetic-predictor), about 1..10.

    Both protocols are the published arithmetic: shortest side to 224 (Pillow's bicubic), torchvision's centre crop,
    QuickGELU. Newer open_clip builds plain GELU for the published call and only warns; that is not reproduced, because
    the published scores were made with an older one.
    """

    name = "aesthetic"
    higher_is_better = True
    region: Region = "whole"
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    needs: ClassVar[tuple[Needs, ...]] = (CLIP_VIT_L14, HEAD)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "judges the kept pixels too",
        "brushnet-paper": "judges the kept pixels too",
    }

    def _open(self) -> None:
        """Find the head too: ``aesthetic.weight`` and ``aesthetic.bias`` in CLIP's own file, or the published file.

        The published file may lie beside CLIP's or in the cache of torch.
        """
        self._clip = ClipBackbone(self.weights, PUBLISHED, CLIP_VIT_L14.what, self.device, self.torch_dtype)
        self._head_file = _head_file(self.weights)
        self._weight, self._bias = self._read_head()

    @classmethod
    def available(cls, weights: str | Path | None = None) -> str | None:
        """Return ``None`` if CLIP and the head are here, else the reason and the way to get them."""
        try:
            _head_file(resolve(weights, CLIP_VIT_L14, download=False))
        except WeightsError as error:
            return str(error)
        return None

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "head_sha256": self._head_file.sha256}

    def _read_head(self) -> tuple[npt.NDArray[np.float64], float]:
        inside = self._head_file.path == self.weights.path
        names = ("aesthetic.weight", "aesthetic.bias") if inside else ("weight", "bias")
        tensors = read_tensors(self._head_file.path)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name in names or not inside}
        expected = {names[0]: (1, self._clip.config["embed_dim"]), names[1]: (1,)}
        if shapes != expected:
            raise WeightsError(f"{self._head_file.path} holds {shapes} as {HEAD.what}, expected {expected}.")
        weight, bias = (tensors[name].double().numpy() for name in names)
        return weight[0], float(bias[0])

    def _score(
        self,
        pictures: Sequence[Picture],
        samples: Sequence[Sample],  # noqa: ARG002
        features: Features | None,
    ) -> Sequence[Score]:
        images = unit(self._clip.pictures(self._features(features), pictures, self._pixels))
        return [float(value) for value in images @ self._weight + self._bias]

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        return cropped(picture, self._clip.side, "even")


def _head_file(clip: WeightFile) -> WeightFile:
    """Return the file that holds the head: CLIP's own, or the published one beside it or in a cache."""
    if "aesthetic.weight" in read_shapes(clip.path):
        return clip
    found = clip.beside(*HEAD.files) or locate(HEAD)
    if found is None:
        raise MissingWeightsError(
            f"CLIP is here, but not {HEAD.what}. Fetch {HEAD.files[0]} ({HEAD.size}, {HEAD.licence}) from "
            f"{HEAD.source} and put it beside {clip.path}, or into the cache of torch."
        )
    return WeightFile(found, clip.tiny)
