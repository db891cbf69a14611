"""What is checked before anything is computed: numbers, weights, and whether branch and base model belong together."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Collection

    from diffusers import UNet2DConditionModel
    from torch import nn

    from brushnet.model import BrushNetModel

__all__ = ["check_fit", "check_keys", "check_scale", "check_weights", "not_ours", "one_number", "whole_number"]


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
    """Refuse NaN and infinity, which would silently turn every picture black.

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
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise TypeError(f"conditioning_scale must be one finite number; got {scale!r}.")


def one_number(name: str, value: object) -> float:
    """Return a number, or the one in a list of one, which the published pipelines take too.

    Raises:
        TypeError: anything else.
    """
    number = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if not isinstance(number, Real):
        raise TypeError(f"Got {name}={value!r}; expected one number.")
    return float(number)


def whole_number(name: str, value: object) -> int:
    """Return a whole number from 1 on.

    Raises:
        TypeError: not a whole number.
        ValueError: below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Got {name}={value!r}; expected a whole number.")
    number = int(value)
    if number < 1:
        raise ValueError(f"Got {name}={number}; expected at least 1.")
    return number
