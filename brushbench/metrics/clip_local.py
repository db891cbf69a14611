"""CLIP similarity of the hole's box, as two papers on inpainting print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.masks import tight_box
from brushbench.metrics.clip import ClipScore
from brushbench.metrics.clip_model import cropped, normalised
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Picture, Region, Sample, Score

__all__ = ["ClipScoreLocal"]


class ClipScoreLocal(ClipScore):
    """max(100 cos(box, caption), 0): CLIP score of the hole's tight box, without margin and without masking.

    ``standard``: HD-Painter's (metrics/clipscore.py @d452186b): the box is padded with black to a square and brought to
    224 (OpenCV's bicubic), so the whole hole is seen.

    ``freeinpaint``: FreeInpaint's (examples/freeinpaint @f510450d): the box goes through CLIP's own preprocessing,
    which cuts a strip to its middle square. Without a hole it is the whole image.

    Both slice a caption of more than 77 tokens as published, so that its end token is lost and all such captions count
    as one text. Published with CLIP ViT-B/16 (HD-Painter) and a caption of the object alone (FreeInpaint): here CLIP
    ViT-L/14 and the sample's caption, unless ``weights`` and the samples say otherwise.
    """

    name = "clip_score_local"
    region: Region = "hole"
    protocols: ClassVar[tuple[str, ...]] = ("standard", "freeinpaint")
    auto_protocols: ClassVar[tuple[str, ...]] = ()
    keeps_end_token: ClassVar[Mapping[str, bool]] = {"standard": False, "freeinpaint": False}
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "the caption speaks of the whole image, the crop shows the hole's box",
        "freeinpaint": "sees the middle square of the hole's box alone; the caption speaks of the whole image",
    }

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        boxes = [tight_box(sample.hole) for sample in samples]
        found = [i for i, box in enumerate(boxes) if box is not None or self.protocol == "freeinpaint"]
        scores: list[Score] = [Unscored("there is no hole")] * len(pictures)
        if found:
            crops = [pictures[i][boxes[i] or (slice(None), slice(None))] for i in found]
            for i, value in zip(found, super()._score(crops, [samples[i] for i in found], features), strict=True):
                scores[i] = value
        return scores

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        return super()._fault(picture, sample) or self._other_size(picture, sample)

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        if self.protocol == "freeinpaint":
            return cropped(picture, self._clip.side, "down")
        import cv2

        height, width = picture.shape[:2]
        longest = max(height, width)
        top, left = (longest - height) // 2, (longest - width) // 2
        square = np.zeros((longest, longest, 3), dtype=np.uint8)
        square[top : top + height, left : left + width] = picture
        resized = cv2.resize(square, (self._clip.side, self._clip.side), interpolation=cv2.INTER_CUBIC)
        return normalised(resized.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
