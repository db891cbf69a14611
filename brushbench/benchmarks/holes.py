"""Where a benchmark's holes come from: small, picklable descriptions that are drawn when a sample is asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from brushbench.errors import UnusableError
from brushbench.files import read_bytes
from brushbench.masks import (
    MIN_BRUSH_SIDE,
    READINGS,
    MaskError,
    count_rle,
    decode_rle,
    hole_from_white,
    hole_to_white,
    random_brush_hole,
)
from brushbench.pictures import grey_levels, open_picture
from brushbench.types import as_hole, sample_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from brushbench.types import Hole

__all__ = ["ArrayHole", "BrushHole", "HoleSource", "MaskFile", "RLEHole", "brush_hole"]

SAFE_ASPECT = 4  # longer side over the shorter one up to which a brush hole is always found


class HoleSource(ABC):
    """Where a hole comes from."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return "its hole"

    @abstractmethod
    def draw(self, height: int, width: int) -> Hole:
        """Return bool (height, width), True = hole, for a picture of that size; else raise UnusableError."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """Return what the benchmark's hash covers."""

    def count(self, height: int, width: int) -> int:
        """Return how many pixels :meth:`draw` marks; else raise UnusableError."""
        return int(as_hole(self.draw(height, width), (height, width)).sum())

    def about(self) -> str:
        """Return what explains a hole of nothing or everything, as the end of a sentence."""
        return ""

    def check(self, height: int, width: int) -> None:
        """Raise :class:`UnusableError` if :meth:`draw` would fail, or gives a hole of nothing or everything."""
        pixels = self.count(height, width)
        if pixels == 0:
            raise UnusableError(
                f"the hole is empty ({self.label} marks no pixel{self.about()})", "Mark at least one pixel"
            )
        if pixels == height * width:
            raise UnusableError(
                f"the hole is the whole picture ({self.label} marks every pixel{self.about()})",
                "Keep at least one pixel",
            )


@dataclass(frozen=True)
class RLEHole(HoleSource):
    """Run lengths as a data set stores them; ``key`` is the name they have there."""

    pairs: Sequence[int] = field(repr=False)
    convention: str
    key: str

    @property
    def label(self) -> str:
        """The key of the record."""
        return self.key

    def draw(self, height: int, width: int) -> Hole:
        """Decode the run lengths; see :func:`brushbench.masks.decode_rle`."""
        with self._named():
            return decode_rle(self.pairs, height, width, self.convention)

    def count(self, height: int, width: int) -> int:
        """Sum the run lengths without painting them."""
        with self._named():
            return count_rle(self.pairs, height, width, self.convention)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except MaskError as error:
            raise UnusableError(f"{self.key}: {error}", f"Correct {self.key}") from None

    def fingerprint(self) -> bytes:
        """Return the convention and the numbers."""
        return f"rle {self.convention} {list(self.pairs)}".encode()


@dataclass(frozen=True)
class MaskFile(HoleSource):
    """A picture that marks the hole.

    Attributes:
        path: of the picture.
        reading: what marks the hole there: a key of :data:`brushbench.masks.READINGS`. ``white``: grey level from 128.
        resize: bring a mask of another size to the reference's by the nearest pixel; else it is refused. None: refused,
            and nobody can choose otherwise.
    """

    path: Path
    reading: str = "white"
    resize: bool | None = None

    @property
    def label(self) -> str:
        """The file."""
        return str(self.path)

    def draw(self, height: int, width: int) -> Hole:
        """Read the file."""
        return self.fitted(self.as_stored(), height, width)

    def about(self) -> str:
        """Return the mask's grey levels: a mask of 0 and 1 is black to the eye."""
        if self.reading not in ("white", "black"):
            return ""
        with open_picture(read_bytes(self.path, "mask"), f"mask {self.path}") as picture:
            levels = grey_levels(picture)
        return f": its grey levels are {levels.min()} to {levels.max()} of 255, and white begins at 128"

    def as_stored(self) -> Hole:
        """Return bool (H, W) of the file's own size."""
        with open_picture(read_bytes(self.path, "mask"), f"mask {self.path}") as picture:
            try:
                return READINGS[self.reading](picture)
            except MaskError as error:
                remedy = (
                    "Save it without transparency, white = hole, or set the option masks to alpha: transparent = hole"
                )
                if self.reading == "alpha":
                    remedy = "Save it with a transparent hole, or set the option masks to white"
                raise UnusableError(f"the mask {self.path}: {error}", remedy) from None

    def fitted(self, hole: Hole, height: int, width: int) -> Hole:
        """Return a hole of the picture's size."""
        if hole.shape == (height, width):
            return hole
        if self.resize:
            white = Image.fromarray(hole_to_white(hole))
            return hole_from_white(white.resize((width, height), Image.Resampling.NEAREST))
        raise UnusableError(
            f"the mask {self.path} is {hole.shape[0]} x {hole.shape[1]}, its picture {height} x {width} "
            "(height x width)",
            "Bring the mask to the picture's size" + (", or set resize_masks=true" if self.resize is False else ""),
        )

    def fingerprint(self) -> bytes:
        """Return the file's bytes, and what is done with them where it is not the default."""
        how = "" if self.reading == "white" and not self.resize else f"{self.reading} {bool(self.resize)} "
        return how.encode() + read_bytes(self.path, "mask")


@dataclass(frozen=True)
class ArrayHole(HoleSource):
    """A hole that is already in memory: bool (H, W), True = hole."""

    hole: Hole = field(repr=False)

    def draw(self, height: int, width: int) -> Hole:
        """Return it; another size than the picture's is refused."""
        if self.hole.shape != (height, width):
            raise UnusableError(
                f"its hole is {self.hole.shape[0]} x {self.hole.shape[1]}, its picture {height} x {width} "
                "(height x width)",
                "Bring the hole to the picture's size",
            )
        return self.hole

    def fingerprint(self) -> bytes:
        """Return the pixels' hash, so that large benchmarks are described in little."""
        return f"array {self.hole.shape} {hashlib.sha256(np.packbits(self.hole).tobytes()).hexdigest()}".encode()


@dataclass(frozen=True)
class BrushHole(HoleSource):
    """The brush hole of a sample id, see :func:`brush_hole`."""

    sample_id: str

    def draw(self, height: int, width: int) -> Hole:
        """Draw it."""
        try:
            return brush_hole(self.sample_id, height, width)
        except MaskError as error:
            raise UnusableError(str(error), "Give it a mask of its own") from None

    def check(self, height: int, width: int) -> None:
        """Raise :class:`UnusableError` if the picture is too small or too long."""
        if min(height, width) < MIN_BRUSH_SIDE:
            raise UnusableError(
                f"the picture is {height} x {width} (height x width), too small for a brush hole",
                f"Give it sides of at least {MIN_BRUSH_SIDE} pixels, or a mask of its own",
            )
        # The generator redraws empty and full holes itself; only in a long strip may it find none.
        if max(height, width) > SAFE_ASPECT * min(height, width):
            self.draw(height, width)

    def fingerprint(self) -> bytes:
        """Return the id and the version of the generator."""
        return f"brush 1 {self.sample_id}".encode()


def brush_hole(sample_id: str, height: int, width: int) -> Hole:
    """Return the hole of the ``brush`` split: bool (height, width), covering 5 to 60 %.

    It depends on the sample's id and the size alone, never on the run's seed, so that every run answers the same
    question.
    """
    return random_brush_hole(sample_seed(0, f"brush {sample_id}"), height, width)
