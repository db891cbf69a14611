"""Published and own checkpoints of the branch: found, checked and loaded, never half-loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brushnet.checks import check_keys, check_weights
from brushnet.files import SUFFIXES, BranchFiles, check_tensors, find_files, read_config, read_weights
from brushnet.model import BrushNetModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["PUBLISHED_CONFIGS", "load_brushnet"]

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

            * a folder with weights, of ours or of the published fork. Without a ``config.json`` they must be of a
              published size: SD 1.5, SDXL or PowerPaint v2;
            * a folder that holds such a folder as ``brushnet/`` or ``model/``: a whole pipeline, a training;
            * a file of weights: ``.safetensors``, or ``.bin``, ``.pt``, ``.pth``, ``.ckpt``, read with
              ``weights_only=True``. ``{"state_dict": …}`` and ``module.`` around them are taken off;
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
    model: BrushNetModel
    if path.exists():
        model = _load(find_files(path / (subfolder or ""), variant), dtype)
    elif path.is_absolute() or path.suffix in SUFFIXES or len(path.parts) != 2 or str(source).startswith(("~", ".")):
        raise OSError(f"There is neither a file nor a folder {path}; expected one, or a hub id (owner/name).")
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


def _load(files: BranchFiles, dtype: torch.dtype) -> BrushNetModel:
    """Load weights with the configuration that lies beside them, or a published one."""
    what, weights = str(files.weights[0]), read_weights(files.weights)
    config = read_config(files.config) if files.config else {}
    if config.get("_class_name") != BrushNetModel.__name__:
        config = dict(PUBLISHED_CONFIGS[_family(weights)])
    try:
        with torch.device("meta"):
            model: BrushNetModel = BrushNetModel.from_config(
                {name: value for name, value in config.items() if not name.startswith("_")}
            )
    except ValueError as error:
        raise ValueError(f"{files.config}: {error}") from error
    expected = model.state_dict()
    both = expected.keys() & weights.keys()
    check_keys(
        what,
        expected.keys() - weights.keys(),
        weights.keys() - expected.keys(),
        {name for name in both if weights[name].shape != expected[name].shape},
    )
    check_tensors(what, weights)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    check_weights(model, what)
    return model


def _family(weights: Mapping[str, Tensor]) -> str:
    """Tell the published families apart by the keys that only one has."""
    if "add_embedding.linear_1.weight" in weights:
        return "SDXL"
    return "PowerPaint v2" if any(".attentions." in name for name in weights) else "SD 1.5"
