"""Tables beside pictures: captions and metadata in JSON, JSON lines, CSV, Parquet or plain lines, row by row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from brushbench.errors import DataError, UnusableError
from brushbench.files import read_bytes, read_text

__all__ = ["CAPTION_COLUMNS", "NAME_COLUMNS", "Row", "caption_in", "column_of", "extra_columns", "read_table"]

NAME_COLUMNS = ("name", "file", "file_name", "image", "id")
CAPTION_COLUMNS = ("caption", "prompt", "text")
# Fields that mean something to the toolkit in Sample.meta; a table may hold a column of that name by chance.
RESERVED_META = ("prompt_variant",)


@dataclass(frozen=True)
class Row:
    """One row of a table, with the name of the picture it is about."""

    name: str
    columns: Mapping[str, Any]
    place: str  # for messages: file and line


_Reader: TypeAlias = "Callable[[Path], Iterator[Row]]"


def read_table(path: Path) -> list[Row]:
    """Return the rows of a caption or metadata file; its suffix says what it is.

    ``.json``: an object of captions by name. ``.jsonl``: one object per line, ``.csv`` and ``.parquet``: columns, among
    them one of :data:`NAME_COLUMNS`. ``.txt``: one "NAME<tab>caption" per line.

    Raises:
        DataError: it cannot be read as such.
    """
    try:
        return list(READERS[path.suffix.lower()](path))
    except UnusableError as error:
        raise DataError(f"{path} cannot be read as captions: {error.problem}. {error.remedy}.") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as captions: {error}. Correct it there.") from None


def _from_json(path: Path) -> Iterator[Row]:
    content = json.loads(read_text(path), object_pairs_hook=_pairs)
    if not isinstance(content, _Pairs) or not all(isinstance(caption, str) for _, caption in content):
        raise ValueError('expected an object {"NAME": "caption", ...}')
    for name, caption in content:
        yield Row(name, {"caption": caption}, path.name)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, in which a key may stand twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _from_jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(read_text(path)):
        try:
            columns = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON ({error})") from None
        if not isinstance(columns, dict):
            raise ValueError(f"line {number} holds a {type(columns).__name__}, expected an object")
        yield _row(columns, f"line {number} of {path.name}")


def _from_csv(path: Path) -> Iterator[Row]:
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = [column.strip() for column in rows.fieldnames or ()]
    rows.fieldnames = columns
    if doubled := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"it has two columns {doubled[0]!r}")
    if column_of(columns, NAME_COLUMNS) is None:
        raise ValueError(f"its columns are {', '.join(columns) or 'none'}, expected name, caption")
    for columns_of_row in rows:
        place = f"line {rows.line_num}"
        if None in columns_of_row:  # a comma in a caption without quotes: what follows it would be lost
            raise ValueError(f'{place} has more fields than the first line; write captions with commas in "quotes"')
        yield _row(columns_of_row, f"{place} of {path.name}")


def _from_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(read_bytes(path)))
        rows = table.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"no Parquet file ({error})") from None
    for number, columns in enumerate(rows, start=1):
        yield _row(columns, f"row {number} of {path.name}")


def _from_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(read_text(path)):
        name, tab, caption = line.partition("\t")
        if not tab:
            shown = line if len(line) <= 80 else f"{line[:80]}..."
            raise ValueError(f"line {number} is {shown!r}, expected NAME, a tab and the caption")
        yield Row(name, {"caption": caption.strip()}, f"line {number} of {path.name}")


READERS: Mapping[str, _Reader] = {
    ".json": _from_json,
    ".jsonl": _from_jsonl,
    ".csv": _from_csv,
    ".parquet": _from_parquet,
    ".txt": _from_lines,
}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1; a U+2028 in a caption ends no line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _row(columns: Mapping[str, Any], place: str) -> Row:
    key = column_of(columns, NAME_COLUMNS)
    name = columns[key] if key else None
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{place} has no {key or 'file_name'!r}")
    return Row(name, columns, place)


def column_of(columns: Mapping[str, Any] | Sequence[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the ``wanted`` columns that is there."""
    return next((column for column in wanted if column in columns), None)


def caption_in(columns: Mapping[str, Any], wanted: Sequence[str] = CAPTION_COLUMNS) -> str:
    """Return the caption of a row, empty where it has none.

    Raises:
        UnusableError: it is no text.
    """
    key = column_of(columns, wanted)
    caption = columns[key] if key else None
    if caption is None or caption != caption:  # NaN is how pandas writes that there is none
        return ""
    if not isinstance(caption, str):
        raise UnusableError(
            f"the caption is missing: its {key!r} is a {type(caption).__name__}", f"Write a sentence as its {key!r}"
        )
    return caption.strip()


def extra_columns(columns: Mapping[str, Any], used: Sequence[str] | set[str]) -> dict[str, str]:
    """Return the columns that are text or a number and not ``used`` otherwise, as text for ``Sample.meta``."""
    return {
        f"field_{key}" if key in RESERVED_META else str(key): str(value)
        for key, value in columns.items()
        if key not in used and isinstance(value, str | int | float)
    }
