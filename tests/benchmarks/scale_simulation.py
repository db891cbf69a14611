"""Sixty-four workers on one folder: commit rate, load on the folder, and who is idle at the end.

What is real: the plan, the claiming of batches, the locks, the store with its fsyncs and renames, and 64 processes.
What is simulated: the GPUs. A method sleeps for as long as a batch would take, and returns noise of 64 x 64 pixels. All
processes share the cores of this machine and its own disk; no network file system is in it.

``scale.py`` runs it and writes the report.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brushbench import progress
from brushbench.benchmarks.memory import as_benchmark
from brushbench.engines.shard import Shard
from brushbench.evaluation import configure
from brushbench.evaluation.generation import generate
from brushbench.evaluation.plan import make_plan
from brushbench.evaluation.provenance import make_header
from brushbench.registry import Spec
from brushbench.store import RunFolder
from brushbench.types import JSON, Benchmark, Capabilities, Picture, Sample

BATCH = 4  # images of a batch
SIDE = 64
H100 = 0.65  # seconds per sample of SD 1.5 on an H100, as issue 18 estimates it (0.61 to 0.69)
H100_BATCH = 16
SPREAD = 0.3  # of the logarithm of a batch's seconds: most take between 0.5 and 1.8 times the average
AUDITED = {  # Python's audit events: what they are counted as
    "open": "opened",
    "os.rename": "renamed",
    "os.mkdir": "mkdir",
    "os.remove": "removed",
    "os.scandir": "listed",
    "os.listdir": "listed",
    "fcntl.flock": "flock",
}
COUNTED = ("opened", "stat", "mkdir", "flock", "renamed", "fsync", "listed", "removed")


@dataclass(frozen=True)
class Case:
    """One simulated run.

    Attributes:
        name: in the report.
        workers: processes.
        batches: of the plan.
        seconds: of a batch, on average.
        spread: of the logarithm of a batch's seconds; 0: all are equal.
        slow: every so many-th worker takes twice as long; 0: none.
        dealt: every worker gets its shard, instead of taking what nobody has.
        killed: workers that are killed after a third of the time, and as many that join then.
    """

    name: str
    workers: int
    batches: int
    seconds: float
    spread: float = 0.0
    slow: int = 0
    dealt: bool = False
    killed: int = 0

    def length_of(self, seed: int) -> float:
        """Return the seconds of the batch whose first image has a seed; the same in every case and worker."""
        return self.seconds * float(np.exp(np.random.default_rng(seed).normal(-(self.spread**2) / 2, self.spread)))

    def pace_of(self, number: int) -> float:
        """Return how many times as long as others a worker takes."""
        return 2.0 if self.slow and number % self.slow == 0 else 1.0


@dataclass(frozen=True)
class Outcome:
    """What a simulated run was like.

    Attributes:
        case: which.
        span: seconds from the first worker's beginning to the last commit.
        least: seconds below which no way of sharing the batches could come.
        asleep: seconds that all workers computed, together.
        tails: seconds between each worker's last batch and the last commit.
        calls: file operations below the run's folder, and locks, by kind.
        cpu: share of this machine's cores that was busy until the last worker had ended.
        images: SHA-256 of each image.
    """

    case: Case
    span: float
    least: float
    asleep: float
    tails: Sequence[float]
    calls: Mapping[str, int]
    cpu: float
    images: Mapping[object, str]

    @property
    def busy(self) -> str:
        """Share of the workers' time in which they computed; unknown where some were killed."""
        return "" if self.case.killed else f"{self.asleep / (self.case.workers * self.span):.3f}"


class Sleeping:
    """A source that sleeps instead of computing, and returns noise."""

    capabilities = Capabilities(text=False, batch=BATCH)

    def __init__(self, case: Case, pace: float) -> None:
        self.case, self.pace, self.slept, self.ended = case, pace, 0.0, 0.0

    def describe(self) -> Mapping[str, JSON]:
        return {"method": "sleeping"}

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Picture]:
        start = time.time()
        time.sleep(self.case.length_of(seeds[0]) * self.pace)
        images = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in seeds]
        self.ended = time.time()
        self.slept += self.ended - start
        return images


def count_calls(root: Path) -> Counter[str]:
    """Count, from now on, what this process asks of the file system below a folder."""
    counts: Counter[str] = Counter()

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        kind = AUDITED.get(event)
        if kind and (kind == "flock" or str(arguments[0]).startswith(str(root))):
            counts[kind] += 1

    def counted(call: Callable[..., Any], kind: str, *arguments: Any, **options: Any) -> Any:
        if kind == "fsync" or str(arguments[0]).startswith(str(root)):
            counts[kind] += 1
        return call(*arguments, **options)

    sys.addaudithook(hear)
    for name, kind in (("stat", "stat"), ("lstat", "stat"), ("fsync", "fsync")):  # these have no audit event
        setattr(os, name, partial(counted, getattr(os, name), kind))
    return counts


def _begin(case: Case, folder: Path) -> tuple[RunFolder, Benchmark, Any]:
    """Begin the run: its folder, its benchmark and its settings."""
    image, hole = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((SIDE, SIDE), bool)
    image[::2], hole[16:48, 16:48] = 200, True
    benchmark = as_benchmark([Sample(f"{i:06d}", image, hole, "", "inside") for i in range(case.batches * BATCH)])
    config = configure(Spec("sleeping", {}), benchmark, batch_size=BATCH)
    run = RunFolder(folder)
    run.begin(make_header(Sleeping(case, 1.0), benchmark, config))
    assert len(make_plan(benchmark.keys, BATCH)) == case.batches
    return run, benchmark, config


def _work(case: Case, run: RunFolder, benchmark: Benchmark, config: Any, number: int, start: Any) -> None:
    """Be one worker."""
    progress.show_progress = False
    counts = count_calls(run.path)
    source = Sleeping(case, case.pace_of(number))
    shard = Shard(number + 1, case.workers) if case.dealt else Shard(stolen=True)
    start.wait()
    begun = time.time()
    generate(run, source, benchmark, config, shard)
    told = {"begun": begun, "ended": source.ended or begun, "slept": source.slept, "calls": counts}
    (run.path.parent / f"{run.path.name}-{number}.json").write_text(json.dumps(told))


def simulate(case: Case, parent: Path) -> Outcome:
    """Carry out one case, in a new folder below ``parent``."""
    name = "".join(c if c.isalnum() else "-" for c in case.name)
    run, benchmark, config = _begin(case, parent / name)
    context = multiprocessing.get_context("fork")  # what is imported already costs 64 workers nothing
    start = context.Event()
    workers = [
        context.Process(target=_work, args=(case, run, benchmark, config, number, start))
        for number in range(case.workers + case.killed)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for worker in workers[: case.workers]:
        worker.start()
    time.sleep(0.5)
    begun = time.time()
    start.set()
    if case.killed:
        time.sleep(case.seconds * case.batches / case.workers / 3)
        for old, new in zip(workers[: case.killed], workers[case.workers :], strict=True):
            os.kill(old.pid or 0, signal.SIGKILL)
            new.start()
    for worker in workers:
        worker.join()
    last, lived = run.newest_batch(), time.time() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    told = [json.loads(file.read_text()) for file in parent.glob(f"{name}-*.json")]
    assert len(told) == case.workers, [worker.exitcode for worker in workers]
    rows = run.picture_rows()
    assert len(rows) == case.batches * BATCH
    return Outcome(
        case,
        span=last - begun,
        least=_least(case, [row.seed for row in rows.values()][::BATCH]),
        asleep=sum(one["slept"] for one in told),
        tails=[max(0.0, last - one["ended"]) for one in told],
        calls=sum((Counter(one["calls"]) for one in told), Counter()),
        cpu=used / lived / (os.cpu_count() or 1),
        images={key: row.sha256 for key, row in rows.items()},
    )


def _least(case: Case, seeds: Sequence[int]) -> float:
    """Return the seconds of batches that could be cut as one likes, or of the longest one where that takes longer."""
    lengths = [case.length_of(seed) for seed in seeds]
    pace = sum(1 / case.pace_of(number) for number in range(case.workers))
    return max(sum(lengths) / pace, *lengths)


def cases(workers: int, batches: int, seconds: float) -> list[Case]:
    """Return what is simulated."""
    common = {"workers": workers, "batches": batches, "seconds": seconds}
    return [
        Case("unequal batches, stolen", **common, spread=SPREAD),
        Case("unequal batches, dealt", **common, spread=SPREAD, dealt=True),
        Case("every eighth worker half as fast, stolen", **common, slow=8),
        Case("every eighth worker half as fast, dealt", **common, slow=8, dealt=True),
        Case(f"unequal batches, stolen, {workers // 8} killed and {workers // 8} joined", **common, spread=SPREAD,
             killed=workers // 8),
        Case("no work at all, stolen", workers, batches, 0.0),
    ]  # fmt: skip


def simulation(folder: Path, workers: int, batches: int, seconds: float) -> str:
    """Carry out every case; return their part of the report."""
    outcomes = []
    for case in cases(workers, batches, seconds):
        outcomes.append(simulate(case, folder))
        print(f"{case.name}: {outcomes[-1].span:.2f} s, busy {outcomes[-1].busy}", flush=True)
    assert all(outcome.images == outcomes[0].images for outcome in outcomes), "images differ between cases"
    rates = [
        f"| {o.case.name} | {o.span:.1f} | {o.least:.1f} | {batches / o.span:.0f} | {o.busy} | "
        f"{statistics.median(o.tails):.2f} | {max(o.tails):.2f} | {o.cpu:.0%} |"
        for o in outcomes
    ]
    samples = batches * BATCH
    loads = [
        f"| {o.case.name} | {' | '.join(f'{o.calls.get(kind, 0) / samples:.1f}' for kind in COUNTED)} |"
        for o in outcomes
    ]
    return REPORT.format(
        workers=workers, batches=batches, batch=BATCH, side=SIDE, seconds=seconds, rates="\n".join(rates),
        kinds=" | ".join(COUNTED), lines="---|" * len(COUNTED), loads="\n".join(loads), cores=os.cpu_count(),
        most=batches / outcomes[-1].span, h100=H100, h100_batch=H100_BATCH, needed=workers / H100 / H100_BATCH,
    )  # fmt: skip


REPORT = """
## {workers} workers, simulated

**No GPU and no network file system was used.** Real: the plan, the claiming of batches, the locks, the store (a rename
and two fsyncs per file), one process per worker. Simulated: the work. A worker sleeps for as long as its batch takes,
then commits images of {side} x {side}. All share the cores and the disk of one machine, so the latency of a network
file system is not in the seconds; the second table says how often it would be paid. Scoring was not simulated; it
claims batches in the same way.

{workers} processes, {batches} batches of {batch} images, {seconds:g} s per batch on average.

| | seconds | at least | commits per second | busy | idle at the end, median | longest | cores used |
|---|---|---|---|---|---|---|---|
{rates}

*At least*: what no way of sharing the batches could beat, if nothing but the work took time. *Busy*: share of the
workers' time in which they computed (slept). *Idle at the end*: seconds from a worker's last batch to the last commit
of the run. The images of all cases are equal.

File operations per sample, of all workers together, without those of killed ones:

| | {kinds} |
|---|{lines}
{loads}

* Without any work to do, {workers} workers commit {most:.0f} batches per second on this disk and its {cores} cores.
  {workers} H100 would need {needed:.0f}: {h100} s per sample (an estimate), {h100_batch} images per batch.
"""
