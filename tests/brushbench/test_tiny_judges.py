"""The trainers of the metric models: what they teach is right, and what they save is read by the metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import brushbench
from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError
from brushbench.tiny import judges
from brushbench.tiny.commands import app
from brushbench.tiny.family import collect
from brushbench.tiny.judges.image_reward import FAR_STEPS
from brushbench.tiny.judges.scenes import ATTRIBUTES, SPOILS, SceneStream, alternatives, spoil
from brushbench.tiny.scenes import caption
from brushbench.training.loop import Draw
from brushbench.types import Sample
from tests.brushbench.trainings import config


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """All five models after one step each, trained and collected by the commands."""
    out, into = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("tiny")
    options = ["judges", "--out", str(out / "metrics"), "--max-steps", "1", "--batch-size", "2", "--log-every", "1"]
    for command in ([*options, "--cpu"], ["collect", str(out), "--into", str(into)]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return into / "metrics"


def samples(count=3):
    drawn, _ = SceneStream("clip").take(Draw(5, 0, 0, count))
    hole = np.zeros((64, 64), dtype=bool)
    hole[16:40, 16:48] = True
    return [Sample(f"{i}-inside", one.image, hole, caption(one.scene), "inside", {}) for i, one in enumerate(drawn)]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("clip_score", "clip"),
        ("aesthetic", "clip"),
        ("hps_v2.1", "hps"),
        ("image_reward", "image_reward"),
        ("lpips", "lpips"),
    ],
)
def test_the_metric_reads_what_was_trained(family, name, folder):
    metric = brushbench.load_metric(name, weights=str(family / folder), device="cpu")
    given = samples()
    shifted = [np.roll(sample.image, 3, axis=1) for sample in given]
    scores = metric(shifted, given)
    assert len(scores) == 3
    assert np.isfinite(scores).all()
    assert len(set(scores)) > 1


def test_shapes_are_judged_by_the_family_in_every_column(family, tmp_path, monkeypatch):
    monkeypatch.setattr("brushbench.weights._tiny_folder", lambda needs: family / needs.tiny)
    run = brushbench.evaluate("telea", "shapes", limit=2, split="inside", out=tmp_path, device="cpu")
    columns = {name: header for name, header in run.metrics.items() if name.endswith("@standard")}
    assert not [name for name, header in columns.items() if "unavailable" in header]
    tiny = {name.partition("@")[0] for name, header in columns.items() if header.get("weights", {}).get("tiny")}
    assert {"clip_score", "clip_score_crop", "aesthetic", "image_reward", "hps_v2", "hps_v2.1", "lpips"} <= tiny
    assert run.scores["value"].notna().all()


def test_family_is_small_and_listed_whole(family):
    files = [path for path in family.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    listed = json.loads((family.parent / "manifest.json").read_text())["files"]
    assert {f"metrics/{path.relative_to(family).as_posix()}" for path in files} == set(listed)
    assert {"metrics/clip/weights.safetensors", "metrics/lpips/training.json", "metrics/hps/log.csv"} <= set(listed)


@pytest.mark.parametrize("name", ["hps", "image_reward"])
def test_a_preference_model_goes_on_from_its_weights_with_new_scenes(family, tmp_path, name):
    from safetensors.torch import load_file

    source = family / name
    options = ["--init-from", str(source), "--max-steps", "2", "--learning-rate", "0", "--batch-size", "2", "--cpu"]
    result = CliRunner().invoke(app, ["judges", "--which", name, "--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    made = tmp_path / name / "model"
    before, after = load_file(source / "weights.safetensors"), load_file(made / "weights.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((made / "training.json").read_text())["step"] == 2  # one step before, one here


def test_a_reward_model_meets_other_scenes_captions_first_and_near_ones_later():
    task = judges.make_task("image_reward")
    for step, other in ((0, True), (FAR_STEPS, False)):
        ids = task.batch(Draw(0, step, 0, 4))["ids"].unflatten(0, (4, -1))
        assert ids.shape[1] == 5
        last = [torch.equal(ids[i, -1], ids[i - 1, 0]) for i in range(4)]
        assert all(last) if other else not any(last)


def test_wrong_captions_are_wrong_by_the_attribute_they_name():
    drawn, _ = SceneStream("clip").take(Draw(0, 0, 0, 40))
    seen = set()
    for one in drawn:
        right = caption(one.scene)
        for name, wrong in alternatives(one.scene).items():
            seen.add(name)
            assert right not in wrong, (name, right)
            assert all(wrong)
    assert seen == set(ATTRIBUTES)


def test_every_damage_changes_the_picture_and_keeps_its_form():
    drawn, rng = SceneStream("clip").take(Draw(0, 0, 0, 4))
    for kind in SPOILS:
        for i, one in enumerate(drawn):
            bad = spoil(one.image, kind, rng, drawn[i - 1].image)
            assert bad.shape == one.image.shape
            assert bad.dtype == np.uint8
            assert not np.array_equal(bad, one.image), kind


def test_mirrored_scenes_tell_what_they_show():
    drawn, _ = SceneStream("clip").take(Draw(0, 0, 0, 40))
    original, twin = drawn[0], drawn[0].mirrored()
    assert np.array_equal(twin.image[:, ::-1], original.image)
    assert np.array_equal(twin.patches[:, ::-1], original.patches)
    swaps = {"left": "right", "right": "left"}
    for one in drawn:
        turned = " ".join(swaps.get(word, word) for word in caption(one.scene).split())
        assert caption(one.mirrored().scene) == turned


def test_streams_share_no_scene():
    first = [SceneStream(name).take(Draw(0, 0, 0, 4))[0][0].scene for name in judges.ORDER]
    assert len({str(scene) for scene in first}) == len(judges.ORDER)


def test_what_cannot_be_trained_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(UnknownNameError, match="metric model"):
        judges.recipe_of("fid")
    with pytest.raises(UsageError, match="batch size 1"):
        judges.train_judge("clip", config(tmp_path, batch_size=1))
    with pytest.raises(MissingWeightsError, match="--clip"):
        judges.make_task("aesthetic", clip=tmp_path)
    with pytest.raises(UsageError, match="--init-from is for hps and image_reward; lpips"):
        judges.make_task("lpips", init_from=tmp_path)
    with pytest.raises(MissingWeightsError, match=r"--init-from .* holds no weights"):
        judges.make_task("image_reward", init_from=tmp_path)
    with pytest.raises(MissingWeightsError, match="holds none of text_to_image"):
        collect(tmp_path, tmp_path / "into")
