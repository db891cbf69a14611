"""Telea 2004, "An image inpainting technique based on the fast marching method"; OpenCV's implementation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from brushbench.errors import UsageError
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture


class Telea:
    """Fill the hole from its border by fast marching. No text, no weights; kept pixels stay exact.

    Args:
        radius: neighbourhood that each filled pixel looks at, 1 to 100 pixels.

    Raises:
        UsageError: another radius.
    """

    method = cv2.INPAINT_TELEA
    capabilities = Capabilities(text=False, batch=64, background="exact")

    def __init__(self, radius: float = 3.0) -> None:
        if not 1 <= radius <= 100:  # OpenCV clips it without a word: two settings, one result
            raise UsageError(f"radius is {radius}, expected 1 to 100 pixels.")
        self.radius = radius

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings that decide the pictures."""
        return {"method": f"cv2.inpaint {self.method}", "radius": self.radius, "opencv": cv2.__version__}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return each request's picture with its hole filled."""
        return [cv2.inpaint(r.image, r.hole.astype(np.uint8), self.radius, self.method) for r in requests]
