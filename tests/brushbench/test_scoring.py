"""Scoring: what is computed again, what is kept, and what a bad answer costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench import assets, registry
from brushbench.errors import BadRecordError, BrushbenchError, UsageError
from brushbench.evaluation import Scoring, rescore
from brushbench.metrics.base import BaseMetric, at_reference_size
from brushbench.metrics.mse import MSE
from brushbench.metrics.plugins import metric_class
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
    monkeypatch.setattr("brushbench.metrics.plugins.registry.find", lambda kind, name: Shifted)
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


def test_a_plug_in_metric_that_was_corrected_showed_its_old_scores(shapes, tmp_path, monkeypatch):
    def scored(answer):
        return scores_of(evaluate(shapes, tmp_path / "r", [own_metric(tmp_path, answer)]))

    assert scored("v") != scored("[0.0 for x in v]") == [0.0] * 3
    monkeypatch.syspath_prepend(tmp_path)
    for factor in (1.0, 2.5):  # of a module beside it
        (tmp_path / "factor_of_mine.py").write_text(f"FACTOR = {factor}")
        monkeypatch.delitem(sys.modules, "factor_of_mine", raising=False)
        code = TEMPLATE.replace("import itertools", "import factor_of_mine, itertools")
        (tmp_path / "mine.py").write_text(code.format("[factor_of_mine.FACTOR for x in v]"))
        assert scores_of(evaluate(shapes, tmp_path / "r", [f"{tmp_path / 'mine.py'}:Mine"])) == [factor] * 3
    monkeypatch.delitem(sys.modules, "factor_of_mine", raising=False)


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


# What a metric of one's own may answer --------------------------------------------------------------------------------

STRANGE = {
    "one too few": "v[1:]",
    "one too many": "v + [99.0]",
    "endless": "itertools.count()",
    "None": "None",
    "None for one": "[None, *v[1:]]",
    "text": "[str(x) for x in v]",
    "a text": "'123'",
    "a dict": "{'score': v}",
    "complex": "[complex(x, 1) for x in v]",
    "complex array": "np.array(v, dtype=complex)",
    "arrays": "[np.ones(3) for x in v]",
    "one huge integer": "[10**400, *v[1:]]",
    "NaN for one": "np.array([np.nan, *v[1:]], np.float32)",
    "raises for one": "[1/0 if s.id.endswith('1') else x for x, s in zip(v, samples)]",
    "leaves early": "[sys.exit(0) if s.id.endswith('1') else x for x, s in zip(v, samples)]",
    "half a character": "[Unscored(chr(0xd83d)), *v[1:]]",
    "an address": "[(_ for _ in ()).throw(ValueError(repr(object()))) for x in v]",
}
FINE = {
    "a list": "v",
    "a generator": "(x for x in v)",
    "float32": "np.array(v, np.float32)",
    "a tensor": "torch.tensor(v)",
    "int": "[int(x) for x in v]",
    "bool": "[True for x in v]",
    "-inf": "[-np.inf for x in v]",
    "no dimension": "[np.array(x) for x in v]",
}
TEMPLATE = """
import itertools, sys
import numpy as np, torch
from brushbench.types import Unscored
class Mine:
    protocols = ("standard",)
    def __init__(self, protocol="standard"):
        self.name, self.protocol, self.unit, self.higher_is_better, self.region = "mine", protocol, "", True, "whole"
    def describe(self): return {{"metric": "mine"}}
    def __call__(self, pictures, samples, features=None):
        v = [float(p.mean()) for p in pictures]
        return {}
"""


def own_metric(folder: Path, answer: str) -> str:
    (folder / "mine.py").write_text(TEMPLATE.format(answer))
    return f"{folder / 'mine.py'}:Mine"


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_answer_cost_every_score(shapes, tmp_path, kind):
    run = evaluate(shapes, tmp_path / "r", ["psnr@standard", own_metric(tmp_path, STRANGE[kind])])
    scores = run.scores
    assert scores[scores["metric"] == "psnr"]["value"].notna().all()
    mine = scores[scores["metric"] == "mine"]
    assert len(mine) == 3
    reasons = mine[mine["value"].isna()]["reason"]
    assert len(reasons)
    assert all(reasons)
    assert not any(" at 0x" in reason or "\n" in reason for reason in reasons)
    if kind in ("raises for one", "leaves early"):
        assert len(reasons) == 1


@pytest.mark.parametrize("answer", FINE.values(), ids=FINE)
def test_numbers_of_other_kinds_are_scores(shapes, tmp_path, answer):
    run = evaluate(shapes, tmp_path / "r", [own_metric(tmp_path, answer)])
    assert run.scores["value"].notna().all()
    assert set(run.scores["reason"]) == {""}


def test_one_metric_changed_the_picture_that_the_next_one_scored(shapes, tmp_path):
    alone = scores_of(evaluate(shapes, tmp_path / "alone", "psnr@standard"))
    both = evaluate(
        shapes, tmp_path / "both", [own_metric(tmp_path, "[p.fill(0) or 1.0 for p in pictures]"), "psnr@standard"]
    )
    scores = both.scores
    assert scores[scores["metric"] == "psnr"]["value"].tolist() == alone
    assert scores[scores["metric"] == "mine"]["reason"].str.contains("read-only").all()


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "*", "", "a\0b", "a@b", "a b", "psnr", "hps_v2.1", "x" * 65, ".x", "é", 7, None]
)
def test_a_plug_in_metric_whose_name_cannot_name_a_column_is_refused(shapes, tmp_path, name):
    (tmp_path / "mine.py").write_text(TEMPLATE.format("v").replace('"mine", protocol', f"{name!r}, protocol"))
    with pytest.raises(UsageError, match=r"Change its `name`"):
        evaluate(shapes, tmp_path / "r", [f"{tmp_path / 'mine.py'}:Mine"])
    (tmp_path / "mine.py").write_text(TEMPLATE.format("v"))  # the remedy
    evaluate(shapes, tmp_path / "r", [f"{tmp_path / 'mine.py'}:Mine"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('"whole"', '"everything"'), "region is 'everything', expected one of whole"),
        (("True,", "1,"), "higher_is_better is '1', expected True or False"),
        (('protocol, "", True', '"other", "", True'), "protocol is 'other', expected 'standard'"),
        (('"mine", protocol, ""', '"mine", protocol, None'), "unit is 'None', expected text"),
        (("self.unit, ", ""), "cannot be constructed: ValueError"),
        (("class Mine:", "class Mine:\n    display = ('x', 0)"), "display is .*, expected a heading suffix"),
        (("    def describe(self): ", "    def described(self): "), "is no metric: Mine has no describe"),
        (('return {"metric": "mine"}', "return {'a': object()}"), "describe.. of metric 'mine' is no dict"),
        (("import itertools,", "raise SystemExit(0)\nimport"), r"ended the process: SystemExit\(0\)"),
        (("import itertools", "import does_not_exist"), "cannot be imported: ModuleNotFoundError"),
        (
            ("        self.name,", "        raise SystemExit(0)\n        self.name,"),
            r"ended the process: SystemExit\(0\)",
        ),
    ],
)
def test_a_plug_in_metric_without_what_a_table_needs_is_one_sentence(shapes, tmp_path, change, sentence):
    (tmp_path / "mine.py").write_text(TEMPLATE.format("v").replace(*change))
    with pytest.raises(BrushbenchError, match=sentence):
        evaluate(shapes, tmp_path / "r", [f"{tmp_path / 'mine.py'}:Mine"])


@pytest.mark.parametrize("name", ["subprocess:Popen", "collections:Counter", "pathlib:Path", "builtins:type"])
def test_a_class_that_is_no_metric_was_built(shapes, tmp_path, name):
    with pytest.raises(UsageError, match="is no metric"):
        evaluate(shapes, tmp_path / "r", [name])


def test_two_metrics_of_one_name_are_refused(shapes, tmp_path):
    with pytest.raises(UsageError, match="Two metrics fill the column 'counted@standard'"):
        evaluate(shapes, tmp_path / "r", [COUNTED, f"{__file__}:Shifted"])


def test_half_a_character_in_a_caption_cost_every_score(tmp_path):
    """The case lone_surrogate_caption: a caption cut inside an emoji."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    hole = np.zeros((64, 64), dtype=bool)
    hole[10:30, 10:30] = True
    samples = [
        Sample(str(i), image, hole, text, "inside") for i, text in enumerate(["a red circle", "a circle \ud83d"])
    ]
    for name in ("clip_score", "clip_score_crop", "image_reward", "hps_v2", "hps_v2.1"):
        first, second = brushbench.load_metric(name, weights="tiny", device="cpu")([image] * 2, samples)
        assert isinstance(first, float)
        assert "lone surrogate" in second.reason
    for name in ("psnr", "aesthetic"):  # they read no caption
        weights = "tiny" if name == "aesthetic" else None
        assert Unscored not in map(type, brushbench.load_metric(name, weights=weights)([image] * 2, samples))


@pytest.mark.parametrize("shape", [(64, 1), (1, 2048), (600, 2)])
def test_a_picture_one_pixel_wide_is_a_score_or_a_reason(shape):
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    hole = np.zeros(shape, dtype=bool)
    hole[: shape[0] // 2 + 1, : shape[1] // 2 + 1] = True
    good = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fine = np.zeros((64, 64), dtype=bool)
    fine[10:30, 10:30] = True
    samples = [Sample("a", image, hole, "x", "inside"), Sample("b", good, fine, "x", "inside")]
    without_tiny = {"pick_score", "inpaint_reward", "hps_v3", "dino_similarity", "remove", "cfd"}
    names = set(registry.names("metric")) - without_tiny
    for name in sorted(name for name in names if not metric_class(name).of_set):
        metric = brushbench.load_metric(name, weights="tiny" if metric_class(name).needs else None, device="cpu")
        narrow, other = metric([image, good], samples)
        assert isinstance(narrow, float | Unscored)
        assert isinstance(other, float) or name == "attribute_accuracy"


def test_a_record_that_cannot_be_read_any_more_costs_its_own_score(tmp_path):
    shapes = brushbench.load_benchmark("shapes", split="inside", limit=3)
    run = evaluate(shapes, tmp_path, "psnr@standard")

    class Broken(type(shapes)):
        def __getitem__(self, index):
            if index == 1:
                raise BadRecordError("000000001", "its picture is cut", "Restore it")
            return super().__getitem__(index)

    shapes.__class__ = Broken
    run = evaluate(shapes, tmp_path, "psnr@standard,mse@standard")
    mse = run.scores[run.scores["metric"] == "mse"]
    assert mse["value"].isna().tolist() == [False, True, False]
    assert "its picture is cut" in mse["reason"].tolist()[1]


def test_a_missing_caption_is_no_caption_to_a_run_and_the_empty_text_to_the_metric(tmp_path):
    """The published scripts score the empty text, and recorded cases hold it; a run must not average such scores in."""
    rng = np.random.default_rng(0)
    hole = np.zeros((64, 64), dtype=bool)
    hole[10:30, 10:30] = True
    samples = [
        Sample(f"s{i}", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), hole, prompt, "inside")
        for i, prompt in enumerate(("a red circle", "", " "))
    ]
    run = evaluate(samples, tmp_path, "clip_score@standard,psnr@standard", weights={"clip_score": "tiny"})
    clip = run.scores[run.scores["metric"] == "clip_score"]
    assert clip["reason"].tolist() == ["", "the caption is missing", "the caption is missing"]
    assert run.scores[run.scores["metric"] == "psnr"]["value"].notna().all()
    metric = brushbench.load_metric("clip_score", weights="tiny", device="cpu")
    assert isinstance(metric([samples[1].image], [samples[1]])[0], float)


# Weights on the command line ------------------------------------------------------------------------------------------


def test_missing_weights_are_named_once_per_model_in_words_of_the_command_line(tmp_path, monkeypatch):
    """The message spoke of Python's ``weights=``, three times for one CLIP; the remedy is tried here."""
    shapes = brushbench.load_benchmark("shapes", split="inside", limit=2)
    shapes.metric_weights = None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    trio = "clip_score@standard,clip_score_crop,aesthetic@standard"
    run = evaluate(shapes, tmp_path / "r", trio)
    [reason] = {header["unavailable"] for header in run.metrics.values()}
    assert "--weights clip_score=openai/clip-vit-large-patch14" in reason
    assert " weights=" not in reason
    folder = str(assets.path("data/tiny/metrics/clip"))
    run = evaluate(shapes, tmp_path / "r", trio, weights={"clip_score": folder})
    assert len(run.scores) == 6
    hashes = {header["weights"]["sha256"] for header in run.metrics.values()}
    assert len(hashes) == 1


@pytest.mark.parametrize("place", ["/etc/passwd", "/dev/zero", "/nowhere", "."])
def test_wrong_weights_are_refused_even_where_their_metric_is_not_asked_for(shapes, tmp_path, place):
    with pytest.raises(UsageError, match=f"--weights lpips={place}: "):
        evaluate(shapes, tmp_path / "r", "psnr@standard", weights={"lpips": place})


def test_a_damaged_file_in_a_cache_costs_its_own_column(shapes, tmp_path, monkeypatch):
    shapes.metric_weights = None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"<html>not found</html>")
    run = evaluate(shapes, tmp_path / "r", "psnr@standard,lpips@standard")
    assert "squeezenet1_1-b8a52dc0.pth" in run.metrics["lpips@standard"]["unavailable"]
    assert run.scores["value"].notna().all()
