"""How a run's pictures are made, batch by batch."""

from __future__ import annotations

import resource
import sys
import time

from brushbench.config import RunConfig
from brushbench.engines.shard import Shard
from brushbench.errors import RunError
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.evaluation.sources import NoPicture, Source
from brushbench.progress import track
from brushbench.store import PictureRow, RunFolder, State, pixel_sha256
from brushbench.types import JSON, Benchmark, Picture, sample_seed

__all__ = ["generate"]

BLACK = 2  # a picture with no value above this is black: what a safety checker leaves


def generate(
    folder: RunFolder, source: Source, benchmark: Benchmark, config: RunConfig, shard: Shard, retry_failed: bool = False
) -> None:
    """Make every picture of a shard that is not there yet.

    A picture that fails is recorded as failed and the run goes on, unless not one picture of the first batch comes
    out: then the error is raised.

    Raises:
        RunLockedError: another process works on the same shard.
    """
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats)
    with folder.lock(str(shard)):
        mine = shard.take(plan)
        if retry_failed:
            for batch in mine:
                if folder.finished(batch.number) and any(row.state == "failed" for row in folder.rows(batch.number)):
                    folder.discard(batch.number)
        left = [batch for batch in mine if not folder.finished(batch.number)]
        first = len(left) == len(plan)
        for batch in track(left, f"{config.name}: generate", lambda b: len(b.indexes)):
            _generate_batch(folder, source, benchmark, config, batch, fail_fast=first)
            first = False


def _generate_batch(
    folder: RunFolder, source: Source, benchmark: Benchmark, config: RunConfig, batch: Batch, fail_fast: bool
) -> None:
    samples = [benchmark[i] for i in batch.indexes]
    seeds = [sample_seed(config.seed, sample.id, batch.repeat) for sample in samples]
    start = time.perf_counter()
    answers = source.answers(samples, seeds, config.negative_prompt)
    seconds = time.perf_counter() - start
    if fail_fast and all(isinstance(a, NoPicture) and a.state == "failed" for a in answers):
        reasons = "; ".join(sorted({a.reason for a in answers if isinstance(a, NoPicture)}))
        folder.abandon()  # else the mended method, or mended pictures, would be refused as other settings
        raise RunError(f"{config.name} made no picture of the first batch: {reasons}. Nothing was written.")
    rows: list[PictureRow] = []
    pictures: list[Picture | None] = []
    for sample, seed, answer in zip(samples, seeds, answers, strict=True):
        meta = dict(sample.meta)
        if isinstance(answer, NoPicture):
            rows.append(PictureRow(sample.id, sample.split, batch.repeat, seed, answer.state, answer.reason, meta=meta))
            pictures.append(None)
            continue
        black = int(answer.max()) <= BLACK < int(sample.image.max())
        state: State = "black" if black else "ok"
        reason = "all pixels are black" if black else ""
        rows.append(PictureRow(sample.id, sample.split, batch.repeat, seed, state, reason, pixel_sha256(answer), meta))
        pictures.append(answer)
    folder.commit(batch.number, rows, pictures)
    folder.log_timing({"batch": batch.number, "pictures": len(samples), "seconds": seconds, **_peak_memory()})


def _peak_memory() -> dict[str, JSON]:
    peak: dict[str, JSON] = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_cuda_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak
