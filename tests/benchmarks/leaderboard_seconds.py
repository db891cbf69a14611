"""Processor time of `leaderboard` over 20 runs x 1,200 samples x 8 columns, beyond its imports. At most 2 s.

OMP_NUM_THREADS=1 python tests/benchmarks/leaderboard_seconds.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from brushbench import leaderboard
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.store import COLUMNS, RunFolder
from tests.brushbench.written_runs import write_run

RUNS, SAMPLES, METRICS = (
    20,
    600,
    ("image_reward", "hps_v2.1", "aesthetic", "psnr", "mse", "lpips", "ssim", "clip_score"),
)
SPLITS = ("inside", "outside")
BOUND = 2.0


def write(folder: Path) -> None:
    """Write the runs: two splits of 600 samples each, so 1,200 samples."""
    rng = np.random.default_rng(0)
    for i in range(RUNS):
        run = write_run(folder / f"run-{i:02d}", f"run-{i:02d}", dict.fromkeys(METRICS, [0.0] * 2))
        rows = [
            (f"{k:09d}", split, "caption", 0, "raw", metric, "standard", value, "")
            for metric in METRICS
            for split in SPLITS
            for k, value in enumerate(rng.normal(20 + i / 10, 3, SAMPLES))
        ]
        RunFolder(run)._write_scores(pd.DataFrame(rows, columns=list(COLUMNS)))


def main() -> int:
    """Measure with and without intervals."""
    worst = 0.0
    with TemporaryDirectory() as folder:
        write(Path(folder))
        render(make_tables(open_runs([Path(folder) / "run-00"])), "table")  # imports what is imported late
        for spread in ("none", "interval"):
            started = time.process_time()
            tables = make_tables(open_runs([folder]), intervals=spread != "none")
            text = render(tables, "table", spread=spread, width=120)  # type: ignore[arg-type]
            seconds = time.process_time() - started
            worst = max(worst, seconds)
            print(f"{RUNS} runs x {len(SPLITS) * SAMPLES} samples x {len(METRICS)} columns, {spread}: {seconds:.2f} s")
            assert len(tables) == len(SPLITS)
            assert len(text) > 5000
    print(f"at most {BOUND} s; {Path(leaderboard.__file__).parent}")
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
