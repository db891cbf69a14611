"""Picture and hole to the branch's five conditioning channels (BrushNet, sec. 3.2).

The branch reads ``[masked-image latents 0:4 | keep 4:5]`` beside the noisy latents. Two polarities meet here, and each
conversion has its own name: people paint **white = repaint** and arrays say ``True`` = repaint (the *hole*), while the
network's last channel says **1 = keep** (:func:`keep_from_white`).

As published (TencentARC/BrushNet 0f9d9e5): a PIL picture or mask is resized by LANCZOS, an array or tensor by nearest
neighbour; the mask is thresholded after its resize (127 keeps, 128 repaints) and reduced to latent size by taking each
block's top-left pixel. The published pipeline leaves blacking out the hole to its caller; here it is done, at the
picture's own size, before any resizing, so that no hole pixel reaches the VAE. So a mask has its picture's size, which
the published pipeline does not ask for.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor

from brushnet.pictures import split_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from brushnet.pictures import Item, Pictures

__all__ = [
    "Generators",
    "draw_noise",
    "encode_conditioning",
    "encode_moments",
    "in_parts",
    "keep_from_white",
    "masked_pixels",
    "picture_size",
    "vae_factor",
]

PIXELS_AT_ONCE = 2**20  # in one pass of a VAE
Generators: TypeAlias = "torch.Generator | Sequence[torch.Generator]"


def keep_from_white(mask: torch.Tensor) -> torch.Tensor:
    """Turn a mask that is white where to repaint into the network's channel, 1 where to keep.

    Args:
        mask: float (N, C, H, W) in 0..1, C = 1 or 3, white = repaint.

    Returns:
        float32 (N, 1, H, W): 1 = keep (mean below one half: 127 of 255), 0 = hole (128 of 255 and more).
    """
    return ((2 * mask.float() - 1).sum(dim=1, keepdim=True) < 0).float()


def vae_factor(vae: torch.nn.Module) -> int:
    """Return how many pixels a latent spans along a side: 8 for Stable Diffusion's VAE, 4 for one of three levels."""
    config = cast("Any", vae).config
    return int(2 ** (len(config.block_out_channels) - 1))


def in_parts(run: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, pixels: int) -> torch.Tensor:
    """Give a VAE as many rows at a time as hold :data:`PIXELS_AT_ONCE`, so that its memory does not grow with a batch.

    In float32 a pass takes about 3 GiB per million pixels: 48 GiB for 16 pictures of 1024 x 1024.

    Args:
        run: maps (n, …) to (n, …).
        rows: (N, …), for the whole batch.
        pixels: of one row's picture.

    Returns:
        What ``run`` gives for all rows.
    """
    return torch.cat([run(part) for part in rows.split(max(1, PIXELS_AT_ONCE // pixels))])


def draw_noise(shape: Sequence[int], generator: Generators) -> torch.Tensor:
    """Draw standard normal noise in float32 where the generator lives: a CPU seed means the same on every device.

    Args:
        shape: (B, C, h, w).
        generator: one for the whole batch, in one draw, or one per sample, which makes a sample's noise independent
            of its neighbours.

    Returns:
        float32 ``shape`` on the generator's device.

    Raises:
        ValueError: a list of another length than B.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)
    if len(generator) != shape[0]:
        raise ValueError(f"Got {len(generator)} generators for {shape[0]} samples; pass one, or one per sample.")
    one = (1, *shape[1:])
    return torch.cat([torch.randn(one, generator=own, device=own.device, dtype=torch.float32) for own in generator])


def encode_conditioning(
    vae: torch.nn.Module,
    image: Pictures,
    hole: Pictures,
    generator: Generators | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Encode pictures and their holes as the branch's conditioning.

    Args:
        vae: an ``AutoencoderKL``; its config gives the pixels a latent spans and the scaling factor. A float16 VAE
            whose config says ``force_upcast`` (SDXL's) encodes in float32, where the published code yields NaN.
        image: PIL pictures, uint8 or float 0..1 arrays (H, W, 3) or (N, H, W, 3), tensors (3, H, W) or (N, 3, H, W),
            or a list of them; RGB; see :func:`brushnet.pictures.split_pictures`. What lies in the hole does not
            matter: it is blacked out first.
        hole: masks of the pictures' sizes, in the same forms with one or three channels, or bool arrays (H, W) or
            (N, H, W); white, 1 or True = repaint, from 128 of 255 or 0.5 on. One mask may serve all images.
        generator: None takes the VAE posterior's mode; a generator, or one for each row of the result, draws from it.
        height: pixels, divisible by the VAE's factor; None takes the first picture's, rounded down to a multiple.
        width: as ``height``.
        batch_size: rows of the result, a multiple of the number of images N; each is repeated ``batch_size / N`` times
            (a, a, b, b). None means N.

    Returns:
        (B, 5, h, w) in the VAE's dtype and on its device: 4 masked-image latents times the scaling factor, then keep
        (1 = keep, 0 = hole).

    Raises:
        TypeError: neither a PIL picture, an array nor a tensor.
        ValueError: values outside 0..1, a wrong shape, a mask of another size or with transparent pixels, sizes not
            divisible, numbers of pictures and masks that do not match, or latents with NaN.

    Warns:
        UserWarning: a mask keeps everything, or nothing, at latent size.
    """
    dtype = cast("Any", vae).dtype
    pixels, keep = masked_pixels(image, hole, vae_factor(vae), height, width)
    rows = batch_size or pixels.shape[0]
    mean, std = _posterior(vae, pixels)
    mean, std, keep = (_spread(part, rows) for part in (mean, std, keep))
    latents = mean if generator is None else mean + std * draw_noise(mean.shape, generator).to(mean)
    latents = latents * cast("Any", vae).config.scaling_factor
    _refuse_nan(latents)
    keep = F.interpolate(keep, size=latents.shape[-2:], mode="nearest").to(latents)
    _warn_of_uniform(keep)
    return torch.cat([latents, keep], dim=1).to(dtype)


def picture_size(image: Pictures, factor: int, height: int | None = None, width: int | None = None) -> tuple[int, int]:
    """Return the height and width to which pictures come: the given ones, or the first picture's, rounded down.

    Args:
        image: as in :func:`encode_conditioning`.
        factor: pixels a latent spans.
        height: pixels, or None.
        width: pixels, or None.

    Raises:
        ValueError: a given side that is not a positive multiple of ``factor``, or a picture smaller than one.
    """
    return _target(split_pictures(image, "image"), "image", factor, height, width)


def masked_pixels(
    image: Pictures, hole: Pictures, factor: int, height: int | None = None, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Black out the holes, resize images and masks, and return what the VAE and the network read.

    Args:
        image: as in :func:`encode_conditioning`.
        hole: as in :func:`encode_conditioning`.
        factor: pixels a latent spans.
        height: pixels, or None.
        width: pixels, or None.

    Returns:
        float32 (N, 3, H, W) in -1..1 with black (-1) holes, and float32 (M, 1, H', W') keep, 1 = keep, M = N or 1.
        Without ``height`` and ``width`` each has its own size, rounded down to a multiple of ``factor``.

    Raises:
        TypeError: as :func:`encode_conditioning`.
        ValueError: as :func:`encode_conditioning`.
    """
    pictures, masks = split_pictures(image, "image"), split_pictures(hole, "mask")
    if len(pictures) != len(masks) and 1 not in (len(pictures), len(masks)):
        raise ValueError(f"Got {len(pictures)} images and {len(masks)} masks; pass as many, or one for all.")
    processor = VaeImageProcessor(vae_scale_factor=factor, do_convert_rgb=True)
    count = max(len(pictures), len(masks))
    pairs = [(pictures[i % len(pictures)], masks[i % len(masks)]) for i in range(count)]
    masked = [_black_out(picture, mask) for picture, mask in pairs]
    pixels = _to_size(masked, processor, "image", _target(masked, "image", factor, height, width))
    white = _to_size(masks, processor, "mask", _target(masks, "mask", factor, height, width))
    return 2 * pixels - 1, keep_from_white(white)


def _black_out(picture: Item, mask: Item) -> Item:
    """Return the picture with its hole black, at the picture's own size.

    Raises:
        ValueError: the mask has another size.
    """
    size, own = _own_size(picture), _own_size(mask)
    if own != size:
        raise ValueError(
            f"The mask is {own[0]}x{own[1]} pixels and its image {size[0]}x{size[1]}; pass a mask of the image's size. "
            "To resize a PIL mask: mask.resize(image.size, PIL.Image.Resampling.NEAREST)."
        )
    keep = keep_from_white(_unit(mask))
    if isinstance(picture, torch.Tensor):
        return picture * keep.to(picture.device)
    kept = np.asarray(picture.convert("RGB")) * keep[0, 0, :, :, None].cpu().numpy().astype(np.uint8)
    return PIL.Image.fromarray(kept)


def _unit(item: Item) -> torch.Tensor:
    """Return one picture as float32 (1, C, H, W) in 0..1."""
    if isinstance(item, torch.Tensor):
        return item
    rgb = np.asarray(item.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(rgb).permute(2, 0, 1)[None]


def _target(items: list[Item], name: str, factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the size in pixels to which the first picture, and with it all, come."""
    for side_name, side in (("height", height), ("width", width)):
        if side is not None and (side < factor or side % factor):
            raise ValueError(f"Got {side_name}={side}; expected a positive multiple of {factor}, the VAE's factor.")
    own_height, own_width = _own_size(items[0])
    size = (height or own_height - own_height % factor, width or own_width - own_width % factor)
    if 0 in size:
        raise ValueError(f"The {name} is {own_height}x{own_width} pixels; expected at least {factor} per side.")
    return size


def _own_size(item: Item) -> tuple[int, int]:
    """Return height and width in pixels."""
    if isinstance(item, PIL.Image.Image):
        return item.height, item.width
    return item.shape[2], item.shape[3]


def _to_size(items: list[Item], processor: VaeImageProcessor, name: str, size: tuple[int, int]) -> torch.Tensor:
    """Bring pictures to one size as the published pipeline does, in 0..1: (N, C, H, W)."""
    try:
        return torch.cat([_unit(processor.resize(item, *size)) for item in items])
    except RuntimeError as error:
        raise ValueError(
            f"The {name}s do not form one batch ({error}); pass them in one form and on one device."
        ) from error


def _spread(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Repeat each of N rows ``rows / N`` times: a, a, b, b."""
    if rows % part.shape[0]:
        raise ValueError(f"Got {part.shape[0]} pictures or masks for {rows} samples; pass one, or one per prompt.")
    return part.repeat_interleave(rows // part.shape[0], dim=0)


def _posterior(vae: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the VAE's posterior, each (N, 4, h, w)."""
    model = cast("Any", vae)
    # Asked of the model, not of a parameter: under layerwise casting those are stored in another type.
    dtype = model.dtype
    upcast = dtype == torch.float16 and bool(model.config.get("force_upcast", False))
    if upcast:
        model.to(dtype=torch.float32)
    try:
        with torch.no_grad():
            inputs = pixels.to(device=_device_of(vae), dtype=torch.float32 if upcast else dtype)
            return encode_moments(model, inputs)
    finally:
        if upcast:
            model.to(dtype=torch.float16)


def encode_moments(vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of a VAE's posterior, each (N, 4, h, w), of pixels (N, 3, H, W) in -1..1."""

    def moments(part: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(part).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    mean, std = in_parts(moments, pixels, pixels.shape[-2] * pixels.shape[-1]).chunk(2, dim=1)
    return mean, std


def _device_of(vae: torch.nn.Module) -> torch.device:
    """Return where the VAE computes: an offloading hook knows (the weights may be on ``meta``), else its weights do."""
    for module in vae.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(vae.parameters()).device


def _refuse_nan(latents: torch.Tensor) -> None:
    """Stop before NaN spreads through fifty steps."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "The VAE's latents of the masked picture hold NaN or infinity: its weights are damaged or it overflows in "
            f"{latents.dtype}; load it again, or in float32."
        )


def _warn_of_uniform(keep: torch.Tensor) -> None:
    """Warn of samples with nothing to repaint, or nothing to keep."""
    for share, meaning in (
        (1.0, "keeps everything: nothing is repainted"),
        (0.0, "keeps nothing: the picture is ignored"),
    ):
        rows = [i for i, row in enumerate(keep) if bool((row == share).all())]
        if rows:
            warnings.warn(f"At latent size the mask of sample {rows} {meaning}; white means repaint.", stacklevel=3)
