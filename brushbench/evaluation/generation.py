"""How a run's pictures are made, batch by batch."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from brushbench.config import RunConfig
from brushbench.engines.shard import Others, Shard
from brushbench.errors import BadRecordError, BrushbenchError, RunError, RunLockedError, UnusableError, printable
from brushbench.evaluation.behind import Behind
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.evaluation.sources import NoPicture, Source
from brushbench.isolation import world_of
from brushbench.outcome import UNUSABLE, common_reasons
from brushbench.progress import track
from brushbench.records import PictureRow, State, pixel_sha256
from brushbench.store import RunFolder
from brushbench.types import JSON, Benchmark, Picture, Sample, sample_seed

__all__ = ["generate"]

PATIENCE = 7  # pictures that may fail before the first one comes out
BLACK = 2  # a picture with no value above this is black: what a safety checker leaves


def generate(
    folder: RunFolder,
    source: Source,
    benchmark: Benchmark,
    config: RunConfig,
    shard: Shard,
    retry_failed: bool = False,
    max_failed: int = 0,
    rescan: bool = False,
    retry_before: float = math.inf,
) -> None:
    """Generate every image of a shard that is not there yet.

    An image that fails is recorded as failed, and the run goes on. It stops where the first images all fail, each
    shard for itself: what is wrong then is the method, and nothing of it is written. Each batch has one owner at a
    time, whatever the shard: what another process is generating is left to it, and waited for at the end.

    Args:
        folder: of the run.
        source: makes the images.
        benchmark: what they answer.
        config: the run's settings.
        shard: the part of the plan that is generated here.
        retry_failed: generate images again that failed in an earlier session.
        max_failed: failed images that are tolerated.
        rescan: ask for every image again, and commit the batches that are not as they were.
        retry_before: of ``retry_failed``: leave batches alone that were committed later, in seconds since 1970.

    Raises:
        RunError: the first images all failed; notes of the error hold the tracebacks.
    """
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats, folder.header().schema_version)
    work = _Work(folder, source, benchmark, config, retry_failed, rescan, retry_before)
    committed = set(folder.finished_batches())  # one look: the others need not be asked for one by one
    left = [batch for batch in shard.take(plan) if batch.name not in committed or work.is_left(batch)]
    try:
        if failed := work.generate(left, max(PATIENCE, max_failed)):
            raise _stopped(config.name, failed)
    except BaseException:
        with contextlib.suppress(BrushbenchError):  # the first error says more
            folder.abandon()  # else the mended method would be refused as other settings
        raise


@dataclass
class _Work:
    """What is generated, for whom, and whether one image has come out yet."""

    folder: RunFolder
    source: Source
    benchmark: Benchmark
    config: RunConfig
    retry_failed: bool
    rescan: bool
    retry_before: float

    def is_left(self, batch: Batch) -> bool:
        """Whether a batch is still to be generated, or again."""
        if self.rescan or not self.folder.finished(batch.name, [self.benchmark.keys[i][0] for i in batch.indexes]):
            return True
        if not self.retry_failed or self.folder.committed_at(batch.name) > self.retry_before:
            return False
        return any(row.state == "failed" for row in self.folder.rows(batch.name))

    def generate(self, batches: Sequence[Batch], patience: int) -> list[_Made]:
        """Generate and commit; return the first batches, uncommitted, if every image of them failed."""
        # Here, and not first in the thread that commits: it changes sys.path and the environment for a moment.
        import cv2  # noqa: F401

        with Behind() as behind:
            return self._generate(batches, patience, behind)

    def _generate(self, batches: Sequence[Batch], patience: int, behind: Behind) -> list[_Made]:
        proven = self._has_pictures()
        waiting: list[tuple[_Made, contextlib.ExitStack]] = []
        busy: list[Batch] = []
        others = Others(self.folder.finished_batches)
        try:
            for batch in track(batches, f"{self.config.name}: generate", lambda b: len(b.indexes)):
                if batch.name in others.names:
                    continue
                owner = contextlib.ExitStack()
                try:
                    owner.enter_context(self.folder.lock(batch.name, wait=False))
                except RunLockedError:
                    busy.append(batch)
                    continue
                try:
                    made = self._make(batch) if self.is_left(batch) else None
                except BaseException:
                    owner.close()
                    raise
                if made is None:
                    owner.close()
                    others.look()
                    continue
                if busy or others.names:
                    others.look()
                waiting.append((made, owner))
                proven = proven or not made.method_failed
                if proven:
                    self._commit(waiting, behind)
                elif sum(len(each.rows) for each, _ in waiting) > patience:
                    break
            if waiting and self._has_pictures():  # another process has made some
                self._commit(waiting, behind)
            behind.wait()
            if not waiting:
                self._generate_busy(busy, others)
            return [made for made, _ in waiting]
        finally:
            for _, owner in waiting:
                owner.close()

    def _generate_busy(self, batches: Sequence[Batch], others: Others) -> None:
        """Wait for what other processes were working on, and generate what they left."""
        for batch in batches:
            if batch.name not in others.names:
                others.look()
            if batch.name in others.names:
                continue
            with self.folder.lock(batch.name):
                if self.is_left(batch):
                    self._commit_one(self._make(batch))

    def _has_pictures(self) -> bool:
        return any(row.sha256 for row in self.folder.picture_rows().values())

    def _make(self, batch: Batch) -> _Made:
        return _make(self.source, self.benchmark, self.config, batch)

    def _is_known(self, made: _Made) -> bool:
        """Whether a batch came out as it is stored, when images are looked at again."""
        return self.rescan and self.folder.is_committed(made.name) and self.folder.rows(made.name) == made.rows

    def _commit(self, waiting: list[tuple[_Made, contextlib.ExitStack]], behind: Behind) -> None:
        """Commit batches behind the next one, and give up their locks."""
        while waiting:
            made, owner = waiting.pop(0)
            behind.submit(functools.partial(self._commit_one, made), owner)

    def _commit_one(self, made: _Made) -> None:
        if not self._is_known(made):
            _commit(self.folder, made, self.config.device)


@dataclass(frozen=True)
class _Made:
    """One batch, not yet committed."""

    name: str
    rows: list[PictureRow]
    pictures: list[Picture | None]
    tracebacks: str
    seconds: float
    method_failed: bool  # it was asked, and not one picture came out


def _make(source: Source, benchmark: Benchmark, config: RunConfig, batch: Batch) -> _Made:
    records = [_read(benchmark, i) for i in batch.indexes]
    samples = [record for record in records if isinstance(record, Sample)]
    seeds = [sample_seed(config.seed, sample.id, batch.repeat) for sample in samples]
    start = time.perf_counter()
    answers = source.answers(samples, seeds, config.negative_prompt) if samples else []
    seconds = time.perf_counter() - start
    asked = iter(zip(samples, answers, strict=True))
    rows: list[PictureRow] = []
    pictures: list[Picture | None] = []
    tracebacks = []
    for index, record in zip(batch.indexes, records, strict=True):
        sample, answer = next(asked) if isinstance(record, Sample) else (None, record)
        key = (*benchmark.keys[index], batch.repeat, sample_seed(config.seed, benchmark.keys[index][0], batch.repeat))
        meta = {} if sample is None else dict(sample.meta)
        if isinstance(answer, NoPicture):
            rows.append(PictureRow(*key, answer.state, answer.reason, meta=meta))
            pictures.append(None)
            if answer.traceback:
                tracebacks.append(f"{key[0]} ({key[1]}, repeat {key[2]})\n{answer.traceback}")
            continue
        black = sample is not None and int(answer.max()) <= BLACK < int(sample.image.max())
        state: State = "black" if black else "ok"
        rows.append(PictureRow(*key, state, "all pixels are black" if black else "", pixel_sha256(answer), meta))
        pictures.append(answer)
    failed = bool(answers) and all(isinstance(a, NoPicture) and a.state == "failed" for a in answers)
    return _Made(batch.name, rows, pictures, "\n".join(tracebacks), seconds, failed)


def _read(benchmark: Benchmark, index: int) -> Sample | NoPicture:
    """Return a sample, or why it cannot be read: one bad record does not cost the run."""
    try:
        with world_of(type(benchmark)):
            return benchmark[index]
    except (BadRecordError, UnusableError) as error:
        return NoPicture("failed", printable(UNUSABLE + error.problem))
    except Exception as error:  # a plug-in's loader may raise anything
        return NoPicture.of(error)


def _commit(folder: RunFolder, made: _Made, device: str) -> None:
    folder.discard(made.name)
    if made.tracebacks:
        folder.keep_tracebacks(made.name, made.tracebacks)
    folder.commit(made.name, made.rows, made.pictures)
    entry: dict[str, JSON] = {"batch": made.name, "pictures": len(made.rows), "seconds": made.seconds}
    folder.log_timing({**entry, **_peak_memory(device)})


def _stopped(name: str, failed: Sequence[_Made]) -> RunError:
    """Return the error for a method that makes no picture."""
    rows = [row for made in failed for row in made.rows]
    error = RunError(
        f"{name} made no image: the first {len(rows)} all failed ({common_reasons(row.reason for row in rows)}). "
        "Nothing was written; --debug shows the tracebacks."
    )
    for made in failed:
        error.add_note(made.tracebacks)
    return error


def _peak_memory(device: str) -> dict[str, JSON]:
    """Return the most memory that this process has had, and of the GPU that the run computes on."""
    peak: dict[str, JSON] = {}
    with contextlib.suppress(ImportError):  # no such module on Windows
        import resource

        peak["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    torch = sys.modules.get("torch")
    if torch is not None and device != "cpu" and torch.cuda.is_available():
        peak["peak_cuda_mb"] = torch.cuda.max_memory_allocated(None if device == "auto" else device) // 2**20
    return peak
