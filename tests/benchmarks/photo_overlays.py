"""Draw the outlines of the benchmark ``photos`` over its photographs, to see whether they fit.

    python tests/benchmarks/photo_overlays.py overlays/                        every photograph, twice enlarged
    python tests/benchmarks/photo_overlays.py overlays/ china 30 280 200 440   one part, enlarged, with coordinates

The object is tinted, the corners of outlines are yellow and those of gaps pink.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from brushbench import assets
from brushbench.benchmarks.photos import SIDE, Photos
from brushbench.types import Sample

WIDEST = 1200
GRID = 16


def overlay(sample: Sample, entry: dict, box: tuple[int, ...]) -> Image.Image:
    """Return a part of a photograph, enlarged, with the object tinted, its corners and a grid every 16 pixels."""
    left, top, right, bottom = box
    scale = max(1, WIDEST // max(right - left, bottom - top))
    tinted = sample.image.copy()
    tinted[sample.hole] = tinted[sample.hole] * 0.6 + np.array([0, 255, 255]) * 0.4
    picture = Image.fromarray(tinted).crop(box).resize(((right - left) * scale, (bottom - top) * scale))
    draw = ImageDraw.Draw(picture, "RGBA")
    for x in range(-(-left // GRID) * GRID, right, GRID):
        place = (x - left + 0.5) * scale
        draw.line([(place, 0), (place, picture.height)], fill=(255, 255, 255, 60))
        draw.text((place + 2, 0), str(x), fill="white", stroke_fill="black", stroke_width=1)
    for y in range(-(-top // GRID) * GRID, bottom, GRID):
        place = (y - top + 0.5) * scale
        draw.line([(0, place), (picture.width, place)], fill=(255, 255, 255, 60))
        draw.text((2, place), str(y), fill="white", stroke_fill="black", stroke_width=1)
    for rings, colour in ((entry["outlines"], "yellow"), (entry["gaps"], "magenta")):
        for ring in rings:
            corners = [((x - left + 0.5) * scale, (y - top + 0.5) * scale) for x, y in ring]
            draw.line([*corners, corners[0]], fill=colour)
            for x, y in corners:
                draw.rectangle([x - 1, y - 1, x + 1, y + 1], fill=colour)
    return picture


def main(folder: str, wanted: str = "", *box: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    part = tuple(map(int, box)) if box else (0, 0, SIDE, SIDE)
    entries = {
        entry["id"]: entry for entry in json.loads(assets.path("data/photos/photos.json").read_text())["photographs"]
    }
    for sample in Photos(split="inside"):
        if wanted in ("", sample.id):
            overlay(sample, entries[sample.id], part).save(Path(folder) / f"{sample.id}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
