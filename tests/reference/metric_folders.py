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
    """Read a case's picture; what several cases share lies once, in ``pictures/`` beside them."""
    file = folder / f"{name.removesuffix('.png')}.png"
    return np.asarray(Image.open(file if file.is_file() else folder.parent / "pictures" / file.name).convert("RGB"))


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
    of_transformers = "hidden_act" in case  # a CLIPModel folder
    file = "model.safetensors" if of_transformers else "weights.safetensors"
    save_file(dense_weights(case_folder, case), target / file)
    config = case.get("config") or ({"vision": case["vision"]} if "vision" in case else None)
    if "mlp_hidden" in case:
        config = {key: case[key] for key in ("clip", "vit", "mlp_input", "mlp_hidden")}
    if of_transformers:
        from transformers import CLIPConfig

        towers = {f"{name}_config": config[name] for name in ("text", "vision")}
        CLIPConfig(**towers, projection_dim=config["projection_dim"]).save_pretrained(target)
    elif config is not None:
        if "quick_gelu" in case:
            config["quick_gelu"] = case["quick_gelu"]
        (target / "config.json").write_text(json.dumps(config))
    for name in ("med_config.json", "vocab.txt"):
        if (case_folder / name).is_file():
            shutil.copy(case_folder / name, target)
    return target


CLIP_CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
REWARD_CONFIG = {"vision": {"width": 24, "depth": 2, "heads": 2, "patch": 16, "image_size": 64}}
MED_CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 30524,
}


def random_state(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return weights large enough to tell pictures and captions apart."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def random_clip(target: Path, seed: int = 0, *, head: bool = True, **changes: Any) -> Path:
    """Make a small CLIP's ``weights=`` folder in open_clip's keys, with an aesthetic head in the same file."""
    from brushbench.metrics.clip_model import build_model

    config = {**CLIP_CONFIG, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = random_state(build_model(config), seed)
    if head:
        state |= {"aesthetic.weight": torch.linspace(-2, 3, config["embed_dim"])[None], "aesthetic.bias": torch.ones(1)}
    target.mkdir(parents=True, exist_ok=True)
    save_file(state, target / "weights.safetensors")
    (target / "config.json").write_text(json.dumps(config))
    return target


def random_reward(target: Path, seed: int = 0) -> Path:
    """Make a small ImageReward's ``weights=`` folder in the published keys, as a pickled state dict."""
    from brushbench.metrics.image_reward import build_model, find_config, original_name
    from brushbench.weights import WeightFile

    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(REWARD_CONFIG))
    (target / "med_config.json").write_text(json.dumps(MED_CONFIG))
    file = target / "ImageReward.pt"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = random_state(build_model(find_config(WeightFile(file))), seed)
    torch.save({original_name(name)[0][0]: value for name, value in state.items()}, file)
    return target


def random_pictures(seed: int, *sizes: tuple[int, int]) -> list[np.ndarray]:
    """Return uint8 pictures of (height, width) with broad structure and noise."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + rng.integers(-30, 30, (height, width, 3))
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return pictures
