"""Holes and the foreign formats they come in. Inside the toolkit a hole is bool (H, W), True = repaint.

Everything else that the field calls a "mask" is converted here, at the edge, by one named function per format:

======================  ======================================================================
``decode_rle``          run lengths under one of three published conventions (:data:`CONVENTIONS`)
``hole_from_white``     pictures whose white part is the hole (BrushNet, diffusers, most tools)
``hole_from_black``     pictures whose black part is the hole (keep pictures)
``hole_from_blacked``   a photograph whose hole was painted black (EditBench's masked images)
``hole_from_alpha``     pictures whose transparent part is the hole (mask editors, OpenAI's API)
======================  ======================================================================

``encode_rle`` and ``hole_to_white`` go the other way; :data:`READINGS` names the pictures' formats in options.
:func:`random_brush_hole` draws the holes of the ``brush`` split; :func:`opening` and :func:`inverted` are the steps of
the published training recipe. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from brushbench.errors import DataError, UnknownNameError
from brushbench.pictures import grey_levels, to_rgb, transparent

if TYPE_CHECKING:
    from brushbench.types import Hole, Picture

__all__ = [
    "CONVENTIONS",
    "READINGS",
    "MaskError",
    "count_rle",
    "decode_rle",
    "encode_rle",
    "hole_from_alpha",
    "hole_from_black",
    "hole_from_blacked",
    "hole_from_white",
    "hole_to_white",
    "inverted",
    "opening",
    "random_brush_hole",
    "square_around",
    "tight_box",
    "uneven_disc",
]

ByteArray: TypeAlias = npt.NDArray[np.uint8]
FloatArray: TypeAlias = npt.NDArray[np.float64]

REFERENCE_SIDE = 512  # the side at which the published pixel constants hold
BRUSH_COVER = (0.05, 0.60)  # accepted share of the picture
MIN_BRUSH_SIDE = 8
MAX_REDRAWS = 1000


class MaskError(DataError, ValueError):
    """Run lengths, or an array, that are no hole."""


@dataclass(frozen=True)
class Convention:
    """How a data set writes a hole as ``[start, length, start, length, ...]``.

    Attributes:
        first: the number of the first pixel.
        order: ``C``: along rows; ``F``: down columns.
    """

    first: Literal[0, 1]
    order: Literal["C", "F"]


CONVENTIONS: Mapping[str, Convention] = {
    "brushbench": Convention(first=1, order="C"),  # TencentARC/BrushNet, evaluate_brushnet.py
    "brushdata": Convention(first=1, order="F"),  # TencentARC/BrushNet, train_brushnet.py
    "pie": Convention(first=0, order="C"),  # cure-lab/PnPInversion; it also paints the border, which is not done here
}


# ---------------------------------------------------------------------------------------------------- run lengths


def decode_rle(pairs: Sequence[int] | npt.NDArray[np.integer], height: int, width: int, convention: str) -> Hole:
    """Decode run lengths to a hole.

    Args:
        pairs: flat ``[start, length, start, length, ...]``, integers. Runs may come in any order and may have length
            0 (they paint nothing); they may not overlap.
        height: of the picture in pixels, as is ``width``: run lengths carry no size of their own.
        width: of the picture in pixels.
        convention: a key of :data:`CONVENTIONS`.

    Returns:
        Bool (height, width), True = hole. Empty ``pairs`` give an empty hole.

    Raises:
        MaskError: ``pairs`` is no list of integers, or is of odd length; a run is negative, leaves the picture or
            overlaps another.
        UnknownNameError: no such convention.
    """
    rule = _convention(convention)
    starts, lengths = _runs(pairs, height, width, convention)
    # +1 where a run begins, -1 behind its end: the running sum is 1 inside the runs, which do not overlap.
    steps = np.zeros(height * width + 1, dtype=np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    flat: Hole = np.cumsum(steps[:-1], dtype=np.int8).astype(np.bool_)
    return flat.reshape((height, width), order=rule.order)


def count_rle(pairs: Sequence[int] | npt.NDArray[np.integer], height: int, width: int, convention: str) -> int:
    """Check run lengths and return how many pixels they mark, without painting them; see :func:`decode_rle`."""
    return int(_runs(pairs, height, width, convention)[1].sum())


def encode_rle(hole: Hole, convention: str) -> list[int]:
    """Encode a hole as run lengths, the inverse of :func:`decode_rle`.

    Args:
        hole: bool (H, W), True = hole.
        convention: a key of :data:`CONVENTIONS`.

    Returns:
        Flat ``[start, length, ...]``: runs in ascending order, each as long as can be. ``[]`` for an empty hole.

    Raises:
        MaskError: ``hole`` is not bool (H, W).
        UnknownNameError: no such convention.
    """
    rule = _convention(convention)
    flat = _checked_hole(hole).ravel(order=rule.order)
    edges = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    runs: list[int] = np.stack([starts + rule.first, ends - starts], axis=1).ravel().tolist()
    return runs


def _convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        raise UnknownNameError("run-length convention", name, CONVENTIONS)
    return CONVENTIONS[name]


def _runs(
    pairs: Sequence[int] | npt.NDArray[np.integer], height: int, width: int, convention: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return 0-based starts, ascending, and lengths of the runs that are not empty, all checked."""
    first = _convention(convention).first
    values = _integers(pairs)
    if len(values) % 2:
        raise MaskError(f"run lengths have odd length {len(values)}, expected pairs of start and length")
    if min(values, default=0) < 0:
        place = next(i for i, value in enumerate(values) if value < 0) // 2 * 2
        raise MaskError(
            f"run (start {values[place]}, length {values[place + 1]}) is negative, expected numbers of pixels"
        )
    # Python integers are compared before NumPy sees them, so that a number beyond 64 bit is refused, not wrapped.
    last = height * width + first
    for start, length in zip(values[::2], values[1::2], strict=True):
        if start < first or start + length > last:
            raise MaskError(
                f"run (start {start}, length {length}) is out of range, a picture of {height} x {width} "
                f"(height x width) has the pixels {first} to {last - 1} in the {convention!r} convention"
            )
    runs = np.asarray(values, dtype=np.int64).reshape(-1, 2)
    runs = runs[runs[:, 1] > 0]
    starts, lengths = runs[np.argsort(runs[:, 0])].T
    overlaps = np.flatnonzero(starts[:-1] + lengths[:-1] > starts[1:])
    if overlaps.size:
        twice = starts[overlaps[0] + 1]
        raise MaskError(
            f"run lengths overlap: pixel {twice} is in more than one run, expected separate runs "
            f"in the {convention!r} convention"
        )
    return starts - first, lengths


def _integers(pairs: object) -> Sequence[int]:
    values = pairs.tolist() if isinstance(pairs, np.ndarray) else pairs
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        kind = "a dict" if isinstance(values, dict) else type(pairs).__name__
        raise MaskError(f"run lengths are {kind}, expected a flat list of integers [start, length, ...]")
    if set(map(type, values)) - {int}:  # fast for long lists; what follows finds the culprit, if it is one
        for place, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise MaskError(f"run lengths hold {value!r} at place {place}, expected a flat list of integers")
        return [int(value) for value in values]
    return values


# -------------------------------------------------------------------------------------------------------- polarity


def hole_from_white(mask: Image.Image | npt.NDArray[np.generic], threshold: int = 128) -> Hole:
    """Convert a picture whose white part is the hole.

    Args:
        mask: PIL picture, or uint8 (H, W), (H, W, 1), (H, W, 3) or bool (H, W). Colours count by their luma.
        threshold: grey level from which on a pixel is hole.

    Returns:
        Bool (H, W), True = hole.

    Raises:
        MaskError: another dtype or shape, or transparent pixels: then the colours may mean nothing.
    """
    return _grey(mask) >= threshold


def hole_from_black(mask: Image.Image | npt.NDArray[np.generic], threshold: int = 128) -> Hole:
    """Convert a picture whose black part is the hole: the complement of :func:`hole_from_white`."""
    return ~hole_from_white(mask, threshold)


def hole_from_blacked(picture: Picture, limit: int = 15) -> Hole:
    """Read the hole off a photograph in which it was painted black.

    Args:
        picture: uint8 (H, W, 3).
        limit: a pixel is hole when R + G + B is below it. 15 forgives what JPEG does to black, as
            Follow-Your-Preference's reading of EditBench does; dark parts of the photograph turn into hole, too.

    Returns:
        Bool (H, W), True = hole.

    Raises:
        MaskError: ``picture`` is not uint8 (H, W, 3).
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise MaskError(f"got {picture.dtype} {picture.shape}, expected a uint8 (H, W, 3) picture")
    dark: Hole = picture.sum(axis=2, dtype=np.int64) < limit
    return dark


def hole_from_alpha(mask: Image.Image, threshold: int = 128) -> Hole:
    """Convert a picture whose transparent part is the hole; its colours are ignored.

    Args:
        mask: PIL picture with an alpha channel, or a palette or colour that is transparent.
        threshold: alpha below which a pixel is hole.

    Returns:
        Bool (H, W), True = hole.

    Raises:
        MaskError: every pixel is opaque.
    """
    alpha = transparent(mask)
    if alpha is None:
        raise MaskError("every pixel is opaque, expected a picture whose hole is transparent")
    hole: Hole = alpha < threshold
    return hole


def hole_to_white(hole: Hole) -> ByteArray:
    """Return uint8 (H, W): hole 255, kept 0. The inverse of :func:`hole_from_white`."""
    return np.where(_checked_hole(hole), np.uint8(255), np.uint8(0))


READINGS: Mapping[str, Callable[[Image.Image], Hole]] = {
    "white": hole_from_white,
    "black": hole_from_black,
    "alpha": hole_from_alpha,
    "blacked": lambda picture: hole_from_blacked(to_rgb(picture)),
}


def _grey(mask: Image.Image | npt.NDArray[np.generic]) -> ByteArray:
    """Return uint8 (H, W) grey levels of a mask picture."""
    if isinstance(mask, Image.Image):
        alpha = transparent(mask)
        if alpha is not None:
            raise MaskError(
                f"{(alpha < 255).mean():.1%} of its pixels are transparent, so its alpha may mark the hole, "
                "expected an opaque picture"
            )
        return grey_levels(mask)
    if mask.dtype == np.bool_ and mask.ndim == 2:
        return mask.astype(np.uint8) * np.uint8(255)
    if mask.dtype == np.uint8 and mask.ndim == 3 and mask.shape[2] == 3:
        return np.asarray(Image.fromarray(mask.astype(np.uint8)).convert("L"))
    if mask.dtype == np.uint8 and (mask.ndim == 2 or (mask.ndim == 3 and mask.shape[2] == 1)):
        return mask.astype(np.uint8).reshape(mask.shape[:2])
    raise MaskError(f"got {mask.dtype} {mask.shape}, expected uint8 (H, W), (H, W, 1), (H, W, 3) or bool (H, W)")


def _checked_hole(hole: Hole) -> Hole:
    if hole.dtype != np.bool_ or hole.ndim != 2:
        raise MaskError(f"got {hole.dtype} {hole.shape}, expected a hole: bool (H, W), True = repaint")
    return hole


# ------------------------------------------------------------------------------------------------- brush strokes


def random_brush_hole(seed: int, height: int, width: int) -> Hole:
    """Draw the free-form hole of one seed: wide brush strokes, as BrushNet's random-mask model is trained on.

    The recipe (TencentARC/BrushNet, train_brushnet.py, random mode): 0 to 3 strokes; each starts anywhere and makes 0
    to 7 steps whose directions alternate between about +72 and -72 degrees (each bound of the range is redrawn per
    stroke, up to 24 degrees off); a step is normal with mean diagonal / 8 and deviation diagonal / 16, clipped to
    0 ... diagonal / 4, and stays in the picture; the brush is round and 128 px wide at 512 px; last, the picture is
    mirrored each way with probability 1/2.

    Own choices: 128 px is scaled by min(height, width) / 512; a hole that covers less than 5 % or more than 60 % is
    redrawn from the same stream; pixels belong to a stroke by an exact integer test (distance of the pixel's place
    from the line at most half the width), so the hole does not depend on a drawing library or its version.

    Args:
        seed: non-negative; the same seed and size give the same hole anywhere. The global generator is not touched.
        height: at least 8.
        width: at least 8.

    Returns:
        Bool (height, width), True = hole, covering 5 to 60 %.

    Raises:
        MaskError: a side below 8, a negative seed, or a shape so long that no hole of that cover is found.
    """
    if seed < 0 or min(height, width) < MIN_BRUSH_SIDE:
        raise MaskError(
            f"cannot draw a brush hole of {height} x {width} from seed {seed}: "
            f"sides are at least {MIN_BRUSH_SIDE} and seeds not negative"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(MAX_REDRAWS):
        hole = np.zeros((height, width), dtype=np.bool_)
        for _ in range(rng.integers(0, 4)):
            _stroke(hole, rng)
        flip_rows, flip_columns = rng.random(2) > 0.5
        if BRUSH_COVER[0] <= hole.mean() <= BRUSH_COVER[1]:
            return np.ascontiguousarray(hole[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
    raise MaskError(
        f"no brush hole of {height} x {width} covers {BRUSH_COVER[0]:.0%} to {BRUSH_COVER[1]:.0%} after "
        f"{MAX_REDRAWS} tries; use a picture nearer to a square"
    )


def _stroke(hole: Hole, rng: np.random.Generator) -> None:
    """Add one stroke to ``hole`` in place."""
    height, width = hole.shape
    diagonal = math.hypot(height, width)
    brush = max(1, round(128 * min(height, width) / REFERENCE_SIDE))
    steps = int(rng.integers(0, 8))
    lower = 2 * math.pi / 5 - rng.uniform(0, 2 * math.pi / 15)
    upper = 2 * math.pi / 5 + rng.uniform(0, 2 * math.pi / 15)

    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    _paint_segment(hole, (x, y), (x, y), brush)
    for step in range(steps):
        angle = rng.uniform(lower, upper) * (1 if step % 2 else -1)
        length = min(max(rng.normal(diagonal / 8, diagonal / 16), 0.0), diagonal / 4)
        next_x = int(min(max(x + length * math.cos(angle), 0), width))
        next_y = int(min(max(y + length * math.sin(angle), 0), height))
        _paint_segment(hole, (x, y), (next_x, next_y), brush)
        x, y = next_x, next_y


def _paint_segment(hole: Hole, start: tuple[int, int], end: tuple[int, int], brush: int) -> None:
    """Paint the pixels within ``brush`` / 2 of the line from ``start`` to ``end`` (x, y), in integers only."""
    height, width = hole.shape
    (x0, y0), (x1, y1) = start, end
    reach = brush // 2 + 1
    left, right = max(min(x0, x1) - reach, 0), min(max(x0, x1) + reach + 1, width)
    top, bottom = max(min(y0, y1) - reach, 0), min(max(y0, y1) + reach + 1, height)
    xs = np.arange(left, right, dtype=np.int64)[None, :]
    ys = np.arange(top, bottom, dtype=np.int64)[:, None]

    dx, dy = x1 - x0, y1 - y0
    squared_length = dx * dx + dy * dy
    along = (xs - x0) * dx + (ys - y0) * dy  # place of the foot of the perpendicular, times the squared length
    across = (xs - x0) * dy - (ys - y0) * dx  # distance from the line, times the length
    near_start = 4 * ((xs - x0) ** 2 + (ys - y0) ** 2) <= brush**2
    near_end = 4 * ((xs - x1) ** 2 + (ys - y1) ** 2) <= brush**2
    beside = (along >= 0) & (along <= squared_length) & (4 * across**2 <= brush**2 * squared_length)
    hole[top:bottom, left:right] |= near_start | near_end | (beside if squared_length else False)


# ------------------------------------------------------------------------------------------- the training recipe


def opening(hole: Hole, side: int | None = None) -> Hole:
    """Erode, then dilate, with the square of the published training recipe: 8 x 8 at 512 px.

    The recipe (TencentARC/BrushNet, train_brushnet.py) does this to three segmentations in ten; it rounds corners and
    drops what is thinner than the square. Beyond the border counts as hole when eroding and as kept when dilating.
    Both steps use OpenCV's anchor, as published: with a square of even side the result lies one pixel down and to
    the right of a textbook opening.

    Args:
        hole: bool (H, W).
        side: of the picture that the 8 px are scaled to (8 * side / 512, at least 1); None = min(H, W).

    Returns:
        Bool (H, W).

    Raises:
        MaskError: ``hole`` is not bool (H, W), or ``side`` is not positive.
    """
    import cv2

    _checked_hole(hole)
    side = min(hole.shape) if side is None else side
    if side < 1:
        raise MaskError(f"side is {side}, expected the picture's side in pixels")
    square = max(1, round(8 * side / REFERENCE_SIDE))
    kernel = np.ones((square, square), dtype=np.uint8)
    opened = cv2.dilate(cv2.erode(hole.astype(np.uint8), kernel), kernel)
    return np.asarray(opened > 0)


def inverted(hole: Hole) -> Hole:
    """Return the complement, bool (H, W): the recipe does it to half of the holes, so inside becomes outside."""
    return ~_checked_hole(hole)


# -------------------------------------------------------------------------------------------- shapes around a hole


def tight_box(mask: Hole) -> tuple[slice, slice] | None:
    """Return the rows and columns of the smallest box that holds a mask, or ``None`` if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def square_around(mask: Hole, context: float, least: float) -> tuple[float, float, float, float]:
    """Return the square around a mask's bounding box, moved to lie in the picture.

    Args:
        mask: bool (H, W), with at least one True.
        context: side of the square over the longer side of the bounding box.
        least: smallest side in pixels.

    Returns:
        Its left, top, right and lower edge in pixels: x0, y0, x1, y1.
    """
    height, width = mask.shape
    tight = tight_box(mask)
    if tight is None:
        raise MaskError("the mask marks no pixel, expected at least one")
    top, bottom, left, right = tight[0].start, tight[0].stop, tight[1].start, tight[1].stop
    side = min(max(context * max(bottom - top, right - left), least), min(height, width))
    x0 = min(max((left + right - side) / 2, 0.0), width - side)
    y0 = min(max((top + bottom - side) / 2, 0.0), height - side)
    return x0, y0, x0 + side, y0 + side


def uneven_disc(down: FloatArray, right: FloatArray, radius: float, turn: float) -> Hole:
    """Return a disc with three bulges: what someone scribbles who does not follow an outline.

    Args:
        down: (H, W) or broadcast to it: rows below the centre.
        right: likewise: columns to the right of the centre.
        radius: mean radius in pixels.
        turn: of the bulges, in radians.

    Returns:
        Bool (H, W).
    """
    disc: Hole = np.hypot(down, right) <= radius * (1.0 + 0.12 * np.sin(3.0 * np.arctan2(down, right) + turn))
    return disc
