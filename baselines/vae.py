"""The truth through the base model's autoencoder: the ceiling of every method that pastes no pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baselines.latents import decode_scaled, encode_scaled, load_vae, vae_factor
from baselines.presets import describe_base, find_base
from brushbench.devices import choose_device
from brushbench.types import JSON, Capabilities, Picture, Sample


@dataclass(eq=False)
class Vae:
    """Return the reference picture, encoded and decoded. A reference line: never ranked.

    The posterior is taken at its mode.

    Args:
        preset: ``tiny`` | ``sd15`` | ``sdxl``.
        base: folder, single file (``.safetensors``) or hub id of a base model instead of the preset's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
    """

    preset: str = "tiny"
    base: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Load the autoencoder."""
        self.folder = find_base(self.preset, self.base)
        self.vae: Any = load_vae(self.folder, choose_device(self.device))
        self.capabilities = Capabilities(text=False, batch=16, multiple=vae_factor(self.vae), needs_reference=True)

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the autoencoder's SHA-256."""
        return {"method": "VAE round trip", "posterior": "mode", "weights": describe_base(self.folder)["vae"]}

    def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
        """Return each sample's reference picture after the round trip."""
        return decode_scaled(self.vae, encode_scaled(self.vae, [sample.image for sample in samples]))
