"""Weights and configurations that hold something else than plain numbers, or ask for more than there is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hostile.captions import MAKERS
from tests.hostile.corpus import Hostile, good_folder

LPIPS = Path(__file__).parents[2] / "data" / "tiny" / "metrics" / "lpips"
BRUSHNET = Path(__file__).parents[2] / "data" / "tiny" / "brushnet_segmentation"
HUGE = 10**9


class Runs:
    """A pickle that runs code where it is opened."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("hacked",)


def saved(value: object, path: Path) -> None:
    torch.save(value, path)


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda path: saved({"features.0.weight": change(torch.zeros(4, 3)), "b": torch.zeros(1)}, path)


def safe(kind: torch.dtype) -> Callable[[Path], None]:
    return lambda path: save_file({"features.0.weight": torch.zeros(4, 3).to(kind)}, path)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


# name of the file: how it is made, and what is said of it
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "float8.safetensors": (safe(torch.float8_e4m3fn), "features.0.weight is"),
    "int8.safetensors": (safe(torch.int8), "features.0.weight is"),
    "complex.safetensors": (safe(torch.complex64), "features.0.weight is"),
    "float8.pt": (tensors(lambda t: t.to(torch.float8_e5m2)), "features.0.weight is|more than tensors"),
    "sparse.pt": (tensors(lambda t: t.to_sparse()), "features.0.weight is|more than tensors"),
    "quantised.pt": (
        tensors(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)), "features.0.weight is|more than tensors"
    ),
    "meta.pt": (tensors(lambda t: t.to("meta")), "features.0.weight is|more than tensors"),
    "expanded.pt": (tensors(lambda t: t[:1, :1].expand(10_000, 10_000)), "features.0.weight is|more than tensors"),
    "list.pt": (partial(saved, [1, 2]), "error: .*list.pt"),
    "pickle.pt": (partial(saved, {"a": Runs()}), "more than tensors|cannot be read"),
    "other.safetensors": (safe(torch.float32), "error: .*other.safetensors"),
    "empty.pth": (content(b""), "error: .*empty.pth"),
    "page.bin": (content(b"<!DOCTYPE html><html>"), "error: .*page.bin"),
    "header.safetensors": (content(b"\xff" * 64), "error: .*header.safetensors"),
    "bomb.safetensors": (content((10**6).to_bytes(8, "little") + b'{"a":' * 200_000), "error: .*bomb.safetensors"),
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "layers of 10^9": {"layers_per_block": HUGE},
    "layers as a list": {"layers_per_block": [1, 1]},
    "zero widths": {"block_out_channels": [0, 0]},
    "widths of 10^9": {"block_out_channels": [HUGE, HUGE]},
    "widths as an object": {"block_out_channels": {"0": 16}},
    "an unknown block": {"down_block_types": ["os.system", "os.system"]},
    "an unknown activation": {"act_fn": "quick_gelu('x')"},
    "groups of 0": {"norm_num_groups": 0},
    "epsilon NaN": {"norm_eps": float("nan")},
    "channels of 10^9": {"in_channels": HUGE},
}


def metric(root: Path, file: str, make: Callable[[Path], object]) -> list[str]:
    make(root / file)
    made = ["eval", "-m", "copy", "--bench", str(good_folder(root / "d")), "--metrics", "lpips", "--variants", "raw"]
    return [*made, "--out", str(root / "runs"), "--weights", f"lpips={root / file}"]


def branch(root: Path, change: Callable[[Path], object]) -> list[str]:
    shutil.copytree(BRUSHNET, root / "branch")
    change(root / "branch")
    model = f"brushnet,masks=segmentation,steps=1,checkpoint={root / 'branch'}"
    return ["generate", "-m", model, "--bench", "shapes", "--limit", "1", "--split", "inside", "--out", str(root / "r")]


def configured(folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def in_its_place(folder: Path, make: Callable[[Path], object]) -> None:
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    make(folder / "diffusion_pytorch_model.safetensors")


def inputs() -> Iterator[Hostile]:
    for file, (make, says) in FILES.items():
        yield Hostile(f"--weights lpips={file}", partial(metric, file=file, make=make), 2, says, 15.0)
    for what, (make, _) in MAKERS.items():
        yield Hostile(f"--weights that are {what}", partial(metric, file="w.pth", make=make), 2, "error: .*w.pth", 15.0)
        change = partial(in_its_place, make=make)
        yield Hostile(f"a checkpoint that is {what}", partial(branch, change=change), 5, "error: .*BrushNet", 15.0)
    for name, changes in CONFIGS.items():
        change = partial(configured, changes=changes)
        (key,) = changes
        yield Hostile(f"a checkpoint with {name}", partial(branch, change=change), 5, f"error: .*{key}", 15.0)


INPUTS = [*inputs()]
