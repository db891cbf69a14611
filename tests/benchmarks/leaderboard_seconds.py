"""Processor time of `leaderboard` over 20 runs x 1,200 samples x 8 columns, beyond its imports. At most 2 s.

OMP_NUM_THREADS=1 python tests/benchmarks/leaderboard_seconds.py
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from brushbench import leaderboard
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.records import COLUMNS, column_sha256
from brushbench.store import RunFolder
from tests.brushbench.written_runs import write_run

RUNS, SAMPLES, METRICS = (
    20,
    600,
    ("image_reward", "hps_v2.1", "aesthetic", "psnr", "mse", "lpips", "ssim", "clip_score"),
)
SPLITS = ("inside", "outside")
SHA256 = "a" * 64  # of every image
BATCH = 4  # images of one batch's record, as many as `eval` takes unless told otherwise
BOUND = 2.0


def write(folder: Path) -> None:
    """Write the runs: two splits of 600 samples each, so 1,200 samples."""
    rng = np.random.default_rng(0)
    for i in range(RUNS):
        run = write_run(folder / f"run-{i:02d}", f"run-{i:02d}", dict.fromkeys(METRICS, [0.0] * 2))
        rows = [
            (f"{k:09d}", split, "caption", 0, "raw", metric, "standard", value, "", SHA256)
            for metric in METRICS
            for split in SPLITS
            for k, value in enumerate(rng.normal(20 + i / 10, 3, SAMPLES))
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        RunFolder(run)._write_scores(table)
        headers = json.loads((run / "metrics.json").read_text())
        for metric in METRICS:
            headers[f"{metric}@standard"]["scores_sha256"] = column_sha256(table[table["metric"] == metric])
        (run / "metrics.json").write_text(json.dumps(headers))
        keys = [(f"{k:09d}", split) for split in SPLITS for k in range(SAMPLES)]
        for number, start in enumerate(range(0, len(keys), BATCH)):
            batch = [
                {"sample": s, "split": split, "repeat": 0, "seed": 0, "state": "ok", "reason": "", "sha256": SHA256}
                for s, split in keys[start : start + BATCH]
            ]
            (run / "batches" / f"{number:06d}.json").write_text(json.dumps(batch, indent=1))


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
