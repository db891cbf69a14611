"""What a run does on one of several GPUs: what it records, what it shares, what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import brushbench
from brushbench.errors import ConfigMismatchError, UsageError
from tests.emulated_cuda.device import gpus
from tests.emulated_cuda.report import DefectError, check

__all__ = ["missing_gpu", "mixed_devices", "names_its_gpu", "runs", "two_gpus"]

METHOD = "vae"  # the quickest that computes on a device


def two_gpus(scratch: Path) -> str:
    """Two shards of one run, each on a GPU of its own by --device: they were refused."""
    bench = brushbench.load_benchmark("shapes", "inside", 2)
    with gpus():
        for shard, device in (("1/2", "cuda:0"), ("2/2", "cuda:1")):
            run = brushbench.evaluate(
                METHOD, bench, out=scratch / "two", shard=shard, device=device, metrics="none", batch_size=1
            )
    if run.pictures()["ok"] != len(bench):
        raise DefectError(f"got {run.pictures()}")
    return ""


def mixed_devices(scratch: Path) -> str:
    """A run begun on a GPU is not continued on the CPU: ``auto`` mixed the images of both in silence."""
    bench = brushbench.load_benchmark("shapes", "inside", 2)
    how = {"out": scratch / "mixed", "device": "auto", "dtype": "float32", "metrics": "none", "batch_size": 1}
    with gpus():
        brushbench.evaluate(METHOD, bench, shard="1/2", **how)
    try:
        brushbench.evaluate(METHOD, bench, shard="2/2", **how)
    except ConfigMismatchError as error:
        return str(error).splitlines()[1].strip()
    raise DefectError("images of a GPU and of the CPU are in one run")


def names_its_gpu(scratch: Path) -> str:
    """A run on cuda:1 records that GPU's name and peak memory: it recorded the first one's."""
    bench = brushbench.load_benchmark("shapes", "inside", 1)
    with gpus():
        run = brushbench.evaluate(METHOD, bench, out=scratch / "names", device="cuda:1", metrics="none")
    machine, peak = run.header.where.machine, run.timing()[0]["peak_cuda_mb"]
    if (machine["cuda"], peak) != ("pretended GPU 1", 1001):
        raise DefectError(
            f"recorded {machine['cuda']!r} with a peak of {peak} MB, expected 'pretended GPU 1' with 1001"
        )
    settings = machine["cuda_settings"]
    if settings["tf32_convolutions"] or settings["tf32_products"]:
        raise DefectError(f"float32 is not float32: {settings}")
    return f"{machine['cuda']}, attention {settings['attention']}"


def missing_gpu(scratch: Path) -> str:
    """A GPU that is not there is refused in a sentence: it was a traceback."""
    bench = brushbench.load_benchmark("shapes", "inside", 1)
    with gpus():
        try:
            brushbench.evaluate(METHOD, bench, out=scratch / "missing", device="cuda:7", metrics="none")
        except UsageError as error:
            return str(error)
    raise DefectError("--device cuda:7 was taken")


CHECKS: dict[str, Callable[[Path], str]] = {
    "two shards on two GPUs by --device": two_gpus,
    "a run begun on a GPU, continued on the CPU": mixed_devices,
    "what a run on cuda:1 records": names_its_gpu,
    "a GPU that is not there": missing_gpu,
}


def runs(scratch: Path) -> None:
    """Run every check of this module."""
    for title, run in CHECKS.items():
        check(f"run, {title}", functools.partial(run, scratch))
