"""What HD-Painter reads: the prompt's tokens, the hole at four sizes, the masked picture's latents."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

__all__ = ["condition", "hole_masks", "token_indices"]


def token_indices(tokenizer: Any, prompt: str, suffix: str = "") -> list[int]:
    """Return where the words that the hole is to show stand in the encoded text (sec. 3.3).

    Args:
        tokenizer: ``CLIPTokenizer``.
        prompt: what the hole shows.
        suffix: words of praise that follow it after a comma.

    Returns:
        The positions of the prompt's own tokens, and of the end of the whole text. Start and padding are left out.
    """
    last = tokenizer.model_max_length - 1
    own = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    whole = len(tokenizer(f"{prompt}, {suffix}", add_special_tokens=False).input_ids) if suffix else own
    return [*range(1, min(own + 1, last)), min(whole + 1, last)]


def hole_masks(hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_], factor: int = 8) -> dict[str, Tensor]:
    """Return the hole as the method's parts read it.

    Args:
        hole: uint8 (H, W), every level but 0 is hole; or bool (H, W), True = hole.
        factor: pixels that a latent spans.

    Returns:
        float32 (1, 1, h, w), 1 = hole, of the hole dilated once by a cross and padded with 0 to the right and below to
        multiples of 8 x ``factor``: ``pixels``; ``condition``, at latent size, where every level but 0 of the bicubic
        reduction is hole, so that it grows; ``half`` and ``quarter``, at a half and a quarter of it, from one half on.
    """
    dilated = cv2.dilate((hole > 0).astype(np.uint8) * 255, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    pixels = pad(np.asarray(dilated, dtype=np.uint8), 8 * factor)
    height, width = pixels.shape

    def reduced(by: int) -> npt.NDArray[np.uint8]:
        return np.array(Image.fromarray(pixels).resize((width // by, height // by), Image.Resampling.BICUBIC))

    masks = {
        "pixels": pixels > 0,
        "condition": reduced(factor) > 0,
        "half": reduced(2 * factor) > 127,
        "quarter": reduced(4 * factor) > 127,
    }
    return {name: torch.from_numpy(mask)[None, None].float() for name, mask in masks.items()}


def pad(array: npt.NDArray[np.uint8], multiple: int) -> npt.NDArray[np.uint8]:
    """Return a picture or mask padded with 0, to the right and below, until both sides are divisible."""
    height, width = array.shape[:2]
    return np.pad(array, [(0, -height % multiple), (0, -width % multiple)] + [(0, 0)] * (array.ndim - 2))


@torch.no_grad()
def condition(vae: Any, picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> Tensor:
    """Return what the U-Net reads beside the latents: the hole, and the picture with the dilated hole at mid-grey.

    Args:
        vae: ``AutoencoderKL``.
        picture: uint8 (H, W, 3) RGB; the padding counts as known and is black.
        hole: see :func:`hole_masks`.

    Returns:
        (1, 5, h, w): hole, then the posterior's mean, scaled.
    """
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    masks = hole_masks(hole, factor)
    pixels = torch.from_numpy(pad(picture, 8 * factor)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    masked = (pixels * (1 - masks["pixels"])).to(vae.device, vae.dtype)
    latents: Tensor = vae.encode(masked).latent_dist.mean * vae.config.scaling_factor
    return torch.cat([masks["condition"].to(latents), latents], dim=1)
