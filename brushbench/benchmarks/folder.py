"""A plain folder of pictures, captions and, if there are any, masks. No manifest is needed."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from brushbench.benchmarks.base import LazyBenchmark, Record, chosen_splits, described
from brushbench.benchmarks.holes import BrushHole, HoleSource, MaskFile
from brushbench.benchmarks.tables import (
    CAPTION_COLUMNS,
    NAME_COLUMNS,
    Row,
    caption_in,
    column_of,
    extra_columns,
    read_table,
)
from brushbench.errors import DataError, UnknownNameError, UnusableError
from brushbench.files import path_inside, read_text
from brushbench.pictures import SUFFIXES, ImageFile
from brushbench.types import JSON, SPLITS

__all__ = ["Folder"]

CAPTION_FILES = ("captions.json", "captions.jsonl", "captions.csv", "captions.txt", "captions.parquet")
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MASK_ENDING = "_mask"  # of a mask beside its picture
READINGS = ("white", "black", "alpha")
_Files: TypeAlias = "dict[str, list[Path]]"  # by key


class Folder(LazyBenchmark):
    """A folder of yours: images/NAME.jpg, masks/NAME.png (white = hole), captions.json (or .csv, .txt, or NAME.txt),
    or metadata.csv (or .jsonl, .parquet) with the columns file_name, text and mask, as `datasets` reads folders.

    Layout::

        DIR/
          images/NAME.jpg           pictures; without images/, those that lie in DIR itself
          masks/NAME.png            white = hole, of the picture's size; they make one split, see the option holes=
          masks/inside/NAME.png     or one folder per split: inside, outside, brush
          images/NAME_mask.png      or beside the picture
          captions.json             {"NAME": "caption", ...}
          captions.csv              columns name, caption
          captions.txt              one "NAME<tab>caption" per line
          images/NAME.txt           or one file per picture
          metadata.csv              or .jsonl or .parquet, as `datasets` reads folders of images: columns file_name and
                                    text (or caption, prompt); mask, or inside_mask, outside_mask, brush_mask: files

    Without masks every picture gets its seeded brush hole. NAME may be written with or without its suffix; it is the
    sample's id, with ``_`` for ``/`` where pictures lie deeper. Pictures come in the order of their names. Captions are
    UTF-8, or UTF-16 with its mark; only methods and metrics that read captions need them.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str = "all",
        limit: int | None = None,
        skip_bad: bool = False,
        holes: Literal["inside", "outside", "brush"] = "brush",
        masks: Literal["white", "black", "alpha"] = "white",
        resize_masks: bool = False,
    ) -> None:
        """Find the pictures and check them.

        Args:
            root: the folder.
            split: ``all``, or those of its splits to use, with commas between them.
            limit: use only the first so many pictures, for every split.
            skip_bad: leave bad pictures out and count them.
            holes: the split that masks make which do not say of which split they are.
            masks: what marks the hole in a mask: ``white``, ``black``, or ``alpha`` (transparent).
            resize_masks: bring masks of another size to the picture's, by the nearest pixel; else they are refused.

        Raises:
            DataError: no such folder, no picture in it, or a caption file that cannot be read.
            BadRecordError: a picture has no mask, two captions, or is bad, and ``skip_bad`` is off.
            UnknownNameError: no such split, or no such reading of masks.
        """
        chosen_splits(holes, SPLITS)
        if masks not in READINGS:
            raise UnknownNameError("reading of masks", masks, READINGS)
        try:
            found = _Found(Path(root).expanduser(), holes)
        except OSError as error:
            raise DataError(f"{root} cannot be read ({error.strerror}). Make it readable.") from None
        splits = tuple(name for name in SPLITS if name in found.masks) or ("brush",)
        read_mask = partial(MaskFile, reading=masks, resize=resize_masks)
        # A caption without a picture is a missing file, so it is a record as well.
        keys = sorted({*found.pictures, *found.rows, *found.texts})
        records = [described(_id(key), partial(_record, key, found, splits, read_mask)) for key in keys]
        title = f"folder {found.root.resolve().name}"
        details: dict[str, JSON] = {"title": title}
        super().__init__("folder", records, splits=splits, split=split, limit=limit, skip_bad=skip_bad, details=details)
        self.title = title
        self.notes = found.notes()


@dataclass
class _Found:
    """What lies in a folder, by key: the path below the folder of pictures, without suffix, in Unicode's form NFC.

    Attributes:
        root: the folder.
        flat: the split of masks that do not say of which split they are.
        images: the folder of pictures.
        pictures: picture files; two of one key are one too many.
        texts: caption files of one picture each.
        rows: rows of caption and metadata files.
        masks: split to mask files.
    """

    root: Path
    flat: str
    images: Path = field(init=False)
    pictures: _Files = field(init=False)
    texts: _Files = field(init=False)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    masks: dict[str, _Files] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look for pictures, then for masks, then for captions."""
        if not self.root.is_dir():
            raise DataError(f"No folder {self.root}. Give the folder that holds images/ or the pictures themselves.")
        self.images = _child(self.root, "images") or self.root
        if not self.images.is_dir():
            raise DataError(f"{self.images} is no folder. Make it one, or move it away.")
        deep = self.images != self.root
        self.pictures = _by_key(self.images, SUFFIXES, deep)
        for split, folder in _mask_folders(self.root, self.flat).items():
            self.masks[split] = _by_key(folder, SUFFIXES, deep, SPLITS if folder.name not in SPLITS else ())
        self._take_neighbours()
        self._read_tables()
        if not self.pictures:
            raise DataError(f"No picture in {self.images}. Put {', '.join(SUFFIXES)} files there.")
        texts = _by_key(self.images, (".txt",), deep)
        self.texts = {key: files for key, files in texts.items() if key in self.pictures}

    def notes(self) -> list[str]:
        """Return sentences about what lies there under a name that is nearly one that is read."""
        read = ["images", "masks", *CAPTION_FILES, *METADATA_FILES]
        found = []
        for path in sorted(self.root.iterdir()):
            near = difflib.get_close_matches(path.name.lower(), read, n=1, cutoff=0.8)
            if near and path.name.lower() not in read and not path.name.startswith("."):
                found.append(f"{path} is not read. If it is meant to be, rename it to {near[0]}.")
        return found

    def _take_neighbours(self) -> None:
        """Take ``NAME_mask.png`` beside ``NAME.png`` for its mask."""
        for key in sorted(self.pictures):
            name = key[: -len(MASK_ENDING)]
            if key.lower().endswith(MASK_ENDING) and name in self.pictures:
                for file in self.pictures.pop(key):
                    self._add_mask(self.flat, name, file)

    def _add_mask(self, split: str, key: str, file: Path) -> None:
        files = self.masks.setdefault(split, {}).setdefault(key, [])
        if file not in files:
            files.append(file)

    def _read_tables(self) -> None:
        """Read the caption files, and the metadata files with the pictures and masks that they name."""
        captions = [path for name in CAPTION_FILES if (path := _child(self.root, name))]
        if len(captions) > 1:
            raise DataError(f"{self.root} holds {captions[0].name} and {captions[1].name}. Keep one of them.")
        for path in captions:
            for row in read_table(path):
                column = column_of(row.columns, CAPTION_COLUMNS)
                if column is None:
                    raise DataError(f"{path} has the columns {', '.join(row.columns)}, expected name, caption.")
                bare = Row(row.name, {column: row.columns[column]}, row.place)
                self.rows.setdefault(self._key(row.name), []).append(bare)
        for folder in self._metadata_folders():
            tables = [path for name in METADATA_FILES if (path := _child(folder, name))]
            if len(tables) > 1:
                raise DataError(f"{folder} holds {tables[0].name} and {tables[1].name}. Keep one of them.")
            for row in (row for path in tables for row in read_table(path)):
                self._take_row(folder, row)

    def _metadata_folders(self) -> Iterator[Path]:
        yield from dict.fromkeys((self.root, self.images))
        if not self.pictures:  # as `datasets` has it: DIR/train/metadata.csv, and the pictures beside it
            yield from sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def _take_row(self, folder: Path, row: Row) -> None:
        """Add a row of a metadata file, whose paths are relative to its folder."""
        key = self._key(row.name)
        if key not in self.pictures:
            try:
                file = path_inside(folder, row.name)
            except UnusableError as error:
                raise DataError(f"{folder}, {row.place}: {error.problem}. {error.remedy}.") from None
            key = self._key(file.relative_to(self.root).as_posix())
            files = self.pictures.setdefault(key, [])
            if file not in files:
                files.append(file)
        self.rows.setdefault(key, []).append(row)
        for split, column in _mask_columns(row.columns, self.flat):
            value = row.columns[column]
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                raise DataError(
                    f"{folder}, {row.place}: its {column!r} is a {type(value).__name__}, expected the path of a file. "
                    "Write paths relative to that folder."
                )
            try:
                mask = path_inside(folder, value)
            except UnusableError as error:
                raise DataError(f"{folder}, {row.place}: {error.problem}. {error.remedy}.") from None
            self.pictures.pop(self._key(value), None)  # a mask among the pictures is no picture
            self._add_mask(split, key, mask)

    def _key(self, name: str) -> str:
        """Return the key of a name as a table writes it: with or without suffix and ``images/``, of any system."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if len(parts) > 1 and parts[0] == self.images.name:
            parts = parts[1:]
        return _without_suffix("/".join(parts))


def _mask_columns(columns: Mapping[str, object], flat: str) -> Iterator[tuple[str, str]]:
    """Yield (split, column) of the columns that name masks."""
    for split in ("", *SPLITS):
        for ending in ("mask", "mask_file_name"):
            column = f"{split}_{ending}" if split else ending
            if column in columns:
                yield split or flat, column


def _id(key: str) -> str:
    return key.replace("/", "_")


def _without_suffix(name: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return unicodedata.normalize("NFC", name[: len(name) - len(suffix)])


def _child(folder: Path, name: str) -> Path | None:
    """Return what lies in a folder under a name, whatever the case of its letters."""
    exact = folder / name
    if exact.exists() or exact.is_symlink() or not folder.is_dir():
        return exact if exact.exists() or exact.is_symlink() else None
    return next((path for path in sorted(folder.iterdir()) if path.name.lower() == name), None)


def _by_key(folder: Path, suffixes: tuple[str, ...], deep: bool, without: tuple[str, ...] = ()) -> _Files:
    """Return files of some suffixes, by key; those in the folders ``without`` are left out.

    Names that begin with a dot are passed over: macOS leaves ``._a.png`` beside ``a.png``. What is no regular file is
    found as well, so that it is refused by name instead of being missed.
    """
    found: _Files = {}
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in relative.parts):
            continue
        if len(relative.parts) > 1 and relative.parts[0] in without:
            continue
        key = unicodedata.normalize("NFC", relative.with_suffix("").as_posix())
        found.setdefault(key, []).append(path)
    return found


def _mask_folders(root: Path, flat: str) -> dict[str, Path]:
    """Return the folder of masks of each split that has one."""
    masks = _child(root, "masks")
    if masks is None:
        return {}
    if not masks.is_dir():
        raise DataError(f"{masks} is no folder. Make it one, or move it away to use seeded brush holes.")
    folders = {name: path for name in SPLITS if (path := _child(masks, name)) and path.is_dir()}
    if _by_key(masks, SUFFIXES, deep=True, without=SPLITS):
        if flat in folders:
            raise DataError(
                f"{masks} holds masks and a folder {flat!r}, and both would be the split {flat!r}. "
                "Move the masks into one of inside/, outside/, brush/."
            )
        folders[flat] = masks
    if not folders:
        raise DataError(f"{masks} holds no mask. Put masks there, or remove it to use seeded brush holes.")
    return folders


def _record(key: str, found: _Found, splits: tuple[str, ...], read_mask: partial[MaskFile]) -> Record:
    rows = found.rows.get(key, [])
    picture = ImageFile(_only_picture(key, found))
    caption = _only_caption(key, found, rows)
    holes: dict[str, HoleSource] = {}
    for split in splits if found.masks else ():
        files = found.masks[split].get(key, []) + found.masks[split].get(f"{key}{MASK_ENDING}", [])
        if len(files) > 1:
            raise UnusableError(
                f"there are two masks of that name, {files[0].name} and {files[1].name}", "Rename or remove one"
            )
        folder = _child(found.root, "masks")
        wanted = folder / f"{key}.png" if folder else found.images / f"{key}{MASK_ENDING}.png"
        holes[split] = read_mask(files[0] if files else wanted)
    used = {*NAME_COLUMNS, *CAPTION_COLUMNS, *(name for row in rows for _, name in _mask_columns(row.columns, ""))}
    meta = {name: value for row in rows for name, value in extra_columns(row.columns, used).items()}
    return Record(_id(key), caption, picture, holes or {"brush": BrushHole(_id(key))}, meta)


def _only_picture(key: str, found: _Found) -> Path:
    files = found.pictures.get(key, [])
    if not files:
        raise UnusableError("it has a caption but its picture is missing", f"Put {key}.png into {found.images}")
    if len(files) > 1:
        raise UnusableError(
            f"there are two pictures of that name, {files[0].name} and {files[1].name}", "Rename or remove one"
        )
    return files[0]


def _only_caption(key: str, found: _Found, rows: list[Row]) -> str:
    """Return the caption of a picture, empty where it has none; the same one twice is one."""
    captions = {caption_in(row.columns): row.place for row in rows}
    for file in found.texts.get(key, []):
        captions.setdefault(read_text(file, "caption file").strip(), file.name)
    if len(captions) > 1:
        captions.pop("", None)
    if len(captions) > 1:
        (first, second), places = list(captions)[:2], list(captions.values())
        raise UnusableError(
            f"it has two captions, {first[:60]!r} ({places[0]}) and {second[:60]!r} ({places[1]})", "Keep one of them"
        )
    return next(iter(captions), "")
