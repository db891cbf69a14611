"""Benchmarks from Python: a list of samples, a `datasets.Dataset`, a pandas table, or an object of one's own.

:func:`as_benchmark` takes them all. Of a table, each row is a picture; these columns are read, the first that is there:

=========  =================================================================================
picture    ``image``, ``picture``, ``file_name``, ``path``
hole       ``mask``, ``hole``; or one per split: ``inside_mask``, ``outside_mask``, ``brush_mask``
caption    ``caption``, ``prompt``, ``text``
id         ``id``, ``image_id``, ``name``, ``file_name``; else the row's number
=========  =================================================================================

A picture or mask is a path, encoded bytes, a Pillow picture, an array, or what `datasets` keeps of an image. White
marks the hole of a mask picture; a mask array is what :func:`brushbench.types.as_hole` takes. Without a mask, every
picture gets its seeded brush hole. Other columns that are text or numbers become ``Sample.meta``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image

from brushbench.benchmarks.base import (
    ImageSource,
    LazyBenchmark,
    Record,
    check_id,
    check_limit,
    check_text,
    chosen_splits,
    described,
)
from brushbench.benchmarks.holes import ArrayHole, BrushHole, HoleSource, MaskFile
from brushbench.benchmarks.tables import CAPTION_COLUMNS, caption_in, column_of, extra_columns
from brushbench.errors import BadRecordError, DataError, UnusableError, UsageError
from brushbench.isolation import world_of
from brushbench.masks import MaskError, hole_from_white
from brushbench.pictures import ImageFile, open_picture, to_rgb
from brushbench.types import JSON, SPLITS, Benchmark, Sample, as_hole, as_picture

if TYPE_CHECKING:
    from brushbench.types import Picture

__all__ = ["SampleList", "as_benchmark", "record_of_row", "row_splits"]

ID_COLUMNS = ("id", "image_id", "name", "file_name")
IMAGE_COLUMNS = ("image", "picture", "file_name", "path")
MASK_COLUMNS = ("mask", "hole")
TAKEN = "a name, a folder, a Benchmark, a list of Sample, a datasets.Dataset or a pandas DataFrame"


def as_benchmark(data: object, split: str = "all", limit: int | None = None) -> Benchmark:
    """Return a benchmark from whatever holds samples.

    Args:
        data: a :class:`~brushbench.types.Benchmark`, or an object with its ``name``, ``keys``, ``manifest``, length and
            samples; a list of :class:`~brushbench.types.Sample`; a ``datasets.Dataset``; a pandas ``DataFrame``.
        split: ``all``, one name, or several with commas between them.
        limit: use only the first so many records.

    Raises:
        UsageError: something else, or ``split`` or ``limit`` for a benchmark that is already loaded.
        BadRecordError: a record that cannot be used.
    """
    check_limit(limit)
    if isinstance(data, list | tuple):
        return _of_samples(data, split, limit)
    library = type(data).__module__.partition(".")[0]
    kind = type(data).__name__
    if library == "datasets" and kind == "Dataset":
        return _of_dataset(data, split, limit)
    if library == "datasets":
        raise UsageError(f"The benchmark is a datasets.{kind}, expected a Dataset. Choose a split, or load it whole.")
    if library == "pandas" and kind == "DataFrame":
        return _of_rows("dataframe", cast("Any", data).to_dict("records"), split, limit)
    ours = Benchmark in type(data).__mro__  # isinstance would look at every attribute, and so hash the files
    if not ours and not isinstance(data, _Samples):
        raise UsageError(
            f"The benchmark is a {kind}, expected {TAKEN}. A class of your own derives from "
            "brushbench.benchmarks.base.LazyBenchmark, or has name, keys, manifest, a length and samples."
        )
    benchmark = cast("Benchmark", data) if ours else _Foreign(cast("_Samples", data))
    if split != "all" or limit not in (None, benchmark.limit):
        raise UsageError("The benchmark is loaded already. Give split and limit to load_benchmark, not here.")
    return benchmark


@runtime_checkable
class _Samples(Protocol):
    """What an object of one's own must have to be a benchmark."""

    name: str
    keys: Sequence[tuple[str, str]]
    manifest: Mapping[str, JSON]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...


class _Foreign(Benchmark):
    """An object that is a benchmark without deriving from it: everything it need not have is at its default."""

    def __init__(self, samples: _Samples) -> None:
        for key in ("name", "sha256"):
            if not isinstance(samples.manifest.get(key), str):
                raise UsageError(
                    f"The manifest of the benchmark {samples.name!r} has no {key!r}. Derive the class from "
                    "brushbench.benchmarks.base.LazyBenchmark, which makes one."
                )
        self.name = self.title = samples.name
        self.keys, self.manifest = samples.keys, samples.manifest
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int, /) -> Sample:
        with world_of(type(self._samples)):
            return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


# Lists of samples -----------------------------------------------------------------------------------------------------


class SampleList(Benchmark):
    """Samples that are all in memory, in their order; each (id, split) occurs once."""

    def __init__(self, samples: Sequence[Sample], name: str = "samples", limit: int | None = None) -> None:
        """Check ids and captions; pictures and holes were checked when the samples were made.

        Raises:
            BadRecordError: an id that names no file, or that occurs twice in a split; a caption that is no text.
            DataError: no sample.
        """
        self.name = self.title = name
        self.limit = limit
        self._samples = list(samples)
        self.keys = [(sample.id, sample.split) for sample in self._samples]
        if not self._samples:
            raise DataError("The list holds no sample. Give at least one.")
        known: set[tuple[str, str]] = set()
        for sample in self._samples:
            try:
                check_id(sample.id)
                check_text({"caption": sample.prompt, "split": sample.split, **sample.meta})
                if (sample.id, sample.split) in known:
                    raise UnusableError(f"its id occurs twice in {sample.split!r}", "Give every sample its own id")
            except UnusableError as error:
                raise BadRecordError(sample.id, error.problem, error.remedy, skippable=False) from None
            known.add((sample.id, sample.split))

    @cached_property
    def manifest(self) -> Mapping[str, JSON]:  # type: ignore[override]
        """What the samples are; the hash covers pictures, holes, captions and meta."""
        total = hashlib.sha256()
        for sample in self._samples:
            parts = [sample.id, sample.split, sample.prompt, sample.image.shape, dict(sample.meta)]
            total.update(json.dumps(parts, sort_keys=True, default=str).encode() + b"\n")
            total.update(np.ascontiguousarray(sample.image).tobytes())
            total.update(np.packbits(sample.hole).tobytes())
        splits = list(dict.fromkeys(split for _, split in self.keys))
        return {
            "name": self.name,
            "sha256": total.hexdigest(),
            "images": len({name for name, _ in self.keys}),
            "splits": splits,
            "counts": {split: sum(each == split for _, each in self.keys) for split in splits},
            "skipped": [],
            "licence": "not stated",
        }

    def with_captions(self) -> SampleList:
        """Return the list itself.

        Raises:
            BadRecordError: a sample has no caption.
        """
        blank = next((sample for sample in self._samples if not sample.prompt.strip()), None)
        if blank is not None:
            raise BadRecordError(
                blank.id, "the caption is missing, and the method reads it", "Write one as its prompt", skippable=False
            )
        return self

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int, /) -> Sample:
        with world_of(type(self._samples)):
            return self._samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)


def _of_samples(samples: Sequence[object], split: str, limit: int | None) -> SampleList:
    for place, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise UsageError(f"Item {place} of the list is a {type(sample).__name__}, expected a Sample.")
    checked = cast("Sequence[Sample]", samples)
    wanted = chosen_splits(split, tuple(dict.fromkeys(sample.split for sample in checked)))
    first = list(dict.fromkeys(sample.id for sample in checked))[:limit]
    return SampleList([s for s in checked if s.split in wanted and s.id in first], limit=limit)


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Encoded:
    """A picture as encoded bytes."""

    encoded: bytes = field(repr=False)

    def data(self) -> bytes:
        return self.encoded

    def size(self) -> tuple[int, int]:
        height, width = self.decode(self.encoded).shape[:2]
        return height, width

    def decode(self, data: bytes) -> Picture:
        with open_picture(data, "picture") as picture:
            return to_rgb(picture)


@dataclass(frozen=True)
class _Pixels:
    """A picture that is already in memory."""

    image: Picture = field(repr=False)

    def data(self) -> bytes:
        return np.ascontiguousarray(self.image).tobytes()

    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def decode(self, data: bytes) -> Picture:
        return np.frombuffer(data, dtype=np.uint8).reshape(self.image.shape).copy()


def _of_dataset(data: Any, split: str, limit: int | None) -> LazyBenchmark:
    """Read a Dataset, its images as the bytes or paths that it keeps, so that they are decoded by our own reader."""
    plain = data.with_format(None)
    for name, feature in plain.features.items():
        if type(feature).__name__ == "Image":
            plain = plain.cast_column(name, type(feature)(decode=False))
    rows = plain if limit is None else plain.select(range(min(limit, len(plain))))
    return _of_rows("dataset", list(rows), split, limit)


def _of_rows(name: str, rows: Sequence[Mapping[Any, Any]], split: str, limit: int | None) -> LazyBenchmark:
    if not rows:
        raise DataError("The table has no row. Give at least one.")
    columns = [str(column) for column in rows[0]]
    if column_of(columns, IMAGE_COLUMNS) is None:
        raise UsageError(f"The table has the columns {', '.join(columns)}; {' or '.join(IMAGE_COLUMNS)} is missing.")
    splits = row_splits(columns)
    mask_columns = [f"{split}_mask" for split in splits if f"{split}_mask" in columns] or list(MASK_COLUMNS)
    masked = any(not _is_absent(row.get(column)) for row in rows for column in mask_columns)
    records = [
        described(row_id(row, place), partial(record_of_row, row, place, masked)) for place, row in enumerate(rows)
    ]
    try:
        table = LazyBenchmark(name, records, splits=splits, split=split, limit=limit)
    except BadRecordError as error:  # a table is mended in Python: there is no option to leave a row out
        raise BadRecordError(error.record, error.problem, error.remedy, skippable=False) from None
    table.skippable = False
    return table


def row_splits(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the splits that a table's mask columns make; ``brush`` where there is none."""
    return tuple(name for name in SPLITS if f"{name}_mask" in columns) or ("brush",)


def row_id(row: Mapping[str, Any], place: int) -> str:
    """Return the id of a row: what it says, or its number."""
    key = column_of(row, ID_COLUMNS)
    value = row[key] if key else None
    if isinstance(value, str) and value:
        return Path(value).stem if key == "file_name" else value
    return str(value) if isinstance(value, int | np.integer) else f"{place:09d}"


def record_of_row(row: Mapping[str, Any], place: int, masked: bool) -> Record:
    """Return the record of one row of a table; see the module for its columns.

    Args:
        row: its columns.
        place: its number, for the id where it has none.
        masked: whether the table has masks; then each row needs one, else each gets its brush hole.

    Raises:
        UnusableError: no picture, or one of an unknown kind.
    """
    key = column_of(row, IMAGE_COLUMNS) or IMAGE_COLUMNS[0]
    name = row_id(row, place)
    holes: dict[str, HoleSource] = {
        split: _hole(row[f"{split}_mask"]) for split in SPLITS if not _is_absent(row.get(f"{split}_mask"))
    }
    flat = column_of(row, MASK_COLUMNS)
    if flat and not _is_absent(row[flat]) and not holes:
        holes = {"brush": _hole(row[flat])}
    if masked and not holes:
        raise UnusableError("its mask is missing", "Give it one, or no row one to use seeded brush holes")
    masks = {*MASK_COLUMNS, *(f"{split}_mask" for split in SPLITS)}
    used = {*ID_COLUMNS, *IMAGE_COLUMNS, *CAPTION_COLUMNS, *masks}
    return Record(name, caption_in(row), _image(row.get(key), key), holes or {"brush": BrushHole(name)},
                  extra_columns(row, used))  # fmt: skip


def _is_absent(value: Any) -> bool:
    """Whether a cell is empty: None, or NaN as pandas has it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    """Return what `datasets` keeps of an image as bytes or a path."""
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        return value.get("bytes") or value.get("path")
    return value


def _image(value: Any, column: str) -> ImageSource:
    value = _plain(value)
    if isinstance(value, bytes):
        return _Encoded(value)
    if isinstance(value, str | PurePath) and str(value):
        return ImageFile(Path(value).expanduser())
    if isinstance(value, Image.Image):
        try:
            return _Pixels(to_rgb(value))
        except (OSError, ValueError) as error:
            raise UnusableError(f"the picture cannot be decoded ({error})", "Replace it") from None
    if isinstance(value, np.ndarray):
        return _Pixels(as_picture(value))
    raise UnusableError(
        f"its {column!r} is a {type(value).__name__}, expected a path, bytes, a Pillow picture or an array",
        "Convert it",
    )


def _hole(value: Any) -> HoleSource:
    value = _plain(value)
    if isinstance(value, str | PurePath) and str(value):
        return MaskFile(Path(value).expanduser())
    if isinstance(value, np.ndarray):
        return ArrayHole(as_hole(value, cast("tuple[int, int]", value.shape)))
    try:
        if isinstance(value, Image.Image):
            return ArrayHole(hole_from_white(value))
        if isinstance(value, bytes):
            with open_picture(value, "mask") as picture:
                return ArrayHole(hole_from_white(picture))
    except MaskError as error:
        raise UnusableError(f"the mask: {error}", "Save it without transparency, white = hole") from None
    raise UnusableError(
        f"its mask is a {type(value).__name__}, expected a path, bytes, a Pillow picture or an array",
        "Convert it",
    )
