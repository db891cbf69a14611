"""Kill a run at fifty random points, run the same command again, and compare with a run that nobody killed.

    PYTHONPATH=. python tests/benchmarks/kill_points.py [POINTS] [SEED]

The points are spread over beginning, generating, scoring and merging, one process and ``--jobs 2`` (the parent or a
child is hit), SIGINT, SIGTERM and SIGKILL. What it prints per point: when it hit, what was there, how long the other
processes outlived it, and whether everything that byte-equality covers is equal after resuming.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.brushbench import toys  # noqa: E402
from tests.brushbench.test_cli_limits import children_of, is_running  # noqa: E402
from tests.brushbench.test_run_resume import command, contents, environment  # noqa: E402

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STAGES = {  # what has to be there before the signal may be sent, and the pattern of what is waited for
    "begin": "noise/locks",
    "generate": "noise/batches/*.json",
    "score": "noise/parts/*/*.json",
    "merge": "noise/metrics.json",
}


def hit(data: Path, out: Path, rng: random.Random) -> tuple[str, bool, float]:
    """Start the command, wait for a random point, send a random signal; return what was done and to whom."""
    stage, jobs = rng.choice(sorted(STAGES)), rng.choice((1, 2))
    number, to_child = rng.choice(SIGNALS), jobs == 2 and rng.random() < 0.5
    more = ("--jobs", str(jobs)) if jobs > 1 else ()
    process = subprocess.Popen(
        command(data, out, *more), env=environment(0.03), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wanted = rng.randint(1, 6) if stage in ("generate", "score") else 1
    deadline = time.monotonic() + 300
    while len(list(out.glob(STAGES[stage]))) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    children = children_of(process.pid)
    target = children[-1] if to_child and children else process.pid
    ended_before = process.poll() is not None
    if not ended_before:
        os.kill(target, number)
    process.wait()
    start = time.monotonic()
    while any(map(is_running, children)) and time.monotonic() - start < 30:
        time.sleep(0.005)
    who = "child" if target != process.pid else "parent" if jobs > 1 else "process"
    when = "after its end" if ended_before else stage
    return f"{number.name} to the {who} at {when}", ended_before, time.monotonic() - start


def difference(found: dict[str, str], whole: dict[str, str]) -> str:
    """Return the files in which two runs differ, in words; empty where they are byte-equal."""
    names = [name for name in sorted({*found, *whole}) if found.get(name) != whole.get(name)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")


def main(points: int = 50, seed: int = 1) -> int:
    """Try every point; return how many were not equal after resuming."""
    rng = random.Random(seed)
    unequal, outlived, kinds = 0, 0.0, Counter[str]()
    quiet = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as folder:
        data = toys.write_benchmark(Path(folder) / "BrushBench")
        subprocess.run(command(data, Path(folder) / "whole"), check=True, **quiet)
        whole = contents(Path(folder) / "whole" / "noise")
        for point in range(points):
            out = Path(folder) / str(point)
            done, _, seconds = hit(data, out, rng)
            code = subprocess.run(command(data, out), check=False, **quiet).returncode
            wrong = f"exit code {code}" if code else difference(contents(out / "noise"), whole)
            unequal += bool(wrong)
            outlived = max(outlived, seconds)
            kinds[done] += 1
            result = f"NOT EQUAL: {wrong}" if wrong else "equal"
            print(f"{point + 1:3d}  {done}: {result}, outlived by {seconds:.2f} s", flush=True)
    for kind, count in sorted(kinds.items()):
        print(f"{count:3d} x {kind}")
    print(f"{points} points, {unequal} not equal after resuming; the longest outlived by {outlived:.2f} s")
    return unequal


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
