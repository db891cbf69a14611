"""The paper's ablations on the embedded family: scale, blending, the mask channel, where the residuals enter.

    python tests/benchmarks/ablations.py                 # about an hour on one core
    python tests/benchmarks/ablations.py --only scale    # or training

``scale`` measures the shipped branch at five scales, raw and blended. ``training`` trains three branches for the same
few steps on the same scenes: the full one, one that does not see the mask, and one without residuals on the way up, as
ControlNet's; then measures them alike. Prints Markdown tables, and what is as in the paper and what is not, where two
trainings are compared by the 95 % interval of paired differences; the exit code is 1 if anything is not. Everything
lies in ``--out``; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

from tiny_brushnet import scores

import brushbench
from brushbench.stats import paired_difference
from brushbench.training.brushnet import BrushNetRecipe, train_brushnet
from brushbench.training.settings import FitConfig

SCALES = (1.0, 0.8, 0.6, 0.4, 0.2)
BLENDING = 3.0  # dB: "several"
COLUMNS = {"psnr": "keep PSNR, dB", "boundary": "boundary x10³", "attribute_accuracy": "attributes right, %"}
FACTORS = {"psnr": 1, "boundary": 1000, "attribute_accuracy": 100}
RECIPES = {
    "full branch": BrushNetRecipe(blobs=0.33),
    "no mask channel": BrushNetRecipe(blobs=0.33, mask_channel=False),
    "encoder half only": BrushNetRecipe(blobs=0.33, injection="encoder"),
}

SPLITS = ("inside", "outside")


def measure(spec: str, out: Path, limit: int) -> brushbench.Run:
    """Return a run over both splits, raw and blended."""
    return brushbench.evaluate(spec, "shapes", out=out, split=SPLITS, metrics=tuple(COLUMNS), limit=limit)


def means(run: brushbench.Run, split: str) -> dict[tuple[str, str], float]:
    """Return (variant, metric): mean, in the units of :data:`COLUMNS`."""
    table = run.summary()
    chosen = table[table["split"] == split][["variant", "metric", "mean"]]
    return {(v, m): FACTORS[m] * mean for v, m, mean in chosen.itertuples(index=False)}


def show(title: str, rows: Mapping[str, Mapping[tuple[str, str], float]]) -> None:
    """Print a Markdown table, raw and blended side by side."""
    keys = [key for key in next(iter(rows.values())) if all(row[key] == row[key] for row in rows.values())]
    print(f"\n**{title}**\n\n| | " + " | ".join(f"{COLUMNS[metric]}, {variant}" for variant, metric in keys) + " |")
    print("|---" * (len(keys) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |")
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", choices=("scale", "training"))
    parser.add_argument("--limit", type=int, default=64, help="pictures a split (default 64)")
    parser.add_argument("--steps", type=int, default=500, help="of each short training (default 500)")
    parser.add_argument("--batch-size", type=int, default=16, help="of each short training (default 16)")
    options = parser.parse_args()
    fine = True

    def judge(text: str, low: float, high: float) -> None:
        """Print what an effect, positive in the paper, is here."""
        nonlocal fine
        fine = fine and low > 0
        verdict = "as in the paper" if low > 0 else "NOT as in the paper" if high < 0 else "no difference seen"
        print(f"{verdict}: {text}", flush=True)

    if options.only != "training":
        runs = {
            f"scale {scale}": measure(f"brushnet,scale={scale}", options.out / f"scale-{scale}", options.limit)
            for scale in SCALES
        }
        for split in SPLITS:
            rows = {name: means(run, split) for name, run in runs.items()}
            show(f"Scale and blending, {split}", rows)
            psnr = [row["raw", "psnr"] for row in rows.values()]
            least = min(higher - lower for higher, lower in itertools.pairwise(psnr))
            judge(f"{split}: keep PSNR falls with every lower scale, by {least:.1f} dB at least", least, least)
            lift = rows["scale 1.0"]["blended", "psnr"] - psnr[0]
            over = lift - BLENDING
            judge(f"{split}: blending lifts keep PSNR by {lift:.1f} dB (at least {BLENDING})", over, over)

    if options.only != "scale":
        runs = {}
        for name, recipe in RECIPES.items():
            out = options.out / name.replace(" ", "-")
            plan = FitConfig(
                out / "training", max_steps=options.steps, batch_size=options.batch_size, learning_rate=1e-3, warmup=50,
                ema_decay=0.99, resume=True, picture_every=0, cpu=True,
            )  # fmt: skip
            train_brushnet(plan, recipe)
            runs[name] = measure(f"brushnet,checkpoint={out / 'training' / 'model'}", out / "run", options.limit)
        for split in SPLITS:
            show(
                f"After {options.steps} steps of {options.batch_size}, {split}",
                {name: means(run, split) for name, run in runs.items()},
            )
            for name in list(runs)[1:]:
                for metric, sign in (("psnr", 1), ("boundary", -1)):
                    full, less = (
                        sign * FACTORS[metric] * scores(runs[of], split, metric) for of in ("full branch", name)
                    )
                    gain = paired_difference(full, less)
                    told = f"better by {gain.mean:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
                    judge(f"{split}: {COLUMNS[metric]} of the full branch, {name}: {told}", gain.low, gain.high)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
