"""Attribute accuracy: what is judged, how it is cropped, and that neighbours do not matter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.metrics import attribute_accuracy as aa
from brushbench.metrics.attribute_accuracy import AttributeAccuracy
from brushbench.metrics.attribute_classifier import AttributeClassifier, crop_pictures, load_classifier
from brushbench.types import Sample, Unscored


@pytest.fixture
def weights(tmp_path):
    """An untrained classifier on disk."""
    from brushbench.tiny.attributes import AttributeTask

    torch.manual_seed(0)
    AttributeTask(AttributeClassifier()).save(tmp_path)
    return tmp_path


@pytest.fixture
def metric(weights):
    return AttributeAccuracy(weights=weights, device="cpu")


def sample(split="inside", **meta):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    hole = np.zeros((64, 64), dtype=bool)
    hole[20:40, 24:36] = True
    return Sample("x", image, hole, "a caption", split, {"target_colour": "red", "target_shape": "star", **meta})


def answer(metric, monkeypatch, colour, shape, of):
    monkeypatch.setattr("brushbench.metrics.attribute_classifier.judge", lambda model, crops: [(colour, shape)])
    return metric([of.image], [of])[0]


def test_both_colour_and_shape_must_be_right(metric, monkeypatch):
    assert answer(metric, monkeypatch, "red", "star", sample()) == 1.0
    assert answer(metric, monkeypatch, "red", "cross", sample()) == 0.0
    assert answer(metric, monkeypatch, "blue", "star", sample()) == 0.0
    assert answer(metric, monkeypatch, "nothing", "nothing", sample()) == 0.0


def test_outside_brush_without_target_and_foreign_benchmarks_are_not_scored(metric):
    foreign = Sample("y", sample().image, sample().hole, "a cat", "inside", {})
    scores = metric([sample().image] * 3, [sample("outside"), sample("brush"), foreign])
    assert all(isinstance(score, Unscored) for score in scores)
    assert "background" in scores[0].reason
    assert "60 %" in scores[1].reason


def test_brush_is_judged_at_the_stored_box(metric, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "brushbench.metrics.attribute_classifier.crop_pictures",
        lambda pictures, boxes: seen.extend(boxes) or torch.zeros(1, 3, 32, 32),
    )
    metric([sample().image], [sample("brush", brush_colour="red", brush_shape="star", brush_box="8 16 40 48")])
    assert seen == [(0.125, 0.25, 0.625, 0.75)]


def test_box_is_square_holds_the_hole_and_stays_in_the_picture():
    for rows, columns in (((0, 12), (0, 9)), ((50, 64), (60, 64)), ((20, 40), (24, 36)), ((0, 64), (0, 64))):
        mask = np.zeros((64, 64), dtype=bool)
        mask[slice(*rows), slice(*columns)] = True
        x0, y0, x1, y1 = (64 * edge for edge in aa.crop_box(mask))
        assert x1 - x0 == pytest.approx(y1 - y0)
        assert x1 - x0 == pytest.approx(min(64, max(16, 1.3 * (rows[1] - rows[0]), 1.3 * (columns[1] - columns[0]))))
        assert min(x0, y0) >= 0
        assert max(x1, y1) <= 64
        assert x0 <= columns[0]
        assert columns[1] <= x1 + 1e-9


def test_picture_of_twice_the_size_gives_nearly_the_same_crop():
    ramp = np.linspace(0, 255, 64)[None, :, None].repeat(64, 0).repeat(3, 2).astype(np.uint8)
    double = ramp.repeat(2, 0).repeat(2, 1)
    crops = crop_pictures([ramp, double], [(0.2, 0.2, 0.7, 0.7)] * 2)
    assert crops.shape == (2, 3, 32, 32)
    assert (crops[0] - crops[1]).abs().max() < 0.03


def test_neighbours_in_a_call_do_not_matter(metric):
    samples = [sample(target_colour=colour) for colour in ("red", "blue", "green", "black")]
    pictures = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(4)]
    together = metric(pictures, samples)
    assert together == [metric([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    assert metric(pictures[::-1], samples[::-1]) == together[::-1]


def test_saved_in_half_precision_and_described_by_its_hash(metric, weights):
    loaded = load_classifier(weights)
    assert all(p.dtype == torch.float32 and torch.equal(p, p.half().float()) for p in loaded.parameters())
    assert len(metric.describe()["weights"]["sha256"]) == 64


def test_foreign_or_missing_classifiers_are_refused(weights, tmp_path):
    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "colours": ["red"]}))
    with pytest.raises(WeightsError, match="other colours"):
        load_classifier(weights)
    (weights / "config.json").write_text(json.dumps({**config, "width": 8}))
    with pytest.raises(WeightsError, match="does not fit"):
        load_classifier(weights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeightsError):
        AttributeAccuracy(weights=tmp_path / "empty")
