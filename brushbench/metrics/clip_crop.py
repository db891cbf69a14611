"""CLIP similarity of the repainted region alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from brushbench.masks import tight_box
from brushbench.metrics.clip import ClipScore
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from brushbench.features import Features
    from brushbench.types import Hole, Picture, Region, Sample, Score

__all__ = ["ClipScoreCrop", "hole_box"]


def hole_box(hole: Hole) -> tuple[slice, slice] | None:
    """Return the rows and columns of the hole's box, made square as far as the picture allows.

    Args:
        hole: bool (H, W), True = repaint.

    Returns:
        Slices that hold every hole pixel, the shorter side of the tight box widened evenly to the longer one and
        shifted to stay inside; ``None`` without a hole.
    """
    tight = tight_box(hole)
    if tight is None:
        return None
    side = max(edge.stop - edge.start for edge in tight)
    return _widened(tight[0], side, hole.shape[0]), _widened(tight[1], side, hole.shape[1])


def _widened(taken: slice, side: int, limit: int) -> slice:
    """Return ``side`` positions around the taken ones, inside 0..limit."""
    length = min(side, limit)
    start = (taken.start + taken.stop - length) // 2
    start = min(max(start, 0), limit - length)
    return slice(start, start + length)


class ClipScoreCrop(ClipScore):
    """CLIP score of the hole's box alone and the whole caption: large kept areas cannot hide what was painted.

    The box is square where the picture allows,
    so that CLIP's centre crop loses nothing. Not published, so ``standard`` only.
    """

    name = "clip_score_crop"
    region: Region = "hole"
    protocols: ClassVar[tuple[str, ...]] = ("standard",)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": "the caption speaks of the whole picture, the crop shows the hole's box"
    }

    def _open(self) -> None:
        super()._open()
        # reports/audit-shapes.md finds the small CLIP blind to 26 of 27 kinds of damage on crops,
        # which it has not been trained on; it put a failing method above the truth.
        self.shown = not self.weights.tiny

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        scores: list[Score] = [Unscored("there is no hole")] * len(pictures)
        boxes = [hole_box(sample.hole) for sample in samples]
        found = [(i, pictures[i][box]) for i, box in enumerate(boxes) if box is not None]
        if found:
            values = super()._score([crop for _, crop in found], [samples[i] for i, _ in found], features)
            for (i, _), value in zip(found, values, strict=True):
                scores[i] = value
        return scores

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        return super()._fault(picture, sample) or self._other_size(picture, sample)
