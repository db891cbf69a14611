"""The embedded benchmark: byte-equal from its seed, read by the BrushBench loader, balanced, exact metadata."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from brushbench import assets
from brushbench.benchmarks.brushbench import BrushBench
from brushbench.benchmarks.shapes import Shapes
from brushbench.tiny import shapes
from brushbench.tiny.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, TONES, UNSEEN_PAIRS, sample_scene
from brushbench.tiny.shapes import COUNT


@pytest.fixture(scope="module")
def made():
    return shapes.make_shapes()


@pytest.fixture(scope="module")
def bench():
    return Shapes()


@pytest.fixture(scope="module")
def folder():
    return assets.path("data/shapes")


def test_rendering_from_the_seed_gives_the_stored_bytes(made, folder):
    pictures, mapping, manifest = made
    assert (folder / "mapping_file.json").read_text(encoding="utf-8") == mapping
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    for index, picture in enumerate(pictures):
        stored = np.asarray(Image.open(folder / "images" / f"{index:09d}.png"))
        assert stored.dtype == np.uint8
        assert np.array_equal(stored, picture), index


def test_manifest_covers_mapping_and_decoded_pixels(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    files = sorted((folder / "images").iterdir())
    pixels = hashlib.sha256(b"".join(np.asarray(Image.open(file)).tobytes() for file in files))
    assert len(files) == manifest["images"] == COUNT
    assert manifest["pixels_sha256"] == pixels.hexdigest()
    assert manifest["mapping_sha256"] == hashlib.sha256((folder / "mapping_file.json").read_bytes()).hexdigest()


def test_the_published_layout_is_kept(bench, folder):
    plain = BrushBench(folder)
    assert plain.keys == bench.keys
    assert len(bench) == 3 * COUNT
    assert bench.name == bench.manifest["name"] == "shapes"
    assert bench.manifest["licence"] == "Apache-2.0"
    assert np.array_equal(plain[7].image, bench[7].image)


def test_meta_is_text_and_balanced(bench):
    metas = [bench[i].meta for i in range(COUNT)]
    assert all(isinstance(value, str) for meta in metas for value in meta.values())
    for key, names in (
        ("category", BACKGROUNDS),
        ("tone", TONES),
        ("target_size", SIZES),
        ("style", ("clean", "painterly")),
    ):
        assert Counter(meta[key] for meta in metas) == dict.fromkeys(names, COUNT // len(names)), key
    assert Counter(meta["objects"] for meta in metas) == {"1": 80, "2": 80, "3": 80}
    for key, names in (("target_colour", COLOURS), ("target_shape", SHAPES)):
        counts = Counter(meta[key] for meta in metas)
        assert set(counts) == set(names)
        assert max(counts.values()) <= 1.25 * min(counts.values()), key


def test_one_target_in_five_is_an_unseen_pair_and_no_other_object_is(bench):
    for index in range(COUNT):
        sample = bench[index]
        pair = (sample.meta["target_colour"], sample.meta["target_shape"])
        assert (sample.meta["unseen_pair"] == "yes") == (pair in UNSEEN_PAIRS)
        named = [f" {colour} {shape}" in sample.prompt for colour, shape in UNSEEN_PAIRS]
        assert sum(named) == (pair in UNSEEN_PAIRS)
    assert sum(bench[i].meta["unseen_pair"] == "yes" for i in range(COUNT)) == 48


def test_inside_and_outside_are_exact(bench):
    for index in range(0, COUNT, 5):
        scene, _ = shapes.design(index)
        masks = shapes.render(scene).masks
        inside, outside = bench[index], bench[COUNT + index]
        assert (inside.split, outside.split) == ("inside", "outside")
        assert np.array_equal(outside.hole, ~masks.any(axis=0))
        assert (inside.hole | ~masks[0]).all()
        assert not (inside.hole & masks[1:].any(axis=0)).any()
        assert (inside.meta["inside_hole"] == "exact") == np.array_equal(inside.hole, masks[0])
        assert inside.prompt.count(f"{inside.meta['target_colour']} {inside.meta['target_shape']}") == 1


def test_brush_target_is_the_only_object_mostly_covered(bench):
    """Oracle: the share of each object under the stored hole, counted pixel by pixel."""
    judged = 0
    for index in range(COUNT):
        sample = bench[2 * COUNT + index]
        scene, _ = shapes.design(index)
        shares = [sample.hole[mask].mean() for mask in shapes.render(scene).masks]
        most = [thing for thing, share in zip(scene.objects, shares, strict=True) if share >= 0.6]
        if len(most) == 1:
            judged += 1
            assert (sample.meta["brush_colour"], sample.meta["brush_shape"]) == (most[0].colour, most[0].shape)
            x0, y0, x1, y1 = map(float, sample.meta["brush_box"].split())
            assert x0 <= most[0].x <= x1
            assert y0 <= most[0].y <= y1
        else:
            assert "brush_colour" not in sample.meta
    assert judged >= 50


def test_first_records_are_of_many_kinds(bench):
    few = [bench[i].meta for i in range(12)]
    assert len({meta["category"] for meta in few}) == len(BACKGROUNDS)
    assert {meta["objects"] for meta in few} == {"1", "2", "3"}


def test_the_training_stream_holds_none_of_the_pictures(made):
    stored = {picture.tobytes() for picture in made[0]}
    assert len(stored) == COUNT
    assert not stored & {
        shapes.render(sample_scene(seed, i)).image.tobytes() for seed in (0, shapes.SEED) for i in range(240)
    }
