"""The sizes of metric models, as a ``config.json`` beside weights names them: checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brushbench.errors import WeightsError, printable

__all__ = ["BlipText", "BlipVision", "ClipConfig", "Depth", "Fraction", "Sizes", "Switch", "Width", "checked"]

Width = Annotated[int, Field(strict=True, ge=1, le=16_384)]  # channels, pixels, heads
Switch = Annotated[bool, Field(strict=True)]
Depth = Annotated[int, Field(strict=True, ge=1, le=128)]  # layers
Tokens = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Ratio = Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Sizes(BaseModel):
    """Sizes of one model: an unknown name, a wrong type and a number out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ClipVision(Sizes):
    """``vision_cfg`` of open_clip."""

    layers: Depth
    width: Width
    patch_size: Width
    image_size: Width = 224
    head_width: Width = 64
    mlp_ratio: Ratio = 4.0


class ClipText(Sizes):
    """``text_cfg`` of open_clip."""

    width: Width
    heads: Width
    layers: Depth
    context_length: Annotated[int, Field(strict=True, ge=1, le=4_096)] = 77
    vocab_size: Tokens = 49_408
    mlp_ratio: Ratio = 4.0


class ClipConfig(Sizes):
    """open_clip's model_cfg."""

    embed_dim: Width
    vision_cfg: ClipVision
    text_cfg: ClipText
    quick_gelu: Switch = False


class BlipVision(Sizes):
    """The image encoder of ImageReward."""

    width: Width
    depth: Depth
    heads: Width
    patch: Width
    image_size: Width
    mlp_ratio: Ratio
    layer_norm_eps: Fraction


class BlipText(Sizes):
    """The text encoder of ImageReward."""

    hidden_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Width
    intermediate_size: Annotated[int, Field(strict=True, ge=1, le=65_536)]
    hidden_act: Annotated[str, Field(strict=True, pattern=r"gelu|gelu_new|relu|silu")]
    layer_norm_eps: Fraction
    max_position_embeddings: Width
    vocab_size: Tokens


Known = TypeVar("Known", bound=Sizes)


def checked(kind: type[Known], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the sizes that are given, checked, without the defaults of those that are not.

    Args:
        kind: what they must be.
        given: as read.
        source: the file, for the message.

    Raises:
        WeightsError: a name that is unknown or missing, a wrong type, or a number out of range.
    """
    try:
        sizes = kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "missing" else f" (got {printable(repr(first['input']), 60)})"
        raise WeightsError(
            f"{source}: {place} is not as expected: {first['msg']}{got}. Give the config.json that belongs to the "
            f"weights: {', '.join(kind.model_fields)}."
        ) from None
    found: dict[str, Any] = sizes.model_dump(exclude_unset=True)
    return found
