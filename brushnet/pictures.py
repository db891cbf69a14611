"""Pictures and masks as people hand them over, to one form: what a viewer shows, or one sentence that says why not.

A PIL picture is turned upright as its EXIF orientation says. 16 bit are scaled to 8, palettes are looked up, and what
is transparent in a picture shows white. A mask with transparent pixels is refused: its alpha may mark the hole, and its
colours may mean nothing. (The same rules as ``brushbench.pictures`` has for files; a test compares them.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Item", "Picture", "Pictures", "split_pictures"]

Picture: TypeAlias = "PIL.Image.Image | npt.NDArray[Any] | torch.Tensor"
Pictures: TypeAlias = "Picture | Sequence[Picture]"
# One picture: PIL in 1, L or RGB, or a float32 tensor (1, C, H, W) in 0..1.
Item: TypeAlias = "PIL.Image.Image | torch.Tensor"
Name: TypeAlias = Literal["image", "mask"]

ROUNDING = 1e-6  # how far a float may lie outside 0..1, as a resize leaves it
PLAIN = ("1", "L", "RGB")


def split_pictures(value: Pictures, name: Name) -> list[Item]:
    """Split any accepted form into single pictures: PIL stays PIL, everything else is float32 (1, C, H, W) in 0..1.

    Args:
        value: PIL pictures, arrays (H, W, C) or (N, H, W, C), tensors (C, H, W) or (N, C, H, W), or a list of them. Of
            masks also arrays (H, W) or (N, H, W) and tensors (H, W), and of bool tensors (N, H, W). Numbers are uint8,
            uint16, bool or float in 0..1; a mask that holds nothing but the whole numbers 0 and 1 is read as bool. What
            this function returned is accepted again.
        name: ``"image"`` (three channels) or ``"mask"`` (one or three).

    Raises:
        TypeError: neither a PIL picture, an array nor a tensor, or of numbers that are none of these.
        ValueError: values outside 0..1, a wrong shape, or a mask with transparent pixels.
    """
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"Got an empty list of {name}s; pass at least one.")
        return [item for part in value for item in split_pictures(part, name)]
    if isinstance(value, PIL.Image.Image):
        return [_from_pil(value, name)]
    channels = (3,) if name == "image" else (1, 3)
    if isinstance(value, np.ndarray):
        tensor = _from_array(value, name, channels)
    elif isinstance(value, torch.Tensor):
        tensor = _from_tensor(value, name, channels)
    else:
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected a PIL picture, an array, a tensor or a list of them."
        )
    if tensor.shape[1] not in channels or 0 in tensor.shape:
        expected = " or ".join(str(count) for count in channels)
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected {expected} colour channels and no empty side."
        )
    return list(torch.split(_unit(tensor, name), 1))


def _from_pil(picture: PIL.Image.Image, name: Name) -> PIL.Image.Image:
    """Return a PIL picture upright, in one of the modes 1, L and RGB."""
    if 0 in picture.size:
        raise ValueError(f"The {name} is {picture.height}x{picture.width} pixels; expected no empty side.")
    upright = PIL.ImageOps.exif_transpose(picture)
    if upright.mode == "La":  # which Pillow converts to nothing else
        upright = upright.convert("LA")
    if upright.mode == "F":
        raise ValueError(f"The {name} is a PIL picture of floats (mode F); pass an array in 0..1, or convert it to L.")
    alpha = _alpha(upright)
    if alpha is not None and name == "mask":
        raise ValueError(
            f"{np.mean(alpha < 255):.1%} of the mask's pixels are transparent, so its alpha may mark the hole; pass an "
            "opaque mask, white = repaint. If what is transparent is to be repainted: "
            'PIL.ImageOps.invert(mask.convert("RGBA").getchannel("A")).'
        )
    if upright.mode.startswith("I"):
        grey = _grey_of_16_bit(np.asarray(upright), name)
        upright = PIL.Image.fromarray(grey if alpha is None else np.where(alpha == 0, np.uint8(255), grey))
    elif alpha is not None:
        layer = upright.convert("RGBA")
        upright = PIL.Image.alpha_composite(PIL.Image.new("RGBA", layer.size, "white"), layer)
    if upright.mode not in PLAIN:
        upright = upright.convert("RGB")
    if name == "mask" and upright.mode != "1" and np.asarray(upright).max() == 1:
        return upright.point(lambda level: 255 * level)
    return upright


def _alpha(picture: PIL.Image.Image) -> npt.NDArray[np.uint8] | None:
    """Return uint8 (H, W), 0 = transparent; None where every pixel is opaque."""
    if not picture.has_transparency_data:
        return None
    if picture.mode.startswith("I"):  # 16-bit grey with one level that is transparent
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, 255).astype(np.uint8)
    else:
        alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha


def _grey_of_16_bit(levels: npt.NDArray[Any], name: Name) -> npt.NDArray[np.uint8]:
    """Scale 0..65535 to 0..255; Pillow's own conversion clips."""
    if levels.size and (levels.min() < 0 or levels.max() > 65535):
        raise ValueError(f"The {name} has levels in [{levels.min()}, {levels.max()}]; expected 8 or 16 bit.")
    if name == "mask" and levels.size and levels.max() == 1:
        return (255 * levels).astype(np.uint8)
    return (levels.astype(np.int64) // 257).astype(np.uint8)


def _from_array(value: npt.NDArray[Any], name: Name, channels: tuple[int, ...]) -> torch.Tensor:
    """Return a channels-last array as (N, C, H, W); without a channel axis only a mask is clear."""
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {value.dtype}; expected uint8, uint16, bool, or float in 0..1.")
    array = value
    if array.ndim == 2 and 1 in channels:
        array = array[None, :, :, None]
    elif array.ndim == 3:
        array = array[None] if array.shape[-1] in (1, 3) else array[..., None]
    if array.ndim != 4:
        raise ValueError(f"{name} has shape {value.shape}; expected (H, W, C) or (N, H, W, C), channels last.")
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        array = _grey_of_16_bit(array, name)
    # A copy, for torch warns of read-only memory; in native byte order, which torch asks for.
    kept = array.dtype.type if array.dtype in (np.uint8, np.bool_, np.float32) else np.float64
    return torch.from_numpy(np.array(array, dtype=kept, order="C")).permute(0, 3, 1, 2)


def _from_tensor(value: torch.Tensor, name: Name, channels: tuple[int, ...]) -> torch.Tensor:
    """Return a channels-first tensor as (N, C, H, W); a bool tensor (N, H, W) is N masks, never a colour picture."""
    if value.is_complex() or value.is_quantized or value.layout != torch.strided or value.is_meta:
        raise TypeError(f"{name} is a {value.layout} tensor of {value.dtype}; expected dense uint8, bool or floats.")
    tensor = value.detach()
    if tensor.dtype == torch.uint16:
        tensor = torch.from_numpy(_grey_of_16_bit(tensor.cpu().numpy(), name)).to(tensor.device)
    if tensor.ndim == 2 and 1 in channels:
        return tensor[None, None]
    if tensor.ndim == 3:
        tensor = tensor[:, None] if tensor.dtype == torch.bool else tensor[None]
    if tensor.ndim != 4:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected (C, H, W) or (N, C, H, W), channels first.")
    return tensor


def _unit(tensor: torch.Tensor, name: Name) -> torch.Tensor:
    """Return float32 in 0..1; uint8 are 0..255, except for masks of 0 and 1 alone."""
    eight_bit = tensor.dtype == torch.uint8 and not (name == "mask" and int(tensor.max()) == 1)
    low, high = float(tensor.min()), float(tensor.max())
    scaled = tensor.float()
    if eight_bit:
        return scaled / 255
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"{name} has values in [{low:.8g}, {high:.8g}]; expected uint8 0..255, or float in 0..1 without NaN. Where "
            "a resize overshoots, clip to 0..1."
        )
    return scaled.clamp(0, 1)
