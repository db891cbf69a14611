"""A run's folder: atomic commits, one owner per batch, rows only. Aggregates nothing, imports no torch.

::

    run.json                        schema, settings, seeds, versions, git revision, weight and data SHA-256, device
    pictures/SPLIT/REPEAT/ID.png    lossless, as the method returned them
    batches/SPLIT-REPEAT-000000.json  one finished batch: a row per picture (state, reason, SHA-256 of its pixels)
    parts/COLUMN/…                  scores of one batch under one metric, until they are merged
    scores.parquet                  one row per score, in the order of the plan, with the SHA-256 of its picture
    metrics.json                    what each column was computed with, and the SHA-256 of its scores
    timing.jsonl                    seconds and peak memory per batch; outside byte-equality
    tracebacks/                     of failed pictures, one file per batch
    locks/                          one per batch, one for beginning, one for merging

A batch counts only when its ``batches/`` file exists, which is renamed into place after its pictures. So a crash
costs the batch under way, and the one being written. Runs of schema 1 number their batches through:
``batches/000000.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushbench.errors import ConfigMismatchError, RunError, RunLockedError, UnusableError
from brushbench.progress import say
from brushbench.records import (
    AGAIN,
    ColumnScores,
    PictureKey,
    PictureRow,
    ScoreRow,
    Stamp,
    batch_files,
    by_key,
    dump,
    file_name,
    pixel_sha256,
    read_all_rows,
    read_headers,
    read_json,
    read_lines,
    read_rows,
    stamp,
    write_atomically,
)
from brushbench.score_table import (
    ScoreTable,
    merged,
    read_scores,
    read_texts,
    rows_to_table,
    sha256_before,
    table_bytes,
)
from brushbench.types import JSON, Picture

if TYPE_CHECKING:
    import pandas

    from brushbench.config import RunHeader

__all__ = ["RunFolder"]

SHOWN = 5  # lines of differences in a message
PATIENCE = 1.0  # seconds before a process says for what it waits
WAITING = 0.25  # seconds between two attempts after that: many may wait for one, on a shared file system
OURS = (
    "run.json", "pictures", "batches", "parts", "scores.parquet", "metrics.json", "timing.jsonl", "tracebacks",
    "records.json",
)  # fmt: skip
NO_RUN = "Name the folder that `brushbench eval` wrote."


class RunFolder:
    """One run on disk. Every method may be called from several processes at once."""

    def __init__(self, path: Path | str) -> None:
        """Point at a folder; nothing is read or made until it is needed."""
        self.path = Path(path).absolute()  # a thread commits while a method may have changed the working folder
        self._read: tuple[list[Stamp], dict[PictureKey, PictureRow]] = [], {}

    # Identity ---------------------------------------------------------------------------------------------------

    @property
    def records_file(self) -> Path:
        """Where the SHA-256 of each record of the benchmark stands."""
        return self.path / "records.json"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here. What is no regular file counts too: reading it says so."""
        return os.path.lexists(self.path / "run.json")

    def header(self) -> RunHeader:
        """Return ``run.json``.

        Raises:
            RunError: there is none, it is damaged, or a newer release wrote it.
        """
        from brushbench.config import read_header

        file = self.path / "run.json"
        if not self.exists:
            raise RunError(f"{self.path} holds no run: run.json is missing. {NO_RUN}")
        return read_header(read_json(file, dict, "Restore it, or start again in another folder."), file)

    def begin(self, header: RunHeader, grows: Callable[[RunHeader], bool] | None = None) -> list[str]:
        """Start a run, or continue or enlarge the one that is here if its identity is the same.

        Args:
            header: what is asked for.
            grows: tells whether the data of an earlier, smaller run are the beginning of these.

        Returns:
            Sentences about what is different from the record, but decides no image.

        Raises:
            ConfigMismatchError: the folder holds a run of other settings; the difference is shown.
            RunError: the folder holds files, but no run.
        """
        with self.lock("begin"):
            if not self.exists:
                self._refuse_strangers("There is no run.json. Name an empty or a new folder with --out.")
                write_atomically(self.path / "run.json", dump(header.to_json()))
                return []
            old = self.header()
            difference = old.differences(header)
            if difference and old.may_grow_to(header) and grows is not None and grows(old):
                write_atomically(self.path / "run.json", dump(header.to_json()))
                if old.plan.pictures == header.plan.pictures:
                    return [
                        "Records of which there is no image have changed; the run goes on with them as they are now."
                    ]
                return [f"The run grows from {old.plan.pictures} to {header.plan.pictures} images."]
            if not difference and old.method != header.method:  # images from elsewhere have changed
                write_atomically(self.path / "run.json", dump(header.to_json()))
        if difference:
            if len(difference) > SHOWN:
                difference[SHOWN - 1 :] = [f"and {len(difference) - SHOWN + 1} more"]
            lines = "\n".join(f"  {line}" for line in difference)
            raise ConfigMismatchError(
                f"{self.path} holds a run of other settings (there -> asked for):\n{lines}\n"
                "Name another folder with --out or --name, or replace that run with --overwrite."
            )
        return old.notes(header)

    def overwrite(self) -> None:
        """Remove a run, so that another can begin here.

        Raises:
            RunLockedError: another process works on it.
            RunError: the folder holds files that are not the run's.
        """
        if not self.path.is_dir():
            return
        with self.lock("begin"):
            self._check_unused()
            self._refuse_strangers("Move it away, or name another folder with --out.", OURS)
            for name in OURS:
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _refuse_strangers(self, remedy: str, known: Sequence[str] = ()) -> None:
        strangers = sorted(p.name for p in self.path.iterdir() if p.name[0] != "." and p.name not in ("locks", *known))
        if strangers:
            raise RunError(f"{self.path} holds {strangers[0]!r}, which is no part of a run. {remedy}")

    def abandon(self) -> None:
        """Leave nothing of a run without any batch, unless another process works on it: it may be begun anew."""
        with self.lock("begin"):
            try:
                self._check_unused()
            except RunLockedError:
                return
            if self.finished_batches():
                return
            for part in ("pictures", "batches", "tracebacks"):  # of a batch that was not committed
                shutil.rmtree(self.path / part, ignore_errors=True)
            self.records_file.unlink(missing_ok=True)
            (self.path / "run.json").unlink(missing_ok=True)
        for file in (self.path / "locks").glob("*.lock"):
            file.unlink(missing_ok=True)
        for folder in (self.path / "locks", self.path):
            with contextlib.suppress(OSError):  # someone else has put something there
                folder.rmdir()

    def _check_unused(self) -> None:
        for file in sorted((self.path / "locks").glob("*.lock")):
            if file.stem != "begin" and self.exists:
                with self.lock(file.stem, wait=False):
                    pass

    def check_present(self) -> None:
        """Refuse to write into a folder whose run is gone: it would look like a run that was never finished.

        Raises:
            RunError: ``run.json`` is not there any more.
        """
        if not self.exists:
            raise RunError(
                f"{self.path} was removed or moved while a process worked on it: run.json is gone. Run the same "
                "command again."
            )

    # Locks ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[None]:
        """Hold one of the run's locks; the system drops it when the process ends, however it ends.

        Args:
            name: ``begin``, ``merge`` or a batch: whoever holds it owns the batch's pictures, rows and scores.
            wait: wait for another process that holds it, and say so.

        Raises:
            RunLockedError: another process holds it and ``wait`` is off.
            RunError: the folder cannot be written.
        """
        import filelock

        what = {"begin": "begins or continues the run", "merge": "writes scores"}.get(name, f"works on batch {name}")
        if name != "begin":
            self.check_present()
        folder = self.path / "locks"
        # A batch is given up by the thread that commits it.
        held = filelock.FileLock(folder / f"{name}.lock", thread_local=False)
        try:
            if not folder.is_dir():
                folder.mkdir(parents=name == "begin", exist_ok=True)
            try:
                held.acquire(timeout=PATIENCE if wait else 0)
            except filelock.Timeout:
                if not wait:
                    raise
                say(f"Waiting for another process, which {what} in {self.path}.")
                held.acquire(poll_interval=WAITING)
        except filelock.Timeout:
            raise RunLockedError(f"Another process {what} in {self.path}. Wait for it, or end it.") from None
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
        return self.path / "pictures" / file_name(split) / str(repeat) / f"{file_name(sample)}.png"

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

    def finished_batches(self) -> list[str]:
        """Return the names of the committed batches; other files beside them are not ours."""
        return [name for name, _ in batch_files(self.path / "batches")]

    def is_committed(self, batch: str) -> bool:
        """Whether a batch is there, whole or as the last one of a smaller run."""
        return self._batch_file(batch).exists()

    def finished(self, batch: str, samples: Sequence[str]) -> bool:
        """Whether a batch is committed with all of its samples; one that was the last of a smaller run is not.

        Raises:
            RunError: it is damaged, or holds other samples.
        """
        if not self.is_committed(batch):
            return False
        found = [row.sample for row in self.rows(batch)]
        if found != list(samples)[: len(found)]:
            raise RunError(f"{self._batch_file(batch)} is damaged: it holds other samples than the plan. {AGAIN}")
        return len(found) == len(samples)

    def committed_at(self, batch: str) -> float:
        """Return when a committed batch was, in seconds since 1970, by the clock of the file system."""
        return self._batch_file(batch).stat().st_mtime

    def commit(self, batch: str, rows: Sequence[PictureRow], pictures: Sequence[Picture | None]) -> None:
        """Commit one batch: its pictures first, its rows last. Only the owner of its lock may."""
        from brushbench.pictures import encode_png

        for row, picture in zip(rows, pictures, strict=True):
            if picture is not None:
                self.check_present()
                write_atomically(self.picture_path(row.sample, row.split, row.repeat), encode_png(picture))
        self.check_present()
        write_atomically(self._batch_file(batch), dump([vars(row) for row in rows]))

    def keep_tracebacks(self, batch: str, text: str) -> None:
        """Keep the tracebacks of a batch's failed pictures."""
        self.check_present()
        write_atomically(self._tracebacks(batch), text.encode())

    def rows(self, batch: str) -> list[PictureRow]:
        """Return the rows of a committed batch.

        Raises:
            RunError: its file is damaged.
        """
        return read_rows(self._batch_file(batch), PictureRow)

    def picture_rows(self) -> dict[PictureKey, PictureRow]:
        """Return what became of every picture so far; files that have not changed since the last call are not read.

        Raises:
            RunError: a batch is damaged, or a picture stands in two.
        """
        entries = [file for _, file in batch_files(self.path / "batches")]
        stamps = [stamp(file) for file in entries]  # before they are read: what changes meanwhile is read again
        if stamps != self._read[0]:
            files = [file.path for file in entries]
            try:
                self._read = stamps, by_key(files, read_all_rows(files))
            except RunError:
                if [stamp(file) for _, file in batch_files(self.path / "batches")] != stamps:
                    return self.picture_rows()  # another process made a batch anew meanwhile
                raise
        return dict(self._read[1])

    def newest_batch(self) -> float:
        """Return when the last batch was committed, in seconds since 1970; 0 where there is none."""
        return max((file.stat().st_mtime for _, file in batch_files(self.path / "batches")), default=0.0)

    def discard(self, batch: str) -> None:
        """Forget a batch, so that it is made again. Its scores stay, and count no more once the picture differs."""
        for file in [*self.path.glob(f"parts/*/{batch}.json"), self._tracebacks(batch), self._batch_file(batch)]:
            file.unlink(missing_ok=True)

    def _tracebacks(self, batch: str) -> Path:
        return self.path / "tracebacks" / f"{batch}.txt"

    def _batch_file(self, batch: str) -> Path:
        return self.path / "batches" / f"{batch}.json"

    # Scores -----------------------------------------------------------------------------------------------------

    def commit_scores(self, part: str, batch: str, rows: Sequence[ScoreRow]) -> None:
        """Commit the scores of one batch under one column. Only the owner of the batch's lock may."""
        self.check_present()
        write_atomically(self._part(part, batch), dump([vars(row) for row in rows]))

    def scored_batches(self, parts: Sequence[str]) -> set[str]:
        """Return the names of the batches of which scores wait to be merged in every one of some columns' parts."""
        found = [{file.stem for file in (self.path / "parts" / part).glob("*.json")} for part in parts]
        return set.intersection(*found) if found else set()

    def waiting(self, part: str, batch: str, pictures: Mapping[PictureKey, PictureRow]) -> list[ScoreRow]:
        """Return the scores of a batch that wait to be merged; none where they are of other pictures.

        Raises:
            RunError: the file is damaged.
        """
        file = self._part(part, batch)
        rows = read_rows(file, ScoreRow) if file.is_file() else []
        return rows if all(_is_current(row, pictures) for row in rows) else []

    def _part(self, part: str, batch: str) -> Path:
        return self.path / "parts" / part / f"{batch}.json"

    def merge(self, columns: Sequence[ColumnScores], order: Sequence[PictureKey] = ()) -> None:
        """Put the scores of columns into ``scores.parquet``, in place of what they held of their variants.

        A column's record carries the SHA-256 of its scores, so that whoever reads one beside the other's former state
        notices. What waited to be merged is removed. Call it under the lock ``merge``.

        Args:
            columns: each complete for each of its variants.
            order: of the pictures.
        """
        if not columns:
            return
        self.check_present()
        rows = [row for each in columns for row in each.rows]
        table = merged(read_scores(self.path / "scores.parquet").frame(), rows_to_table(rows), order)
        hashes = {"@".join(column): found for column, found in ScoreTable.of(table).sha256().items()}
        headers = {}
        for each in columns:
            mine = table[_in_column(table, each.column)]
            headers[each.column] = {**each.describe(mine), "scores_sha256": hashes[each.column]}
        self._write_headers(headers)
        self._write_scores(table)
        self.clear_parts(list(headers))

    def clear_parts(self, columns: Collection[str]) -> None:
        """Remove scores of columns that wait to be merged: they are complete without them."""
        for folder in self.path.glob("parts/*"):
            if folder.name.rpartition("-")[0] in columns:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # other columns wait there
            (self.path / "parts").rmdir()

    def scores(self) -> ScoreTable:
        """Return every score, one row each; empty where nothing was scored.

        A column whose record is of other scores was being written when a process stopped: it is left out.

        Raises:
            RunError: the file is damaged.
        """
        table, headers = read_scores(self.path / "scores.parquet"), self.metric_headers()
        for (metric, protocol), found in table.sha256().items():
            recorded = headers.get(f"{metric}@{protocol}", {}).get("scores_sha256")
            if recorded and recorded != found:
                mine = table.is_in("metric", metric) & table.is_in("protocol", protocol)
                if recorded != sha256_before(table.take(mine).frame()):
                    table = table.take(~mine)
        return table

    def texts(self, column: str) -> set[str]:
        """Return what a column of the scores holds, such as ``protocol`` or ``reason``, without reading the scores.

        Raises:
            RunError: the file is damaged.
        """
        return read_texts(self.path / "scores.parquet", column)

    def _write_scores(self, table: pandas.DataFrame) -> None:
        write_atomically(self.path / "scores.parquet", table_bytes(table))

    # What each column was computed with, and what it cost ---------------------------------------------------------

    def metric_headers(self) -> dict[str, Any]:
        """Return what each scored column was computed with: its settings and weight hashes, by ``name@protocol``.

        Raises:
            RunError: the file is damaged.
        """
        file = self.path / "metrics.json"
        return read_headers(file) if os.path.lexists(file) else {}

    def record_metric(self, column: str, description: Mapping[str, JSON]) -> None:
        """Note what a column is computed with."""
        with self.lock("merge"):
            self._write_headers({column: description})

    def _write_headers(self, descriptions: Mapping[str, Mapping[str, JSON]]) -> None:
        write_atomically(self.path / "metrics.json", dump({**self.metric_headers(), **descriptions}))

    def log_timing(self, entry: Mapping[str, JSON]) -> None:
        """Append seconds and peak memory of one batch; not part of byte-equality."""
        self.check_present()
        try:
            with (self.path / "timing.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, sort_keys=True) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path / 'timing.jsonl'} could not be written ({error.strerror}). Free space there; the same "
                "command then continues."
            ) from None

    def timing(self) -> list[dict[str, JSON]]:
        """Return what :meth:`log_timing` wrote; a line that a kill cut short is left out."""
        return read_lines(self.path / "timing.jsonl")


def _is_current(row: ScoreRow, pictures: Mapping[PictureKey, PictureRow]) -> bool:
    picture = pictures.get((row.sample, row.split, row.repeat))
    return picture is not None and row.picture_sha256 in (None, picture.sha256)


def _in_column(table: pandas.DataFrame, column: str) -> pandas.Series[bool]:
    metric, _, protocol = column.partition("@")
    return (table["metric"] == metric) & (table["protocol"] == protocol)
