"""What every benchmark shares: records that are decoded one at a time, checked before anything is generated.

A loader makes one :class:`Record` a picture and hands them to :class:`LazyBenchmark`::

    class Mine(LazyBenchmark):
        def __init__(self, root: Path, *, split: str = "all", limit: int | None = None, skip_bad: bool = False) -> None:
            holes = {"inside": MaskFile(root / "cat_hole.png"), "brush": BrushHole("cat")}
            records = [Record("cat", "a cat on a mat", ImageFile(root / "cat.png"), holes)]
            super().__init__("mine", records, splits=tuple(holes), split=split, limit=limit, skip_bad=skip_bad)

A picture is an :class:`ImageSource` (:class:`ImageFile`), a hole a :class:`HoleSource` (:class:`RLEHole`,
:class:`MaskFile`, :class:`BrushHole`); both are small, picklable descriptions. What is wrong with one of them is an
:class:`UnusableError`; the benchmark adds the record's name to it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageOps

from brushbench.errors import BadRecordError, DataError, UnknownNameError, UsageError
from brushbench.masks import MIN_BRUSH_SIDE, MaskError, count_rle, decode_rle, hole_from_white, random_brush_hole
from brushbench.types import JSON, Sample, sample_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from brushbench.types import Hole, Picture

__all__ = [
    "MAX_PIXELS",
    "BrushHole",
    "HoleSource",
    "ImageFile",
    "ImageSource",
    "LazyBenchmark",
    "MaskFile",
    "RLEHole",
    "Record",
    "UnusableError",
    "brush_hole",
    "chosen_splits",
    "described",
    "is_file",
    "open_picture",
    "path_inside",
]

MAX_PIXELS = 8192 * 8192
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
USABLE_ID = re.compile(r"[^/\\\0\ud800-\udfff]{1,200}")  # pictures of a run are named after it
MAX_FILE_NAME = 240  # bytes of an id that is percent-encoded for its file; most file systems allow 255 with suffixes


class UnusableError(DataError):
    """A picture or hole that cannot be used: the ``problem`` and its ``remedy``; the benchmark adds the record."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem[:1].upper()}{problem[1:]}. {remedy}.")


# ---------------------------------------------------------------------------------------------------------- pictures


class ImageSource(Protocol):
    """Where a reference picture comes from."""

    def data(self) -> bytes:
        """Return what the benchmark's hash covers, as a rule the encoded file."""
        ...

    def size(self) -> tuple[int, int]:
        """Return (height, width) of the decoded picture without decoding it."""
        ...

    def decode(self, data: bytes) -> Picture:
        """Return uint8 (H, W, 3) RGB from what :meth:`data` returned."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """A JPEG, PNG, WebP, BMP or TIFF file of at most :data:`MAX_PIXELS`, brought to RGB.

    Grey is repeated, transparency is laid over white, 16 bit are scaled to 8, and a JPEG is turned as its EXIF
    orientation says (as OpenCV, and so the published script, reads it).
    """

    path: Path

    def data(self) -> bytes:
        """Return the file's bytes."""
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            raise UnusableError(f"the picture {self.path} is missing", "Put it there") from None
        except OSError as error:
            raise UnusableError(
                f"the picture {self.path} cannot be read ({error.strerror})", "Make it readable"
            ) from None

    def size(self) -> tuple[int, int]:
        """Return (height, width) from the file's header."""
        if not is_file(self.path):
            raise UnusableError(f"the picture {self.path} is missing", "Put it there")
        with open_picture(self.path, str(self.path)) as picture:
            width, height = picture.size
            sideways = picture.format == "JPEG" and picture.getexif().get(0x0112, 1) >= 5
            return (width, height) if sideways else (height, width)

    def decode(self, data: bytes) -> Picture:
        """Return uint8 (H, W, 3) RGB."""
        with open_picture(io.BytesIO(data), str(self.path)) as picture:
            upright = ImageOps.exif_transpose(picture) if picture.format == "JPEG" else picture
            return _rgb(upright)


@contextmanager
def open_picture(source: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """Open a picture's header; what goes wrong there, or while decoding inside the block, is an UnusableError.

    Args:
        source: file, or its bytes.
        name: what messages call it.
    """
    try:
        with warnings.catch_warnings():
            # The limit below speaks for itself; Pillow's own is higher, and a warning first.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(source, formats=FORMATS)
        with picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except Image.DecompressionBombError:
        raise UnusableError(
            f"the picture {name} is gigantic: more than {MAX_PIXELS} pixels", "Replace it by a smaller one"
        ) from None
    except DECODING_ERRORS as error:
        raise UnusableError(
            f"the picture {name} cannot be decoded ({error})", f"Replace it by an intact {', '.join(FORMATS)} file"
        ) from None


def _rgb(picture: Image.Image) -> Picture:
    if picture.mode.startswith("I"):  # 16 bit a pixel; Pillow's own conversion to 8 bit clips instead of scaling
        grey = (np.asarray(picture, dtype=np.int64).clip(0, 65535) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bit")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(picture.convert("RGB"), dtype=np.uint8)


def is_file(path: Path) -> bool:
    """Whether a file is there; a name that the system refuses, such as one of 5,000 letters, is not there."""
    try:
        return path.is_file()
    except OSError:
        return False


def path_inside(folder: Path, relative: str) -> Path:
    """Join a path from a mapping file to its folder, and refuse one that leads out of it.

    The check is of the text; links inside the folder are followed, so ``images`` may be a link to another disk.

    Raises:
        UnusableError: the path is empty, absolute or climbs out of the folder.
    """
    readings = (PurePosixPath(relative), PureWindowsPath(relative))
    if not relative.strip() or any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in readings):
        raise UnusableError(
            f"the path {relative!r} leads outside the folder {folder}", "Write a path relative to that folder"
        )
    return folder / relative


# -------------------------------------------------------------------------------------------------------------- holes


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
        return int(self.draw(height, width).sum())

    def check(self, height: int, width: int) -> None:
        """Raise :class:`UnusableError` if :meth:`draw` would fail, or gives a hole of nothing or everything."""
        pixels = self.count(height, width)
        if pixels == 0:
            raise UnusableError(f"the hole is empty ({self.label} marks no pixel)", "Mark at least one pixel")
        if pixels == height * width:
            raise UnusableError(
                f"the hole is the whole picture ({self.label} marks every pixel)", "Keep at least one pixel"
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
    """A picture of the size of the reference whose white part (grey level from 128) is the hole."""

    path: Path

    @property
    def label(self) -> str:
        """The file."""
        return str(self.path)

    def draw(self, height: int, width: int) -> Hole:
        """Read the file; another size than the picture's is refused, not resized."""
        if not is_file(self.path):
            raise UnusableError(f"the mask {self.path} is missing", "Put it there")
        with open_picture(self.path, str(self.path)) as picture:
            if picture.size != (width, height):
                raise UnusableError(
                    f"the mask {self.path} is {picture.height} x {picture.width}, its picture {height} x {width} "
                    "(height x width)",
                    "Bring the mask to the picture's size",
                )
            return hole_from_white(picture)

    def fingerprint(self) -> bytes:
        """Return the file's bytes."""
        return ImageFile(self.path).data()


@dataclass(frozen=True)
class BrushHole(HoleSource):
    """The brush hole of a sample id, see :func:`brush_hole`."""

    sample_id: str

    def draw(self, height: int, width: int) -> Hole:
        """Draw it."""
        return brush_hole(self.sample_id, height, width)

    def check(self, height: int, width: int) -> None:
        """Raise :class:`UnusableError` if the picture is too small."""
        # The generator redraws empty and full holes itself, so drawing one here would only cost time.
        if min(height, width) < MIN_BRUSH_SIDE:
            raise UnusableError(
                f"the picture is {height} x {width}, too small for a brush hole",
                f"Give it sides of at least {MIN_BRUSH_SIDE} pixels",
            )

    def fingerprint(self) -> bytes:
        """Return the id and the version of the generator."""
        return f"brush 1 {self.sample_id}".encode()


def brush_hole(sample_id: str, height: int, width: int) -> Hole:
    """Return the hole of the ``brush`` split: bool (height, width), covering 5 to 60 %.

    It depends on the sample's id and the size alone, never on the run's seed, so that every run answers the same
    question.
    """
    return random_brush_hole(sample_seed(0, f"brush {sample_id}"), height, width)


# -------------------------------------------------------------------------------------------------------- benchmark


@dataclass(frozen=True)
class Record:
    """One picture with a hole a split, described but not decoded.

    Attributes:
        id: stable within the benchmark; pictures of a run are named after it.
        prompt: the caption.
        image: the reference.
        holes: split to hole.
        meta: what the benchmark carries besides.
    """

    id: str
    prompt: str
    image: ImageSource
    holes: Mapping[str, HoleSource]
    meta: Mapping[str, str] = field(default_factory=dict)


class LazyBenchmark:
    """An ordered collection of samples, split by split, each decoded when it is asked for.

    Everything but the pixels (files, headers, holes, captions) is checked on construction, so that a run does not
    break off in the middle. With ``skip_bad`` the pixels are decoded once as well, and what is bad is left out of every
    split and listed in ``manifest["skipped"]``; without it a picture that turns out to be damaged raises
    :class:`BadRecordError` when it is loaded.

    Attributes:
        name: of the benchmark.
        keys: (sample id, split) in order: split by split, pictures in manifest order within each.
        manifest: name, splits, images, counts, skipped, and ``sha256`` over everything that the samples are made of.
        loaded_with: the options it was loaded with, such as its folder, so that a run can load it again.
    """

    loaded_with: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        name: str,
        records: Iterable[Record | BadRecordError],
        *,
        splits: Sequence[str],
        split: str = "all",
        limit: int | None = None,
        skip_bad: bool = False,
        details: Mapping[str, JSON] | None = None,
    ) -> None:
        """Check the records and keep those that are usable.

        Args:
            name: of the benchmark.
            records: in manifest order; one that could not even be described stands there as its error.
            splits: that this benchmark has, in order.
            split: ``all``, one of ``splits``, or several with commas between them.
            limit: use only the first so many records of the manifest, for every split; bad ones among them count.
            skip_bad: leave bad records out and count them.
            details: further entries of the manifest, such as the ``licence`` ("not stated" unless given).

        Raises:
            BadRecordError: a record is bad and ``skip_bad`` is off.
            UnknownNameError: no such split.
            UsageError: ``limit`` is below 1.
            DataError: no record is left.
        """
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}, expected at least 1. Leave it out to use every picture.")
        self.name = name
        self.splits = chosen_splits(split, splits)
        self.skipped: list[tuple[str, str]] = []
        self._records: list[Record] = []
        self._seen: set[str] = set()
        for record in list(records)[:limit]:
            try:
                self._records.append(self._checked(record, pixels=skip_bad))
            except BadRecordError as error:
                if not skip_bad:
                    raise
                self.skipped.append((error.record, error.problem))
        if not self._records:
            raise DataError(
                f"Benchmark {name!r} has no usable record ({len(self.skipped)} skipped). "
                "Check that the folder is complete."
            )
        self._details: dict[str, JSON] = {"licence": "not stated", **(details or {})}
        self._order = [(record, chosen) for chosen in self.splits for record in self._records]
        self.keys: Sequence[tuple[str, str]] = [(record.id, chosen) for record, chosen in self._order]

    def _checked(self, record: Record | BadRecordError, *, pixels: bool) -> Record:
        """Return a usable record or raise what is wrong with it."""
        if isinstance(record, BadRecordError):
            raise record
        with _named(record.id):
            if not USABLE_ID.fullmatch(record.id) or record.id in (".", ".."):
                raise UnusableError("its id cannot name a file", "Write an id of 1 to 200 characters without slashes")
            if len(quote(record.id, safe="")) > MAX_FILE_NAME:
                raise UnusableError(f"its id is too long to name a file ({len(record.id)} characters)", "Shorten it")
            if record.id in self._seen:
                raise UnusableError("its id occurs twice", "Give every record its own id")
            self._seen.add(record.id)
            if not record.prompt.strip():
                raise UnusableError("the caption is missing", "Write a caption")
            height, width = record.image.size()
            for split in self.splits:
                if split not in record.holes:
                    raise UnusableError(f"it has no hole for the split {split!r}", "Add one")
                record.holes[split].check(height, width)
            if pixels:
                record.image.decode(record.image.data())
        return record

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """Record id to the SHA-256 of its encoded picture."""
        digests = {}
        for record in self._records:
            with _named(record.id):
                digests[record.id] = hashlib.sha256(record.image.data()).hexdigest()
        return digests

    @cached_property
    def manifest(self) -> Mapping[str, JSON]:
        """What the benchmark is. The first access reads every file once, to hash it."""
        total = hashlib.sha256()
        for record in self._records:
            holes = {split: hashlib.sha256(record.holes[split].fingerprint()).hexdigest() for split in self.splits}
            parts = [record.id, record.prompt, self._digests[record.id], holes, dict(record.meta)]
            total.update(json.dumps(parts, sort_keys=True).encode() + b"\n")
        return {
            "name": self.name,
            "sha256": total.hexdigest(),
            "images": len(self._records),
            "splits": list(self.splits),
            "counts": dict.fromkeys(self.splits, len(self._records)),
            "skipped": [{"record": record, "reason": reason} for record, reason in self.skipped],
            **self._details,
        }

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int, /) -> Sample:
        """Decode one sample.

        Raises:
            IndexError: no such place.
            BadRecordError: the picture cannot be decoded, or changed since the manifest was made.
        """
        record, split = self._order[index]
        with _named(record.id):
            data = record.image.data()
            # Only a manifest that was handed out can be broken; without one there is nothing to hold the file against.
            planned = self.__dict__.get("_digests", {}).get(record.id)
            if planned is not None and hashlib.sha256(data).hexdigest() != planned:
                raise UnusableError("the picture changed since the run was planned", "Restore it or start a new run")
            image = record.image.decode(data)
            hole = record.holes[split].draw(*image.shape[:2])
        return Sample(record.id, image, hole, record.prompt, split, dict(record.meta))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def chosen_splits(split: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that ``split`` names, in the order of ``available``.

    Args:
        split: ``all``, one name, or several with commas between them.
        available: what the benchmark has.

    Raises:
        UnknownNameError: a name that is not available; the nearest one is named.
    """
    asked = {part.strip() for part in split.split(",")}
    for name in sorted(asked - {"all"}):
        if name not in available:
            raise UnknownNameError("split", name, ["all", *available])
    return tuple(name for name in available if "all" in asked or name in asked)


def described(record: str, describe: Callable[[], Record]) -> Record | BadRecordError:
    """Return what ``describe`` returns, or, where it raises :class:`UnusableError`, the error of that record."""
    try:
        with _named(record):
            return describe()
    except BadRecordError as error:
        return error


@contextmanager
def _named(record: str) -> Iterator[None]:
    """Add the record's name to what is wrong with it."""
    try:
        yield
    except UnusableError as error:
        raise BadRecordError(record, error.problem, error.remedy) from None
