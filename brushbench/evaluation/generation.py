"""How a run's pictures are made, batch by batch."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from brushbench.config import RunConfig
from brushbench.engines.shard import Shard
from brushbench.errors import BadRecordError, RunError, UnusableError, printable
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.evaluation.sources import NoPicture, Source
from brushbench.isolation import world_of
from brushbench.outcome import UNUSABLE, common_reasons
from brushbench.progress import track
from brushbench.store import PictureRow, RunFolder, State, pixel_sha256
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
) -> None:
    """Make every picture of a shard that is not there yet.

    A picture that fails is recorded as failed, and the run goes on. It stops where the first pictures all fail, each
    shard for itself: what is wrong then is the method, and nothing of it is written.

    Args:
        folder: of the run.
        source: makes the pictures.
        benchmark: what they answer.
        config: the run's settings.
        shard: the part of the plan that is made here.
        retry_failed: make pictures again that failed in an earlier session.
        max_failed: failed pictures that are put up with.

    Raises:
        RunLockedError: another process works on the same shard.
        RunError: the first pictures all failed; notes of the error hold the tracebacks.
    """
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats)
    with folder.lock(str(shard)):
        mine = shard.take(plan)
        if retry_failed:
            for batch in mine:
                if folder.finished(batch.number) and any(row.state == "failed" for row in folder.rows(batch.number)):
                    folder.discard(batch.number)
        left = [batch for batch in mine if not folder.finished(batch.number)]
        failed = _generate_batches(folder, source, benchmark, config, left, max(PATIENCE, max_failed))
    if failed:
        folder.abandon()  # else the mended method would be refused as other settings
        raise _stopped(config.name, failed)


def _generate_batches(
    folder: RunFolder, source: Source, benchmark: Benchmark, config: RunConfig, batches: Sequence[Batch], patience: int
) -> list[_Made]:
    """Make and commit batches; return those of which every picture failed, uncommitted, if it stays at that."""
    waiting: list[_Made] = []
    proven = _has_pictures(folder)
    for batch in track(batches, f"{config.name}: generate", lambda b: len(b.indexes)):
        made = _make(source, benchmark, config, batch)
        if made.method_failed and not proven:
            waiting.append(made)
            if sum(len(each.rows) for each in waiting) > patience:
                break
            continue
        proven = proven or any(picture is not None for picture in made.pictures)
        for each in [*waiting, made]:
            _commit(folder, each)
        waiting.clear()
    if waiting and _has_pictures(folder):  # another shard's
        for each in waiting:
            _commit(folder, each)
        waiting.clear()
    return waiting


def _has_pictures(folder: RunFolder) -> bool:
    return any(row.sha256 for number in folder.finished_batches() for row in folder.rows(number))


@dataclass(frozen=True)
class _Made:
    """One batch, not yet committed."""

    number: int
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
    return _Made(batch.number, rows, pictures, "\n".join(tracebacks), seconds, failed)


def _read(benchmark: Benchmark, index: int) -> Sample | NoPicture:
    """Return a sample, or why it cannot be read: one bad record does not cost the run."""
    try:
        with world_of(type(benchmark)):
            return benchmark[index]
    except (BadRecordError, UnusableError) as error:
        return NoPicture("failed", printable(UNUSABLE + error.problem))
    except Exception as error:  # a plug-in's loader may raise anything
        return NoPicture.of(error)


def _commit(folder: RunFolder, made: _Made) -> None:
    if made.tracebacks:
        folder.keep_tracebacks(made.number, made.tracebacks)
    folder.commit(made.number, made.rows, made.pictures)
    entry: dict[str, JSON] = {"batch": made.number, "pictures": len(made.rows), "seconds": made.seconds}
    folder.log_timing({**entry, **_peak_memory()})


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


def _peak_memory() -> dict[str, JSON]:
    peak: dict[str, JSON] = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_cuda_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak
