"""Variants: what is done to a picture after generation, so that X and X* are one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from brushbench.errors import UnknownNameError
from brushbench.types import Picture, Sample

__all__ = ["VARIANTS", "jpeg_round_trip", "make_variant"]


def jpeg_round_trip(picture: Picture, quality: int = 75) -> Picture:
    """Return the picture after one JPEG round trip with Pillow's defaults (4:2:0 below quality 90)."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))


def _raw(picture: Picture, sample: Sample) -> Picture:  # noqa: ARG001
    return picture


def _blended(picture: Picture, sample: Sample) -> Picture:
    from brushnet.blending import blend

    return blend(sample.image, picture, sample.hole, mode="blur")


def _pasted(picture: Picture, sample: Sample) -> Picture:
    from brushnet.blending import blend

    return blend(sample.image, picture, sample.hole, mode="paste")


def _jpeg75(picture: Picture, sample: Sample) -> Picture:  # noqa: ARG001
    return jpeg_round_trip(picture)


VARIANTS: Mapping[str, Callable[[Picture, Sample], Picture]] = {
    "raw": _raw,  # as the method returned it
    "blended": _blended,  # BrushNet's blurred pasting: the rows with a star in the paper
    "pasted": _pasted,  # the kept pixels exact, a hard seam
    "raw+jpeg75": _jpeg75,  # what the published script saved and scored
}


def make_variant(name: str, picture: Picture, sample: Sample) -> Picture:
    """Return one variant of a picture.

    Args:
        name: one of :data:`VARIANTS`.
        picture: uint8 (H, W, 3) RGB, as the method returned it.
        sample: the sample it answers, of the same size.

    Raises:
        UnknownNameError: no such variant.
    """
    if name not in VARIANTS:
        raise UnknownNameError("variant", name, VARIANTS)
    return VARIANTS[name](picture, sample)
