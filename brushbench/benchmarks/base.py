"""What every benchmark shares: records that are decoded one at a time, checked before anything is generated.

A loader makes one :class:`Record` per picture and hands them to :class:`LazyBenchmark`::

    from brushbench.benchmarks.holes import BrushHole, MaskFile
    from brushbench.pictures import ImageFile

    class Mine(LazyBenchmark):
        def __init__(self, root: Path, *, split: str = "all", limit: int | None = None, skip_bad: bool = False) -> None:
            holes = {"inside": MaskFile(root / "cat_hole.png"), "brush": BrushHole("cat")}
            records = [Record("cat", "a cat on a mat", ImageFile(root / "cat.png"), holes)]
            super().__init__("mine", records, splits=tuple(holes), split=split, limit=limit, skip_bad=skip_bad)

A picture is an :class:`ImageSource` (such as :class:`~brushbench.pictures.ImageFile`), a hole a
:class:`~brushbench.benchmarks.holes.HoleSource`; both are small, picklable descriptions. What is wrong with one of them
is an :class:`UnusableError`; the benchmark adds the record's name to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from brushbench.benchmarks.holes import BrushHole, HoleSource, MaskFile, RLEHole, brush_hole
from brushbench.errors import BadRecordError, EmptyBenchmarkError, UnknownNameError, UnusableError, UsageError
from brushbench.files import surrogate
from brushbench.pictures import ImageFile
from brushbench.types import JSON, Benchmark, Sample

if TYPE_CHECKING:
    from brushbench.types import Picture

# The holes and ImageFile stand here as well, so that a loader finds all it needs in one place.
__all__ = [
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
    "check_id",
    "check_limit",
    "check_text",
    "chosen_splits",
    "described",
]

USABLE_ID = re.compile(r"[^/\\\0\ud800-\udfff]{1,200}")  # pictures of a run are named after it
COMPUTED = ("manifest", "_digests", "_lines")  # attributes of a benchmark that depend on its records
MAX_FILE_NAME = 240  # bytes of an id that is percent-encoded for its file; most file systems allow 255 with suffixes


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
class Record:
    """One picture with a hole per split, described but not decoded.

    Attributes:
        id: stable within the benchmark; pictures of a run are named after it.
        prompt: the caption; empty where there is none, which only methods and metrics that read captions refuse.
        image: the reference.
        holes: split to hole.
        meta: what the benchmark carries besides.
    """

    id: str
    prompt: str
    image: ImageSource
    holes: Mapping[str, HoleSource]
    meta: Mapping[str, str] = field(default_factory=dict)


class LazyBenchmark(Benchmark):
    """An ordered collection of samples, split by split, each decoded when it is asked for.

    Everything but the pixels (files, headers, holes, captions) is checked on construction, so that a run does not
    break off in the middle. With ``skip_bad`` the pixels are decoded once as well, and what is bad is left out of every
    split and listed in ``manifest["skipped"]``; without it a picture that turns out to be damaged raises
    :class:`BadRecordError` when it is loaded.

    Attributes:
        splits: those that were chosen, in order.
        keys: (sample id, split) in order: split by split, pictures in manifest order within each.
        manifest: name, splits, images, counts, skipped, and ``sha256`` over everything that the samples are made of.
        skippable: whether whoever loaded it can ask for ``skip_bad``.
    """

    skippable = True

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
            EmptyBenchmarkError: no record is left.
        """
        check_limit(limit)
        self.name = self.title = name
        self.limit = limit
        self.splits = chosen_splits(split, splits)
        self.skipped: list[tuple[str, str]] = []
        self._skip_bad = skip_bad
        self._records: list[Record] = []
        ids: set[str] = set()
        for record in list(records)[:limit]:
            try:
                self._records.append(_checked(record, self.splits, ids, pixels=skip_bad))
            except BadRecordError as error:
                if not skip_bad:
                    raise
                self.skipped.append((error.record, error.problem))
        self._details: dict[str, JSON] = {"licence": "not stated", **(details or {})}
        self._arrange()

    def _arrange(self) -> None:
        """Put the records in order, split by split."""
        if not self._records:
            raise EmptyBenchmarkError(self.name, self.skipped)
        self._order = [(record, chosen) for chosen in self.splits for record in self._records]
        self.keys: Sequence[tuple[str, str]] = [(record.id, chosen) for record, chosen in self._order]

    def with_captions(self) -> LazyBenchmark:
        """Return the benchmark for a method that reads captions.

        Returns:
            The benchmark itself where every record has a caption; with ``skip_bad`` the rest of it.

        Raises:
            BadRecordError: a record has none, and ``skip_bad`` is off.
            EmptyBenchmarkError: none has one.
        """
        blank = [record for record in self._records if not record.prompt.strip()]
        if not blank:
            return self
        problem = "the caption is missing, and the method reads it"
        if not self._skip_bad:
            remedy = "Write one, use a method that reads none (such as telea)"
            raise BadRecordError(blank[0].id, problem, remedy, self.skippable)
        rest = type(self).__new__(type(self))
        rest.__dict__.update({k: v for k, v in self.__dict__.items() if k not in COMPUTED})
        rest._records = [record for record in self._records if record.prompt.strip()]
        rest.skipped = [*self.skipped, *((record.id, problem) for record in blank)]
        rest._arrange()
        return rest

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        """Record id to the SHA-256 of its encoded picture."""
        digests = {}
        for record in self._records:
            with _named(record.id):
                digests[record.id] = hashlib.sha256(record.image.data()).hexdigest()
        return digests

    @cached_property
    def _lines(self) -> Mapping[str, bytes]:
        """Record id to one line of everything that its samples are made of."""
        lines = {}
        for record in self._records:
            with _named(record.id):
                holes = {split: hashlib.sha256(record.holes[split].fingerprint()).hexdigest() for split in self.splits}
            parts = [record.id, record.prompt, self._digests[record.id], holes, dict(record.meta)]
            lines[record.id] = json.dumps(parts, sort_keys=True).encode() + b"\n"
        return lines

    @property
    def digests(self) -> Mapping[str, str]:  # type: ignore[override]
        """Record id to the SHA-256 of everything that its samples are made of."""
        return {name: hashlib.sha256(line).hexdigest() for name, line in self._lines.items()}

    @cached_property
    def manifest(self) -> Mapping[str, JSON]:  # type: ignore[override]
        """What the benchmark is. The first access reads every file once, to hash it."""
        return {
            "name": self.name,
            "sha256": hashlib.sha256(b"".join(self._lines.values())).hexdigest(),
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


def check_limit(limit: object) -> None:
    """Raise :class:`UsageError` if a limit is no whole number from 1."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UsageError(f"limit is {limit!r}, expected a whole number from 1. Leave it out to use every picture.")


def check_id(name: str) -> None:
    """Raise :class:`UnusableError` if an id cannot name the pictures of a run."""
    if not USABLE_ID.fullmatch(name) or name in (".", ".."):
        raise UnusableError("its id cannot name a file", "Write an id of 1 to 200 characters without slashes")
    if len(quote(name, safe="")) > MAX_FILE_NAME:
        raise UnusableError(f"its id is too long to name a file ({len(name)} characters)", "Shorten it")


def check_text(fields: Mapping[str, object]) -> None:
    """Raise :class:`UnusableError` if a field is no text, or holds half of a character, which no file takes."""
    for what, text in fields.items():
        if not isinstance(text, str):
            raise UnusableError(f"its {what} is a {type(text).__name__}, expected text", "Convert it")
        if half := surrogate(text):
            raise UnusableError(f"its {what} holds half of a character ({half})", f"Write its {what} anew")


def _checked(record: Record | BadRecordError, splits: Sequence[str], ids: set[str], *, pixels: bool) -> Record:
    """Return a usable record, its id added to ``ids``, or raise what is wrong with it."""
    if isinstance(record, BadRecordError):
        raise record
    with _named(record.id):
        check_id(record.id)
        if record.id in ids:
            raise UnusableError("its id occurs twice", "Give every record its own id")
        ids.add(record.id)
        check_text({"caption": record.prompt, **record.meta})
        height, width = record.image.size()
        for split in splits:
            if split not in record.holes:
                raise UnusableError(f"it has no hole for the split {split!r}", "Add one")
            record.holes[split].check(height, width)
        if pixels:
            record.image.decode(record.image.data())
    return record


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
