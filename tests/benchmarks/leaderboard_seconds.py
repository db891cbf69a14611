"""Seconds of `leaderboard` over many runs of 1,200 samples each.

    OMP_NUM_THREADS=1 python tests/benchmarks/leaderboard_seconds.py              # 20 runs x 8 columns: at most 2 s
    OMP_NUM_THREADS=1 python tests/benchmarks/leaderboard_seconds.py --runs 100   # 100 runs x 10 columns: at most 5 s

Three lines each: processor time beyond the imports, of tables without and with intervals; and processor time and wall
time of the command `brushbench leaderboard FOLDER`, imports included, which shows no intervals unless asked. Runs are
written first: batches of 4, another SHA-256 for every image. The exit code is 1 where a time is above the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from brushbench import leaderboard
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.records import COLUMNS
from brushbench.score_table import ScoreTable
from brushbench.store import RunFolder
from tests.brushbench.written_runs import write_run

SAMPLES = 600
METRICS = (
    *("image_reward", "hps_v2.1", "aesthetic", "psnr", "mse", "lpips", "ssim", "clip_score"),
    *("pick_score", "dino_similarity"),
)
SPLITS = ("inside", "outside")
BATCH = 4  # images of one batch's record, as many as `eval` takes unless told otherwise
CASES = {20: (8, 2.0), 100: (10, 5.0)}  # columns and bound, by runs


def write(folder: Path, runs: int, columns: int) -> None:
    """Write the runs: two splits of 600 samples each, so 1,200 samples."""
    rng = np.random.default_rng(0)
    keys = [(f"{k:09d}", split) for split in SPLITS for k in range(SAMPLES)]
    for i in range(runs):
        metrics = METRICS[:columns]
        run = write_run(folder / f"run-{i:03d}", f"run-{i:03d}", dict.fromkeys(metrics, [0.0] * 2))
        record = json.loads((run / "run.json").read_text())
        record["plan"]["pictures"] = len(keys)
        (run / "run.json").write_text(json.dumps(record))
        hashes = {key: sha256(f"{i} {key}".encode()).hexdigest() for key in keys}
        rows = [
            (sample, split, "caption", 0, "raw", metric, "standard", value, "", hashes[sample, split])
            for metric in metrics
            for (sample, split), value in zip(keys, rng.normal(20 + i / 10, 3, len(keys)), strict=True)
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        RunFolder(run)._write_scores(table)
        headers = json.loads((run / "metrics.json").read_text())
        for (metric, protocol), digest in ScoreTable.of(table).sha256().items():
            headers[f"{metric}@{protocol}"]["scores_sha256"] = digest
        (run / "metrics.json").write_text(json.dumps(headers))
        for number, start in enumerate(range(0, len(keys), BATCH)):
            batch = [
                {"sample": s, "split": split, "repeat": 0, "seed": 0, "state": "ok", "reason": "",
                 "sha256": hashes[s, split]}
                for s, split in keys[start : start + BATCH]
            ]  # fmt: skip
            (run / "batches" / f"{number:06d}.json").write_text(json.dumps(batch, indent=1))


def command(folder: Path) -> tuple[float, float]:
    """Return the processor seconds and the wall seconds of the command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "brushbench", "leaderboard", str(folder)],
        env={**os.environ, "COLUMNS": "160"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(shown) > 5000
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, choices=tuple(CASES), default=20)
    runs = parser.parse_args().runs
    columns, bound = CASES[runs]
    size = f"{runs} runs x {len(SPLITS) * SAMPLES} samples x {columns} columns"
    with TemporaryDirectory() as folder:
        write(Path(folder), runs, columns)
        render(make_tables(open_runs([Path(folder) / "run-000"])), "table")  # imports what is imported late
        taken = []
        for spread in ("none", "interval"):
            started = time.process_time()
            tables = make_tables(open_runs([folder]), intervals=spread != "none")
            text = render(tables, "table", spread=spread, width=120)  # type: ignore[arg-type]
            taken.append(time.process_time() - started)
            print(f"{size}, {spread}: {taken[-1]:.2f} s", flush=True)
            assert len(tables) == len(SPLITS)
            assert len(text) > 5000
        seconds, wall = command(Path(folder))
        taken.append(seconds)
        print(f"{size}, the command: {seconds:.2f} s of the processor, {wall:.2f} s of the clock")
    print(f"at most {bound} s; {Path(leaderboard.__file__).parent}")
    return int(max(taken) > bound)


if __name__ == "__main__":
    sys.exit(main())
