"""Render the benchmark ``shapes`` from its seed: 240 scenes of 64 x 64 pixels in BrushBench's published layout.

``python -m brushbench.tiny.shapes FOLDER`` renders them anew; ``data/shapes/manifest.json`` holds the SHA-256 of the
mapping file and of the decoded pixels (the bytes of a PNG depend on the compression library, its pixels do not).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from brushbench.benchmarks.holes import brush_hole
from brushbench.masks import encode_rle, square_around, uneven_disc
from brushbench.metrics.attribute_accuracy import CONTEXT, LEAST_CROP
from brushbench.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    SIZES,
    STYLES,
    TONES,
    UNSEEN_PAIRS,
    Scene,
    SceneObject,
    SceneRng,
    caption,
    compose,
    render,
    scene_rng,
)
from brushbench.types import Hole, Picture

__all__ = ["COUNT", "SEED", "design", "judged_object", "make_shapes", "shapes_record", "write_shapes"]

SEED = 2024
COUNT = 240
STRIDE = 77  # prime to COUNT: any first few records are of many kinds
MOSTLY = 0.60  # share of an object that a brush hole covers for the object to be judged


def design(index: int) -> tuple[Scene, SceneRng]:
    """Return the scene of one record and the rest of its random stream.

    Style, kind of background, tone, size and number of objects are spread evenly; every fifth target is one of the
    unseen pairs, the others run through the pairs of the training stream.
    """
    rng = scene_rng("benchmark", SEED, index)
    slot = index * STRIDE % COUNT
    kind = (slot // 2) % len(BACKGROUNDS)
    unseen = sorted(UNSEEN_PAIRS)
    seen = [(colour, shape) for shape in SHAPES for colour in COLOURS if (colour, shape) not in UNSEEN_PAIRS]
    if slot % 5 == 4:
        colour, shape = unseen[(slot // 5) % len(unseen)]
    else:
        colour, shape = seen[(slot - slot // 5) % len(seen)]
    scene = compose(
        rng,
        count=1 + 3 * slot // COUNT,
        style=STYLES[slot % len(STYLES)],
        background=BACKGROUNDS[kind],
        tone=tuple(TONES)[(kind + slot // 12) % len(TONES)],
        target=(colour, shape, tuple(SIZES)[(slot // 4) % len(SIZES)]),
    )
    return scene, rng


def shapes_record(index: int) -> tuple[Picture, dict[str, Any]]:
    """Return the picture, uint8 (64, 64, 3) RGB, and the mapping file's record of one scene."""
    scene, rng = design(index)
    drawn = render(scene)
    name = f"{index:09d}"
    blob = (index // 3) % 3 == 1
    inside = _blob(scene.objects[0], drawn.masks, rng) if blob else drawn.masks[0]
    brush = brush_hole(name, SIDE, SIDE)
    target = scene.objects[0]
    record: dict[str, Any] = {
        "image": f"images/{name}.png",
        "caption": caption(scene),
        "category": scene.background,
        "style": scene.style,
        "tone": scene.tone,
        "objects": str(len(scene.objects)),
        "target_colour": target.colour,
        "target_shape": target.shape,
        "target_size": target.size,
        "inside_hole": "blob" if blob else "exact",
        "unseen_pair": "yes" if (target.colour, target.shape) in UNSEEN_PAIRS else "no",
        "inpainting_mask": encode_rle(inside, "brushbench"),
        "outpainting_mask": encode_rle(np.logical_not(drawn.masks.any(axis=0)), "brushbench"),
        "brush_mask": encode_rle(brush, "brushbench"),
    }
    number = judged_object(drawn.masks, brush)
    if number is not None:
        thing = scene.objects[number]
        square = square_around(drawn.masks[number], CONTEXT, LEAST_CROP * SIDE)  # what the metric looks at
        box = " ".join(f"{round(edge, 3):g}" for edge in square)
        record |= {"brush_colour": thing.colour, "brush_shape": thing.shape, "brush_box": box}
    return drawn.image, record


def judged_object(masks: np.ndarray[Any, np.dtype[np.bool_]], hole: Hole) -> int | None:
    """Return the only object of which the hole covers at least 60 %, or None if there is none or more than one."""
    covered = [i for i, mask in enumerate(masks) if (mask & hole).sum() >= MOSTLY * mask.sum()]
    return covered[0] if len(covered) == 1 else None


def _blob(thing: SceneObject, masks: np.ndarray[Any, np.dtype[np.bool_]], rng: SceneRng) -> Hole:
    """Return the object with an uneven margin around it, which touches no other object."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    radius, phase = 2.0 + thing.reach * rng.uniform(1.1, 1.4), 6.3 * rng.uniform()
    disc = uneven_disc(rows - thing.y, columns - thing.x, radius, phase)
    return np.asarray((disc & ~masks[1:].any(axis=0)) | masks[0])


def make_shapes() -> tuple[list[Picture], str, dict[str, Any]]:
    """Return the pictures, the text of the mapping file and the manifest."""
    pictures, lines = [], []
    pixels = hashlib.sha256()
    for index in range(COUNT):
        picture, record = shapes_record(index)
        pictures.append(picture)
        pixels.update(picture.tobytes())
        lines.append(f'"{index:09d}": {json.dumps(record, separators=(",", ":"))}')
    mapping = "{\n" + ",\n".join(lines) + "\n}\n"
    manifest = {
        "name": "shapes",
        "seed": SEED,
        "images": COUNT,
        "size": [SIDE, SIDE],
        "licence": "Apache-2.0",
        "mapping_sha256": hashlib.sha256(mapping.encode()).hexdigest(),
        "pixels_sha256": pixels.hexdigest(),
        "unseen_pairs": [list(pair) for pair in sorted(UNSEEN_PAIRS)],
    }
    return pictures, mapping, manifest


def write_shapes(folder: Path) -> None:
    """Render the benchmark into a folder: ``mapping_file.json``, ``images/`` and ``manifest.json``."""
    from PIL import Image

    pictures, mapping, manifest = make_shapes()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / "images" / f"{index:09d}.png", optimize=True)
    (folder / "mapping_file.json").write_text(mapping, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_shapes(Path(sys.argv[1]))
