"""Host work, memory and `make eval`, each against an older checkout, in turn.

    git worktree add --detach /tmp/before 825be53
    OMP_NUM_THREADS=1 python tests/benchmarks/host_work.py /tmp/before              # all of them; 40 minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/host_work.py /tmp/before --only host  # or memory, eval; with --rounds 3
    git worktree add --detach /tmp/single c06a1ce^                                  # LPIPS one image at a time
    OMP_NUM_THREADS=1 python tests/benchmarks/host_work.py /tmp/single --only lpips

* ``host``: processor time per sample at 512x512 of what the host does around the models: write the image, read it back,
  make both variants, score PSNR, MSE and SSIM under all protocols, prepare pixels for the learnt metrics (the tiny
  ones: at 64x64). Every sample is another photograph with noise; one is done before the clock starts. At most 0.45.
* ``memory``: peak of `eval` with 600 images of 512x512 over that with 60, on this checkout alone. At most 1.10.
* ``eval``: seconds of `make eval`'s command, before and after in turn. At most 0.75; the SHA-256 of the pixels of every
  image must be the same.
* ``lpips``: processor time of LPIPS (`standard`, SqueezeNet of full size) per image, raw and blended, in batches of 4
  at 512x512 and of 16 at 64x64, one batch before the clock starts. At most 1/1.5, at both sizes.

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
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = 8  # per measurement of host work, after one that warms up
SIDE = 512
MODELS = ("brushnet", "latent-copy", "telea", "copy", "vae", "oracle")
BOUNDS = {"host": 0.45, "memory": 1.10, "eval": 0.75, "lpips": 1 / 1.5}


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


def measure_lpips() -> dict[str, float]:
    """Return milliseconds of processor time per image, by side."""
    import torch

    from brushbench.features import Features
    from brushbench.metrics.plugins import load_metric
    from brushbench.types import Sample
    from brushbench.variants import make_variant

    torch.set_num_threads(1)
    metric = load_metric("lpips", "standard", "tiny", "cpu")
    spent: dict[str, float] = defaultdict(float)
    for side, batch in ((64, 16), (SIDE, 4)):
        photos = [photo[:side, :side] for photo in photographs(4 * batch)]
        hole = np.zeros((side, side), dtype=bool)
        hole[side // 4 : -side // 4, side // 5 : -side // 5] = True
        clock = Clock(spent)
        for start in range(0, len(photos), 2 * batch):
            if start:
                clock.stop(f"warm-up {side}")
            part = photos[start : start + 2 * batch]
            samples = [Sample(str(i), image, hole, "a", "inside") for i, image in enumerate(part[batch:])]
            features = Features()
            for variant in ("raw", "blended"):
                made = [make_variant(variant, p, s) for p, s in zip(part[:batch], samples, strict=True)]
                metric(made, samples, features)
        clock.stop(f"{side}x{side}")
    return {part: 500 * spent[part] / batch for part, batch in (("64x64", 16), (f"{SIDE}x{SIDE}", 4))}


def measure_memory(data: Path, out: Path) -> dict[str, float]:
    """Return the peak in MB of one evaluation."""
    import brushbench

    brushbench.evaluate("copy", str(data), out=out, metrics="psnr,ssim", split="brush", batch_size=4)
    return {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# Comparisons ----------------------------------------------------------------------------------------------------------


def compare_host(before: Path, rounds: int, _: int) -> float:
    """Return the share of the time per sample."""
    was, now = medians("host", before, rounds)
    return sum(now.values()) / sum(was.values())


def compare_lpips(before: Path, rounds: int, _: int) -> float:
    """Return the larger share of the time per image of the two sides."""
    was, now = medians("lpips", before, rounds)
    return max(now[side] / was[side] for side in was)


def medians(what: str, before: Path, rounds: int) -> list[dict[str, float]]:
    """Return the milliseconds of each part, before and now, measured in turn."""
    found: dict[Path, list[dict[str, float]]] = {before: [], ROOT: []}
    for _ in range(rounds):
        for checkout, parts in found.items():
            parts.append(json.loads(in_checkout(checkout, __file__, "--measure", what).splitlines()[-1]))
    was, now = ({p: statistics.median(each[p] for each in all_) for p in all_[0]} for all_ in found.values())
    for part in was:
        print(f"{part:14s} {was[part]:7.1f} ms -> {now[part]:7.1f} ms")
    return [was, now]


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


COMPARISONS = {"host": compare_host, "memory": compare_memory, "eval": compare_eval, "lpips": compare_lpips}


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
        measures = {"host": measure_host, "lpips": measure_lpips, "memory": measure_memory}
        print(json.dumps(measures[what](*map(Path, paths))))  # type: ignore[operator]
        return 0
    if options.before is None:
        parser.error("name the checkout of the older commit")
    missed = 0
    for name, compare in COMPARISONS.items():
        if options.only in (None, name):
            share = compare(options.before.resolve(), options.rounds, options.limit)
            missed += share > BOUNDS[name]
            print(f"{name}: {share:.3f}, at most {BOUNDS[name]}: {'reached' if share <= BOUNDS[name] else 'MISSED'}\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
