"""What is checked before anything is computed: numbers, weights, and whether branch and base model belong together."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, cast

import torch
from diffusers.models.activations import ACT2CLS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from diffusers import UNet2DConditionModel
    from torch import nn

    from brushnet.model import BrushNetModel

__all__ = [
    "DOWN_BLOCKS",
    "MID_BLOCKS",
    "UP_BLOCKS",
    "check_config",
    "check_fit",
    "check_keys",
    "check_scale",
    "check_texts",
    "check_weights",
    "not_ours",
    "one_number",
    "whole_number",
]

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
MID_BLOCKS = ("MidBlock2D", "UNetMidBlock2DCrossAttn")
MAX_PARAMETERS = 20e9  # of a branch, roughly counted; SDXL's has 0.4e9


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that this network does not have, before anything is built.

    Args:
        config: every argument of :class:`brushnet.BrushNetModel` by name; from a ``config.json``, so of any type.

    Raises:
        ValueError: names the field, what it is and what was expected.
    """
    for name, (expected, fits) in _FIELDS.items():
        value = config[name]
        if not fits(value):
            shown = repr(value)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise ValueError(f"{name} is {shown}; a BrushNet branch has {expected}.")
    widths, layers = tuple(config["block_out_channels"]), config["layers_per_block"]
    for name, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        kinds = tuple(config[name])
        if len(kinds) != len(widths) or not set(kinds) <= set(known):
            raise ValueError(
                f"{name} is {kinds}; expected {len(widths)} (as many as block_out_channels) of {', '.join(known)}."
            )
    for name in ("transformer_layers_per_block", "attention_head_dim", "num_attention_heads", "only_cross_attention"):
        if isinstance(config[name], list | tuple) and len(config[name]) != len(widths):
            raise ValueError(
                f"{name} has {len(config[name])} entries; expected {len(widths)}, as many as block_out_channels."
            )
    if any(width % config["norm_num_groups"] for width in widths):
        raise ValueError(f"block_out_channels is {widths}; expected multiples of {config['norm_num_groups']} groups.")
    roughly = 18 * (2 * layers + 3) * sum(width**2 for width in widths)  # two 3x3 convolutions per layer
    if roughly > MAX_PARAMETERS:
        raise ValueError(
            f"block_out_channels is {widths} with layers_per_block {layers}: about {roughly:.1g} parameters; a "
            f"BrushNet branch has at most {MAX_PARAMETERS:.0e}."
        )
    if config["addition_embed_type"] == "text_time":
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if config[name] is None:
                raise ValueError(f"{name} is None; a branch with addition_embed_type 'text_time' needs a number.")


def _is_whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_list(item: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list | tuple) and 1 <= len(value) <= 8 and all(map(item, value))


def _either(*kinds: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: any(kind(value) for kind in kinds)


def _one_of(*known: object) -> tuple[str, Callable[[object], bool]]:
    fits = lambda value: any(value is one or (isinstance(value, str) and value == one) for one in known)  # noqa: E731
    return " or ".join(map(repr, known)), fits


def _is_none(value: object) -> bool:
    return value is None


_TEXT: Callable[[object], bool] = lambda value: isinstance(value, str)  # noqa: E731
_TEXTS = ("1 to 8 names of blocks", _is_list(_TEXT))
_COUNT = ("a whole number in 1..65536", _is_whole(1, 65536))
_COUNTS = ("a whole number in 1..65536, or one per resolution", _either(_COUNT[1], _is_list(_COUNT[1])))
_COUNT_OR_NONE = ("None or a whole number in 1..65536", _either(_is_none, _COUNT[1]))
_SWITCH = ("true or false", _is_bool)

# What each field of the configuration may be, in words and as a test.
_FIELDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "in_channels": _COUNT,
    "conditioning_channels": _COUNT,
    "flip_sin_to_cos": _SWITCH,
    "freq_shift": ("0 or 1", _is_whole(0, 1)),
    "down_block_types": _TEXTS,
    "mid_block_type": _one_of(*MID_BLOCKS),
    "up_block_types": _TEXTS,
    "only_cross_attention": ("true or false, or one per resolution", _either(_is_bool, _is_list(_is_bool))),
    "block_out_channels": ("1 to 8 widths, each a whole number in 1..65536", _is_list(_COUNT[1])),
    "layers_per_block": ("a whole number in 1..32", _is_whole(1, 32)),
    "downsample_padding": ("a whole number in 0..2", _is_whole(0, 2)),
    "mid_block_scale_factor": ("a positive number", _is_positive),
    "act_fn": _one_of(*ACT2CLS),
    "norm_num_groups": _COUNT,
    "norm_eps": ("a positive number", _is_positive),
    "cross_attention_dim": _COUNT,
    "transformer_layers_per_block": (
        "a whole number in 1..64, or one per resolution",
        _either(_is_whole(1, 64), _is_list(_is_whole(1, 64))),
    ),
    "encoder_hid_dim": _COUNT_OR_NONE,
    "encoder_hid_dim_type": ("None or a name", _either(_is_none, _TEXT)),
    "attention_head_dim": _COUNTS,
    "num_attention_heads": (f"None, {_COUNTS[0]}", _either(_is_none, _COUNTS[1])),
    "use_linear_projection": _SWITCH,
    "class_embed_type": _one_of(None),
    "addition_embed_type": _one_of(None, "text_time"),
    "addition_time_embed_dim": _COUNT_OR_NONE,
    "num_class_embeds": _one_of(None),
    "upcast_attention": ("true, false or None", _either(_is_none, _is_bool)),
    "resnet_time_scale_shift": _one_of("default", "scale_shift"),
    "projection_class_embeddings_input_dim": _COUNT_OR_NONE,
    "brushnet_conditioning_channel_order": _one_of("rgb", "bgr"),
    "conditioning_embedding_out_channels": ("None or a list of widths", _either(_is_none, _is_list(_COUNT[1]))),
    "global_pool_conditions": _SWITCH,
    "addition_embed_type_num_heads": _COUNT,
}


def check_keys(
    what: str,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[str] = (),
) -> None:
    """Refuse weights that are not the branch's, all of it and nothing else.

    Args:
        what: the checkpoint, for the message.
        missing: keys that the branch has and the checkpoint lacks.
        unexpected: keys that only the checkpoint has.
        mismatched: keys whose shapes differ.

    Raises:
        ValueError: any of them is not empty.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    found = [
        f"{len(keys)} {kind} ({min(keys)}{', …' if len(keys) > 1 else ''})" for kind, keys in kinds.items() if keys
    ]
    if found:
        raise not_ours(what, "; ".join(found))


def not_ours(what: str, problem: str) -> ValueError:
    """Return the error for a checkpoint ``what`` that holds something else, as the ``problem`` shows."""
    return ValueError(
        f"{what} does not hold the weights of this BrushNet branch: {problem}. "
        "Is it a ControlNet, a U-Net, or a branch of another base model?"
    )


def check_weights(brushnet: nn.Module, what: str = "The BrushNet branch") -> None:
    """Refuse NaN and infinity, which would silently turn every image black.

    Args:
        brushnet: any module; parameters on the meta device (offloaded) are passed over.
        what: its name, for the message.

    Raises:
        ValueError: a parameter is not finite; the message names the first.
    """
    for name, parameter in brushnet.named_parameters():
        # A sum is finite only if its terms are, and reads the weights once.
        if not parameter.is_meta and not torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            raise ValueError(f"{what} holds NaN or infinity in {name}: the file is damaged; download it again.")


def check_fit(brushnet: BrushNetModel, unet: UNet2DConditionModel) -> None:
    """Refuse a branch that was made for another family of base models.

    Raises:
        ValueError: the widths of the two networks differ, or only one of them reads SDXL's pooled text and sizes.
    """
    for name, meaning in (("block_out_channels", "widths"), ("addition_embed_type", "added embedding")):
        ours, theirs = brushnet.config.get(name), unet.config.get(name)
        ours, theirs = (tuple(value) if isinstance(value, list) else value for value in (ours, theirs))
        if ours != theirs:
            raise ValueError(
                f"The branch has the {meaning} {ours}, the U-Net {theirs}: they belong to different base models. "
                "Use an SD 1.5 branch with an SD 1.5 base, an SDXL branch with an SDXL base."
            )


def check_scale(scale: object) -> None:
    """Refuse a scale that is not one finite number.

    Raises:
        TypeError: it is not.
    """
    if not _is_real(scale) or not math.isfinite(cast("float", scale)):
        raise TypeError(f"conditioning_scale must be one finite number; got {scale!r}.")


def one_number(name: str, value: object) -> float:
    """Return a finite number, or the one in a list of one, which the published pipelines take too.

    Raises:
        TypeError: anything else.
        ValueError: NaN or infinity.
    """
    number = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not _is_real(number):
        raise TypeError(f"Got {name}={value!r}; expected one number.")
    if not math.isfinite(cast("float", number)):
        raise ValueError(f"Got {name}={value!r}; expected a finite number.")
    return float(cast("float", number))


def whole_number(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return a whole number in a range.

    Raises:
        TypeError: not a whole number.
        ValueError: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Got {name}={value!r}; expected a whole number.")
    number = int(value)
    if number < least:
        raise ValueError(f"Got {name}={number}; expected at least {least}.")
    if most is not None and number > most:
        raise ValueError(f"Got {name}={number}; expected at most {most}.")
    return number


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_texts(name: str, texts: object) -> None:
    """Refuse what is neither a text nor a list of texts.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(texts, str | list):
        raise TypeError(f"{name} is a {type(texts).__name__}; expected a text or a list of texts.")
    for text in texts if isinstance(texts, list) else ():
        if not isinstance(text, str):
            raise TypeError(f"{name} holds a {type(text).__name__}; expected a text or a list of texts.")
