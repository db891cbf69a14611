"""Host work, memory and `make eval`, each against an older checkout, in turn.

    git worktree add --detach /tmp/before 825be53
    OMP_NUM_THREADS=1 python tests/benchmarks/host_work.py /tmp/before              # all three; 40 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/host_work.py /tmp/before --only host  # or memory, eval; with --rounds 3

* ``host``: processor time per sample at 512x512 of what the host does around the models: write the image, read it back,
  make both variants, score PSNR, MSE and SSIM under all protocols, prepare pixels for the learnt metrics (the tiny
  ones: at 64x64). Every sample is another photograph with noise; one is done before the clock starts. At most 0.45.
* ``memory``: peak of `eval` with 600 images of 512x512 over that with 60, on this checkout alone. At most 1.10.
* ``eval``: seconds of `make eval`'s command, before and after in turn. At most 0.75; the SHA-256 of the pixels of every
  image must be the same.

The exit code is 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 8  # per measurement of host work, after one that warms up
SIDE = 512
MODELS = ("brushnet", "latent-copy", "telea", "copy", "vae", "oracle")
BOUNDS = {"host": 0.45, "memory": 1.10, "eval": 0.75}


def in_checkout(checkout: Path, *command: str) -> str:
    """Run Python with the packages of a checkout and return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


# Inside a checkout: only what both have is used -----------------------------------------------------------------------


def photographs(count: int) -> list[np.ndarray]:
    """Return photographs of 512x512, each with other noise."""
    import skimage.data

    rng = np.random.default_rng(0)
    photo = skimage.data.astronaut()
    return [
        np.clip(np.roll(photo, 37 * i, 1) + rng.normal(0, 4, photo.shape), 0, 255).astype(np.uint8)
        for i in range(count)
    ]


def measure_host() -> dict[str, float]:
    """Return milliseconds of processor time per sample, by part."""
    from brushbench.evaluation.columns import choose_columns
    from brushbench.features import Features
    from brushbench.metrics.plugins import load_metric
    from brushbench.records import PictureRow, pixel_sha256
    from brushbench.store import RunFolder
    from brushbench.types import Sample
    from brushbench.variants import make_variant

    pixel = [load_metric(name, protocol) for name, protocol in choose_columns("psnr,mse,ssim")]
    learnt = [
        load_metric(name, protocol, "tiny", "cpu")
        for name, protocol in choose_columns("clip_score,aesthetic,hps_v2,hps_v2.1,image_reward")
    ]
    features = answering()
    spent = dict.fromkeys(("write", "read", "variants", "pixel metrics", "preparation"), 0.0)
    hole = np.zeros((SIDE, SIDE), dtype=bool)
    hole[130:390, 100:400] = True
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place))
        folder.check_present = lambda: None  # type: ignore[method-assign]  # there is no run.json here
        photos = photographs(2 * SAMPLES + 2)
        for i in range(SAMPLES + 1):
            if i == 1:
                spent = dict.fromkeys(spent, 0.0)
            picture, sample = photos[2 * i], Sample(str(i), photos[2 * i + 1], hole, "an astronaut", "inside")
            row = PictureRow(str(i), "inside", 0, 0, "ok", "", pixel_sha256(picture))
            clock = Clock(spent)
            folder.commit(f"inside-0-{i:06d}", [row], [picture])
            clock.stop("write")
            read = folder.picture(row)
            clock.stop("read")
            variants = [make_variant(name, read, sample) for name in ("raw", "blended")]
            clock.stop("variants")
            for metric in pixel:
                for variant in variants:
                    metric([variant], [sample], Features())
            clock.stop("pixel metrics")
            for metric in learnt:
                for variant in variants:
                    metric([variant], [sample], features)
            clock.stop("preparation")
    return {part: 1000 * seconds / SAMPLES for part, seconds in spent.items()}


class Clock:
    """Adds the processor time since the last stop to a part."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent, self.last = spent, time.process_time()

    def stop(self, part: str) -> None:
        now = time.process_time()
        self.spent[part] += now - self.last
        self.last = time.process_time()


def answering() -> object:
    """Return features that know every embedding after the first: what is left is the preparation of its pixels."""
    from brushbench.features import Features

    class Answering(Features):
        first: dict[str, np.ndarray] = {}  # noqa: RUF012

        def _remember(self, kind, key, compute):  # type: ignore[no-untyped-def]
            name = f"{kind} {key[0]}"
            if name not in self.first:
                self.first[name] = compute()
            return self.first[name]

    return Answering()


def measure_memory(data: Path, out: Path) -> dict[str, float]:
    """Return the peak in MB of one evaluation."""
    import brushbench

    brushbench.evaluate("copy", str(data), out=out, metrics="psnr,ssim", split="brush", batch_size=4)
    return {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# Comparisons ----------------------------------------------------------------------------------------------------------


def compare_host(before: Path, rounds: int, _: int) -> float:
    """Return the share of the time per sample."""
    found: dict[Path, list[dict[str, float]]] = {before: [], ROOT: []}
    for _ in range(rounds):
        for checkout, parts in found.items():
            parts.append(json.loads(in_checkout(checkout, __file__, "--measure", "host").splitlines()[-1]))
    medians = {
        c: {part: statistics.median(each[part] for each in all_) for part in all_[0]} for c, all_ in found.items()
    }
    for part, was in medians[before].items():
        print(f"{part:14s} {was:7.1f} ms -> {medians[ROOT][part]:7.1f} ms per sample")
    return sum(medians[ROOT].values()) / sum(medians[before].values())


def compare_memory(*_: object) -> float:
    """Return the peak with 600 images over that with 60."""
    from PIL import Image

    peaks = []
    with tempfile.TemporaryDirectory() as place:
        for count in (60, 600):
            data = Path(place) / str(count)
            data.mkdir()
            for i in range(count):
                picture = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(picture).resize((SIDE, SIDE)).save(data / f"{i:04d}.jpg")
            said = in_checkout(ROOT, __file__, "--measure", "memory", str(data), str(Path(place) / f"run-{count}"))
            peaks.append(json.loads(said.splitlines()[-1])["MB"])
            print(f"{count} images: peak {peaks[-1]:.0f} MB")
    return peaks[1] / peaks[0]


def compare_eval(before: Path, rounds: int, limit: int) -> float:
    """Return the share of the seconds of `make eval`'s command."""
    seconds: dict[Path, list[float]] = {before: [], ROOT: []}
    images: dict[Path, dict[str, str]] = {}
    for _ in range(rounds):
        for checkout, each in seconds.items():
            with tempfile.TemporaryDirectory() as out:
                models = [part for model in MODELS for part in ("--model", model)]
                start, spent = time.perf_counter(), processor_seconds()
                asked = ["--jobs", "2", *models, "--bench", "shapes", "--limit", str(limit), "--out", out]
                in_checkout(checkout, "-m", "brushbench", "eval", *asked)
                each.append(time.perf_counter() - start)
                images[checkout] = hashes(Path(out))
            spent = processor_seconds() - spent
            print(
                f"{checkout}: {each[-1]:.1f} s, {spent:.1f} s of processor, {len(images[checkout])} images", flush=True
            )
    if images[before] != images[ROOT]:
        raise SystemExit("the SHA-256 of some images differ")
    print("the SHA-256 of every image's pixels is the same")
    return statistics.median(seconds[ROOT]) / statistics.median(seconds[before])


def processor_seconds() -> float:
    """Return the processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hashes(out: Path) -> dict[str, str]:
    """Return the SHA-256 of the pixels of every image of all runs."""
    return {
        f"{file.parts[-3]} {row['sample']} {row['split']} {row['repeat']}": row["sha256"]
        for file in sorted(out.glob("*/batches/*.json"))
        for row in json.loads(file.read_text())
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="checkout of the older commit")
    parser.add_argument("--only", choices=list(BOUNDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=64, help="images per split of `make eval`'s command")
    parser.add_argument("--measure", nargs="+", help="used by this script itself")
    options = parser.parse_args()
    if options.measure:
        what, *paths = options.measure
        print(json.dumps(measure_host() if what == "host" else measure_memory(*map(Path, paths))))
        return 0
    if options.before is None:
        parser.error("name the checkout of the older commit")
    missed = 0
    for name, compare in {"host": compare_host, "memory": compare_memory, "eval": compare_eval}.items():
        if options.only in (None, name):
            share = compare(options.before.resolve(), options.rounds, options.limit)
            missed += share > BOUNDS[name]
            print(f"{name}: {share:.3f}, at most {BOUNDS[name]}: {'reached' if share <= BOUNDS[name] else 'MISSED'}\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
