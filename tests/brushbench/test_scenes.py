"""Scenes: determinism, geometry against supersampling, captions against what was drawn, unseen pairs."""

from __future__ import annotations

import numpy as np
import pytest

from brushbench.errors import UsageError
from brushbench.tiny import scenes
from brushbench.tiny.scenes import COLOURS, SHAPES, SIDE, TONES, UNSEEN_PAIRS, SceneRng, compose, render, sample_scene


def drawn(index: int, domain: str = "train"):
    scene = sample_scene(0, index, domain)
    return scene, render(scene)


def test_same_seed_and_index_give_the_same_picture():
    first, second = drawn(17), drawn(17)
    assert first[0] == second[0]
    assert np.array_equal(first[1].image, second[1].image)


def test_seed_index_and_domain_each_change_the_scene():
    scene = sample_scene(0, 5)
    assert scene not in [sample_scene(1, 5), sample_scene(0, 6), sample_scene(0, 5, "held-out")]


def test_unseen_pairs_never_occur_in_the_stream_and_every_other_pair_does():
    pairs = {(o.colour, o.shape) for i in range(1200) for o in sample_scene(3, i).objects}
    assert not pairs & UNSEEN_PAIRS
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(UNSEEN_PAIRS)


def test_unseen_pairs_spare_no_shape_and_repeat_no_colour():
    assert {shape for _, shape in UNSEEN_PAIRS} == set(SHAPES)
    assert len({colour for colour, _ in UNSEEN_PAIRS}) == len(UNSEEN_PAIRS)


def test_single_objects_are_common():
    counts = [len(sample_scene(0, i).objects) for i in range(400)]
    assert 0.38 < counts.count(1) / 400 < 0.52


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_agrees_with_supersampling(shape):
    """Oracle: point-in-polygon at 16 x 16 points a pixel, by the sign of cross products along the outline."""
    thing = scenes.SceneObject("red", shape, "large", 31.3, 32.6, 14.0, 0.13)
    rows, columns = (np.mgrid[0 : SIDE * 16, 0 : SIDE * 16] + 0.5) / 16
    inside = scenes._distance(thing, columns, rows) < 0
    if shape == "circle":
        oracle = (columns - thing.x) ** 2 + (rows - thing.y) ** 2 < thing.radius**2
    else:
        oracle = winding(thing, columns, rows)
    assert np.array_equal(inside, oracle)
    exact = oracle.reshape(SIDE, 16, SIDE, 16).mean(axis=(1, 3))
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    cover = np.clip(0.5 - scenes._distance(thing, x, y), 0, 1)
    assert np.abs(cover - exact).max() < 0.32  # at the sharp tips
    assert np.abs(cover - exact).mean() < 0.002


def winding(thing, x, y):
    """Winding number by summed angles: independent of the even-odd rule."""
    from math import cos, sin

    corners = [
        (thing.x + thing.radius * (cx * cos(thing.angle) - cy * sin(thing.angle)),
         thing.y + thing.radius * (cx * sin(thing.angle) + cy * cos(thing.angle)))
        for cx, cy in scenes._CORNERS[thing.shape]
    ]  # fmt: skip
    total = np.zeros_like(x)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ux, uy, vx, vy = ax - x, ay - y, bx - x, by - y
        total += np.arctan2(ux * vy - uy * vx, ux * vx + uy * vy)
    return np.abs(total) > 3.0


@pytest.mark.parametrize("index", range(0, 60, 7))
def test_masks_hold_every_trace_of_an_object_and_nothing_else(index):
    """Oracle: the same scene drawn without its objects differs exactly where the masks are."""
    scene, rendering = drawn(index)
    bare = render(scenes.Scene((), scene.background, scene.tone, scene.style, scene.phases, scene.grain))
    changed = (rendering.image != bare.image).any(axis=2)
    union = rendering.masks.any(axis=0)
    assert not (changed & ~union).any()
    assert (union & ~changed).mean() < 0.01  # a trace too faint to change a byte
    assert rendering.masks.sum(axis=0).max() <= 1


@pytest.mark.parametrize("index", range(40))
def test_objects_show_their_colour_and_the_background_its_tone(index):
    scene, rendering = drawn(index)
    palette = {**COLOURS, **TONES}
    for thing, mask in zip(scene.objects, rendering.masks, strict=True):
        seen = np.median(rendering.image[mask], axis=0) / 255
        nearest = min(palette, key=lambda name: np.abs(seen - np.array(palette[name])).sum())
        assert nearest == thing.colour
    ground = rendering.image[~rendering.masks.any(axis=0)].mean(axis=0) / 255
    assert min(TONES, key=lambda name: np.abs(ground - np.array(TONES[name])).sum()) == scene.tone


def test_noise_is_gentle():
    for index in range(12):
        scene = compose(SceneRng(9, index), count=1, style="clean", background="noise")
        rendering = render(scene)
        ground = rendering.image[~rendering.masks.any(axis=0)] / 255
        assert 0.008 < ground.std(axis=0).max() <= 0.03


def test_caption_names_what_is_drawn():
    for index in range(200):
        scene, _ = sample_scene(2, index), None
        text = scenes.caption(scene)
        assert text.startswith("a painting of ") == (scene.style == "painterly")
        for thing in scene.objects:
            assert f"a {thing.size} {thing.colour} {thing.shape}" in text
        assert text.endswith(scene.tone + " " + scene.background) or scene.background in ("plain", "gradient")
        assert set(text.split()) <= set(scenes.words())
        if len(scene.objects) > 1:
            a, b = scene.objects[:2]
            truth = {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}
            assert truth[next(name for name in truth if f" {name} " in text)]


def test_the_first_object_keeps_what_was_asked_for():
    for index in range(60):
        scene = compose(SceneRng(4, index), count=3, style="clean", background="dots", target=("red", "cross", "large"))
        first = scene.objects[0]
        assert (first.colour, first.shape, first.size) == ("red", "cross", "large")
        assert len({(o.colour, o.shape) for o in scene.objects}) == 3


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="domain"):
        sample_scene(0, 0, "test")
    with pytest.raises(UsageError, match="from 0 up"):
        sample_scene(-1, 0)
    with pytest.raises(UsageError, match="1, 2 or 3"):
        compose(SceneRng(0), count=4, style="clean", background="dots")
    with pytest.raises(UsageError, match="cubist"):
        compose(SceneRng(0), count=1, style="cubist", background="dots")
