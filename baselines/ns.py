"""Bertalmio et al. 2001, "Navier-Stokes, fluid dynamics, and image and video inpainting"; OpenCV's implementation."""

from __future__ import annotations

import cv2

from baselines.telea import Telea


class NavierStokes(Telea):
    """Continue isophotes into the hole. Options as :class:`~baselines.telea.Telea`."""

    method = cv2.INPAINT_NS
