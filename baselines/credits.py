"""Whose each method is: paper, licence, and which of the embedded weights it runs on. Imports no torch.

Licences are those that the model cards named when this was written; read them before you use the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from baselines.presets import PRESETS, hashes_of
from brushbench import assets
from brushbench.errors import BrushbenchError

__all__ = ["CREDITS", "Credit", "embedded_hash"]


@dataclass(frozen=True)
class Credit:
    """Where a method comes from.

    Attributes:
        paper: authors, venue and number.
        licence: of the published weights; of the implementation where there are none.
        weights: what it runs on of a preset: ``base``, or the name of a branch; empty: nothing of a preset.
    """

    paper: str
    licence: str
    weights: str = ""


SD = "CreativeML OpenRAIL-M"

CREDITS: Mapping[str, Credit] = {
    "blended-latent": Credit("Avrahami et al., SIGGRAPH 2023, arXiv 2206.02779", f"{SD} (base)", "base"),
    "brushedit": Credit("Li et al. 2024, arXiv 2412.10316", "Apache-2.0 text, not for the European Union", "brushedit"),
    "brushnet": Credit("Ju et al., ECCV 2024, arXiv 2403.06976", "Apache-2.0 (of its repository)", "segmentation"),
    "controlnet": Credit("Zhang et al., ICCV 2023, arXiv 2302.05543", "OpenRAIL", "controlnet"),
    "controlnet-blended": Credit("Zhang et al., ICCV 2023, arXiv 2302.05543", "OpenRAIL", "controlnet"),
    "copy": Credit("-", "Apache-2.0"),
    "diffusers": Credit("-", "the model's own"),
    "flux-fill": Credit("Black Forest Labs 2024", "FLUX.1 [dev] Non-Commercial"),
    "hd-painter": Credit("Manukyan et al., ICLR 2025, arXiv 2312.14091", f"{SD} (inpainting model)", "sd-inpainting"),
    "jpeg": Credit("-", "Apache-2.0"),
    "latent-copy": Credit("Lugmayr et al., CVPR 2022, arXiv 2201.09865", f"{SD} (base)", "base"),
    "ns": Credit("Bertalmio et al., CVPR 2001", "Apache-2.0 (OpenCV)"),
    "oracle": Credit("-", "Apache-2.0"),
    "powerpaint": Credit("Zhuang et al., ECCV 2024, arXiv 2312.03594", "none stated (code: MIT)", "powerpaint"),
    "powerpaint-v2": Credit("Zhuang et al., ECCV 2024, arXiv 2312.03594", "Apache-2.0", "powerpaint-v2"),
    "sd-inpainting": Credit("Rombach et al., CVPR 2022, arXiv 2112.10752", SD, "sd-inpainting"),
    "sdxl-inpainting": Credit("Podell et al., ICLR 2024, arXiv 2307.01952", "CreativeML Open RAIL++-M"),
    "telea": Credit("Telea 2004, J. Graphics Tools 9(1)", "Apache-2.0 (OpenCV)"),
    "vae": Credit("Rombach et al., CVPR 2022, arXiv 2112.10752", f"{SD} (base)", "base"),
}


def embedded_hash(name: str) -> str:
    """Return the start of the SHA-256 of the embedded weights that a method runs on by default.

    Args:
        name: a key of :data:`CREDITS`.

    Returns:
        Twelve digits; ``not here`` where the tiny preset has none, ``no preset`` where the method has none.
    """
    wanted, tiny = CREDITS[name].weights, PRESETS["tiny"]
    if not wanted:
        return "no preset"
    places = [f"{place}/unet" for place in tiny.base] if wanted == "base" else tiny.branches.get(wanted, ())
    for place in places:
        try:
            found = [str(digest) for digest in hashes_of(assets.path(place)).values()]
        except BrushbenchError:
            continue
        if found:
            return found[0][:12]
    return "not here"
