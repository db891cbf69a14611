"""The truth itself: the best score that any column can show on a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brushbench.types import JSON, Capabilities, Picture, Sample


class Oracle:
    """Return the reference picture. A reference line: never ranked."""

    capabilities = Capabilities(text=False, batch=64, background="exact", needs_reference=True)

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings that decide the pictures."""
        return {"method": "the reference picture"}

    def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
        """Return each sample's reference picture."""
        return [s.image.copy() for s in samples]
