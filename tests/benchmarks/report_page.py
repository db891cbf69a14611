"""Write the page of 600 samples x 8 methods at 512x512, and of 60; seconds, peak memory, sizes.

    python -m tests.benchmarks.report_page

The thresholds were written before anything was measured; a missed one makes the exit code 1. The pictures are hard
links to 24 different ones, which cost as much to read and draw as 4,800 different ones would. The same two processes
draw in both sizes; each page is written by a process of its own, whose peak memory (its children's included, as the
system counts them: the largest of them) is what is compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import brushbench
from brushbench.masks import encode_rle
from brushbench.records import pixel_sha256
from tests.brushbench.written_runs import write_run

METHODS = 8
METRICS = ("psnr", "mse", "lpips", "ssim", "clip_score", "aesthetic", "image_reward", "hps_v2.1")
SIDE, POOL = 512, 24
SECONDS, FIRST_PAGE_MB, GROWTH = 60.0, 3.0, 1.15  # 1.15: peak for 600 samples over that for 60


def write_data(root: Path, samples: int) -> list[str]:
    """Write a benchmark in the published layout, and the pool of pictures."""
    rng = np.random.default_rng(5)
    (root / "images").mkdir(parents=True)
    (root / "pool").mkdir()
    yy, xx = np.mgrid[0:SIDE, 0:SIDE]
    shas = []
    for i in range(POOL):
        base = (np.sin(xx / (9 + i)) + np.cos(yy / (13 + i))) * 50 + 128
        picture = np.clip(base[..., None] + rng.normal(0, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(root / "pool" / f"{i}.png", compress_level=1)
        shas.append(pixel_sha256(picture))
    hole = np.zeros((SIDE, SIDE), bool)
    hole[150:350, 120:400] = True
    mapping = {}
    for i in range(samples):
        os.link(root / "pool" / f"{i % POOL}.png", root / "images" / f"{i:09d}.png")
        mapping[f"{i:09d}"] = {
            "image": f"images/{i:09d}.png",
            "caption": f"a photograph of the thing number {i}",
            "inpainting_mask": encode_rle(hole, "brushbench"),
            "outpainting_mask": encode_rle(~hole, "brushbench"),
        }
    (root / "mapping_file.json").write_text(json.dumps(mapping))
    return shas


def write_runs(root: Path, samples: int) -> Path:
    """Write the runs of eight methods on the benchmark, raw and blended scores, pictures as links."""
    shas = write_data(root / "data", samples)
    data = brushbench.load_benchmark("brushbench", split="inside", root=str(root / "data")).with_captions()
    rng = np.random.default_rng(6)
    ids = [key for key, _ in data.keys]
    for number in range(METHODS):
        folder = root / "runs" / f"method-{number}"
        scores = {metric: rng.normal(10, 2, samples).tolist() for metric in METRICS}
        write_run(
            folder, f"method-{number}", scores, benchmark="brushbench", ids=ids, data=str(data.manifest["sha256"])
        )
        table = pd.read_parquet(folder / "scores.parquet")
        pd.concat([table, table.assign(variant="blended")]).to_parquet(folder / "scores.parquet", index=False)
        rows = json.loads((folder / "batches" / "000000.json").read_text())
        (folder / "pictures" / "inside" / "0").mkdir(parents=True)
        for place, row in enumerate(rows):
            pick = (place + number) % POOL
            row["sha256"] = shas[pick]
            os.link(
                root / "data" / "pool" / f"{pick}.png", folder / "pictures" / "inside" / "0" / f"{row['sample']}.png"
            )
        (folder / "batches" / "000000.json").write_text(json.dumps(rows))
        record = json.loads((folder / "run.json").read_text())
        record["where"] = {"loaded_with": {"root": str(root / "data")}}
        (folder / "run.json").write_text(json.dumps(record))
    return root / "runs"


def write_page(runs: Path, page: Path) -> tuple[float, float]:
    """Write the page as a user would; return seconds, and MB of the largest process's peak."""
    code = (
        "import resource, sys\nfrom brushbench.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "usage = [resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        "print(max(usage) / 1024)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(runs), "-o", str(page), "--jobs", "2"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return time.monotonic() - start, float(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Measure both sizes and judge them by the thresholds."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for samples in (60, 600):
            root = Path(scratch) / str(samples)
            page = root / "page"
            seconds, memory = write_page(write_runs(root, samples), page)
            first = sum(
                (page / name).stat().st_size for name in ("index.html", "report.css", "report.js", "gallery.js")
            )
            thumbs = sorted((page / "thumbs").rglob("*.webp"))
            per_row = METHODS + 2
            # What a screen of the gallery loads besides: ten rows, the virtualised list's own margin included.
            first += sum(file.stat().st_size for file in thumbs[: 10 * per_row])
            found[samples] = (seconds, memory, first / 1e6, sum(file.stat().st_size for file in thumbs) / 1e6)
            print(
                f"{samples} samples x {METHODS} methods: {seconds:.1f} s, peak {memory:.0f} MB, first page "
                f"{first / 1e6:.2f} MB, thumbnails {found[samples][3]:.1f} MB",
                flush=True,
            )
    seconds, memory, first_mb, _ = found[600]
    checks = {
        f"600 samples in {seconds:.1f} s (at most {SECONDS:.0f})": seconds <= SECONDS,
        f"peak {memory / found[60][1]:.2f} times that of 60 (at most {GROWTH})": memory <= GROWTH * found[60][1],
        f"first page {first_mb:.2f} MB (at most {FIRST_PAGE_MB})": first_mb <= FIRST_PAGE_MB,
    }
    for text, reached in checks.items():
        print(f"{'ok' if reached else 'MISSED'}: {text}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
