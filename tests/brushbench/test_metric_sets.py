"""FID and KID: against formulas in NumPy, and through eval, leaderboard, compare and gate."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import scipy.linalg

import brushbench
import brushbench.metrics.sets
from brushbench import registry
from brushbench.errors import MissingWeightsError, UsageError, WeightsError
from brushbench.features import Features
from brushbench.gating.policy import Policy
from brushbench.leaderboard import make_tables, render
from brushbench.metrics.clip_model import ClipBackbone
from brushbench.metrics.plugins import metric_class
from brushbench.runs import Run
from brushbench.scoresets import from_run


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brushbench.metrics.sets, "RESAMPLES", 12)
        yield


@pytest.fixture(scope="module")
def metrics():
    return {name: brushbench.load_metric(name, weights="tiny", device="cpu") for name in ("fid", "kid")}


def sets(n=40, width=6, shift=0.0):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(n, width))
    return real + rng.normal(scale=0.3, size=(n, width)) + shift, real


def naive_fid(made, real):
    root = scipy.linalg.sqrtm(np.cov(made.T) @ np.cov(real.T)).real
    distance = np.square(made.mean(0) - real.mean(0)).sum()
    return distance + np.trace(np.cov(made.T) + np.cov(real.T) - 2 * root)


def naive_mmd(made, real):
    """Unbiased, with the cubic kernel."""
    n, width = made.shape

    def kernel(a, b):
        return (a @ b.T / width + 1) ** 3

    own = sum((kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1)) for a in (made, real))
    return own - 2 * kernel(made, real).mean()


def test_fid_is_the_formula_and_zero_for_equal_sets(metrics):
    made, real = sets(shift=0.2)
    found = metrics["fid"].of_features(made, real)
    assert found.value == pytest.approx(naive_fid(made, real), rel=1e-6)
    assert found.n == 40
    assert found.low < found.value < found.high
    assert metrics["fid"]._resampled(made, real) == pytest.approx(found.value)
    many, few = sets(n=30, width=50)
    assert metrics["fid"]._resampled(many, few) == pytest.approx(metrics["fid"]._distance(many, few), rel=1e-3)
    assert metrics["fid"].of_features(real, real).value == pytest.approx(0, abs=1e-8)
    assert metrics["fid"].of_features(made[::-1], real).value == pytest.approx(found.value)  # the order is no matter


def test_kid_is_the_mean_of_the_formula_over_subsets(metrics, monkeypatch):
    made, real = sets(n=400, shift=0.5)
    found = metrics["kid"].of_features(made, real)
    assert found.value == pytest.approx(naive_mmd(made, real), rel=0.1)  # subsets of 200
    assert metrics["kid"].of_features(made, real) == found  # seeded
    assert metrics["kid"].of_features(real, real).value < 0.05
    near = metrics["kid"].of_features(*sets(n=400)).value
    assert near < found.value / 5


def test_a_worse_set_is_worse(metrics):
    samples = list(brushbench.load_benchmark("shapes", "inside", 12))
    references = [sample.image for sample in samples]
    grey = [np.where(s.hole[..., None], np.uint8(127), s.image) for s in samples]
    for metric in metrics.values():
        assert metric.score_set(references, references).value < metric.score_set(grey, references).value


def test_wrong_calls_are_one_sentence(metrics, tmp_path):
    made, real = sets(n=7)
    with pytest.raises(UsageError, match="expected 8 pairs or more"):
        metrics["fid"].of_features(made, real)
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    with pytest.raises(UsageError, match=r"fid is one number for a set of images.*or call its score_set\(pictures"):
        metrics["fid"](picture, picture)
    references = [np.full((32, 32, 3), 20 * i, dtype=np.uint8) for i in range(9)]
    metrics["fid"].score_set(references, references)  # the remedy; the other one, `score --metrics fid`, is below
    with pytest.raises(MissingWeightsError, match="weights-inception"):
        brushbench.load_metric("fid")
    (tmp_path / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(WeightsError, match="is not the Inception of 2015"):
        brushbench.load_metric("kid", weights=tmp_path)


def test_the_table_of_sets_is_complete():
    assert {name for name in registry.BUILTIN["metric"] if metric_class(name).of_set} == registry.OF_SETS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    return {
        name: brushbench.evaluate(
            name, "shapes", split="inside", limit=9, out=out / name, metrics="mse@standard,fid,kid"
        )
        for name in ("telea", "copy")
    }


def test_one_number_per_split_and_method_with_n_and_interval(runs):
    [table] = make_tables(list(runs.values()))
    assert table.metrics == ("mse", "fid", "kid")
    for row in table.rows:
        cell = row.cells["fid"]
        assert cell.n == 9
        assert cell.low <= cell.mean <= cell.high
        assert cell.rank == ""
    text = render([table], "markdown")
    assert "of 9 images and their references" in text
    [by_fid] = make_tables(list(runs.values()), metrics=["fid"], sort="fid")
    assert by_fid.rows[0].cells["fid"].mean <= by_fid.rows[1].cells["fid"].mean


def test_what_is_there_is_not_computed_again_and_a_changed_image_is(runs, monkeypatch):
    run = runs["telea"]
    before = run.metrics
    monkeypatch.setattr(metric_class("fid"), "of_features", lambda *_: pytest.fail("computed again"))
    brushbench.evaluate("telea", "shapes", split="inside", limit=9, out=run.path, metrics="fid,kid")
    assert Run.open(run.path).metrics == before
    monkeypatch.setattr(Run, "picture_rows", lambda self: [])
    assert Run.open(run.path).set_scores() == []  # of other images than those that are there


def test_references_are_embedded_once_for_all_variants_metrics_and_runs_and_images_are_not_held(tmp_path, monkeypatch):
    """A split's images were all in memory, and the references' features were computed anew for each variant and run."""
    features, alive, most = Features(), 0, 0
    embedded = ClipBackbone.pictures

    def counted(self, store, pictures, prepare):
        nonlocal alive, most
        for picture in pictures:
            alive += 1
            weakref.finalize(picture, gone)
        most = max(most, alive)
        return embedded(self, store, pictures, prepare)

    def gone():
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(ClipBackbone, "pictures", counted)
    found = {
        name: brushbench.evaluate(
            name, "shapes", split="inside", limit=9, out=tmp_path / name, metrics="fid,kid", variants="raw,raw+jpeg75",
            features=features,
        )
        for name in ("telea", "copy")
    }  # fmt: skip
    assert features.computed["image"] == 5 * 9  # two runs of two variants, and the references
    assert features.computed["model"] == 1
    assert most <= 4
    for name, run in found.items():
        scores = {one["variant"]: one["value"] for one in run.metrics["fid@standard"]["sets"]}
        samples = brushbench.load_benchmark("shapes", "inside", 9)
        made = [run.picture(row) for row in run.picture_rows()]
        fid = brushbench.load_metric("fid", weights="tiny", device="cpu")
        assert scores["raw"] == fid.score_set(made, [sample.image for sample in samples]).value
        assert scores["raw+jpeg75"] != scores["raw"], name


def test_sets_of_different_size_are_not_compared(runs, tmp_path):
    smaller = brushbench.evaluate("ns", "shapes", split="inside", limit=9, out=tmp_path, metrics="fid")
    header = smaller.metrics["fid@standard"]
    header["sets"][0]["n"] = 8
    smaller._folder.record_metric("fid@standard", header)
    wanted = [runs["telea"], Run.open(tmp_path)]
    [table] = make_tables(wanted, metrics=["fid"])
    assert table.metrics == ()
    assert "sets of different size cannot be compared: telea 9, ns 8 images" in render([table], "table", width=200)


def test_compare_and_gate_refuse_them_in_words(runs):
    with pytest.raises(UsageError, match="fid is one number for a set of images, not one per sample: compare cannot"):
        brushbench.compare(runs["telea"], runs["copy"], metrics=["fid"])
    assert {row.metric for row in brushbench.compare(runs["telea"], runs["copy"]).rows} == {"mse"}
    with pytest.raises(UsageError, match=r"kid is one number for a set of images, .*: the gate cannot pair it"):
        Policy.model_validate({"metrics": {"kid": {"margin": 1.0}}}).gated(from_run(runs["telea"]))


@pytest.mark.slow
def test_the_published_network_gives_the_features_of_torch_fidelity(tmp_path, monkeypatch):
    """With random weights in the published keys; the file is read as plain tensors, and nothing is downloaded."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = tmp_path / "weights-inception-2015-12-05-6726825d.pth"
    torch.save(theirs.state_dict(), file)
    picture = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    [expected] = theirs(torch.from_numpy(picture.transpose(2, 0, 1))[None])
    metric = brushbench.load_metric("fid", weights=file, device="cpu")
    found = metric.features_of([picture])
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert metric.describe()["antialias"] is False
