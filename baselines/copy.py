"""The input itself, its hole grey: what a method scores by doing nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brushbench.types import JSON, Capabilities, InpaintRequest, Picture


class Copy:
    """Return the picture as it came, hole grey 127."""

    capabilities = Capabilities(text=False, batch=64, background="exact")

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings that decide the pictures."""
        return {"method": "the input with its hole grey 127"}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return each request's picture unchanged."""
        return [r.image.copy() for r in requests]
