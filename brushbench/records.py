"""The records of a run's folder as types and files: one row per picture, one row per score. Imports no torch.

A folder may come from someone else, or from a process that was killed: what does not hold what it should is one
:class:`RunError` that names the file and says what to do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np

from brushbench.errors import RunError, UnusableError, printable
from brushbench.files import read_bytes
from brushbench.types import JSON, Picture

if TYPE_CHECKING:
    import pandas

__all__ = [
    "COLUMNS",
    "KEY",
    "SCORE_AGAIN",
    "ColumnScores",
    "PictureKey",
    "PictureRow",
    "ScoreRow",
    "Stamp",
    "State",
    "batch_files",
    "batch_name",
    "by_key",
    "dump",
    "file_name",
    "pixel_sha256",
    "read_all_rows",
    "read_headers",
    "read_json",
    "read_lines",
    "read_rows",
    "stamp",
    "write_atomically",
]

PictureKey: TypeAlias = tuple[str, str, int]  # sample, split, repeat
Stamp: TypeAlias = tuple[str, int, int, int]  # name, inode, size, nanoseconds of its last change
State: TypeAlias = Literal["ok", "black", "missing", "failed"]
KEY = ("sample", "split", "prompt_variant", "repeat", "variant", "metric", "protocol")
COLUMNS = (*KEY, "value", "reason", "picture_sha256")
BATCH_NAME = re.compile(r"(?!\.)([\w%.-]+-\d+-)?\d{6,}")  # without split and repeat: schema 1
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
AGAIN = "Delete it, and run the command again that began the run."
SCORE_AGAIN = "Delete it, and score the run again."
STRICT = {"extra": "forbid"}  # for pydantic: an unknown field is not passed over


@dataclass(frozen=True)
class PictureRow:
    """What became of one picture of a batch."""

    __pydantic_config__ = STRICT

    sample: str
    split: str
    repeat: int
    seed: int
    state: State
    reason: str = ""
    sha256: str = ""  # of the decoded pixels
    meta: Mapping[str, str] = field(default_factory=dict)  # what the benchmark carries of the sample

    @property
    def key(self) -> tuple[str, str, int]:
        """Sample, split and repeat: which picture it is."""
        return self.sample, self.split, self.repeat

    @property
    def prompt_variant(self) -> str:
        """Which of the benchmark's prompts it was asked with."""
        return self.meta.get("prompt_variant", "caption")


@dataclass(frozen=True)
class ScoreRow:
    """One score, or the reason why there is none (``value`` is ``None``); beside a score ``reason`` is a remark."""

    __pydantic_config__ = STRICT

    sample: str
    split: str
    prompt_variant: str
    repeat: int
    variant: str
    metric: str
    protocol: str
    value: float | None
    reason: str = ""
    picture_sha256: str | None = None  # of the picture it was computed from; None: schema 1, which did not say


@dataclass(frozen=True)
class ColumnScores:
    """The scores of one column, ready to be merged.

    Attributes:
        column: ``name@protocol``.
        rows: complete for each of their variants.
        describe: what the column was computed with, from its scores.
    """

    column: str
    rows: Sequence[ScoreRow]
    describe: Callable[[pandas.DataFrame], Mapping[str, JSON]]


# Names ----------------------------------------------------------------------------------------------------------------


def file_name(text: str) -> str:
    """Return a text as the name of a file or folder, percent-encoded where a system would refuse it."""
    encoded = quote(text, safe="").replace(".", "%2E")
    if text.partition(".")[0].upper() in RESERVED:
        return f"%{ord(text[0]):02X}{encoded[1:]}"
    return text if re.fullmatch(r"[\w-][\w.-]*", text, re.ASCII) else encoded


def batch_name(split: str, repeat: int, index: int) -> str:
    """Return the name of a batch: it does not depend on how many others there are, so that a run can grow."""
    return f"{file_name(split)}-{repeat}-{index:06d}"


def pixel_sha256(picture: Picture) -> str:
    """Return the SHA-256 of a picture's shape and pixels, whatever file format holds it."""
    digest = hashlib.sha256(str(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


# Files ----------------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename.

    Raises:
        RunError: the disk is full, failing or read-only.
    """
    # No process id in the name: what a killed process left behind is written over by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if os.name == "posix":  # a folder cannot be opened elsewhere
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path} could not be written ({error.strerror}). Free space there, or mend the disk or its permissions; "
            "the same command then continues."
        ) from None


def dump(value: object) -> bytes:
    """Return a record as JSON; half a character, such as of a file name that is no UTF-8, becomes an escape of JSON."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return text.encode("utf-8", "backslashreplace")


def read_json(file: Path | str, kind: type, remedy: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        RunError: it cannot be read, is no JSON, or holds another kind of value.
    """
    try:
        content = json.loads(read_bytes(file))
    except UnusableError as error:
        raise RunError(f"{error} {remedy}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested too deep
        raise RunError(f"{file} is not JSON ({printable(str(error))}). {remedy}") from None
    if not isinstance(content, kind):
        raise RunError(f"{file} holds a {type(content).__name__}, expected a {kind.__name__}. {remedy}")
    return content


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _typed(kind: Any, content: Any, file: Path | str, remedy: str) -> Any:
    from pydantic import ValidationError

    from brushbench.config import problems, refuse_newer

    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        refuse_newer(error, file)
        raise RunError(f"{file} is damaged: {problems(error)}. {remedy}") from None


def read_rows(file: Path | str, kind: type[PictureRow] | type[ScoreRow]) -> list[Any]:
    """Return the rows of a batch, of its pictures or of its scores.

    Raises:
        RunError: the file is damaged.
    """
    remedy = AGAIN if kind is PictureRow else SCORE_AGAIN
    return list(_typed(list[kind], read_json(file, list, remedy), file, remedy))  # type: ignore[valid-type]


def read_all_rows(files: Sequence[Path | str]) -> list[list[PictureRow]]:
    """Return the rows of many batches of pictures, in a quarter of the time of one after the other.

    Raises:
        RunError: a file is damaged; the message names it.
    """
    from pydantic import ValidationError

    try:
        found = _adapter(list[list[PictureRow]]).validate_json(b"[" + b",".join(map(read_bytes, files)) + b"]")
    except (UnusableError, ValidationError):
        found = []
    if len(found) != len(files):  # one is damaged: read them one by one, to say which
        return [read_rows(file, PictureRow) for file in files]
    return list(found)


def batch_files(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Return names and files of the batches in a folder, by name; other files beside them are not ours."""
    try:
        with os.scandir(folder) as entries:
            files = [(file.name.removesuffix(".json"), file) for file in entries if file.name.endswith(".json")]
    except OSError:  # none is there
        return []
    return sorted((pair for pair in files if BATCH_NAME.fullmatch(pair[0])), key=lambda pair: pair[0])


def by_key(files: Sequence[Path | str], batches: Sequence[Sequence[PictureRow]]) -> dict[PictureKey, PictureRow]:
    """Return the rows of batches by sample, split and repeat.

    Raises:
        RunError: a picture stands in two of them; the message names the second file.
    """
    found = {(row.sample, row.split, row.repeat): row for rows in batches for row in rows}
    if len(found) < sum(map(len, batches)):
        seen = set[PictureKey]()
        for file, rows in zip(files, batches, strict=True):
            for row in rows:
                if row.key in seen:
                    raise RunError(f"{file} holds {row.key}, which another batch holds too. {AGAIN}")
                seen.add(row.key)
    return found


def stamp(file: Path | os.DirEntry[str]) -> Stamp:
    """Return what changes when a file is written, in place or by renaming another to its name."""
    try:
        status = file.stat()
    except OSError:  # who reads it says what is wrong
        return file.name, 0, 0, 0
    return file.name, status.st_ino, status.st_size, status.st_mtime_ns


def read_headers(file: Path) -> dict[str, Any]:
    """Return what each column was computed with, by ``name@protocol``.

    Raises:
        RunError: the file is damaged.
    """
    from brushbench.config import ColumnRecord

    headers: dict[str, Any] = read_json(file, dict, SCORE_AGAIN)
    _typed(dict[str, ColumnRecord], headers, file, SCORE_AGAIN)
    return headers


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; a line that a kill cut short is left out."""
    found = []
    for line in file.read_text("utf-8", "replace").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                found.append(entry)
    return found
