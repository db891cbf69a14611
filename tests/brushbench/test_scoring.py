"""Scoring: what is computed again, what is kept, and what a bad answer costs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench.evaluation import Scoring, rescore
from brushbench.metrics.base import BaseMetric, at_reference_size
from brushbench.metrics.mse import MSE
from brushbench.metrics.psnr import PSNR
from brushbench.types import Capabilities, Sample, Unscored

CALLS: list[str] = []  # what a metric of this file was asked for


class Half:
    """A method without weights: returns the request, its hole half grey."""

    capabilities = Capabilities(text=False, batch=64)

    def describe(self):
        return {"method": "half"}

    def inpaint(self, requests):
        return [(request.image // 2).astype(np.uint8) for request in requests]


class Counted:
    """A plug-in metric that notes each call; ``SHIFT`` stands for its weights."""

    SHIFT = 0.0
    protocols = ("standard",)

    def __init__(self, protocol="standard"):
        self.name, self.protocol, self.unit, self.higher_is_better, self.region = "counted", protocol, "", True, "whole"

    def describe(self):
        return {"metric": self.name, "shift": self.SHIFT}

    def __call__(self, pictures, samples, features=None):
        CALLS.extend(sample.id for sample in samples)
        return [float(picture.mean()) + self.SHIFT for picture in pictures]


class NotANumber(Counted):
    """NaN for every second sample."""

    def __call__(self, pictures, samples, features=None):
        return [float("nan") if int(sample.id) % 2 else 1.0 for sample in samples]


COUNTED, NAN = (f"{__file__}:{name}" for name in ("Counted", "NotANumber"))


@pytest.fixture
def shapes():
    return brushbench.load_benchmark("shapes", split="inside", limit=3)


def evaluate(shapes, out: Path, metrics, variants="raw", **options):
    return brushbench.evaluate(Half(), shapes, out=out, metrics=metrics, variants=variants, **options)


def scores_of(run, variant="raw"):
    return run.scores[run.scores["variant"] == variant]["value"].tolist()


def test_a_column_that_lacks_scores_was_taken_for_complete(shapes, tmp_path):
    """``_is_complete`` that always says yes: the column of a damaged table stayed as it was."""
    run = evaluate(shapes, tmp_path, "psnr@standard,mse@standard")
    whole = run.scores
    file = run.path / "scores.parquet"
    whole[1:].to_parquet(file, index=False)
    assert len(run.scores) == len(whole) - 1
    assert evaluate(shapes, tmp_path, "psnr@standard,mse@standard").scores.equals(whole)


def test_a_variant_that_is_not_there_was_taken_for_complete(shapes, tmp_path):
    evaluate(shapes, tmp_path, "mse@standard")
    run = evaluate(shapes, tmp_path, "mse@standard", "raw,blended")
    assert set(run.scores["variant"]) == {"raw", "blended"}
    assert run.metrics["mse@standard"]["variants"] == ["raw", "blended"]


def test_nan_of_a_plug_in_metric_is_no_score(shapes, tmp_path):
    run = evaluate(shapes, tmp_path, [NAN])
    unscored = run.scores[run.scores["value"].isna()]
    assert unscored["sample"].tolist() == [s for s, _ in shapes.keys if int(s) % 2]
    assert set(unscored["reason"]) == {"the metric returned NaN"}
    assert run.summary()["mean"].tolist() == [1.0]


def test_a_scored_column_is_not_overwritten_as_unavailable(shapes, tmp_path, monkeypatch):
    weights = {"lpips": "tiny"}
    run = evaluate(shapes, tmp_path, "lpips@standard", weights=weights)
    before, header = run.scores, run.metrics["lpips@standard"]
    shapes.metric_weights = None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    again = evaluate(shapes, tmp_path, "lpips@standard")
    assert again.metrics["lpips@standard"] == header
    assert again.scores.equals(before)


def test_the_published_resize_is_bicubic():
    """evaluate_brushnet.py resizes with Pillow's default; NEAREST gave other scores that no test noticed."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sample = Sample("s", image, np.zeros((64, 64), dtype=bool), "x", "inside")
    expected = np.asarray(Image.fromarray(small).resize((64, 64)))  # the default itself, not a name for it
    assert np.array_equal(at_reference_size(small, sample, "brushnet-paper"), expected)
    error = (expected.astype(np.float64) - image) / 255
    [score] = MSE("brushnet-paper")([small], [sample])
    assert score == pytest.approx(np.square(error).sum() / (64 * 64), rel=1e-5)
    [refused] = PSNR("standard")([small], [sample])
    assert isinstance(refused, Unscored)


# One column, one set of weights ---------------------------------------------------------------------------------------


def test_other_weights_gave_the_old_scores(shapes, tmp_path, monkeypatch):
    first = scores_of(evaluate(shapes, tmp_path, [COUNTED], "raw,blended"))
    CALLS.clear()
    assert scores_of(evaluate(shapes, tmp_path, [COUNTED], "raw,blended")) == first
    assert not CALLS  # nothing is computed twice
    monkeypatch.setattr("brushbench.metrics.plugins.registry.resolve", lambda kind, name: Shifted)
    run = evaluate(shapes, tmp_path, [COUNTED])  # raw alone is asked for
    assert scores_of(run) == pytest.approx([value + 1 for value in first])
    assert run.metrics["counted@standard"]["shift"] == 1.0
    assert len(scores_of(run, "blended")) == 3  # the old weights' blended scores may not stay beside them
    assert len(CALLS) == 6


class Shifted(Counted):
    """The same metric with other weights."""

    SHIFT = 1.0


def test_a_file_of_other_weights_is_scored_anew(shapes, tmp_path):
    """The case weights_changed_not_rescored: the same command with another LPIPS."""
    import torch
    from safetensors.torch import load_file, save_file

    from brushbench import assets

    state = load_file(assets.path("data/tiny/metrics/lpips") / "weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "other").mkdir()
    changed = {k: v + 0.1 * torch.randn(v.shape, generator=generator).to(v.dtype) for k, v in state.items()}
    save_file(changed, tmp_path / "other" / "weights.safetensors")
    headers, values = [], []
    for weights in ("tiny", str(tmp_path / "other")):
        run = evaluate(shapes, tmp_path / "r", "lpips@standard", weights={"lpips": weights})
        headers.append(run.metrics["lpips@standard"]["weights"]["sha256"])
        values.append(scores_of(run))
    assert headers[0] != headers[1]
    assert values[0] != values[1]
    fresh = evaluate(shapes, tmp_path / "fresh", "lpips@standard", weights={"lpips": str(tmp_path / "other")})
    assert values[1] == scores_of(fresh)


def test_scoring_one_variant_again_threw_the_others_away(tmp_path):
    options = {"split": "inside", "limit": 3}
    run = evaluate("shapes", tmp_path, "mse@standard,psnr@standard", "raw,blended", **options)
    before, headers = run.scores, run.metrics
    again = rescore(tmp_path, scoring=Scoring("mse@standard", variants="raw"))
    assert again.scores.equals(before)
    assert again.metrics == headers


def test_a_header_of_an_earlier_release_still_counts(shapes, tmp_path):
    run = evaluate(shapes, tmp_path, [COUNTED])
    import json

    file = run.path / "metrics.json"
    headers = json.loads(file.read_text())
    for key in ("identity", "display", "caveat"):
        headers["counted@standard"].pop(key)
    file.write_text(json.dumps(headers))
    CALLS.clear()
    evaluate(shapes, tmp_path, [COUNTED])
    assert not CALLS


# What a column's header tells -----------------------------------------------------------------------------------------


class Scaled(BaseMetric):
    """A plug-in with every fact that a table shows."""

    name, higher_is_better, region, unit, display = "scaled", False, "hole", "m", ("x10²", 1e2)
    caveats: ClassVar = {"standard": "a toy"}

    def _score(self, pictures, samples, features):
        return [0.5 for _ in pictures]


def test_the_header_of_a_plug_in_tells_what_a_table_shows(shapes, tmp_path):
    run = evaluate(shapes, tmp_path, [f"{__file__}:Scaled"])
    header = run.metrics["scaled@standard"]
    expected = {"unit": "m", "higher_is_better": False, "region": "hole", "display": ["x10²", 100.0], "caveat": "a toy"}
    assert {key: header[key] for key in expected} == expected
    assert set(run.scores["value"]) == {0.5}  # stored unscaled
