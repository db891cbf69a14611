"""How a run scales with workers: one and two of Ray, measured; sixty-four, simulated. Writes reports/scale.md.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.scale --out reports/scale.md   # on an idle machine; about 7 minutes
    OMP_NUM_THREADS=1 python -m tests.benchmarks.scale --quick                  # a look

Efficiency, the bound written before anything was measured: with T1 and T2 the seconds that one and two Ray workers
take, from the beginning of the first batch to the last commit, **T1 / (2 T2) is at least 0.9**, as a median over rounds
of one, two, one, two, … workers. The method keeps one core busy with a fixed amount of work per image (PBKDF2, which
touches no memory to speak of) in one thread; batches hold one image each, and the work of an image is between half and
one and a half of the average. How long workers take to start is stated apart. Plain processes that do the same work
without any engine are measured beside it: more than theirs cannot be had on the machine. Images and run.json must be
byte-equal to those of the local engine, but for where they were made.

The simulation is described in :mod:`tests.benchmarks.scale_simulation`; it has no bound. The exit code is 1 where the
efficiency is missed or bytes differ.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brushbench.types import JSON, Capabilities, InpaintRequest, Picture

ROOT = Path(__file__).resolve().parents[2]
BOUND = 0.9
MARKS = "SCALE_MARKS"  # environment: the folder in which each worker notes when it worked


# A method that keeps one core busy ------------------------------------------------------------------------------------


def burn(seed: int, rounds: int) -> bytes:
    """Work in one thread: between half of ``rounds`` and one and a half, by the seed."""
    return hashlib.pbkdf2_hmac("sha256", b"brushbench", str(seed).encode(), rounds // 2 + seed % rounds)


class Busy:
    """A method that works for a fixed number of rounds per image, and notes when it did."""

    capabilities = Capabilities(text=False, batch=64)

    def __init__(self, rounds: int = 1_000_000) -> None:
        self.rounds = int(rounds)

    def describe(self) -> Mapping[str, JSON]:
        return {"method": "busy", "rounds": self.rounds}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        start = time.time()
        images = []
        for request in requests:
            image = request.image.copy()
            image[request.hole] = np.frombuffer(burn(request.seed, self.rounds)[:3], dtype=np.uint8)
            images.append(image)
        if MARKS in os.environ:
            with (Path(os.environ[MARKS]) / str(os.getpid())).open("a") as file:
                file.write(f"{start} {time.time()}\n")
        return images


# Efficiency -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """A run by the engine: seconds to start the workers, from the first batch to the last commit, and of idleness."""

    start: float
    span: float
    idle: float
    contents: Mapping[str, str]


def timed(engine: Sequence[str], data: Path, out: Path, rounds: int) -> Timed:
    """Make a run and measure it."""
    from brushbench.store import RunFolder
    from tests.brushbench.test_run_resume import contents

    marks = out / "marks"
    marks.mkdir(parents=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARKS: str(marks)}
    line = [sys.executable, "-m", "brushbench", "generate", "--model", f"{__file__}:Busy,rounds={rounds}"]
    where = ["--name", "busy", "--bench", "brushbench", "--data", str(data), "--split", "inside", "--out", str(out)]
    begun = time.time()
    done = subprocess.run(
        [*line, *where, "--batch-size", "1", *engine], env={k: v for k, v in env.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    last = RunFolder(out / "busy").newest_batch()
    worked = [[tuple(map(float, line.split())) for line in file.read_text().splitlines()] for file in marks.iterdir()]
    first = min(each[0][0] for each in worked)
    idle = max(last - each[-1][1] for each in worked)
    return Timed(first - begun, last - first, idle, contents(out / "busy"))


def plain(processes: int, images: int, rounds: int) -> float:
    """Return the seconds that plain processes take for as many images each."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_burn_all, args=(images, rounds)) for _ in range(processes)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def _burn_all(images: int, rounds: int) -> None:
    for seed in range(images):
        burn(seed * 7919, rounds)


def efficiency(folder: Path, images: int, work: int, rounds: int) -> tuple[str, bool]:
    """Measure one and two workers in turn; return their part of the report, and whether the bound holds."""
    from tests.brushbench import toys

    data = toys.write_benchmark(folder / "BrushBench", images)
    local = timed([], data, folder / "local", work)
    lines, ratios, ceilings, equal = [], [], [], True
    for number in range(1, rounds + 1):
        one, two = (
            timed(["--engine", "ray", "--jobs", str(jobs)], data, folder / f"{number}-{jobs}", work) for jobs in (1, 2)
        )
        alone, both = plain(1, images // 2, work), plain(2, images // 2, work)
        ratios.append(one.span / (2 * two.span))
        ceilings.append(alone / both)
        equal = equal and one.contents == two.contents == local.contents
        lines.append(
            f"| {number} | {one.span:.2f} | {two.span:.2f} | **{ratios[-1]:.3f}** | {two.idle:.2f} | "
            f"{one.start:.1f} | {two.start:.1f} | {ceilings[-1]:.3f} |"
        )
        print(lines[-1], flush=True)
    reached = statistics.median(ratios) >= BOUND
    rows = "\n".join(lines)
    return EFFICIENCY.format(
        images=images, average=local.span / images, rows=rows, median=statistics.median(ratios), bound=BOUND,
        verdict="reached" if reached else "MISSED", ceiling=statistics.median(ceilings), local=local.span,
        equal="yes" if equal else "NO",
    ), reached and equal  # fmt: skip


EFFICIENCY = """
## One and two Ray workers, measured

{images} images, one per batch, {average:.2f} s each on average. Rounds of one and two workers in turn; seconds.

| round | T1 | T2 | T1 / (2 T2) | idle at the end | start, one | start, two | plain processes |
|---|---|---|---|---|---|---|---|
{rows}

* **Median {median:.3f}; at least {bound}: {verdict}.** Plain processes with as much work each, without an engine, reach
  {ceiling:.3f} (seconds of one over seconds of two at once, median).
* T1 and T2: from the beginning of the first batch to the last commit. *Start*: from the command to that beginning:
  Python, Ray, the workers' imports. *Idle at the end*: of the worker of the two that ended first.
* The local engine took {local:.2f} s for the same.
* Images, rows and settings of all runs are byte-equal to the local engine's: {equal}.
"""


def main() -> int:
    """Measure, simulate, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a look: little work, eight workers; proves nothing")
    parser.add_argument("--only", choices=("efficiency", "simulation"))
    parser.add_argument("--out", type=Path, help="where to write the report")
    parser.add_argument("--beside", default="nothing else", help="what else ran on the machine")
    asked = parser.parse_args()
    sizes = (12, 300_000, 1) if asked.quick else (48, 900_000, 3)
    many = (8, 80, 0.2) if asked.quick else (64, 640, 2.0)
    text, fine = HEAD.format(machine=platform.machine(), cores=os.cpu_count(), beside=asked.beside), True
    with tempfile.TemporaryDirectory() as folder:
        if asked.only != "simulation":
            measured, fine = efficiency(Path(folder), *sizes)
            text += measured
        if asked.only != "efficiency":
            from tests.benchmarks.scale_simulation import simulation  # a worker loads this file for its method alone

            text += simulation(Path(folder), *many)
    print(text)
    if asked.out:
        asked.out.write_text(text)
    return int(not fine)


HEAD = """# Scale

`OMP_NUM_THREADS=1 python -m tests.benchmarks.scale --out reports/scale.md`, on {machine}, {cores} cores, no GPU,
local disk; beside it ran {beside}.
"""

if __name__ == "__main__":
    sys.exit(main())
