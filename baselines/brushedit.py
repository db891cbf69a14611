"""BrushEdit: BrushNet's network trained on more data with all kinds of masks (BrushNetX), and its own blending.

Li et al. 2024 (arXiv 2412.10316), sec. 3; TencentARC/BrushEdit 3d4a548, ``app/src/brushedit_all_in_one_pipeline.py``.
The part of the paper that finds the mask from an instruction is out of scope: the benchmarks bring the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baselines.brushnet import BrushNet, Masks
from baselines.presets import find_branch
from brushbench.types import InpaintRequest, Picture
from brushnet.blending import blend as blend_pictures

__all__ = ["BrushEdit", "blend"]


def blend(
    picture: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8], generated: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    """Mix as BrushEdit does: half of the generated picture everywhere, more of it near the hole.

    Picture and mask are first brought to the generated size (OpenCV, linear), where the published code works with
    multiples of 8. It differs from ``brushnet.blend(mode="brushedit")`` in nothing else.

    Args:
        picture: uint8 (H, W, 3) RGB, as given.
        mask: uint8 (H, W), 255 = repaint; grey levels count in proportion.
        generated: uint8 (h, w, 3) RGB, at the size used.

    Returns:
        uint8 (h, w, 3) RGB.
    """
    import cv2

    height, width = generated.shape[:2]
    picture, mask = (
        np.asarray(cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        for array in (picture, mask)
    )
    return blend_pictures(picture, generated, mask, mode="brushedit")


@dataclass(eq=False)
class BrushEdit(BrushNet):
    """Generate as BrushNet does, with the weights of BrushEdit's branch, which serves every kind of mask.

    Args:
        checkpoint: folder, file or hub id of the branch instead of the preset's.
        blending: mix each picture with the kept part as BrushEdit does; the toolkit's own blending follows after it.

    The other options are those of :class:`~baselines.brushnet.BrushNet`.
    """

    masks: Masks = field(default="segmentation", init=False)  # one branch for all
    blending: bool = False

    method = "BrushEdit"

    def places(self) -> Mapping[Masks, Path]:
        """Return where the branch lies; the published repository holds it in a folder ``brushnetX``."""
        files = ("config.json", "diffusion_pytorch_model.safetensors")
        inner = [f"brushnetX/{name}" for name in files]
        found = find_branch(
            self.preset, "brushedit", self.checkpoint, holds=(files[0], inner[0]), patterns=inner,
            advice="Its licence does not hold in the European Union.",
        )  # fmt: skip
        return {"segmentation": found / "brushnetX" if (found / "brushnetX").is_dir() else found}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one picture per request."""
        pictures = super().inpaint(requests)
        if not self.blending:
            return pictures
        return [
            blend(request.image, request.hole.astype(np.uint8) * 255, picture)
            for request, picture in zip(requests, pictures, strict=True)
        ]
