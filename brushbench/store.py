"""A run's folder: atomic commits, one lock a shard, rows only. Aggregates nothing, imports no torch.

::

    run.json                     schema, settings, seeds, versions, git revision, weight and data SHA-256, device
    pictures/SPLIT/REPEAT/ID.png lossless, as the method returned them
    batches/000000.json          one finished batch: a row a picture (state, reason, SHA-256 of its pixels)
    tracebacks/000000.txt        of a batch's failed pictures
    parts/COLUMN/000000.json     scores of one batch under one metric, until they are merged
    scores.parquet               one row a score, in the order of the plan
    timing.jsonl                 seconds and peak memory a batch; outside byte-equality
    locks/                       one a shard, one for merging

A batch counts only when its ``batches/`` file exists, which is renamed into place after its pictures. So a crash
costs the batch under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np

from brushbench.errors import ConfigMismatchError, RunError, RunLockedError, UnusableError, printable
from brushbench.files import read_bytes
from brushbench.types import JSON, Picture

if TYPE_CHECKING:
    import pandas

    from brushbench.config import RunHeader

__all__ = ["COLUMNS", "KEY", "PictureRow", "RunFolder", "ScoreRow", "State", "pixel_sha256", "write_atomically"]

SHOWN = 5  # lines of differences in a message
State: TypeAlias = Literal["ok", "black", "missing", "failed"]
KEY = ("sample", "split", "prompt_variant", "repeat", "variant", "metric", "protocol")
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{i}" for port in ("COM", "LPT") for i in range(1, 10))}
COLUMNS = (*KEY, "value", "reason")


@dataclass(frozen=True)
class PictureRow:
    """What became of one picture of a batch."""

    sample: str
    split: str
    repeat: int
    seed: int
    state: State
    reason: str = ""
    sha256: str = ""  # of the decoded pixels
    meta: Mapping[str, str] = field(default_factory=dict)  # what the benchmark carries of the sample


@dataclass(frozen=True)
class ScoreRow:
    """One score, or the reason why there is none (``value`` is ``None``); beside a score ``reason`` is a remark."""

    sample: str
    split: str
    prompt_variant: str
    repeat: int
    variant: str
    metric: str
    protocol: str
    value: float | None
    reason: str = ""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # No process id in the name: what a killed process left behind is written over by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def pixel_sha256(picture: Picture) -> str:
    """Return the SHA-256 of a picture's shape and pixels, whatever file format holds it."""
    digest = hashlib.sha256(str(picture.shape).encode())
    digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _read(file: Path, kind: type, remedy: str) -> Any:
    """Return what one of our JSON files holds; a damaged one is a :class:`RunError` that says what to do."""
    try:
        content = json.loads(read_bytes(file))
    except UnusableError as error:
        raise RunError(f"{error} {remedy}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested too deep
        raise RunError(f"{file} is not JSON ({printable(str(error))}). {remedy}") from None
    if not isinstance(content, kind):
        raise RunError(f"{file} holds a {type(content).__name__}, expected a {kind.__name__}. {remedy}")
    return content


def _file_name(text: str) -> str:
    """Return a text as the name of a file or folder, percent-encoded where a system would refuse it."""
    encoded = quote(text, safe="").replace(".", "%2E")
    if text.partition(".")[0].upper() in RESERVED:
        return f"%{ord(text[0]):02X}{encoded[1:]}"
    return text if re.fullmatch(r"[\w-][\w.-]*", text, re.ASCII) else encoded


class RunFolder:
    """One run on disk. Every method may be called from several processes at once."""

    def __init__(self, path: Path | str) -> None:
        """Point at a folder; nothing is read or made until it is needed."""
        self.path = Path(path)

    # Identity ---------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def header(self) -> RunHeader:
        """Return ``run.json``.

        Raises:
            RunError: there is none, it is damaged, or a newer release wrote it.
        """
        from brushbench.config import read_header

        file = self.path / "run.json"
        if not file.is_file():
            raise RunError(
                f"{self.path} holds no run: run.json is missing. Name the folder that `brushbench eval` wrote."
            )
        return read_header(_read(file, dict, "Restore it, or start again in another folder."), file)

    def begin(self, header: RunHeader) -> None:
        """Start a run, or continue the one that is here if its identity is the same.

        Raises:
            ConfigMismatchError: the folder holds a run of other settings; the difference is shown.
            RunError: the folder holds files, but no run.
        """
        with self.lock("begin", wait=True):
            if not self.exists:
                strangers = sorted(p.name for p in self.path.iterdir() if p.name != "locks" and p.name[0] != ".")
                if strangers:
                    raise RunError(
                        f"{self.path} holds {strangers[0]!r} but no run.json. Name an empty or a new folder with --out."
                    )
                write_atomically(self.path / "run.json", _dump(header.to_json()))
                return
        difference = self.header().differences(header)
        if difference:
            if len(difference) > SHOWN:
                difference[SHOWN - 1 :] = [f"and {len(difference) - SHOWN + 1} more"]
            lines = "\n".join(f"  {line}" for line in difference)
            raise ConfigMismatchError(
                f"{self.path} holds a run of other settings (there -> asked for):\n{lines}\n"
                "Name another folder with --out or --name, or delete this one."
            )

    def abandon(self) -> None:
        """Leave nothing of a run of which no batch was committed and on which no other process works.

        So it may be begun with other settings, or by a method that was mended.
        """
        with self.lock("begin", wait=True):
            mine = {"begin.lock"}
            others = [file.stem for file in (self.path / "locks").glob("*.lock") if file.name not in mine]
            if any(self.path.glob("batches/*.json")) or any(map(self._is_held, others)):
                return
            (self.path / "run.json").unlink(missing_ok=True)
        for file in (self.path / "locks").glob("*.lock"):
            file.unlink(missing_ok=True)
        for folder in (self.path / "locks", self.path):
            with contextlib.suppress(OSError):  # someone else has put something there
                folder.rmdir()

    def _is_held(self, name: str) -> bool:
        try:
            with self.lock(name):
                return False
        except RunLockedError:
            return True

    # Locks ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = False) -> Iterator[None]:
        """Hold one of the run's locks; the system drops it when the process ends, however it ends.

        Raises:
            RunLockedError: another process holds it and ``wait`` is off.
            RunError: the folder cannot be written.
        """
        import filelock

        folder = self.path / "locks"
        held = filelock.FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.acquire()
        except filelock.Timeout:
            raise RunLockedError(
                f"Another process works on {name} of {self.path}. Wait for it, or give this one its own part "
                "with --shard i/n."
            ) from None
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written ({error.strerror}). Make it writable, or name another folder with "
                "--out."
            ) from None
        try:
            yield
        finally:
            held.release()

    # Pictures ---------------------------------------------------------------------------------------------------

    def picture_path(self, sample: str, split: str, repeat: int) -> Path:
        """Return where a picture lies; an id or split that is no file name, on any system, is percent-encoded."""
        return self.path / "pictures" / _file_name(split) / str(repeat) / f"{_file_name(sample)}.png"

    def picture(self, row: PictureRow) -> Picture:
        """Read a picture back.

        Raises:
            RunError: it is gone, or its pixels are not those that were committed.
        """
        from brushbench.pictures import read_picture

        file = self.picture_path(row.sample, row.split, row.repeat)
        try:
            picture = read_picture(file)
        except UnusableError as error:
            remedy = f"Delete {self.path / 'batches'} and run the same command again"
            raise RunError(f"{file} cannot be read ({error.problem}). {remedy}.") from None
        if pixel_sha256(picture) != row.sha256:
            raise RunError(f"{file} was changed after it was committed. Restore it, or start again in another folder.")
        return picture

    def finished_batches(self) -> list[int]:
        """Return the committed batches, ascending."""
        return sorted(int(file.stem) for file in self.path.glob("batches/*.json") if file.stem.isdecimal())

    def finished(self, batch: int) -> bool:
        """Whether a batch is committed."""
        return self._batch_file(batch).is_file()

    def commit(self, batch: int, rows: Sequence[PictureRow], pictures: Sequence[Picture | None]) -> None:
        """Commit one batch: its pictures first, its rows last."""
        from io import BytesIO

        from PIL import Image

        for row, picture in zip(rows, pictures, strict=True):
            if picture is not None:
                buffer = BytesIO()
                Image.fromarray(picture).save(buffer, "PNG")
                write_atomically(self.picture_path(row.sample, row.split, row.repeat), buffer.getvalue())
        write_atomically(self._batch_file(batch), _dump([asdict(row) for row in rows]))

    def keep_tracebacks(self, batch: int, text: str) -> None:
        """Keep the tracebacks of a batch's failed pictures."""
        write_atomically(self.tracebacks(batch), text.encode())

    def tracebacks(self, batch: int) -> Path:
        """Return where the tracebacks of a batch's failed pictures are, if it has any."""
        return self.path / "tracebacks" / f"{batch:06d}.txt"

    def rows(self, batch: int) -> list[PictureRow]:
        """Return the rows of a committed batch.

        Raises:
            RunError: its file is damaged.
        """
        rows = _read(self._batch_file(batch), list, "Delete it, and run the command again that began the run.")
        return [PictureRow(**row) for row in rows]

    def discard(self, batch: int) -> None:
        """Forget a batch, so that it is made again; every score of the run goes with it."""
        waiting = self.path.glob(f"parts/*/{batch:06d}.json")
        for file in [
            self.path / "scores.parquet",
            self.path / "metrics.json",
            *waiting,
            self.tracebacks(batch),
            self._batch_file(batch),
        ]:
            file.unlink(missing_ok=True)

    def _batch_file(self, batch: int) -> Path:
        return self.path / "batches" / f"{batch:06d}.json"

    # Scores -----------------------------------------------------------------------------------------------------

    def part(self, column: str, batch: int) -> Path:
        """Return where the scores of one batch under one column wait to be merged."""
        return self.path / "parts" / column / f"{batch:06d}.json"

    def commit_scores(self, column: str, batch: int, rows: Sequence[ScoreRow]) -> None:
        """Commit the scores of one batch under one column."""
        write_atomically(self.part(column, batch), _dump([asdict(row) for row in rows]))

    def scored_batches(self, column: str) -> list[int]:
        """Return the batches whose scores under a column wait to be merged, ascending."""
        return sorted(int(file.stem) for file in self.path.glob(f"parts/{column}/*.json"))

    def merge(self, part: str, column: str, describe: Callable[[pandas.DataFrame], Mapping[str, JSON]]) -> None:
        """Put one column's waiting scores into ``scores.parquet``, in place of what the column held of their variants.

        What the column was computed with is written before its scores: whoever reads the scores first finds it.

        Args:
            part: where the scores wait.
            column: ``name@protocol``.
            describe: what the column was computed with, from its scores.
        """
        import pandas as pd

        with self.lock("merge", wait=True):
            files = [self.part(part, batch) for batch in self.scored_batches(part)]
            if not files:
                return
            new = pd.DataFrame(
                [row for file in files for row in _read(file, list, "Delete it, and score the run again.")],
                columns=list(COLUMNS),
            )
            self._write_header(column, describe(new))
            old = self.scores()
            column_of = ["metric", "protocol", "variant"]
            kept = old[~pd.MultiIndex.from_frame(old[column_of]).isin(pd.MultiIndex.from_frame(new[column_of]))]
            table = pd.concat([frame for frame in (kept, new) if len(frame)] or [new], ignore_index=True)
            # Stable, so that inside a variant the plan's order stays, whatever the size of its batches.
            order = ["metric", "protocol", "variant"]
            self._write_scores(table.sort_values(order, kind="stable", ignore_index=True))
            for file in files:
                file.unlink()
            with contextlib.suppress(OSError):
                files[0].parent.rmdir()

    def scores(self) -> pandas.DataFrame:
        """Return every score, one row each, in long form; empty where nothing was scored.

        Raises:
            RunError: the file is damaged.
        """
        import pandas as pd
        import pyarrow as pa

        file = self.path / "scores.parquet"
        if not file.is_file():
            return pd.DataFrame({name: pd.Series(dtype="float64" if name == "value" else "object") for name in COLUMNS})
        try:
            return pd.read_parquet(file)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file} cannot be read ({error}). Delete it, and score the run again.") from None

    def scored_protocols(self) -> set[str]:
        """Return the protocols under which there are scores, without reading the scores.

        Raises:
            RunError: the file is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.path / "scores.parquet"
        if not file.is_file():
            return set()
        try:
            return set(pq.read_table(file, columns=["protocol"])["protocol"].unique().to_pylist())
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{file} cannot be read ({error}). Delete it, and score the run again.") from None

    def _write_scores(self, table: pandas.DataFrame) -> None:
        from io import BytesIO

        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [pa.field(name, {"value": pa.float64(), "repeat": pa.int64()}.get(name, pa.string())) for name in COLUMNS]
        )
        buffer = BytesIO()
        pq.write_table(
            pa.Table.from_pandas(table, schema=schema, preserve_index=False).replace_schema_metadata(), buffer
        )
        write_atomically(self.path / "scores.parquet", buffer.getvalue())

    # What each column was computed with, and what it cost ---------------------------------------------------------

    def metric_headers(self) -> dict[str, Any]:
        """Return what each scored column was computed with: its settings and weight hashes, by ``name@protocol``."""
        file = self.path / "metrics.json"
        if not file.is_file():
            return {}
        headers: dict[str, Any] = _read(file, dict, "Delete it, and score the run again.")
        return headers

    def record_metric(self, column: str, description: Mapping[str, JSON]) -> None:
        """Note what a column is computed with."""
        with self.lock("merge", wait=True):
            self._write_header(column, description)

    def _write_header(self, column: str, description: Mapping[str, JSON]) -> None:
        write_atomically(self.path / "metrics.json", _dump({**self.metric_headers(), column: description}))

    def log_timing(self, entry: Mapping[str, JSON]) -> None:
        """Append seconds and peak memory of one batch; not part of byte-equality."""
        with self._timing_file() as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")

    def timing(self) -> list[dict[str, JSON]]:
        """Return what :meth:`log_timing` wrote; a line that a kill cut short is left out."""
        file = self.path / "timing.jsonl"
        lines = file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    found.append(entry)
        return found

    def _timing_file(self) -> IO[str]:
        return (self.path / "timing.jsonl").open("a", encoding="utf-8")
