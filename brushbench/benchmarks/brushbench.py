"""BrushBench in its published layout, and any folder laid out like it.

::

    BrushBench/
      mapping_file.json      {"000000000": {"image": "images/000000000.jpg", "caption": "...",
      images/                               "inpainting_mask": [start, length, ...], "outpainting_mask": [...]}, ...}

Source: TencentARC/BrushNet, examples/brushnet/evaluate_brushnet.py. Run lengths are 1-based and row-major, of the
picture's own size (512 x 512 as published). The two holes are stored apart and neither is derived from the other: the
published inside holes are sometimes larger than the object that the outside hole spares.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushbench.benchmarks.base import LazyBenchmark, Record, chosen_splits, described
from brushbench.benchmarks.holes import BrushHole, HoleSource, RLEHole
from brushbench.benchmarks.tables import extra_columns
from brushbench.errors import BadRecordError, DataError, UnusableError
from brushbench.files import is_file, path_inside, read_text
from brushbench.pictures import ImageFile
from brushbench.types import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["BrushBench", "caption_of", "find_mapping", "picture_of", "read_mapping"]

MAPPING_NAMES = ("mapping_file.json", "mapping_file_list.json")
FOLDER_NAMES = ("BrushBench", "BrushDench")  # the second is the spelling of the published README
HOLE_KEYS: Mapping[str, str] = {"inside": "inpainting_mask", "outside": "outpainting_mask", "brush": "brush_mask"}
PUBLISHED_SIDE = 512
HOW_TO_GET = "BrushBench is given out on request at https://forms.gle/9TgMZ8tm49UYsZ9s5"


class BrushBench(LazyBenchmark):
    """BrushBench: 600 pictures with a caption, an inside and an outside hole, and brush holes of our own.

    Splits: ``inside`` (``inpainting_mask``), ``outside`` (``outpainting_mask``), ``brush`` (``brush_mask`` if the
    record has one, else the seeded :func:`~brushbench.benchmarks.holes.brush_hole`; the published records have none).
    Further fields of a record that are text or numbers become ``Sample.meta``.
    """

    def __init__(self, root: Path, *, split: str = "all", limit: int | None = None, skip_bad: bool = False) -> None:
        """Read the mapping file and check its records.

        Args:
            root: the folder, the folder above ``BrushBench/`` or ``BrushDench/``, or the mapping file itself. The
                mapping may be the published object or a list of records with ``image_id``.
            split: ``all``, one of ``inside``, ``outside``, ``brush``, or several with commas between them.
            limit: use only the first so many records, for every split.
            skip_bad: leave bad records out and count them.

        Raises:
            DataError: no such folder, or a mapping file that is none.
            BadRecordError: a record is bad and ``skip_bad`` is off.
            UnknownNameError: no such split.
        """
        mapping = find_mapping(Path(root))
        wanted = chosen_splits(split, SPLITS)
        records = [
            entry
            if isinstance(entry, BadRecordError)
            else described(name, partial(_record, mapping, name, entry, wanted))
            for name, entry in read_mapping(mapping)
        ]
        super().__init__("brushbench", records, splits=SPLITS, split=split, limit=limit, skip_bad=skip_bad)


def find_mapping(root: Path, folder_names: tuple[str, ...] = FOLDER_NAMES, how_to_get: str = HOW_TO_GET) -> Path:
    """Return the mapping file of a data root.

    Args:
        root: the folder that holds it, the folder above one of ``folder_names``, or the file itself.
        folder_names: how the folder may be called.
        how_to_get: sentence for the message when there is none.

    Raises:
        DataError: there is none.
    """
    root = root.expanduser()
    if root.is_file():
        return root
    for folder in (root, *(root / name for name in folder_names)):
        for name in MAPPING_NAMES:
            if os.path.lexists(folder / name):  # what is no regular file is refused by name when it is read
                return folder / name
    there = "There is no such folder" if not root.is_dir() else f"It holds no {' or '.join(MAPPING_NAMES)}"
    raise DataError(
        f"No benchmark at {root}: {there}, nor does {'/ or '.join(folder_names)}/ in it. {how_to_get}; "
        "a plain folder of pictures and masks is the benchmark 'folder'."
    )


class _OutsideHole(RLEHole):
    """An outside hole, which tells the size it was written for.

    A background reaches the last pixel. One that ends on the last pixel of the published size, in a larger picture,
    was not written for that picture: every run would be in range and in the wrong place.
    """

    def check(self, height: int, width: int) -> None:
        super().check(height, width)
        end = max(start + length - 1 for start, length in zip(self.pairs[::2], self.pairs[1::2], strict=True))
        if end == PUBLISHED_SIDE**2 < height * width:
            raise UnusableError(
                f"{self.key} is written for {PUBLISHED_SIDE} x {PUBLISHED_SIDE}, the picture is {height} x {width} "
                "(height x width)",
                f"Bring the picture to {PUBLISHED_SIDE} x {PUBLISHED_SIDE}",
            )


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were written twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.repeated = {key for key in keys if keys.count(key) > 1} if len(self) < len(keys) else set()


def read_mapping(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | BadRecordError]]:
    """Yield (record id, fields) of a mapping file in its order; a record that is no object stands there as its error.

    Args:
        path: JSON file: an object of records by id, or a list of records with ``image_id``.

    Raises:
        DataError: the file is not readable as one of the two.
    """
    try:
        content = json.loads(read_text(path, "mapping file"), object_pairs_hook=_Object)
    except UnusableError as error:
        raise DataError(str(error)) from None
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of 5,000 digits
        raise DataError(f"{path} is no JSON file ({error}). Fetch it again, or correct it there.") from None
    if isinstance(content, list):
        for place, entry in enumerate(content):
            yield _listed(place, entry)
    elif isinstance(content, _Object):
        for name, entry in content.items():
            if name in content.repeated:
                yield name, BadRecordError(name, f"its id occurs twice in {path.name}", "Give every record its own id")
            else:
                yield name, _fields(name, entry)
    else:
        raise DataError(
            f"{path} holds a {type(content).__name__}, expected an object of records by id or a list of records with "
            "'image_id'. Check that it is the mapping file."
        )


def _listed(place: int, entry: Any) -> tuple[str, Mapping[str, Any] | BadRecordError]:
    name = entry.get("image_id") if isinstance(entry, _Object) else None
    if isinstance(name, bool) or not isinstance(name, str | int):
        number = f"number {place + 1}"
        return number, BadRecordError(number, "it has no 'image_id'", "Give it an 'image_id' of its own")
    return str(name), _fields(str(name), entry)


def _fields(name: str, entry: Any) -> Mapping[str, Any] | BadRecordError:
    if isinstance(entry, _Object):
        return entry
    return BadRecordError(
        name, f"it is a {type(entry).__name__}, not an object", "Write an object with 'image' and 'caption'"
    )


def picture_of(mapping: Path, entry: Mapping[str, Any]) -> ImageFile:
    """Return the picture of a record: ``image``, relative to the mapping file's folder or to ``images/`` in it.

    Raises:
        UnusableError: no ``image``, or a path that leads out of the folder.
    """
    relative = entry.get("image")
    if not isinstance(relative, str):
        raise UnusableError("its 'image' is missing", "Write the path of the picture")
    candidates = [path_inside(folder, relative) for folder in (mapping.parent, mapping.parent / "images")]
    return ImageFile(next((path for path in candidates if is_file(path)), candidates[0]))


def caption_of(entry: Mapping[str, Any], key: str = "caption") -> str:
    """Return the caption of a record, empty where it has none.

    Raises:
        UnusableError: it is no text.
    """
    caption = entry.get(key)
    if caption is not None and not isinstance(caption, str):
        raise UnusableError(
            f"the caption is missing: its {key!r} is a {type(caption).__name__}", f"Write a sentence as its {key!r}"
        )
    return caption or ""


def _record(mapping: Path, name: str, entry: Mapping[str, Any], wanted: tuple[str, ...]) -> Record:
    holes: dict[str, HoleSource] = {}
    for split in wanted:
        key = HOLE_KEYS[split]
        if entry.get(key) is not None:
            hole = _OutsideHole if split == "outside" else RLEHole
            holes[split] = hole(entry[key], "brushbench", key)
        elif split == "brush":
            holes[split] = BrushHole(name)
        else:
            raise UnusableError(f"its {key!r} is missing", "Write its run lengths, or choose other splits")
    used = {"image", "caption", "image_id", *HOLE_KEYS.values()}
    return Record(name, caption_of(entry), picture_of(mapping, entry), holes, extra_columns(entry, used))
