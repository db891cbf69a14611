"""Published and own checkpoints of the branch: found, checked and loaded, never half-loaded."""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from brushnet.checks import check_keys, check_weights, not_ours
from brushnet.model import BrushNetModel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PUBLISHED_CONFIGS", "load_brushnet"]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

# What the released config.json of each family says beyond BrushNetModel's defaults.
PUBLISHED_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "SD 1.5": {},
    "SDXL": {
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "PowerPaint v2": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
}


def load_brushnet(
    source: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    local_files_only: bool = False,
) -> BrushNetModel:
    """Load a branch, in evaluation mode, from wherever it was published or saved.

    Args:
        source: one of

            * a folder with ``config.json`` and weights, of ours or of the published fork;
            * a folder of a whole pipeline (``model_index.json``), whose ``brushnet`` is taken;
            * a ``.safetensors`` file (or a ``.bin``, ``.pt``, ``.pth`` one, read with ``weights_only=True``). If no
              ``config.json`` lies beside it, it must be of a published size: SD 1.5, SDXL or PowerPaint v2;
            * a hub id.
        subfolder: of a folder or hub repository.
        variant: of the file names in a folder: ``"fp16"`` for ``diffusion_pytorch_model.fp16.safetensors``. Without it
            a folder that holds nothing but one variant gives that one.
        revision: of a hub repository.
        dtype: what the weights are cast to.
        device: where they go.
        local_files_only: never ask the hub, only its cache.

    Returns:
        The branch, with every weight loaded and finite.

    Raises:
        OSError: nothing there, or not readable.
        ValueError: keys or shapes other than the branch's, or NaN or infinity in the weights.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        path, variant = _look_into(path / (subfolder or ""), variant)
        source, subfolder = path, None
    elif not path.is_file() and (path.is_absolute() or path.suffix in SUFFIXES or len(path.parts) > 2):
        raise OSError(f"There is neither a file nor a folder {path}; expected one, or a hub id (owner/name).")

    model: BrushNetModel
    if path.is_file():
        model = _load_file(path, dtype)
    else:
        model = BrushNetModel.from_pretrained(
            str(source),
            subfolder=subfolder,
            variant=variant,
            revision=revision,
            dtype=dtype,
            local_files_only=local_files_only,
        )
    model.to(device=device)
    model.eval()
    return model


def _look_into(folder: Path, variant: str | None) -> tuple[Path, str | None]:
    """Return the folder that holds the branch (or its only file), and the variant of its files."""
    stem = "diffusion_pytorch_model"
    if (folder / "model_index.json").is_file():
        folder = folder / "brushnet"
    if not (folder / "config.json").is_file():
        if (folder / f"{stem}.safetensors").is_file():  # as PowerPaint v2 is published
            return folder / f"{stem}.safetensors", variant
        raise OSError(f"{folder} holds no config.json; expected a saved BrushNet branch or a pipeline with one.")
    names = {path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")}
    plain = {name for name in names if name.startswith((f"{stem}.safetensors", f"{stem}-0", f"{stem}.bin"))}
    if variant is None and names and not plain:
        variants = {
            name.removeprefix(f"{stem}.").split(".")[0].split("-")[0] for name in names if name.startswith(stem)
        }
        variant = variants.pop() if len(variants) == 1 else None
    return folder, variant


def _load_file(path: Path, dtype: torch.dtype) -> BrushNetModel:
    """Load one file of weights with the configuration that lies beside it, or a published one."""
    weights = _read(path)
    beside = path.parent / "config.json"
    config = json.loads(beside.read_text()) if beside.is_file() else {}
    if config.get("_class_name") != "BrushNetModel":
        config = PUBLISHED_CONFIGS[_family(weights)]
    with torch.device("meta"):
        model: BrushNetModel = BrushNetModel.from_config(config)
    expected = model.state_dict()
    both = expected.keys() & weights.keys()
    check_keys(
        str(path),
        expected.keys() - weights.keys(),
        weights.keys() - expected.keys(),
        {name for name in both if weights[name].shape != expected[name].shape},
    )
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    check_weights(model, str(path))
    return model


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors and nothing else: no pickle runs code here."""
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise OSError(
            f"{path} is damaged, or holds more than weights: a pickle that could run code is not opened. Use a "
            ".safetensors file."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise not_ours(str(path), "it is no mapping of names to tensors")
    return weights


def _family(weights: Mapping[str, Tensor]) -> str:
    """Tell the published families apart by the keys that only one has."""
    if "add_embedding.linear_1.weight" in weights:
        return "SDXL"
    return "PowerPaint v2" if any(".attentions." in name for name in weights) else "SD 1.5"
