"""Processor seconds of commands that only show something, here and in an older checkout, in turn.

    git worktree add --detach /tmp/before 41bba29
    OMP_NUM_THREADS=1 python tests/benchmarks/startup_seconds.py /tmp/before          # 20 rounds; 5 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/startup_seconds.py                      # this checkout alone

Both are compiled to bytecode first, and each command is run once in each before it counts. `leaderboard` shows one run
of two images, so its seconds are those of a start. The exit code is 1 where the median is above the older checkout's,
or that of `--help` above 0.5 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("brushbench", "brushnet", "baselines")
RUN = ROOT / "tests" / "brushbench" / "old_run" / "telea"
COMMANDS = (("--help",), ("list", "metrics"), ("list", "models"), ("leaderboard", str(RUN)))
MOST_FOR_HELP = 0.5


def seconds(tree: Path, *args: str) -> float:
    """Return the processor seconds, user and system, of one command of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "brushbench", *args]
    subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure and print one line per command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="an older checkout")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", help="a command: --only='list metrics'")
    options = parser.parse_args()
    trees = {"here": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    for tree in trees.values():
        subprocess.run([sys.executable, "-m", "compileall", "-q", *PACKAGES], cwd=tree, check=True)
    missed = False
    for command in COMMANDS:
        shown = " ".join(Path(word).name for word in command)
        if options.only not in (None, shown):
            continue
        for tree in trees.values():
            seconds(tree, *command)
        taken: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(options.rounds):
            for name, tree in trees.items():
                taken[name].append(seconds(tree, *command))
        medians = {name: statistics.median(found) for name, found in taken.items()}
        figures = [f"{name} {medians[name]:.3f} s (least {min(found):.3f})" for name, found in taken.items()]
        ratio = f"; {medians['here'] / medians['before']:.2f}" if "before" in medians else ""
        print(f"{shown}: {', '.join(figures)}{ratio}", flush=True)
        missed |= medians["here"] > medians.get("before", medians["here"])
        missed |= command == ("--help",) and medians["here"] > MOST_FOR_HELP
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
