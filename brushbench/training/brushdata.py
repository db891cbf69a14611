"""BrushData, the published training set, read from its webdataset tars by ``datasets`` as a stream.

Members of one record share a name of nine digits: ``.image`` (JPEG), ``.caption``, ``.segmentation`` (JSON with
``mask``, a list of run lengths ``[start, length, ...]``), ``.height``, ``.width`` and others that are not needed here.
Numbers are ASCII text. Run lengths are 1-based and **column-major**, at the picture's own size.

The stream is endless and a function of the seed: the same seed gives the same records in the same order, epoch after
epoch, wherever reading begins.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from brushbench.errors import DataError, UnusableError
from brushbench.masks import MaskError, decode_rle
from brushbench.pictures import open_picture, to_rgb
from brushbench.types import JSON, Picture
from brushbench.weights import is_hub_id, sha256_file

__all__ = ["BrokenRecordError", "BrushData", "TrainingPicture", "identify", "read_record"]

FIELDS = ("image", "caption", "segmentation", "height", "width")
SHUFFLE_BUFFER = 256  # records, about 40 MB
PATIENCE = 1000  # unusable records in a row after which something else must be wrong
PIECES, PIECE = 64, 2**20  # of a large tar that are hashed


class BrokenRecordError(DataError):
    """A record that cannot be used; its text is the reason that is counted."""


@dataclass(frozen=True)
class TrainingPicture:
    """A picture to learn from.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        masks: bool (n, H, W), True = the instance; n may be 0 where holes are drawn by brush.
        caption: text.
    """

    image: Picture
    masks: npt.NDArray[np.bool_]
    caption: str


def read_record(record: Mapping[str, Any], with_masks: bool = True) -> TrainingPicture:
    """Decode one record.

    Args:
        record: columns as bytes, text or numbers; missing ones absent or None.
        with_masks: decode the segmentation; without it ``masks`` is empty and the column is not looked at.

    Returns:
        Picture and masks at the picture's own size.

    Raises:
        BrokenRecordError: a column is missing or broken, or ``height`` and ``width`` are not the picture's.
    """
    caption = _text(record, "caption").strip()
    if not caption:
        raise BrokenRecordError("caption is empty")
    image = _picture(_column(record, "image"))
    size = {"height": image.shape[0], "width": image.shape[1]}
    for name, real in size.items():
        if _number(record, name) != real:
            raise BrokenRecordError(f"{name} is not the picture's")
    masks = _masks(record, *image.shape[:2]) if with_masks else np.zeros((0, *image.shape[:2]), dtype=np.bool_)
    return TrainingPicture(image, masks, caption)


def _column(record: Mapping[str, Any], name: str) -> Any:
    value = record.get(name)
    if value is None or value in (b"", ""):
        raise BrokenRecordError(f"{name} is missing")
    return value


def _text(record: Mapping[str, Any], name: str) -> str:
    value = _column(record, name)
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise BrokenRecordError(f"{name} is not UTF-8") from None


def _number(record: Mapping[str, Any], name: str) -> int:
    try:
        return int(float(_text(record, name)))
    except (ValueError, OverflowError):
        raise BrokenRecordError(f"{name} is not a number") from None


def _picture(data: Any) -> Picture:
    if not isinstance(data, bytes):
        raise BrokenRecordError("image is not bytes")
    try:
        with open_picture(data, "image") as picture:
            return to_rgb(picture)
    except UnusableError:
        raise BrokenRecordError("image cannot be decoded") from None


def _masks(record: Mapping[str, Any], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return bool (n, H, W) of the masks that mark anything; at least one."""
    try:
        stored = json.loads(_text(record, "segmentation"))
        runs = stored["mask"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise BrokenRecordError("segmentation is not JSON with a list of masks") from None
    if not isinstance(runs, list):
        raise BrokenRecordError("segmentation is not JSON with a list of masks")
    try:
        masks = [decode_rle(pairs, height, width, "brushdata") for pairs in runs]
    except MaskError:
        raise BrokenRecordError("segmentation does not fit the picture") from None
    masks = [mask for mask in masks if mask.any()]
    if not masks:
        raise BrokenRecordError("segmentation marks nothing")
    return np.stack(masks)


class BrushData:
    """The records of a folder of tars, one tar or a hub id, shuffled, again and again.

    What cannot be used is passed over and counted: its place is taken by the next record that can be, so that the n-th
    place of the stream stays the same whatever was read before.

    Attributes:
        skipped: reason to the number of records read so far that cannot be used.
    """

    def __init__(self, source: str | Path, seed: int = 0, with_masks: bool = True) -> None:
        """Find the tars; nothing is read yet.

        Args:
            source: a folder with ``*.tar`` in it or below, one tar, or a hub id (owner/name), which is streamed.
            seed: of the order.
            with_masks: as in :func:`read_record`.

        Raises:
            DataError: no tar there.
        """
        self.seed, self.with_masks = seed, with_masks
        self.skipped: Counter[str] = Counter()
        self._counted = -1  # number of the last record looked at, so that none is counted twice
        self._files = _tars(str(source))
        self._rows: Iterator[Mapping[str, Any]] = iter(())
        self._next: int | None = None  # number of the record that the iterator gives next
        self._read: dict[int, TrainingPicture | None] = {}  # looked at and still near

    def take(self, first: int, size: int) -> list[TrainingPicture]:
        """Return the records at ``first`` … ``first + size - 1``; going on where the last call ended is cheap.

        Raises:
            DataError: a tar that cannot be read, or hardly a record that can be used.
        """
        self._read = {number: found for number, found in self._read.items() if number >= first}
        return [self._usable(first + i) for i in range(size)]

    def _usable(self, place: int) -> TrainingPicture:
        """Return the record at a place, or the next one after it that can be used."""
        for number in range(place, place + PATIENCE):
            found = self._record(number)
            if found is not None:
                return found
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.skipped.most_common())
        raise DataError(f"{PATIENCE} records of BrushData in a row cannot be used ({reasons}). Is it another layout?")

    def _record(self, number: int) -> TrainingPicture | None:
        if number in self._read:
            return self._read[number]
        row = self._row(number)
        reason, found = "", None
        try:
            found = read_record(row, self.with_masks)
        except BrokenRecordError as error:
            reason = str(error)
        if number > self._counted:
            self._counted = number
            if reason:
                self.skipped[reason] += 1
        self._read[number] = found
        return found

    def _row(self, number: int) -> Mapping[str, Any]:
        """Return one record as it is stored; backwards means reading from the start."""
        if self._next is None or number < self._next:
            self._rows, self._next = self._endless(), 0
        try:
            row = next(islice(self._rows, number - self._next, None))
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:
            raise DataError(f"BrushData cannot be read behind record {self._next}: {error}. Check the tars.") from error
        self._next = number + 1
        return row

    def _endless(self) -> Iterator[Mapping[str, Any]]:
        stream = _open(self._files).shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
        epoch = 0
        while True:
            stream.set_epoch(epoch)
            empty = True
            for row in stream:
                empty = False
                yield row
            if empty:
                raise DataError(f"BrushData holds no record in {self._files[0]} … Check the tars.")
            epoch += 1


def _tars(source: str) -> Sequence[str]:
    """Return the tars of a folder, sorted, one tar, or the hub's address of them all."""
    path = Path(source).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*.tar"))
        if found:
            return found
        raise DataError(f"There is no .tar in {path}. Give the folder of BrushData's shards.")
    if is_hub_id(source):
        return [f"hf://datasets/{source}@{_revision(source)}/**.tar"]
    raise DataError(f"There is neither a folder, a tar nor a hub id {source!r}. Give the folder of BrushData's shards.")


def identify(source: str) -> dict[str, JSON]:
    """Return what identifies BrushData by its content: names below the folder, sizes and hashes of the tars.

    Of a tar larger than 64 MiB, 64 pieces of 1 MiB, evenly spread, stand for the whole.

    Raises:
        DataError: no tar there, or the hub's data set could not be looked up.
    """
    path = Path(source).expanduser()
    files = _tars(source)
    if not path.exists():
        return {"data_sha256": files[0].partition("@")[2].partition("/")[0]}  # the hub's own revision
    digest = hashlib.sha256()
    for file in map(Path, files):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        digest.update(f"{name} {file.stat().st_size} {_hash(file)}\n".encode())
    return {"data_sha256": digest.hexdigest()}


def _hash(file: Path) -> str:
    size = file.stat().st_size
    if size <= PIECES * PIECE:
        return sha256_file(file)
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for number in range(PIECES):
            stream.seek(number * (size - PIECE) // (PIECES - 1))
            digest.update(stream.read(PIECE))
    return digest.hexdigest()


@functools.lru_cache(maxsize=8)
def _revision(name: str) -> str:
    """Return the newest commit of a data set on the hub, so that one training reads one state of it."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # the hub and its transport raise kinds of their own
        raise DataError(
            f"The data set {name} could not be looked up on the hub ({type(error).__name__}). Check the name and the "
            "network, or give the folder of BrushData's tars."
        ) from None


def _open(files: Sequence[str]) -> Any:
    """Return the stream. The columns are given, because ``datasets`` would take them from the first records alone."""
    from datasets import Features, Value
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    class Undecoded(WebDataset):
        """Members as bytes: those that no field asks for are not decoded, so that a broken one does no harm."""

        DECODERS: ClassVar[dict[str, Any]] = {}

    columns = {**dict.fromkeys(FIELDS, Value("binary")), "__key__": Value("string"), "__url__": Value("string")}
    builder = Undecoded(data_files={"train": list(files)}, features=Features(columns))
    return builder.as_streaming_dataset(split="train")
