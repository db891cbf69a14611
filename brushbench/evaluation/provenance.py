"""What a run records of itself: everything its pictures depend on, and where they were made."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brushbench import __version__
from brushbench.config import SCHEMA_VERSION, RunConfig
from brushbench.evaluation.plan import make_plan
from brushbench.evaluation.sources import Source
from brushbench.types import JSON, Benchmark

__all__ = ["git_revision", "machine", "make_header", "software"]


def make_header(source: Source, benchmark: Benchmark, config: RunConfig) -> dict[str, Any]:
    """Return what ``run.json`` records: everything the pictures depend on, and where they were made."""
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats)
    keys = hashlib.sha256(json.dumps(list(benchmark.keys)).encode()).hexdigest()
    return {
        "schema": SCHEMA_VERSION,
        "config": config.model_dump(mode="json"),
        "method": dict(source.describe()),
        "capabilities": asdict(source.capabilities),
        "benchmark": dict(benchmark.manifest),
        "plan": {"batches": len(plan), "pictures": len(benchmark) * config.repeats, "keys_sha256": keys},
        "software": software(),
        "where": {"loaded_with": dict(benchmark.loaded_with), "git": git_revision(), "machine": machine()},
    }


def software() -> dict[str, str]:
    """Return the versions that pictures and scores may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0], "brushbench": __version__}
    for package in ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str:
    """Return the checkout's revision, with ``-dirty`` where files differ from it; empty for an installed wheel."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> dict[str, JSON]:
    """Return the machine a run was begun on."""
    import platform

    torch = sys.modules.get("torch")
    cuda = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cuda": cuda,
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),  # see brushnet/__init__.py
    }
