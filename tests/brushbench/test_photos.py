"""The embedded benchmark of real photographs: complete records, exact holes, recorded pixels, clear sentences."""

from __future__ import annotations

import copy
import json
import socket
import warnings

import cv2
import numpy as np
import pytest
import skimage.data
import skimage.draw

from brushbench import assets
from brushbench.benchmarks import photos
from brushbench.benchmarks.base import brush_hole
from brushbench.benchmarks.photos import SIDE, Photos, PolygonHole, fill_polygon
from brushbench.errors import BadRecordError, UnknownNameError

ENTRIES = json.loads(assets.path("data/photos/photos.json").read_text(encoding="utf-8"))["photographs"]
IDS = [entry["id"] for entry in ENTRIES]
each_entry = pytest.mark.parametrize("entry", ENTRIES, ids=IDS)


@pytest.fixture(scope="module")
def benchmark() -> Photos:
    return Photos()


@pytest.fixture(scope="module")
def samples(benchmark: Photos) -> dict:
    return {(sample.id, sample.split): sample for sample in benchmark}


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Return a function that puts other records in the place of the embedded ones."""

    def put(**changes: object) -> list[dict]:
        entries = copy.deepcopy(ENTRIES[:3])
        entries[1].update(changes)
        file = tmp_path / "photos.json"
        file.write_text(json.dumps({"photographs": entries}), encoding="utf-8")
        monkeypatch.setattr(photos.assets, "path", lambda name: file)
        return entries

    return put


# Records --------------------------------------------------------------------------------------------------------------


@each_entry
def test_every_record_is_complete(entry):
    for key in ("id", "category", "style", "object", "package", "distribution", "file", "licence", "credit"):
        assert isinstance(entry[key], str), key
        assert entry[key].strip(), key
    assert entry["url"].startswith("https://")
    assert len(entry["sha256"]) == 64
    assert entry["caption"].endswith(".")
    assert 8 <= len(entry["caption"].split()) <= 25, "one short sentence about the whole picture"


@each_entry
def test_corners_lie_in_the_picture(entry):
    assert sum(map(len, entry["outlines"])) >= 28
    for ring in [*entry["outlines"], *entry["gaps"]]:
        assert len(ring) >= 3
        assert all(isinstance(v, int) and 0 <= v < SIDE for corner in ring for v in corner)


@each_entry
def test_no_corner_is_written_twice(entry):
    for ring in [*entry["outlines"], *entry["gaps"]]:
        assert len({tuple(corner) for corner in ring}) == len(ring)


@each_entry
def test_crop_is_a_square(entry):
    left, top, right, bottom = entry["crop"]
    assert right - left == bottom - top >= 200


def test_a_plain_installation_has_eight_and_they_come_first():
    packages = [entry["distribution"] for entry in ENTRIES]
    assert packages[:8] == ["scikit-image"] * 8
    assert len(set(IDS)) == len(IDS) == 11


# Samples --------------------------------------------------------------------------------------------------------------


def test_keys_go_split_by_split(benchmark):
    assert list(benchmark.keys) == [(name, split) for split in ("inside", "outside", "brush") for name in IDS]
    assert len(benchmark) == 33


def test_limit_and_split_choose(recwarn):
    assert Photos(split="brush,inside", limit=2).keys == [(i, s) for s in ("inside", "brush") for i in IDS[:2]]
    with pytest.raises(UnknownNameError, match="insid"):
        Photos(split="insid")
    assert not recwarn.list


def test_samples_have_the_promised_shape(samples):
    for sample in samples.values():
        assert sample.image.shape == (SIDE, SIDE, 3)
        assert sample.image.dtype == np.uint8
        assert sample.hole.shape == (SIDE, SIDE)
        assert sample.hole.dtype == np.bool_
        assert sample.meta["licence"]
        assert sample.meta["credit"]
        assert all(isinstance(value, str) for value in sample.meta.values())


@pytest.mark.parametrize("name", IDS)
def test_outside_is_the_exact_complement_of_inside(samples, name):
    assert np.array_equal(samples[name, "outside"].hole, ~samples[name, "inside"].hole)


@pytest.mark.parametrize("name", IDS)
def test_holes_cover_a_sane_part(samples, name):
    assert 0.05 <= samples[name, "inside"].hole.mean() <= 0.80
    assert 0.05 <= samples[name, "brush"].hole.mean() <= 0.60


def test_brush_holes_depend_on_the_id_alone_and_differ(samples):
    holes = [samples[name, "brush"].hole for name in IDS]
    assert all(np.array_equal(hole, brush_hole(name, SIDE, SIDE)) for hole, name in zip(holes, IDS, strict=True))
    assert len({hole.tobytes() for hole in holes}) == len(IDS)


def test_loading_twice_gives_the_same_bytes(benchmark, samples):
    again = Photos()
    assert again.manifest == benchmark.manifest
    for place in range(0, len(again), 7):
        sample = again[place]
        first = samples[sample.id, sample.split]
        assert sample.image.tobytes() == first.image.tobytes()
        assert sample.hole.tobytes() == first.hole.tobytes()


def test_manifest_says_where_every_photograph_comes_from(benchmark):
    assert benchmark.manifest["images"] == 11
    assert benchmark.manifest["skipped"] == []
    for told, entry in zip(benchmark.manifest["photographs"], ENTRIES, strict=True):
        assert {told[key] == entry[key] for key in ("id", "sha256", "licence", "credit")} == {True}
        assert told["version"][0].isdigit()


def test_nothing_is_fetched_from_the_network(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the benchmark opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(list(Photos(split="inside"))) == 11


# Pixels ---------------------------------------------------------------------------------------------------------------


def test_a_photograph_of_512_keeps_its_pixels(samples):
    assert np.array_equal(samples["astronaut", "inside"].image, skimage.data.astronaut())
    grey = skimage.data.camera()
    assert np.array_equal(samples["camera", "inside"].image, np.stack([grey] * 3, axis=2))


def test_a_resized_photograph_agrees_with_another_library(samples):
    left, top, right, bottom = next(entry["crop"] for entry in ENTRIES if entry["id"] == "chelsea")
    part = skimage.data.chelsea()[top:bottom, left:right]
    other = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    difference = np.abs(samples["chelsea", "inside"].image.astype(int) - other.astype(int))
    assert difference.mean() < 1.0


# Polygons -------------------------------------------------------------------------------------------------------------


def naive_inside(ring: list, x: int, y: int) -> bool:
    """Return whether a point lies in a polygon, by the angle the border turns around it; NaN-free off the border."""
    corners = np.asarray(ring, dtype=np.float64) - (x, y)
    angles = np.arctan2(corners[:, 1], corners[:, 0])
    turns = np.diff(np.append(angles, angles[0]))
    turns = (turns + np.pi) % (2 * np.pi) - np.pi
    return round(turns.sum() / (2 * np.pi)) % 2 == 1


def on_border(ring: list, x: int, y: int) -> bool:
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        length = np.hypot(x1 - x0, y1 - y0)
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length**2
        if 0 <= along <= 1 and abs((x - x0) * (y1 - y0) - (y - y0) * (x1 - x0)) / length < 1e-9:
            return True
    return False


def naive_object(entry: dict, x: int, y: int) -> bool:
    def within(ring: list) -> bool:
        return on_border(ring, x, y) or naive_inside(ring, x, y)

    return any(map(within, entry["outlines"])) and not any(map(within, entry["gaps"]))


@each_entry
def test_holes_agree_with_a_naive_point_in_polygon(entry, samples):
    hole = samples[entry["id"], "inside"].hole
    rng = np.random.default_rng(7)
    corners = np.array([corner for ring in [*entry["outlines"], *entry["gaps"]] for corner in ring])
    # Half anywhere, half next to a corner, where mistakes would be.
    near = corners[rng.integers(0, len(corners), 60)] + rng.integers(-3, 4, (60, 2))
    points = np.clip(np.concatenate([rng.integers(0, SIDE, (60, 2)), near]), 0, SIDE - 1)
    for x, y in points:
        assert hole[y, x] == naive_object(entry, x, y), (x, y)


@each_entry
def test_rings_agree_with_scikit_image_but_for_their_borders(entry):
    for ring in [*entry["outlines"], *entry["gaps"]]:
        ours = fill_polygon(tuple(map(tuple, ring)), SIDE, SIDE)
        theirs = skimage.draw.polygon2mask((SIDE, SIDE), np.array(ring)[:, ::-1])
        for y, x in np.argwhere(ours != theirs):
            assert on_border(ring, x, y), (x, y)


def test_a_rectangle_includes_its_border():
    assert np.argwhere(fill_polygon(((1, 1), (4, 1), (4, 2), (1, 2)), 5, 6)).tolist() == [
        [y, x] for y in (1, 2) for x in (1, 2, 3, 4)
    ]


def test_polygons_do_not_depend_on_direction_or_first_corner():
    ring = tuple(map(tuple, ENTRIES[0]["outlines"][0]))
    hole = fill_polygon(ring, SIDE, SIDE)
    assert np.array_equal(fill_polygon(ring[::-1], SIDE, SIDE), hole)
    assert np.array_equal(fill_polygon(ring[5:] + ring[:5], SIDE, SIDE), hole)


def test_a_border_that_crosses_itself_follows_the_even_odd_rule():
    star = ((10, 0), (16, 19), (0, 7), (20, 7), (4, 19))
    hole = fill_polygon(star, 20, 21)
    assert hole[4, 10]
    assert not hole[11, 10]


def test_a_polygon_beyond_the_picture_is_cut_off():
    whole = fill_polygon(((-5, -7), (30, -7), (30, 40), (-5, 40)), 8, 9)
    assert whole.all()
    assert not fill_polygon(((20, 20), (30, 20), (25, 30)), 8, 9).any()


def test_gaps_are_cut_out_and_the_complement_is_exact():
    outline, gap = ((0, 0), (9, 0), (9, 9), (0, 9)), ((3, 3), (5, 3), (5, 5), (3, 5))
    hole = PolygonHole((outline,), (gap,)).draw(12, 12)
    assert hole.sum() == 100 - 9
    assert np.array_equal(PolygonHole((outline,), (gap,), complement=True).draw(12, 12), ~hole)
    assert PolygonHole((outline,)).fingerprint() != PolygonHole((outline,), (gap,)).fingerprint()


# What can go wrong ----------------------------------------------------------------------------------------------------


def test_other_pixels_than_recorded_are_refused(edited):
    edited(sha256="0" * 64)
    benchmark = Photos(split="inside")
    with pytest.raises(BadRecordError, match=r"'chelsea'.*chelsea\.png of scikit-image .* has other pixels.*Reinstall"):
        benchmark[1]
    with pytest.raises(BadRecordError, match="'chelsea'"):
        _ = benchmark.manifest
    assert benchmark[0].id == "astronaut"


def test_other_pixels_are_skipped_and_counted(edited):
    edited(sha256="0" * 64)
    benchmark = Photos(skip_bad=True)
    assert [name for name, split in benchmark.keys if split == "inside"] == ["astronaut", "coffee"]
    assert [skipped["record"] for skipped in benchmark.manifest["skipped"]] == ["chelsea"]


def test_a_missing_package_is_one_plain_sentence_and_no_warning_of_python(edited):
    edited(package="no_such_package", distribution="no-such-package")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark = Photos()
    (note,) = benchmark.notes
    assert note == (
        "1 of 3 photographs are left out: they come with no-such-package, not installed here. "
        "To have them: pip install 'brushbench[photos]'."
    )
    assert [name for name, split in benchmark.keys if split == "inside"] == ["astronaut", "coffee"]
    (skipped,) = benchmark.manifest["skipped"]
    assert skipped["record"] == "chelsea"
    assert "brushbench[photos]" in skipped["reason"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Photos(limit=1)) == 3, "what the limit leaves out is not missed"


def test_a_photograph_missing_from_its_package_is_named_before_the_run(edited):
    edited(file="data/no_such_photo.png")
    with pytest.raises(BadRecordError, match=r"'chelsea': scikit-image .* has no .*no_such_photo\.png\. Reinstall"):
        Photos()
