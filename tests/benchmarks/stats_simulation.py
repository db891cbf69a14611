"""How often the statistics err, against thresholds that were written down before anything was measured.

    OMP_NUM_THREADS=1 python tests/benchmarks/stats_simulation.py [--trials 4000] [--seed 1] [--out FILE.md]

Every trial draws a row of differences, calls the public function and compares its answer with the truth. Exit code 1
where a threshold is missed. The recorded output is reports/statistics.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from brushbench.stats import mean_interval, non_inferiority

Draw = Callable[[np.random.Generator, int], np.ndarray]

# Rows of mean 0. A loss is negative: "losses" has a long tail of ruined images, "gains" its mirror.
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "t3": lambda rng, n: rng.standard_t(3, size=n),
    "lognormal losses": lambda rng, n: np.exp(0.5) - rng.lognormal(size=n),
    "lognormal gains": lambda rng, n: rng.lognormal(size=n) - np.exp(0.5),
    "one in twenty ruined": lambda rng, n: 0.05 - (rng.random(n) < 0.05) + rng.normal(scale=0.05, size=n),
}
BOUND_TO = ("normal", "t3", "lognormal losses")
# Thresholds, in percent. Written before the first measurement; the issue names them.
FALSE_PASS = {64: 8.5, 240: 7.0}  # truth on the margin
FALSE_FAIL = {64: 5.0, 240: 5.0}  # no difference
COVERAGE = (93.0, 97.0)  # of 95 % intervals at n = 240: normal, t3, and shares 0.02 to 0.98
SHARES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)
MARGIN = 0.1


def main() -> int:
    """Run the simulation and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.process_time()
    lines = [
        f"{options.trials} trials per figure, seed {options.seed}. All in percent; bold misses its threshold.",
        "",
        *decisions(options.trials, options.seed),
        "",
        *coverages(options.trials, options.seed),
    ]
    text = "\n".join(lines)
    print(text)
    print(f"{time.process_time() - started:.0f} s of processor time", file=sys.stderr)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")
    return int("**" in text)


def decisions(trials: int, seed: int) -> list[str]:
    """False PASS with the truth on the margin; false FAIL where nothing changed."""
    lines = [
        "| differences | n | false pass | at most | false fail, no difference | at most |",
        "|---|---:|" + "---:|" * 4,
    ]
    for name, draw in SHAPES.items():
        for n in FALSE_PASS:
            rng = np.random.default_rng([seed, n])
            on_margin = no_change = 0
            for _ in range(trials):
                row = draw(rng, n)
                on_margin += non_inferiority(row - MARGIN, MARGIN).verdict == "pass"
                no_change += non_inferiority(row, MARGIN).verdict == "fail"
            limits = (FALSE_PASS[n], FALSE_FAIL[n]) if name in BOUND_TO else (None, FALSE_FAIL[n])
            shown = [
                _against(100 * count / trials, limit)
                for count, limit in zip((on_margin, no_change), limits, strict=True)
            ]
            lines.append(f"| {name} | {n} | {' | '.join(shown)} |")
    return lines


def coverages(trials: int, seed: int) -> list[str]:
    """How often the 95 % interval holds the truth."""
    lines = ["| scores | n | coverage | expected |", "|---|---:|---:|---:|"]
    for name, draw in SHAPES.items():
        bound = COVERAGE if name in BOUND_TO[:2] else None
        lines.append(f"| {name} | 240 | {_coverage(draw, 0.0, 240, trials, seed, bound)} |")
    for p in SHARES:
        share = _coverage(lambda r, k, p=p: (r.random(k) < p).astype(float), p, 240, trials, seed, COVERAGE)
        lines.append(f"| share of {p} | 240 | {share} |")
    return lines


def _coverage(draw: Draw, truth: float, n: int, trials: int, seed: int, bound: tuple[float, float] | None) -> str:
    rng = np.random.default_rng([seed, n, 7])
    hits = 0
    for _ in range(trials):
        low, high = mean_interval(draw(rng, n))
        hits += low <= truth <= high
    figure = 100 * hits / trials
    if bound is None:
        return f"{figure:.2f} | –"
    good = bound[0] <= figure <= bound[1]
    return (
        f"{figure:.2f} | {bound[0]:.0f} to {bound[1]:.0f}" if good else f"**{figure:.2f}** | {bound[0]} to {bound[1]}"
    )


def _against(figure: float, limit: float | None) -> str:
    if limit is None:
        return f"{figure:.2f} | –"
    return f"{figure:.2f} | {limit}" if figure <= limit else f"**{figure:.2f}** | {limit}"


if __name__ == "__main__":
    sys.exit(main())
