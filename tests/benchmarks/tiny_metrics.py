"""Measure the small metric models on held-out scenes. Prints numbers beside the thresholds set for them.

    python tests/benchmarks/tiny_metrics.py                    # data/tiny/metrics, as weights="tiny" reads it
    python tests/benchmarks/tiny_metrics.py --family FOLDER    # another family: clip/, hps/, image_reward/, lpips/
    python tests/benchmarks/tiny_metrics.py --seed 77          # other scenes

The thresholds were written before anything was measured. A missed one is reported and makes the exit code 1. Scenes
come from a stream that no training draws from; damage and wrong captions are drawn as in training, from other seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import brushbench
from brushbench.tiny.attributes import any_scene
from brushbench.tiny.judges.lpips import DAMAGE, STRENGTHS, damaged
from brushbench.tiny.judges.scenes import ATTRIBUTES, SPOILS, alternatives, spoil, wrong_captions
from brushbench.tiny.scenes import SceneRng, caption, render
from brushbench.types import Metric, Picture, Sample

SEED = 31
THRESHOLDS = {
    "clip_score, right caption of 16": 90.0,
    "image_reward, right over wrong caption": 90.0,
    "hps_v2.1, right over wrong caption": 90.0,
    "image_reward, clean over spoilt": 90.0,
    "hps_v2.1, clean over spoilt": 90.0,
    "aesthetic, clean over spoilt": 85.0,
    **{f"lpips, monotone in {kind}": 100.0 for kind in DAMAGE},
}


def scores(
    metric: Metric, pictures: Sequence[Picture], captions: Sequence[str], truths: Sequence[Picture]
) -> np.ndarray:
    """Score pictures with the captions and the references given; the hole is the middle half."""
    hole = np.zeros((64, 64), dtype=bool)
    hole[16:48, 16:48] = True
    samples = [Sample(str(i), t, hole, c, "inside", {}) for i, (t, c) in enumerate(zip(truths, captions, strict=True))]
    return np.array(metric(pictures, samples), dtype=float)


def shares(fine: np.ndarray, kinds: Sequence[str], names: Sequence[str]) -> str:
    """Say in how many of each kind the judge was right."""
    return ", ".join(f"{name} {100 * fine[[kind == name for kind in kinds]].mean():.0f} %" for name in names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, help="folder of the four models")
    parser.add_argument("--count", type=int, default=960, help="scenes, a multiple of 16")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the scenes (default {SEED})")
    options = parser.parse_args()
    rng = SceneRng(options.seed)

    def load(name: str, folder: str) -> Metric:
        return brushbench.load_metric(name, weights=str(options.family / folder) if options.family else "tiny")

    scenes = [any_scene("held-out", options.seed, i)[0] for i in range(options.count)]
    clean = [render(scene).image for scene in scenes]
    right = [caption(scene) for scene in scenes]
    wrong = [wrong_captions(scene, rng, 1)[0] for scene in scenes]
    changed = [
        next(name for name, texts in alternatives(scene).items() if text in texts)
        for scene, text in zip(scenes, wrong, strict=True)
    ]
    kinds = [SPOILS[i % len(SPOILS)] for i in range(len(scenes))]
    spoilt = [spoil(image, kind, rng, clean[i - 1]) for i, (image, kind) in enumerate(zip(clean, kinds, strict=True))]
    measured: dict[str, float] = {}

    clip = load("clip_score", "clip")
    chosen = []
    for start in range(0, len(scenes), 16):
        group = range(start, start + 16)
        pairs = [(i, j) for i in group for j in group]
        table = scores(clip, [clean[i] for i, _ in pairs], [right[j] for _, j in pairs], [clean[i] for i, _ in pairs])
        chosen += list(table.reshape(16, 16).argmax(axis=1) == np.arange(16))
    measured["clip_score, right caption of 16"] = 100 * float(np.mean(chosen))

    for name, folder in (("image_reward", "image_reward"), ("hps_v2.1", "hps"), ("aesthetic", "clip")):
        metric = load(name, folder)
        best = scores(metric, clean, right, clean)
        if name != "aesthetic":
            told = best > scores(metric, clean, wrong, clean)
            measured[f"{name}, right over wrong caption"] = 100 * float(told.mean())
            print(f"  {name}, right over wrong {shares(told, changed, ATTRIBUTES)}")
        kept = best > scores(metric, spoilt, right, clean)
        measured[f"{name}, clean over spoilt"] = 100 * float(kept.mean())
        print(f"  {name}, clean over {shares(kept, kinds, SPOILS)}")

    lpips = load("lpips", "lpips")
    for kind in DAMAGE:
        means = []
        for strength in STRENGTHS[kind]:
            bad = [damaged(image, kind, strength, rng) for image in clean[:64]]
            means.append(float(scores(lpips, bad, right[:64], clean[:64]).mean()))
        print(f"  lpips, {kind} {STRENGTHS[kind]}: {[round(value, 4) for value in means]}")
        measured[f"lpips, monotone in {kind}"] = 100.0 * bool(np.all(np.diff([0.0, *means]) > 0))

    for name, value in measured.items():
        verdict = "reached" if value >= THRESHOLDS[name] else "MISSED "
        print(f"{verdict}  {name}: {value:.1f} % (threshold {THRESHOLDS[name]})")
    return int(any(value < THRESHOLDS[name] for name, value in measured.items()))


if __name__ == "__main__":
    sys.exit(main())
