"""BrushEdit: BrushNet's network trained on more data with all kinds of masks (BrushNetX), and its own blending.

Li et al. 2024 (arXiv 2412.10316), sec. 3; TencentARC/BrushEdit 3d4a548, ``app/src/brushedit_all_in_one_pipeline.py``.
The part of the paper that finds the mask from an instruction is out of scope: the benchmarks bring the mask.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brushnet.blending import blend as blend_pictures

__all__ = ["blend"]


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
