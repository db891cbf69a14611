"""Real photographs that installed packages carry, each with a hand-drawn outline of its main object.

No photograph lies in this repository: ``data/photos/photos.json`` names the package and file of each, the SHA-256 of
its pixels, licence and credit, the part that is used, and the outline. Eight come with scikit-image, which brushbench
needs anyway, two with scikit-learn and one with matplotlib (``pip install 'brushbench[photos]'``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from brushbench import assets
from brushbench.benchmarks.base import LazyBenchmark, Record
from brushbench.benchmarks.holes import BrushHole, HoleSource
from brushbench.errors import UnusableError
from brushbench.pictures import ImageFile
from brushbench.types import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from brushbench.types import JSON, Hole, Picture

__all__ = ["SIDE", "InstalledPhoto", "Photos", "PolygonHole", "fill_polygon"]

ASSET = "data/photos/photos.json"
SIDE = 512
HOW_TO_GET = "pip install 'brushbench[photos]'"
Ring: TypeAlias = "tuple[tuple[int, int], ...]"  # (x, y) of the corners, in pixels of the 512 x 512 picture


class Photos(LazyBenchmark):
    """Eleven photographs at 512 x 512 from installed packages, with hand-drawn holes, captions, credits and licences.

    Splits: ``inside`` (the object), ``outside`` (everything else, its exact complement), ``brush`` (the seeded
    :func:`~brushbench.benchmarks.holes.brush_hole` of the id). ``Sample.meta`` carries category, style, object, source,
    licence, credit and url; ``manifest["photographs"]`` also carries version and SHA-256.
    """

    def __init__(self, *, split: str = "all", limit: int | None = None, skip_bad: bool = False) -> None:
        """Find the photographs in the installed packages.

        Photographs of a package that is not installed are left out; ``notes`` says so in a sentence, and they are
        listed in ``manifest["skipped"]``.

        Args:
            split: ``all``, one of ``inside``, ``outside``, ``brush``, or several with commas between them.
            limit: use only the first so many photographs, for every split; left-out ones among them count.
            skip_bad: leave bad photographs out and count them.

        Raises:
            BadRecordError: a photograph is missing from an installed package and ``skip_bad`` is off. One whose pixels
                are not the recorded ones raises it when it is loaded, or when the manifest is read.
            UnknownNameError: no such split.
        """
        entries = json.loads(assets.path(ASSET).read_text(encoding="utf-8"))["photographs"][:limit]
        here = [entry for entry in entries if importlib.util.find_spec(entry["package"])]
        absent = [entry for entry in entries if entry not in here]
        super().__init__(
            "photos",
            [_record(entry) for entry in here],
            splits=SPLITS,
            split=split,
            limit=limit,
            skip_bad=skip_bad,
            details={
                "licence": "each photograph has its own, see photographs",
                "photographs": [_provenance(entry) for entry in here],
            },
        )
        if absent:
            left = [(entry["id"], f"{entry['distribution']} is not installed; {HOW_TO_GET}") for entry in absent]
            # Recorded with the bad ones, but not bad: nothing has to be mended.
            self._details["skipped"] = [{"record": name, "reason": reason} for name, reason in [*self.skipped, *left]]
            named = ", ".join(sorted({entry["distribution"] for entry in absent}))
            left_out = f"{len(absent)} of {len(entries)} photographs are left out"
            self.notes = [f"{left_out}: they come with {named}, not installed here. To have them: {HOW_TO_GET}."]


def _record(entry: Mapping[str, Any]) -> Record:
    outlines, gaps = (tuple(tuple(map(tuple, ring)) for ring in entry[key]) for key in ("outlines", "gaps"))
    photo = InstalledPhoto(
        entry["package"], entry["distribution"], entry["file"], entry["sha256"], tuple(entry["crop"])
    )
    holes: dict[str, HoleSource] = {
        "inside": PolygonHole(outlines, gaps),
        "outside": PolygonHole(outlines, gaps, complement=True),
        "brush": BrushHole(entry["id"]),
    }
    meta = {key: entry[key] for key in ("category", "style", "object", "licence", "credit", "url")}
    meta["source"] = f"{entry['distribution']}: {entry['package']}/{entry['file']}"
    return Record(entry["id"], entry["caption"], photo, holes, meta)


def _provenance(entry: Mapping[str, Any]) -> dict[str, JSON]:
    keys = ("id", "distribution", "package", "file", "sha256", "licence", "credit", "url")
    return {**{key: entry[key] for key in keys}, "version": version(entry["distribution"])}


# ------------------------------------------------------------------------------------------------------- photographs


@dataclass(frozen=True)
class InstalledPhoto:
    """A square part of a photograph in an installed package, brought to 512 x 512.

    The part is cut out and then resized by Pillow's antialiasing Lanczos filter, which works in fixed point and so
    gives the same pixels on every machine. A part of 512 x 512 keeps its pixels.

    Attributes:
        package: import name.
        distribution: name that pip knows.
        file: of the photograph, within the package.
        sha256: of the whole photograph's RGB bytes, row by row: not of the file, whose packing may change.
        crop: (left, top, right, bottom) in pixels of the photograph.
    """

    package: str
    distribution: str
    file: str
    sha256: str
    crop: tuple[int, int, int, int]

    def size(self) -> tuple[int, int]:
        """Return (512, 512) if the file is there."""
        self._file().size()
        return SIDE, SIDE

    def data(self) -> bytes:
        """Return the bytes of the 512 x 512 RGB picture, so that the benchmark's hash covers what samples hold.

        Raises:
            UnusableError: the file is missing or damaged, or its pixels are not the recorded ones.
        """
        file = self._file()
        photo = file.decode(file.data())
        found = hashlib.sha256(photo.tobytes()).hexdigest()
        if found != self.sha256:
            raise UnusableError(
                f"{file.path} of {self.distribution} {version(self.distribution)} has other pixels than the outline "
                f"was drawn on (SHA-256 {found[:12]}..., expected {self.sha256[:12]}...)",
                f"Reinstall {self.distribution}, or install a version that carries the recorded photograph",
            )
        part = Image.fromarray(photo).crop(self.crop)
        return part.resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes()

    def decode(self, data: bytes) -> Picture:
        """Return uint8 (512, 512, 3) RGB."""
        return np.frombuffer(data, dtype=np.uint8).reshape(SIDE, SIDE, 3).copy()

    def _file(self) -> ImageFile:
        spec = importlib.util.find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise UnusableError(f"the package {self.distribution} is not installed", f"Run {HOW_TO_GET}")
        path = Path(folders[0]) / self.file
        if not path.is_file():
            raise UnusableError(
                f"{self.distribution} {version(self.distribution)} has no {path}", f"Reinstall {self.distribution}"
            )
        return ImageFile(path)


# ------------------------------------------------------------------------------------------------------------ holes


@dataclass(frozen=True)
class PolygonHole(HoleSource):
    """Polygons of the main object: what lies in an outline and in no gap is the object.

    Attributes:
        outlines: closed rings of corners.
        gaps: rings of what is seen through the object.
        complement: everything but the object is the hole.
    """

    outlines: tuple[Ring, ...] = field(repr=False)
    gaps: tuple[Ring, ...] = field(repr=False, default=())
    complement: bool = False

    @property
    def label(self) -> str:
        """What messages call it."""
        return "its outline"

    def draw(self, height: int, width: int) -> Hole:
        """Fill the outlines, then cut out the gaps."""
        hole = np.zeros((height, width), dtype=np.bool_)
        for ring in self.outlines:
            hole |= fill_polygon(ring, height, width)
        for ring in self.gaps:
            hole &= ~fill_polygon(ring, height, width)
        return ~hole if self.complement else hole

    def fingerprint(self) -> bytes:
        """Return the corners."""
        return f"polygons 1 {json.dumps([self.outlines, self.gaps, self.complement])}".encode()


def fill_polygon(ring: Ring, height: int, width: int) -> Hole:
    """Return the pixels whose centres lie in a polygon or on its border.

    Args:
        ring: (x, y) of the corners, integers, where (0, 0) is the centre of the upper left pixel; the last is joined
            to the first. Where the border crosses itself, the even-odd rule holds.
        height: of the picture in pixels.
        width: of the picture in pixels.

    Returns:
        Bool (height, width). In integers only, so it does not depend on a drawing library or its version.
    """
    inside, border = np.zeros((2, height, width), dtype=np.bool_)
    xs = np.arange(width)[None, :]
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        (left, right), (top, bottom) = sorted((x0, x1)), sorted((y0, y1))
        rows = slice(max(top, 0), max(min(bottom + 1, height), 0))
        ys = np.arange(height)[rows, None]
        # Zero on the line, negative left of it when the edge is read downwards.
        across = ((xs - x0) * (y1 - y0) - (ys - y0) * (x1 - x0)) * (1 if y1 > y0 else -1)
        border[rows] |= (across == 0) & (left <= xs) & (xs <= right)
        # A ray to the right crosses the edge; its lower end belongs to the next edge, so no corner counts twice.
        inside[rows] ^= (across < 0) & (ys < bottom)
    filled: Hole = inside | border
    return filled
