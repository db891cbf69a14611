"""``shapes``: 240 rendered scenes of 64 x 64 pixels, in BrushBench's published layout.

:mod:`brushbench.tiny.shapes` (in a checkout) renders them from their seed; ``data/shapes/manifest.json`` holds the
SHA-256 of the mapping file and of the decoded pixels.
"""

from __future__ import annotations

from brushbench import assets
from brushbench.benchmarks.brushbench import BrushBench

__all__ = ["Shapes"]


class Shapes(BrushBench):
    """240 rendered scenes of one to three coloured objects over textured backgrounds, with exact masks.

    Splits: ``inside`` (the first object of the caption; in every third picture the hole is a blob that is larger than
    the object), ``outside`` (everything but the objects), ``brush`` (stored, from the seeded generator of the id).

    ``Sample.meta``: ``category`` (the kind of background), ``style`` (clean | painterly), ``tone``, ``objects``
    (their number), ``target_colour``, ``target_shape``, ``target_size`` of the inside object, ``inside_hole`` (exact |
    blob), ``unseen_pair`` (yes | no: the target's colour and shape never occur together in training) and, where the
    brush hole covers at least 60 % of exactly one object, that object's ``brush_colour``, ``brush_shape`` and
    ``brush_box`` (x0 y0 x1 y1 in pixels).

    Metrics with models take the small ones of this repository, which were trained on such scenes.
    """

    metric_weights = "tiny"

    def __init__(self, *, split: str = "all", limit: int | None = None, skip_bad: bool = False) -> None:
        """Read the embedded scenes.

        Args:
            split: ``all``, one of ``inside``, ``outside``, ``brush``, or several with commas between them.
            limit: use only the first so many scenes, for every split.
            skip_bad: leave bad records out and count them.

        Raises:
            BadRecordError: a record is bad and ``skip_bad`` is off.
            UnknownNameError: no such split.
        """
        super().__init__(assets.path("data/shapes"), split=split, limit=limit, skip_bad=skip_bad)
        self.name = self.title = "shapes"
        self._details["licence"] = "Apache-2.0"
