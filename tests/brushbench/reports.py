"""Small runs for the tests of reports, sheets and exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import brushbench
from brushbench.benchmarks.memory import as_benchmark
from brushbench.types import Benchmark, Sample

from .toys import Noise, write_benchmark

HOSTILE = (
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(2)>",
    "'\"><svg onload=alert(3)>",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "\x1b[31mred\x1b[0m",
    "long " * 2000,
    "=cmd|' /C calc'!A0",
    "{{ 7 * 7 }} {% raw %}",
)


def tiny_runs(root: Path, pictures: int = 4) -> tuple[Benchmark, list[brushbench.Run]]:
    """Make a benchmark and three runs on it: noise, a copy, and the reference line."""
    data = write_benchmark(root / "data", pictures)
    benchmark = brushbench.load_benchmark("brushbench", split="inside,outside", root=str(data))
    runs = [
        brushbench.evaluate(method, benchmark, out=root / "runs" / name, name=name, metrics="psnr,mse,ssim")
        for name, method in (("noise", Noise()), ("telea", "telea"), ("oracle", "oracle"))
    ]
    return benchmark, runs


def hostile_benchmark(root: Path) -> tuple[Benchmark, list[brushbench.Run]]:
    """Make runs whose label, prompts and metadata try to be more than text."""
    samples = hostile_samples()
    benchmark = as_benchmark(samples)
    run = brushbench.evaluate("telea", benchmark, out=root / "run", name="<b>x[red]", metrics="psnr")
    return benchmark, [run]


def hostile_samples() -> Sequence[Sample]:
    rng = np.random.default_rng(3)
    hole = np.zeros((32, 32), bool)
    hole[8:20, 8:20] = True
    return [
        Sample(f"s{i}", rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), hole, text, "inside", {"category": text})
        for i, text in enumerate(HOSTILE)
    ]
