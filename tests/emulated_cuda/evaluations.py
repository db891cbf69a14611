"""Whole evaluations of the embedded family, and every learnt metric, on the pretended GPU."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

import brushbench
from brushbench import registry
from brushbench.engines import jobs
from brushbench.errors import MissingWeightsError
from brushbench.metrics.sets import SetMetric
from tests.emulated_cuda.device import Machine, gpus, waits
from tests.emulated_cuda.report import MOST, DefectError, check, demand

__all__ = ["evaluations", "metrics"]


def evaluations(scratch: Path, show_waits: bool) -> None:
    """Whole evaluations of the embedded family: generate and score on the GPU."""
    bench = brushbench.load_benchmark("shapes", "inside,brush", 2)
    numbers = itertools.count()

    def scores(spec: str, **how: Any) -> Any:
        run = brushbench.evaluate(spec, bench, out=scratch / f"run{next(numbers)}", variants="raw,blended", **how)
        if run.pictures()["ok"] != len(bench):
            raise DefectError(f"not every picture was made: {run.pictures()}")
        table = run.scores
        return run, table.set_index(["sample", "split", "variant", "metric", "protocol"])["value"]

    def one(spec: str, device: str, dtype: str, most: float, current: int = 0) -> str:
        _, reference = scores(spec, device="cpu")
        with gpus():
            if current:
                jobs._settle(current, 1)  # what --jobs does in its second process
            Machine.made.clear()
            with waits() as seen:
                _, ours = scores(spec, device=device, dtype=dtype)
            used = dict(Machine.made)
        both = reference.to_frame("cpu").join(ours.to_frame("gpu"))
        spread = both.groupby("metric")["cpu"].transform(lambda v: v.replace([np.inf], np.nan).abs().max())
        worst = float(((both["gpu"] - both["cpu"]).abs() / spread.clip(lower=1e-3)).max(skipna=True))
        if show_waits:
            for wait, n in collections.Counter(seen).most_common(25):
                print(f"            {n} x {wait.kind} at {wait.place}")
        with gpus():
            right = str(torch.device("cuda", current)) if current or device == "cuda" else device
        if set(used) != {right}:
            raise DefectError(f"tensors were made on {used}, all were expected on {right}")
        return f"{demand(worst, most, 'largest change of a score')}; {len(seen)} waits"

    for spec in ("brushnet,steps=3", "latent-copy,steps=3", "vae"):
        check(f"eval {spec} on cuda, float32", functools.partial(one, spec, "cuda", "float32", 2e-2))
        check(f"eval {spec} on cuda, dtype auto", functools.partial(one, spec, "cuda", "auto", 0.3))
    check("eval brushnet on cuda:1, bfloat16", lambda: one("brushnet,steps=3", "cuda:1", "bfloat16", 1.0))
    check("eval brushnet in the second of two jobs", lambda: one("brushnet,steps=3", "cuda", "auto", 0.3, current=1))


def metrics() -> None:
    """Every learnt metric in every dtype, on CPU and GPU, against the CPU in float32."""
    bench = brushbench.load_benchmark("shapes", "inside", 6)
    samples = [bench[i] for i in range(6)]
    rng = np.random.default_rng(0)
    pictures = [np.clip(s.image + rng.integers(-20, 20, s.image.shape), 0, 255).astype(np.uint8) for s in samples]

    def values(name: str, protocol: str, device: str, dtype: str) -> np.ndarray:
        return np.array(brushbench.load_metric(name, protocol, "tiny", device, dtype)(pictures, samples), dtype=float)

    def one(name: str, protocol: str) -> str:
        try:
            reference, told = values(name, protocol, "cpu", "float32"), []
        except MissingWeightsError:
            return "note: not checked, it has no embedded weights"
        for device, dtype in itertools.product(("cpu", "cuda"), ("float32", "float16", "bfloat16")):
            with gpus() if device == "cuda" else contextlib.nullcontext():
                ours = values(name, protocol, device, dtype)
            error = float(np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-9))
            demand(error, MOST[getattr(torch, dtype)] * (1 if dtype != "float32" else 10))
            told.append(f"{device} {dtype} {error:.0e}")
        return ", ".join(told)

    for name in registry.names("metric"):
        cls = registry.resolve("metric", name)
        if "weights" in registry.option_names(cls) and not issubclass(cls, SetMetric):
            for protocol in cls.protocols:
                check(f"metric {name}@{protocol}", functools.partial(one, name, protocol))
