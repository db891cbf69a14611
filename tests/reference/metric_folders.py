"""Make what the metric tests need: samples, and weight folders out of the recorded cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from brushbench.types import Sample


def make_sample(image: np.ndarray, hole: np.ndarray | None = None, prompt: str = "a small red cat") -> Sample:
    if hole is None:
        hole = np.zeros(image.shape[:2], dtype=bool)
    return Sample("s", image, hole, prompt, "inside")


def read_picture(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / f"{name.removesuffix('.png')}.png").convert("RGB"))


def dense_weights(folder: Path, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the recorded state dict in float32, its cut tables filled up with zeros."""
    tensors = load_file(folder / "weights.safetensors")
    for name, cut in case.get("sparse", {}).items():
        table = torch.zeros(cut["shape"])
        table[tensors.pop(cut["ids"])] = tensors.pop(cut["rows"]).float()
        tensors[name] = table
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def weight_folder(case_folder: Path, target: Path) -> Path:
    """Lay a recorded case out as a metric's ``weights=`` folder: dense weights, config.json, vocabulary files."""
    case = json.loads((case_folder / "case.json").read_text())
    target.mkdir(parents=True, exist_ok=True)
    save_file(dense_weights(case_folder, case), target / "weights.safetensors")
    config = case.get("config") or ({"vision": case["vision"]} if "vision" in case else None)
    if config is not None:
        if "quick_gelu" in case:
            config["quick_gelu"] = case["quick_gelu"]
        (target / "config.json").write_text(json.dumps(config))
    for name in ("med_config.json", "vocab.txt"):
        if (case_folder / name).is_file():
            shutil.copy(case_folder / name, target)
    return target
