"""A plain folder of pictures, captions and, if there are any, masks. No manifest is needed.

::

    DIR/
      images/NAME.jpg           pictures; without images/, those that lie in DIR itself
      masks/NAME.png            white = hole, of the picture's size; they make one split, see the option holes=
      masks/inside/NAME.png     or a folder a split: inside, outside, brush
      captions.json             {"NAME": "caption", ...}
      captions.csv              columns name, caption
      captions.txt              one "NAME<tab>caption" a line
      images/NAME.txt           or a file a picture

Without ``masks/`` every picture gets its seeded brush hole. NAME may be written with or without its suffix; it is the
sample's id. Pictures come in the order of their names.
"""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from brushbench.benchmarks.base import LazyBenchmark, Record, chosen_splits, described
from brushbench.benchmarks.holes import BrushHole, HoleSource, MaskFile
from brushbench.errors import DataError, UnusableError
from brushbench.pictures import SUFFIXES, ImageFile
from brushbench.types import SPLITS

__all__ = ["Folder"]

NAME_COLUMNS = ("name", "file", "file_name", "image", "id")
CAPTION_COLUMNS = ("caption", "prompt", "text")
_Files: TypeAlias = "dict[str, list[Path]]"  # by name without suffix


class Folder(LazyBenchmark):
    """Pictures, captions and masks found by their names."""

    def __init__(
        self,
        root: Path,
        *,
        split: str = "all",
        limit: int | None = None,
        skip_bad: bool = False,
        holes: Literal["inside", "outside", "brush"] = "brush",
    ) -> None:
        """Find the pictures and check them.

        Args:
            root: the folder.
            split: ``all``, or those of its splits to use, with commas between them.
            limit: use only the first so many pictures, for every split.
            skip_bad: leave bad pictures out and count them.
            holes: the split that masks lying directly in ``masks/`` make.

        Raises:
            DataError: no such folder, no picture in it, or a caption file that cannot be read.
            BadRecordError: a picture has no caption or no mask, or is bad, and ``skip_bad`` is off.
            UnknownNameError: no such split.
        """
        chosen_splits(holes, SPLITS)
        root = Path(root).expanduser()
        pictures = _pictures(root)
        captions = _captions(root)
        masks = {name: (folder, _by_name(folder)) for name, folder in _mask_folders(root, holes).items()}
        splits = tuple(name for name in SPLITS if name in masks) or ("brush",)
        # A caption without a picture is a missing file, so it is a record as well.
        names = sorted({*pictures, *captions})
        records = [described(name, partial(_record, name, pictures, captions, masks, root)) for name in names]
        super().__init__("folder", records, splits=splits, split=split, limit=limit, skip_bad=skip_bad)


def _pictures(root: Path) -> _Files:
    """Return the pictures by name."""
    folder = root / "images" if (root / "images").is_dir() else root
    if not folder.is_dir():
        raise DataError(f"No folder {root}. Give the folder that holds images/ or the pictures themselves.")
    found = _by_name(folder)
    if not found:
        raise DataError(f"No picture in {folder}. Put {', '.join(SUFFIXES)} files there.")
    return found


def _by_name(folder: Path) -> _Files:
    """Return the picture files of a folder by their names without suffix."""
    found: _Files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _mask_folders(root: Path, flat: str) -> dict[str, Path]:
    """Return the folder of masks of each split that has one."""
    masks = root / "masks"
    folders = {name: masks / name for name in SPLITS if (masks / name).is_dir()}
    if masks.is_dir() and any(path.suffix.lower() in SUFFIXES for path in masks.iterdir()):
        if flat in folders:
            raise DataError(
                f"{masks} holds masks and a folder {flat!r}, and both would be the split {flat!r}. "
                "Move the masks into one of inside/, outside/, brush/."
            )
        folders[flat] = masks
    if masks.is_dir() and not folders:
        raise DataError(f"{masks} holds no mask. Put masks there, or remove it to use seeded brush holes.")
    return folders


def _captions(root: Path) -> dict[str, str]:
    """Return captions by name from the first caption file there is, or from one text file a picture."""
    readers = {"captions.json": _from_json, "captions.csv": _from_csv, "captions.txt": _from_lines}
    for name, read in readers.items():
        path = root / name
        if path.is_file():
            try:
                return {_stem(key): caption for key, caption in read(path.read_text(encoding="utf-8-sig")).items()}
            except (OSError, ValueError, csv.Error) as error:
                raise DataError(f"{path} cannot be read as captions: {error}. Correct it there.") from None
    folder = root / "images" if (root / "images").is_dir() else root
    return {
        path.stem: path.read_text(encoding="utf-8", errors="replace").strip()
        for path in sorted(folder.glob("*.txt"))
        if any(path.with_suffix(suffix).is_file() for suffix in SUFFIXES)
    }


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _from_json(text: str) -> dict[str, str]:
    content = json.loads(text)
    if not isinstance(content, dict) or not all(isinstance(caption, str) for caption in content.values()):
        raise ValueError('expected an object {"NAME": "caption", ...}')
    return content


def _from_csv(text: str) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    columns = rows.fieldnames or ()
    name = next((column for column in NAME_COLUMNS if column in columns), None)
    caption = next((column for column in CAPTION_COLUMNS if column in columns), None)
    if name is None or caption is None:
        raise ValueError(f"its columns are {', '.join(columns) or 'none'}, expected name, caption")
    found = {}
    for row in rows:
        if not row[name]:  # a line that ends before that column
            raise ValueError(f"line {rows.line_num} has no {name!r}")
        found[row[name]] = row[caption] or ""
    return found


def _from_lines(text: str) -> dict[str, str]:
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            raise ValueError(f"line {number} is {line!r}, expected NAME, a tab and the caption")
        if line.strip():
            found[name] = caption.strip()
    return found


def _record(
    name: str, pictures: _Files, captions: dict[str, str], masks: dict[str, tuple[Path, _Files]], root: Path
) -> Record:
    files = pictures.get(name, [])
    if not files:
        raise UnusableError("it has a caption but its picture is missing", f"Put {name}.png into {root}")
    if len(files) > 1:
        raise UnusableError(
            f"there are two pictures of that name, {files[0].name} and {files[1].name}", "Rename or remove one"
        )
    if not captions.get(name, "").strip():
        raise UnusableError("the caption is missing", f"Write it into {root / 'captions.json'}")
    holes: dict[str, HoleSource] = {}
    for split, (folder, files_there) in masks.items():
        holes[split] = MaskFile(files_there.get(name, [folder / f"{name}.png"])[0])
    return Record(name, captions[name], ImageFile(files[0]), holes or {"brush": BrushHole(name)})
