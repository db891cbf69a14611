"""The truth through JPEG: the damage that the published evaluation script does to its own scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brushbench.errors import UsageError
from brushbench.types import JSON, Capabilities, Picture, Sample
from brushbench.variants import jpeg_round_trip


class Jpeg:
    """Return the reference picture through one JPEG round trip. A reference line: never ranked.

    Args:
        quality: Pillow's quality, 1 to 95; 75 is the default that the published script saves with.

    Raises:
        UsageError: another quality.
    """

    capabilities = Capabilities(text=False, batch=64, needs_reference=True)

    def __init__(self, quality: int = 75) -> None:
        if not 1 <= quality <= 95:
            raise UsageError(f"quality is {quality}, expected 1 to 95.")
        self.quality = quality

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings that decide the pictures."""
        from PIL import __version__, features

        return {"method": "JPEG", "quality": self.quality, "pillow": __version__, "libjpeg": features.version("jpg")}

    def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
        """Return each sample's reference picture, compressed and decompressed."""
        return [jpeg_round_trip(s.image, self.quality) for s in samples]
