"""EditBench: free-form holes in natural and generated pictures, in Google's files or in a re-processed copy.

::

    EditBench/                                        EditBench/
      annotations_natural.csv                           mapping_file.json     as BrushBench's, one mask per record
      annotations_generated.csv                         images/
      references_natural/{aos}.png
      references_generated/{aos}.png
      masks_natural/{aos}.png
      masks_generated/{aos}.png

The columns of the first layout are ``aos`` (the id), ``prompt_full``, ``prompt_mask-simple`` and ``prompt_mask-rich``
(as the loader of FreeInpaint reads them). BrushNet's rows use ``prompt_full`` at 512 x 512 and its random-mask
checkpoint; the copy that its authors made, the second layout, was never released (TencentARC/BrushNet, issue 33).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from brushbench.benchmarks.base import LazyBenchmark, Record, described
from brushbench.benchmarks.brushbench import caption_of, find_mapping, picture_of, read_mapping
from brushbench.benchmarks.holes import MaskFile, RLEHole
from brushbench.benchmarks.tables import extra_columns
from brushbench.errors import BadRecordError, DataError, UnknownNameError, UnusableError, UsageError
from brushbench.files import read_bytes, read_text
from brushbench.pictures import ImageFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from brushbench.types import Hole, Picture

__all__ = ["EditBench"]

Kind: TypeAlias = Literal["natural", "generated"]
Reading: TypeAlias = Literal["white", "black", "alpha", "blacked"]

KINDS = ("natural", "generated")
PROMPTS = ("full", "mask-simple", "mask-rich")
READINGS = ("white", "black", "alpha", "blacked")
FOLDER_NAMES = ("EditBench", "editbench")
HOW_TO_GET = "EditBench is at https://imagen.research.google/editor/"
PUBLISHED_SIDE = 512


class EditBench(LazyBenchmark):
    """EditBench: 120 natural and 120 generated pictures with one free-form hole each, the split ``brush``.

    ``Sample.meta`` carries ``kind`` (natural or generated), ``prompt_variant`` and all three prompts in Google's
    layout, and the further fields of the record in the re-processed one.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: str = "all",
        limit: int | None = None,
        skip_bad: bool = False,
        prompt: Literal["full", "mask-simple", "mask-rich"] = "full",
        kind: Literal["all", "natural", "generated"] = "all",
        masks: Literal["white", "black", "alpha", "blacked"] = "white",
        side: int = PUBLISHED_SIDE,
        mask_key: str = "auto",
    ) -> None:
        """Find the layout and check its records.

        Args:
            root: the folder, or the folder above ``EditBench/``.
            split: ``all`` or ``brush``.
            limit: use only the first so many pictures, natural ones first.
            skip_bad: leave bad records out and count them.
            prompt: which of the three prompts; published rows use ``full``. Google's layout only.
            kind: which half. Google's layout only.
            masks: how the mask files mark the hole: ``white`` or ``black`` on the other, ``alpha`` (transparent), or
                ``blacked``, photographs in which it was painted black. Google's layout only.
            side: pictures are brought to side x side (Lanczos; holes by the nearest pixel), 0 keeps them as they are.
                Google's layout only: run lengths fix the size of the other.
            mask_key: the mask field of a mapping file; ``auto``: the only one, or ``inpainting_mask``.

        Raises:
            DataError: neither layout is there, or a table lacks a column.
            BadRecordError: a record is bad and ``skip_bad`` is off.
            UnknownNameError: no such split, prompt, kind or reading of masks.
            UsageError: an option of the one layout with the other.
        """
        for option, value, known in (
            ("prompt", prompt, PROMPTS), ("kind", kind, ("all", *KINDS)), ("reading of masks", masks, READINGS)
        ):  # fmt: skip
            if value not in known:
                raise UnknownNameError(option, value, known)
        if side < 0:
            raise UsageError(f"side is {side}, expected pixels, or 0 to keep the pictures' own size.")
        root = Path(root).expanduser()
        folder = next((f for f in (root, *(root / n for n in FOLDER_NAMES)) if any(f.glob("annotations_*.csv"))), None)
        if folder:
            wanted: tuple[Any, ...] = KINDS if kind == "all" else (kind,)
            records = [record for each in wanted for record in _google(folder, each, prompt, masks, side)]
        else:
            mapping = find_mapping(
                root, FOLDER_NAMES, f"{HOW_TO_GET} (annotations_natural.csv, references_natural/ ...)"
            )
            if (prompt, kind, masks, side) != ("full", "all", "white", PUBLISHED_SIDE):
                raise UsageError(
                    f"The options prompt, kind, masks and side belong to Google's layout; {mapping} is a mapping file. "
                    "Leave them out."
                )
            records = list(_reprocessed(mapping, mask_key))
            if mask_key == "auto" and _is_brushbench(mapping):
                raise DataError(
                    f"{mapping} is BrushBench, not EditBench: its records have an inpainting_mask and an "
                    "outpainting_mask. Load it as brushbench, or choose one of its masks, such as "
                    "mask_key=inpainting_mask."
                )
        super().__init__("editbench", records, splits=("brush",), split=split, limit=limit, skip_bad=skip_bad)


# Google's files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SquarePicture(ImageFile):
    """A picture file brought to ``side`` x ``side``; 0 = as it is."""

    side: int

    def size(self) -> tuple[int, int]:
        height, width = super().size()
        _check_square(self.path, height, width, self.side)
        return (self.side, self.side) if self.side else (height, width)

    def decode(self, data: bytes) -> Picture:
        picture = super().decode(data)
        if self.side in (0, picture.shape[0]):
            return picture
        return np.asarray(Image.fromarray(picture).resize((self.side, self.side), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class _SquareHole(MaskFile):
    """A mask file that is brought to ``side`` x ``side`` with its picture; 0 = as it is."""

    side: int = 0

    def draw(self, height: int, width: int) -> Hole:
        """Return the hole, bool (height, width), True = repaint; the picture has that size."""
        hole = self.as_stored()
        _check_square(self.path, hole.shape[0], hole.shape[1], self.side)
        return self.fitted(hole, height, width)

    def fingerprint(self) -> bytes:
        # The picture is resized alike, so the side is covered here for both.
        return f"{self.reading} {self.side} ".encode() + read_bytes(self.path, "mask")


def _check_square(path: Path, height: int, width: int, side: int) -> None:
    if side and height != width:
        raise UnusableError(
            f"{path} is {height} x {width} (height x width), not square", "Set side=0 to keep every picture's own size"
        )


def _google(folder: Path, kind: Kind, prompt: str, reading: Reading, side: int) -> Iterator[Record | BadRecordError]:
    """Describe one half: a table, its references and its masks."""
    table = folder / f"annotations_{kind}.csv"
    columns = {"aos", *(f"prompt_{name}" for name in PROMPTS)}
    try:
        reader = csv.DictReader(io.StringIO(read_text(table, "table"), newline=""))
        missing = columns - set(reader.fieldnames or ())
        rows = list(reader)
    except UnusableError as error:
        other = KINDS[1 - KINDS.index(kind)]
        raise DataError(f"{error} Or set kind={other} to use that half alone.") from None
    except csv.Error as error:
        raise DataError(f"{table} cannot be read as a table ({error}). Fetch it again.") from None
    if missing:
        raise DataError(f"{table} lacks the columns {', '.join(sorted(missing))}. Fetch it again.")
    for row in rows:
        name = f"{kind}-{row['aos']}"
        yield described(name, partial(_google_record, folder, kind, name, row, prompt, reading, side))


def _google_record(
    folder: Path, kind: Kind, name: str, row: Mapping[str, str], prompt: str, reading: Reading, side: int
) -> Record:
    picture = _SquarePicture(folder / f"references_{kind}" / f"{row['aos']}.png", side)
    hole = _SquareHole(folder / f"masks_{kind}" / f"{row['aos']}.png", reading, resize=bool(side) or None, side=side)
    prompts = {f"prompt_{each}": row[f"prompt_{each}"] or "" for each in PROMPTS}
    meta = {"kind": kind, "prompt_variant": prompt, **prompts}
    return Record(name, caption_of(row, f"prompt_{prompt}"), picture, {"brush": hole}, meta)


# The re-processed copy ------------------------------------------------------------------------------------------------


def _reprocessed(mapping: Path, mask_key: str) -> Iterator[Record | BadRecordError]:
    for name, entry in read_mapping(mapping):
        if isinstance(entry, BadRecordError):
            yield entry
        else:
            yield described(name, partial(_reprocessed_record, mapping, name, entry, mask_key))


def _is_brushbench(mapping: Path) -> bool:
    """Whether every record of a mapping file has the two masks of BrushBench; EditBench has one per picture."""
    entries = [entry for _, entry in read_mapping(mapping) if not isinstance(entry, BadRecordError)]
    return bool(entries) and all({"inpainting_mask", "outpainting_mask"} <= set(entry) for entry in entries)


def _reprocessed_record(mapping: Path, name: str, entry: Mapping[str, Any], mask_key: str) -> Record:
    keys = [key for key, value in entry.items() if key.endswith("mask") and isinstance(value, list)]
    key = mask_key
    if mask_key == "auto":
        # The published script reads inpainting_mask unless told otherwise.
        key = "inpainting_mask" if "inpainting_mask" in keys or not keys else keys[0]
        if len(keys) > 1 and key != "inpainting_mask":
            raise UnusableError(f"it has several masks, {', '.join(keys)}", f"Choose one, such as mask_key={keys[0]}")
    if entry.get(key) is None:
        raise UnusableError(f"its {key!r} is missing", "Write its run lengths, or name another field by mask_key")
    holes = {"brush": RLEHole(entry[key], "brushbench", key)}
    meta = extra_columns(entry, {"image", "caption", "image_id", key, *keys})
    return Record(name, caption_of(entry), picture_of(mapping, entry), holes, meta)
