"""Put the generated hole back into the original picture.

A latent diffusion model returns a whole picture, whose kept region went through the VAE. Blending restores it. Three
published ways, all on uint8 pictures of one size:

* ``blur``: BrushNet, its evaluation script's ``--blended``: exact beyond ten pixels from the hole, soft at the seam;
* ``brushedit``: BrushEdit: half of the generated picture everywhere, more near the hole;
* ``paste``: the hard paste: exact everywhere outside the hole.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["BlendMode", "blend", "blur_share"]

BlendMode: TypeAlias = Literal["blur", "paste", "brushedit", "none"]


def blend(
    original: npt.NDArray[np.uint8],
    generated: npt.NDArray[np.uint8],
    hole: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],
    mode: BlendMode = "blur",
    kernel: int = 21,
    sigma: float = 0.0,
) -> npt.NDArray[np.uint8]:
    """Return ``generated`` inside the hole, ``original`` outside, joined as ``mode`` says.

    With ``b`` the Gaussian-blurred hole in 0..1, the share of the generated picture is

    * ``blur``: ``a = 1 - (1 - hole)(1 - b)``: 1 in the hole, falling to 0 within half a kernel outside it;
    * ``brushedit``: ``a = 0.5 b + 0.5``;
    * ``paste``: ``a = hole``, nothing blurred; ``none``: a copy of ``generated``.

    The mixture is truncated to uint8, not rounded, as published.

    Args:
        original: uint8 (H, W, 3) RGB; its hole pixels do not matter in the modes ``blur`` and ``paste``.
        generated: uint8 (H, W, 3) RGB, of the same size.
        hole: bool (H, W), True = repaint. The mode ``brushedit`` also takes uint8 (H, W), a soft mask, 255 = repaint.
        mode: ``blur`` | ``paste`` | ``brushedit`` | ``none``.
        kernel: odd side of the Gaussian kernel in pixels.
        sigma: its standard deviation in pixels; 0 lets OpenCV derive it from the kernel (3.5 for 21).

    Returns:
        uint8 (H, W, 3) RGB, a new array.

    Raises:
        TypeError: a picture is not uint8, or the hole is neither bool nor, for ``brushedit``, uint8.
        ValueError: sizes differ, an unknown mode, an even or non-positive kernel, a negative sigma.

    Source: TencentARC/BrushNet 0f9d9e5, evaluation script; BrushEdit's pipeline for its own mode.
    """
    _check(original, generated, hole, mode, kernel, sigma)
    if mode == "none":
        return generated.copy()
    if mode == "paste":
        return np.where(hole[..., None], generated, original)
    if mode == "brushedit":
        share = 0.5 * _blurred(hole, kernel, sigma)[..., None] + 0.5
    else:
        share = blur_share(hole, kernel, sigma)[..., None]
    mixed: npt.NDArray[np.float64] = original * (1 - share) + generated * share
    return mixed.astype(np.uint8)


def blur_share(
    hole: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], kernel: int = 21, sigma: float = 0.0
) -> npt.NDArray[np.float64]:
    """Return the share of the generated picture that ``blur`` mixes in, float64 (H, W) in 0..1; see :func:`blend`."""
    return 1 - np.where(hole, 0.0, 1 - _blurred(hole, kernel, sigma))


def _blurred(hole: npt.NDArray[np.bool_] | npt.NDArray[np.uint8], kernel: int, sigma: float) -> npt.NDArray[np.float64]:
    """Return the hole blurred in 8 bits, in 0..1: the rounding to 1/255 is part of the recipe."""
    import cv2

    bits = hole if hole.dtype == np.uint8 else hole.astype(np.uint8) * 255
    return np.asarray(cv2.GaussianBlur(bits, (kernel, kernel), sigma), dtype=np.float64) / 255


def _check(
    original: npt.NDArray[np.uint8],
    generated: npt.NDArray[np.uint8],
    hole: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],
    mode: str,
    kernel: int,
    sigma: float,
) -> None:
    """Refuse what :func:`blend` cannot mean."""
    if mode not in get_args(BlendMode):
        raise ValueError(f"Got mode {mode!r}; expected one of {', '.join(get_args(BlendMode))}.")
    for name, picture in (("original", original), ("generated", generated)):
        if picture.dtype != np.uint8:
            raise TypeError(f"{name} has dtype {picture.dtype}; expected uint8 (H, W, 3) RGB in 0..255.")
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"{name} has shape {picture.shape}; expected (H, W, 3): convert it to RGB first.")
    if hole.dtype != np.bool_ and not (mode == "brushedit" and hole.dtype == np.uint8):
        raise TypeError(
            f"hole has dtype {hole.dtype}; expected bool, True = repaint: compare it with a threshold first."
        )
    if not original.shape[:2] == generated.shape[:2] == hole.shape:
        raise ValueError(
            f"Sizes differ: original {original.shape[:2]}, generated {generated.shape[:2]}, hole {hole.shape}; "
            "expected one (H, W): resize before blending."
        )
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Got kernel {kernel}; expected an odd positive number of pixels.")
    if sigma < 0:
        raise ValueError(f"Got sigma {sigma}; expected 0 (derived from the kernel) or a positive number of pixels.")
