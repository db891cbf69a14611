"""BrushNet: a second, text-free U-Net branch that guides a frozen diffusion U-Net layer by layer.

Everything the paper describes (Ju et al., "BrushNet: A Plug-and-Play Image Inpainting Model with Decomposed Dual-Branch
Diffusion", ECCV 2024), on stock diffusers. Importing this package loads no torch; touching a name does.

The import sets the environment variable ``MKL_CBWR`` to ``AUTO,STRICT`` unless it is set already. Without it, MKL
chooses its kernels by the alignment of each tensor's memory: weights loaded from a file can give other last bits than
the same weights made in memory (seen on Intel and on AMD processors). MKL reads the variable once, at its first
computation: import this package before torch computes anything.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brushnet.attachment import attach
    from brushnet.blending import blend
    from brushnet.conditioning import encode_conditioning
    from brushnet.injection import inject
    from brushnet.model import BrushNetModel, BrushNetOutput
    from brushnet.pipeline import StableDiffusionBrushNetPipeline
    from brushnet.pipeline_sdxl import StableDiffusionXLBrushNetPipeline

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__all__ = [
    "BrushNetModel",
    "BrushNetOutput",
    "StableDiffusionBrushNetPipeline",
    "StableDiffusionXLBrushNetPipeline",
    "attach",
    "blend",
    "encode_conditioning",
    "inject",
]

_HOME = {
    "BrushNetModel": "model",
    "BrushNetOutput": "model",
    "StableDiffusionBrushNetPipeline": "pipeline",
    "StableDiffusionXLBrushNetPipeline": "pipeline_sdxl",
    "attach": "attachment",
    "blend": "blending",
    "encode_conditioning": "conditioning",
    "inject": "injection",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` when the name is first touched (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'brushnet' has no attribute {name!r}; its names are {', '.join(__all__)}")
    return getattr(import_module(f"brushnet.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
