"""The truth through the base model's autoencoder: the ceiling of every method that pastes no pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from baselines.bases import (
    decode,
    describe_base,
    encode,
    find_base,
    in_batches,
    load_vae,
    pad_to_multiple,
    vae_factor,
)
from brushbench.devices import choose_device
from brushbench.types import JSON, Capabilities, Picture, Sample


class Vae:
    """Return the reference picture, encoded and decoded. A reference line: never ranked.

    The posterior is taken at its mode. Where a side is not divisible by the autoencoder's factor, the last row or
    column is repeated before and cut off after.

    Args:
        preset: ``tiny`` | ``sd15`` | ``sdxl``.
        base: folder or hub id of a base model instead of the preset's.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
    """

    capabilities = Capabilities(text=False, batch=16, needs_reference=True)

    def __init__(self, preset: str = "tiny", base: str | None = None, device: str = "auto") -> None:
        self.folder = find_base(preset, base)
        self.vae: Any = load_vae(self.folder, choose_device(device))

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and the autoencoder's SHA-256."""
        return {"method": "VAE round trip", "posterior": "mode", "weights": describe_base(self.folder)["vae"]}

    def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
        """Return each sample's reference picture after the round trip."""
        return in_batches(samples, self._round_trip)

    def _round_trip(self, samples: Sequence[Sample]) -> list[Picture]:
        height, width = samples[0].image.shape[:2]
        padded = [pad_to_multiple(sample.image, vae_factor(self.vae)) for sample in samples]
        return [picture[:height, :width] for picture in decode(self.vae, encode(self.vae, padded))]
