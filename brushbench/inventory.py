"""What is installed, what it needs and whether it is here: behind ``list``, ``doctor`` and ``data preview``."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from baselines.credits import CREDITS, embedded_hash
from brushbench import registry
from brushbench.errors import BrushbenchError, UnknownNameError, UsageError
from brushbench.metrics.plugins import metric_class

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import Image

    from brushbench.types import Benchmark

__all__ = ["all_methods", "checkup", "inventory", "preview"]

EXTRAS = {
    "photos": "sklearn", "train": "tensorboard", "adam8bit": "bitsandbytes", "ray": "ray", "slurm": "submitit",
}  # fmt: skip
KINDS: dict[str, registry.Kind] = {"models": "model", "metrics": "metric", "benchmarks": "benchmark"}


def inventory(kind: str) -> tuple[list[str], list[list[str]]]:
    """Return a header and rows of everything registered of a kind: ``models``, ``metrics`` or ``benchmarks``.

    Raises:
        UnknownNameError: another kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    singular = KINDS[kind]
    if singular == "metric":
        return ["metric", "protocols", "what", "needs", "here"], [
            _metric_row(name) for name in registry.names("metric")
        ]
    if singular == "model":
        header = ["model", "what", "paper", "licence of the weights", "tiny weights, SHA-256", "options"]
        return header, [_model_row(name) for name in registry.names("model")]
    classes = {name: registry.resolve(singular, name) for name in registry.names(singular)}
    header = [singular, "what", "options"]
    return header, [
        [name, _first_sentence(cls), ", ".join(registry.option_names(cls)) or "–"] for name, cls in classes.items()
    ]


def all_methods(preset: str | None, context: Mapping[str, Any]) -> tuple[list[registry.Spec], dict[str, str]]:
    """Return every method that can run here, and why the others cannot: each is loaded once and let go.

    Methods whose published model is named by an option (``model``) would download many gigabytes; they run when
    they are named.

    Args:
        preset: the weights of those that take a preset; None: their own default.
        context: ``device`` and ``dtype``.
    """
    specs, reasons = [], {}
    for name in registry.names("model"):
        try:
            spec = registry.with_preset(registry.Spec(name, {}), preset)
            if "model" in registry.option_names(registry.resolve("model", name)):
                raise UsageError(f"it runs when it is named: --model {name},model=FOLDER.")
            registry.build("model", spec, context)
            specs.append(spec)
        except BrushbenchError as error:
            reasons[name] = str(error)
    return specs, reasons


def _model_row(name: str) -> list[str]:
    cls = registry.resolve("model", name)
    options = ", ".join(registry.option_names(cls)) or "–"
    if name not in CREDITS:  # a plug-in
        return [name, _first_sentence(cls), "–", "–", "–", options]
    credit = CREDITS[name]
    return [name, _first_sentence(cls), credit.paper, credit.licence, embedded_hash(name), options]


def _metric_row(name: str) -> list[str]:
    cls = metric_class(name)
    needs = "\n".join(map(str, cls.needs)) or "no weights"
    return [name, ", ".join(cls.protocols), _first_sentence(cls), needs, "no" if cls.available() else "yes"]


def _first_sentence(cls: type[Any]) -> str:
    """Return the first paragraph of a docstring as plain text."""
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")


def checkup() -> tuple[list[list[str]], bool]:
    """Return (what, state) lines about this installation, and whether nothing is broken."""
    from brushbench.evaluation.loading import load_benchmark
    from brushbench.evaluation.provenance import machine, software

    healthy = True
    lines = [[package, version] for package, version in software().items()]
    healthy &= all(version != "not installed" for _, version in lines)
    import torch

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    lines.append(["device", ", ".join(devices) or f"cpu, {torch.get_num_threads()} threads"])
    lines.append(["platform", str(machine()["platform"])])
    for extra, module in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        lines.append(
            [f"extra [{extra}]", "installed" if there else f"not installed: pip install 'brushbench[{extra}]'"]
        )
    for name in ("photos", "shapes"):
        if name not in registry.names("benchmark"):
            continue
        try:
            lines.append([f"benchmark {name}", f"{len(load_benchmark(name))} samples"])
        except BrushbenchError as error:
            healthy = False
            lines.append([f"benchmark {name}", f"BROKEN: {error}"])
    lines += [[f"metric {name}", metric_class(name).available() or "yes"] for name in registry.names("metric")]
    return lines, healthy


def preview(benchmark: Benchmark, side: int = 192) -> Image.Image:
    """Draw a benchmark: one row per image, one column per split, each hole tinted red.

    Args:
        benchmark: loaded with the splits and the limit wanted.
        side: edge of a tile in pixels.
    """
    from PIL import Image

    splits = list(dict.fromkeys(split for _, split in benchmark.keys))
    ids = list(dict.fromkeys(sample for sample, _ in benchmark.keys))
    sheet = Image.new("RGB", (side * len(splits), side * len(ids)), "white")
    for sample in benchmark:
        tinted = sample.image.astype(np.float32)
        tinted[sample.hole] = 0.5 * tinted[sample.hole] + 0.5 * np.array([255, 0, 0], dtype=np.float32)
        tile = Image.fromarray(tinted.astype(np.uint8))
        tile.thumbnail((side, side))
        sheet.paste(tile, (side * splits.index(sample.split), side * ids.index(sample.id)))
    return sheet
