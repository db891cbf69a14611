"""CFD: whether a removed object left something behind, to DINOv2 and Segment Anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.metrics.cfd_regions import distinct, next_to, on_white, sorted_by, widened
from brushbench.metrics.dinov2 import DINOV2_GIANT, SIDE, Dinov2Backbone, as_published, normalised, squeezed
from brushbench.metrics.removal import RemovalMetric, cells_of, cosine
from brushbench.metrics.sam import SAM_H, SamBackbone
from brushbench.weights import WeightFile, locate, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.metrics.base import Needs
    from brushbench.types import JSON, Hole, Picture, Sample, Score

    Floats = npt.NDArray[np.float64]

__all__ = ["Cfd"]

FOLDERS = ("dinov2", "sam")
REMEDY = (
    "Pass weights=facebook/dinov2-giant+facebook/sam-vit-huge to download them (7.1 GB, Apache-2.0), two folders or "
    "files joined by +, or one folder that holds dinov2/ and sam/."
)
GRID = 16  # patches along a side that the published script counts on
DEFECT = (
    "its patch mask is shifted by one token and counts the last patch always; in the second term it reads grey levels "
    "as token numbers; masks and patches are of different crops"
)


@dataclass(frozen=True)
class TwoModels(WeightFile):
    """The weights of DINOv2, and beside them those of Segment Anything."""

    sam: WeightFile | None = None

    def describe(self) -> Mapping[str, JSON]:
        """Return what identifies the weights of both."""
        both: dict[str, JSON] = {"dinov2": dict(super().describe())}
        return both if self.sam is None else {**both, "sam": dict(self.sam.describe())}


class Cfd(RemovalMetric):
    """Context plus hallucination of a removed object (OmniPaint, Yu et al. 2025); 0 is best, 4 worst.

    Per connected part c of the hole, the mean over parts (cfd_score/main.py @102703e8). Distances are 1 - cosine of
    mean unit features of DINOv2's 16x16 patches, of images brought to 224x224:

    * context: c against its box, widened by a third on each side (one pixel or more), without c.
    * hallucination: Segment Anything's automatic masks, largest first, without those that overlap a kept one by an
      IoU above 0.8 or lie in it by more than 0.9. Each mask inside c against the masks that cross the border of c, cut
      to c, and are next to it (dilated three times by 5x5): crops on white, weighted by area.

    ``standard`` takes a patch where its centre is in the mask (a mask without a centre: by its pixels).

    ``published`` is the script with its defects. True is appended to the patch mask's end, while the class token is at
    the front: every patch is shifted by one, and the last always counts. In the second term the mask is grey, so that
    0 and 255 are read as token numbers. The processor shows the middle of the image only, the mask all of it.

    ``weights`` is a folder with ``dinov2/`` and ``sam/`` in transformers' format, or two places (folder, file or hub
    id) joined by ``+``.
    """

    name = "cfd"
    higher_is_better = False
    protocols: ClassVar[tuple[str, ...]] = ("standard", "published")
    needs: ClassVar[tuple[Needs, ...]] = (DINOV2_GIANT, SAM_H)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "favours smooth content; reads no caption and no reference",
        "published": "favours smooth content; features are those of other patches than the mask's",
    }
    weights: TwoModels

    @classmethod
    def _find(cls, weights: str | Path | None, download: bool = True) -> TwoModels:
        places: list[str | Path | None] = [None, None]
        if weights is not None:
            folder, joined = Path(weights).expanduser(), [part.strip() for part in str(weights).split("+")]
            places = [folder / name for name in FOLDERS] if folder.is_dir() else [*joined]
            if len(places) != 2 or (folder.is_dir() and not all((folder / name).is_dir() for name in FOLDERS)):
                raise MissingWeightsError(f"weights={str(weights)!r} does not name both models. {REMEDY}")
        elif any(locate(need) is None for need in cls.needs):
            raise MissingWeightsError(f"{' and '.join(need.what for need in cls.needs)} are not both here. {REMEDY}")
        dino, sam = (resolve(place, need, download) for place, need in zip(places, cls.needs, strict=True))
        return TwoModels(dino.path, dino.tiny, sam)

    def _open(self) -> None:
        self._dino = Dinov2Backbone(self.weights, DINOV2_GIANT.what, self.device, self.torch_dtype)
        self._sam = SamBackbone(self.weights.sam or self.weights, SAM_H.what, self.device, self.torch_dtype)
        if self.protocol == "published" and self._dino.grid != GRID:
            raise WeightsError(
                f"cfd@published reads {GRID}x{GRID} patches, this DINOv2 has {self._dino.grid}x{self._dino.grid}. "
                "Give one with patches of 14 pixels, or take cfd@standard."
            )

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        if self.protocol == "published":
            self._warn_once(DEFECT)
        return [self._one(store, picture, sample.hole) for picture, sample in zip(pictures, samples, strict=True)]

    def _one(self, store: Features, picture: Picture, hole: Hole) -> float:
        import cv2

        masks = distinct(self._sam.masks(store, picture))
        number, labels = cv2.connectedComponents(hole.astype(np.uint8))
        parts = [labels == label for label in range(1, number)]
        return float(np.mean([self._context(store, picture, part) for part in parts])) + float(
            np.mean([self._hallucination(store, picture, part, masks) for part in parts])
        )

    def _context(self, store: Features, picture: Picture, part: Hole) -> float:
        around = widened(part, self.protocol == "published") & ~part
        return 1 - cosine(*(self._feature(store, picture, mask, False, False) for mask in (part, around)))

    def _hallucination(self, store: Features, picture: Picture, part: Hole, masks: Sequence[Hole]) -> float:
        value = 0.0
        inside, crossing = sorted_by(part, masks)
        for mask in inside:
            near = next_to(mask, crossing)
            if near.any():
                border, own = (
                    self._feature(store, *on_white(picture, one), True, smooth)
                    for one, smooth in ((near, False), (mask, True))
                )
                value += float(mask.sum() / sum(other.sum() for other in inside)) * (1 - cosine(border, own))
        return value

    def _feature(self, store: Features, picture: Picture, mask: Hole, grey: bool, smooth: bool) -> Floats:
        """Return the mean feature (D,) of a mask's patches.

        Args:
            store: where models and features are kept.
            picture: uint8 (H, W, 3).
            mask: bool (H, W).
            grey: whether the published script holds this mask as grey levels, not as true and false.
            smooth: whether it then resizes them smoothly.
        """
        if self.protocol == "published":
            tokens = self._dino.patches(store, as_published(squeezed(picture)))
            unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
            return np.asarray(unit[published_tokens(mask, grey, smooth)].mean(axis=0))
        tokens = self._dino.patches(store, normalised(picture))[1:]
        grid = self._dino.grid
        weights = cells_of(mask, (grid, grid), (mask.shape[0] / grid, mask.shape[1] / grid)).ravel()
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        return np.asarray(weights @ unit / weights.sum())


def published_tokens(mask: Hole, grey: bool, smooth: bool) -> npt.NDArray[np.generic]:
    """Return what the published script indexes its 257 tokens with, the class token first.

    Args:
        mask: bool (H, W).
        grey: whether its levels, 0 to 255, are taken for token numbers; else its truth for a choice of tokens.
        smooth: whether levels are resized with Pillow's bicubic first.
    """
    from PIL import Image

    image = Image.fromarray(mask).convert("L" if grey else "1")
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    patches = image.resize((SIDE, SIDE), how).resize((GRID, GRID), Image.Resampling.NEAREST)
    return np.append(np.asarray(patches).ravel(), True)
