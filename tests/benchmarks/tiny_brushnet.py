"""Measure the two tiny BrushNets on ``shapes``. Prints numbers beside the thresholds set for them.

    python tests/benchmarks/tiny_brushnet.py                   # 240 pictures a split; about an hour on one core
    python tests/benchmarks/tiny_brushnet.py --limit 64        # a look

Raw pictures, protocol ``standard``. The runs lie in ``--out``: the same command goes on where it stopped, two
processes with ``--rows`` of their own share the work, and ``brushbench leaderboard`` reads them. The thresholds were
written before the weights measured here were trained. A missed one is reported and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import brushbench
from brushbench.stats import Summary, paired_difference

METRICS = ("psnr", "boundary", "attribute_accuracy")
SPLITS = ("inside", "outside", "brush")
ROWS = {  # folder: spec and splits
    "brushnet": ("brushnet", SPLITS),
    "brushnet-0.2": ("brushnet,scale=0.2", ("inside", "brush")),
    "latent-copy": ("latent-copy", SPLITS),
    "telea": ("telea", SPLITS),
    "vae": ("vae", SPLITS),
}
ACCURACY_INSIDE = 80.0  # %
LIFT = 6.0  # dB of keep PSNR, scale 1.0 over scale 0.2: inside with the branch for segmentation, brush with the other


def scores(run: brushbench.Run, split: str, metric: str) -> np.ndarray:
    """Return the raw scores of one split, in the benchmark's order."""
    table = run.scores
    cell = {"split": split, "metric": metric, "variant": "raw", "protocol": "standard"}
    chosen = table[(table[list(cell)] == list(cell.values())).all(axis=1)]
    return chosen.sort_values("sample")["value"].to_numpy(dtype=float)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-brushnet"))
    parser.add_argument("--limit", type=int, help="pictures a split (default: all 240)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="only make these rows; judge nothing")
    options = parser.parse_args()
    runs = {}
    for name in options.rows or ROWS:
        spec, splits = ROWS[name]
        out = options.out / name
        runs[name] = brushbench.evaluate(
            spec, "shapes", out=out, name=name, split=splits, metrics=METRICS, variants="raw", limit=options.limit
        )
    if options.rows:
        return 0

    fine = True

    def judge(text: str, reached: bool) -> None:
        nonlocal fine
        fine = fine and reached
        print(f"{'reached' if reached else 'MISSED '}  {text}")

    accuracy = 100 * float(np.nanmean(scores(runs["brushnet"], "inside", "attribute_accuracy")))
    judge(f"attribute accuracy inside {accuracy:.1f} % (threshold {ACCURACY_INSIDE})", accuracy >= ACCURACY_INSIDE)
    right = {name: 100 * float(np.nanmean(scores(runs[name], "brush", "attribute_accuracy"))) for name in runs}
    told = ", ".join(f"{name} {share:.1f} %" for name, share in right.items())
    print(f"not judged: attribute accuracy of mostly covered objects, brush: {told}")
    for split in ("inside", "brush"):
        full, weak, ceiling = (scores(runs[name], split, "psnr").mean() for name in ("brushnet", "brushnet-0.2", "vae"))
        text = f"keep PSNR {split}: {full:.2f} dB, at scale 0.2 {weak:.2f}, lift {full - weak:.2f} (threshold {LIFT})"
        judge(f"{text}; {ceiling - full:.2f} below vae's {ceiling:.2f}", full - weak >= LIFT)

    def compare(metric: str, split: str, other: str, sign: int, scale: float) -> None:
        """Judge whether BrushNet is better than another row; ``sign`` is -1 where less is better."""
        both = [scale * scores(runs[name], split, metric) for name in ("brushnet", other)]
        gain: Summary = paired_difference(sign * both[0], sign * both[1])
        ours, theirs = (float(np.nanmean(values)) for values in both)
        text = f"{metric} {split} {ours:.2f} against {other} {theirs:.2f}: better by {gain.mean:.2f}"
        judge(f"{text} [{gain.low:.2f}, {gain.high:.2f}], n {gain.n} (interval above 0)", gain.low > 0)

    compare("attribute_accuracy", "inside", "latent-copy", 1, 100)
    compare("attribute_accuracy", "inside", "telea", 1, 100)
    for split in SPLITS:
        compare("boundary", split, "latent-copy", -1, 1000)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
