"""ReMOVE: whether the hole looks like what lies around it, to Segment Anything."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.metrics.removal import RemovalMetric, box_of, cells_of, cosine
from brushbench.metrics.sam import SAM_H, SamBackbone
from brushbench.types import Unscored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.metrics.base import Needs
    from brushbench.types import Hole, Picture, Sample, Score

    Floats = npt.NDArray[np.float64]

__all__ = ["Remove"]

MARGIN = 16  # pixels around the published crop
NO_CELL = Unscored("the hole fills no cell of the feature map, or all of them, as the published script counts them")
SMOOTH = "favours smooth content; reads no caption and no reference"


class Remove(RemovalMetric):
    """ReMOVE (Chandrasekar et al. 2024): cosine of mean features of hole and surroundings; 1 is best, no reference.

    Features are those of Segment Anything's image encoder (ViT-H: 256 of 64x64 cells), averaged over the cells of the
    hole and over all others (main.py and segment_anything/predictor.py @b2974265).

    ``standard``: a cell belongs to the hole if its centre does (a hole without a centre: by its pixels), and the grid
    lies over the image as the features do: padding counts for neither.

    ``published``: the script without ``--crop``. The mask is squeezed to 64x64 with Pillow's bicubic, and only cells
    of exactly 255 count as hole: those on its border are surroundings. In images that are not square the features are
    padded and the mask is not, so that the two do not fit.

    ``published-crop``: the script as it stands: the same within the square around the hole and 16 pixels more, less
    where one side of the image is nearer.
    """

    name = "remove"
    higher_is_better = True
    protocols: ClassVar[tuple[str, ...]] = ("standard", "published", "published-crop")
    needs: ClassVar[tuple[Needs, ...]] = (SAM_H,)
    caveats: ClassVar[Mapping[str, str]] = {
        "standard": SMOOTH,
        "published": f"{SMOOTH}; cells on the hole's border count as surroundings",
        "published-crop": f"{SMOOTH}; cells on the hole's border count as surroundings",
    }

    def _open(self) -> None:
        self._sam = SamBackbone(self.weights, SAM_H.what, self.device, self.torch_dtype)

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        return [self._one(store, p, s.hole) for p, s in zip(pictures, samples, strict=True)]

    def _one(self, store: Features, picture: Picture, hole: Hole) -> Score:
        if self.protocol == "published-crop":
            box = published_box(hole)
            picture, hole = picture[box], hole[box]
        inside, outside = self._cells(hole) if self.protocol == "standard" else self._published_cells(hole)
        if not inside.any() or not outside.any():
            return NO_CELL
        maps = self._sam.embedding(store, picture)[:, : inside.shape[0], : inside.shape[1]]
        return cosine(*((maps * cells).sum(axis=(1, 2)) / cells.sum() for cells in (inside, outside)))

    def _cells(self, hole: Hole) -> tuple[Floats, Floats]:
        """Return the weights of the cells that lie over the image, for the hole and for the rest."""
        sides = self._sam.resized(*hole.shape)
        steps = [self._sam.patch * own / side for own, side in zip(hole.shape, sides, strict=True)]
        rows, columns = (max(1, math.ceil(side / self._sam.patch - 0.5)) for side in sides)
        inside, outside = (cells_of(mask, (rows, columns), (steps[0], steps[1])) for mask in (hole, ~hole))
        return inside, outside

    def _published_cells(self, hole: Hole) -> tuple[Floats, Floats]:
        from PIL import Image

        grid = self._sam.side // self._sam.patch
        mask = Image.fromarray(hole.astype(np.uint8) * np.uint8(255))
        inside = (np.asarray(mask.resize((grid, grid), Image.Resampling.BICUBIC)) // 255).astype(np.float64)
        return inside, 1 - inside


def published_box(hole: Hole) -> tuple[slice, slice]:
    """Return the rows and columns that the published script crops to (crop.py @b2974265); its last border may be cut.

    Args:
        hole: bool (H, W), with at least one True.
    """
    rows, columns = box_of(hole)
    top, bottom, left, right = rows.start, rows.stop - 1, columns.start, columns.stop - 1
    height, width = hole.shape
    fits = min(left, top) >= MARGIN and bottom + MARGIN <= height and right + MARGIN <= width
    margin = MARGIN if fits else max(min(left, top, height - bottom, width - right), 0)
    side = max(bottom - top, right - left) + 1 + 2 * margin
    return slice(top - margin, top - margin + side), slice(left - margin, left - margin + side)
