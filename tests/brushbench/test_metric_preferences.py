"""pick_score, inpaint_reward and clip_score_local: what the recorded cases in tests/golden leave open."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import brushbench
from brushbench.errors import UsageError, WeightsError
from brushbench.evaluation import choose_columns
from brushbench.features import Features
from brushbench.metrics import clip_model
from brushbench.metrics.base import CAPTION_CUT, PublishedDefectWarning
from brushbench.metrics.clip import ClipScore
from brushbench.metrics.clip_local import ClipScoreLocal
from brushbench.metrics.inpaint_reward import InpaintReward, build_model, find_config
from brushbench.metrics.pick_score import PickScore
from brushbench.types import Unscored
from brushbench.weights import WeightFile
from tests.reference.metric_folders import make_sample, random_clip, random_pictures, random_state

LONG = "a very long prompt about blue rivers and old houses " * 10
CONFIG = {
    "clip": {
        "embed_dim": 12,
        "image_resolution": 64,
        "vision_layers": 2,
        "vision_width": 32,
        "vision_patch_size": 16,
        "vision_heads": 2,
        "quick_gelu": True,
    },
    "vit": {"feature_dim": 24, "num_heads": 4, "mlp_dim": 20},
    "mlp_input": 24,
    "mlp_hidden": [16, 8],
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp("clip"), head=False)


def hole_of(height, width, rows, columns):
    hole = np.zeros((height, width), dtype=bool)
    hole[rows, columns] = True
    return hole


def test_local_clip_is_clip_score_of_the_box(clip):
    """``standard`` pads the box with black to a square and sees all of it; ``freeinpaint`` sees its middle square."""
    picture, wide = random_pictures(3, (80, 90), (64, 64))
    for rows, columns in ((slice(10, 41), slice(5, 60)), (slice(3, 70), slice(20, 33)), (slice(0, 30), slice(0, 30))):
        sample = make_sample(picture, hole_of(80, 90, rows, columns))
        crop = picture[rows, columns]
        longest = max(crop.shape[:2])
        before = [(longest - side) // 2 for side in crop.shape[:2]]
        pads = [(b, longest - side - b) for b, side in zip(before, crop.shape[:2], strict=True)]
        square = cv2.resize(np.pad(crop, [*pads, (0, 0)]), (56, 56), interpolation=cv2.INTER_CUBIC)
        seen = clip_model.normalised(square.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        assert np.array_equal(ClipScoreLocal("standard", clip)._pixels(crop), seen)  # many scores here are 0
        for protocol, seen in (("standard", square), ("freeinpaint", crop)):
            expected = ClipScore("brushnet-paper", clip)([seen], [make_sample(seen)])
            assert ClipScoreLocal(protocol, clip)([picture], [sample]) == pytest.approx(expected, abs=1e-5)
    strip = make_sample(picture, hole_of(80, 90, slice(40, 50), slice(0, 90)))
    changed = picture.copy()
    changed[40:50, :30] = 0  # at the strip's end, which the centre crop never sees
    for protocol, blind in (("freeinpaint", True), ("standard", False)):
        one, other = (ClipScoreLocal(protocol, clip)._pixels(p[40:50]) for p in (picture, changed))
        assert np.array_equal(one, other) is blind
    assert ClipScoreLocal("standard", clip)([wide], [strip])[0].reason == "the picture is 64x64, its hole 90x80"


def test_local_clip_without_a_hole_and_with_a_long_caption(clip):
    [picture] = random_pictures(3, (80, 90))
    empty = make_sample(picture)
    assert ClipScoreLocal("standard", clip)([picture], [empty]) == [Unscored("there is no hole")]
    whole = ClipScore("brushnet-paper", clip)([picture], [empty])
    assert ClipScoreLocal("freeinpaint", clip)([picture], [empty]) == whole
    samples = [make_sample(picture, hole_of(80, 90, slice(9, 40), slice(9, 40)), LONG + end) for end in "xy"]
    with pytest.warns(PublishedDefectWarning, match="loses its end token"):
        first, second = ClipScoreLocal("standard", clip)([picture] * 2, samples)
    assert first == second
    assert first.remark == CAPTION_CUT


def test_pick_score_is_scaled_and_keeps_the_sign_and_the_end_of_a_caption(tmp_path):
    clip = random_clip(tmp_path, head=False)
    pictures = random_pictures(6, *[(64, 64)] * 6, (80, 61))
    samples = [make_sample(p, prompt=t) for p, t in zip(pictures, ("", "x", "!", "sky", "car", LONG, "a"), strict=True)]
    state = load_file(clip / "weights.safetensors")
    scores = PickScore(weights=clip)(pictures, samples)
    assert min(scores) < 0
    assert scores[5].remark == CAPTION_CUT
    clamped = ClipScore(weights=clip)(pictures, samples)
    expected = [max(score, 0) * 100 / np.exp(float(state["logit_scale"])) for score in scores]
    assert clamped == pytest.approx(expected, abs=1e-3)
    save_file({**state, "logit_scale": torch.tensor([2.0])}, clip / "weights.safetensors")
    again = PickScore(weights=clip)(pictures, samples)
    assert again == pytest.approx([s * np.exp(2 - float(state["logit_scale"])) for s in scores], rel=1e-6)
    half = PickScore(weights=clip, dtype="bfloat16")(pictures, samples)
    assert half == pytest.approx(again, abs=0.3)
    save_file({**state, "logit_scale": torch.tensor(99.0)}, clip / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"logit_scale is 99\.0"):
        PickScore(weights=clip)


def test_pick_score_and_clip_score_share_a_pass(clip):
    [picture] = random_pictures(24, (64, 64))
    store = Features()
    for metric in (ClipScore(weights=clip), PickScore(weights=clip)):
        metric([picture], [make_sample(picture)], store)
    assert store.computed == {"model": 1, "image": 1, "text": 1}


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A random InpaintReward in the original keys, with what the published file holds besides."""
    folder = tmp_path_factory.mktemp("reward")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = random_state(build_model(find_config(WeightFile(folder / "weights.safetensors"))), 0)
    live = {name: value for name, value in state.items() if ".layers.0." in name and name.startswith("vit_block")}
    copies = {
        name.replace("transformer_encoder.layers.0", "encoder_layer"): torch.zeros_like(v) for name, v in live.items()
    }
    spare = {"clip_model.ln_final.bias": torch.zeros(3), "mlp.last_layer_weight": torch.zeros(1, 8)}
    save_file({**state, **copies, **spare}, folder / "weights.safetensors")
    return folder


def by_hand(folder, first, second):
    """The head in NumPy: on a sequence of length 1 attention is out_proj(v)."""
    w = {name: value.double().numpy() for name, value in load_file(folder / "weights.safetensors").items()}
    layer = "vit_block.transformer_encoder.layers.0."

    def norm(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{layer}{name}.weight"] + w[f"{layer}{name}.bias"]

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    z = np.concatenate([first, second])
    value = w[f"{layer}self_attn.in_proj_weight"][-24:] @ z + w[f"{layer}self_attn.in_proj_bias"][-24:]
    z = norm(z + linear(value, f"{layer}self_attn.out_proj"), "norm1")
    z = norm(z + linear(np.maximum(linear(z, f"{layer}linear1"), 0), f"{layer}linear2"), "norm2")
    return float((w["mlp.last_layer.weight"] @ linear(linear(z, "mlp.layers.0"), "mlp.layers.2"))[0])


@pytest.mark.parametrize("protocol", ["standard", "freeinpaint"])
def test_inpaint_reward_by_hand(reward, protocol):
    pictures = random_pictures(4, (64, 64), (64, 64), (80, 61))
    references = random_pictures(5, (64, 64), (64, 64), (80, 61))
    samples = [make_sample(r, hole_of(*r.shape[:2], slice(5, 30), slice(20, 50))) for r in references]
    metric = InpaintReward(protocol, reward)
    scores = metric(pictures, samples)
    assert scores == pytest.approx([metric([p], [s])[0] for p, s in zip(pictures, samples, strict=True)], abs=1e-5)
    store = Features()
    for picture, sample, score in zip(pictures, samples, scores, strict=True):
        given = sample.image * ~sample.hole[..., None]
        if protocol == "freeinpaint":
            given = np.stack([sample.hole * np.uint8(255)] * 3, axis=-1)
        first, second = (metric._embedded(store, [image])[0] for image in (picture, given))
        assert score == pytest.approx(by_hand(reward, first, second), rel=1e-4, abs=1e-4)
    [inside] = metric(pictures[:1], [make_sample(255 - references[0], samples[0].hole)])
    blind = inside == pytest.approx(scores[0], abs=1e-5)  # the binary mask tells nothing of the colours
    assert blind == (protocol == "freeinpaint")


def test_inpaint_reward_reads_a_wrapped_pickle_and_refuses_other_sizes(reward, tmp_path):
    state = load_file(reward / "weights.safetensors")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "prefpaintReward.pt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    [picture] = random_pictures(4, (64, 64))
    sample = make_sample(picture, hole_of(64, 64, slice(5, 30), slice(20, 50)))
    assert InpaintReward(weights=tmp_path)([picture], [sample]) == InpaintReward(weights=reward)([picture], [sample])
    changes = [
        ({"mlp_input": 20}, "twice embed_dim"),
        ({"mlp_hidden": [16]}, "mlp_hidden"),
        ({"vit": {"feature_dim": 24, "num_heads": 5, "mlp_dim": 20}}, "cannot be built"),
        ({"vit": {**CONFIG["vit"], "activation": "evil"}}, "expected relu or gelu"),
        ({"clip": {**CONFIG["clip"], "vision_layers": 10**9}}, r"clip\.vision_layers"),
        ({"clip": []}, "clip"),
    ]
    for change, sentence in changes:
        (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
        with pytest.raises(WeightsError, match=sentence):
            InpaintReward(weights=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save({k: v for k, v in state.items() if k != "mlp.last_layer.weight"}, tmp_path / "prefpaintReward.pt")
    with pytest.raises(WeightsError, match=r"mlp\.last_layer\.weight"):
        InpaintReward(weights=tmp_path)


def test_metrics_of_other_papers_are_computed_where_they_are_named():
    auto = {name for name, _ in choose_columns("auto")}
    for name, protocols in (("pick_score", 1), ("inpaint_reward", 2), ("clip_score_local", 2)):
        assert name not in auto
        assert choose_columns(name) == [(name, "standard")]
        asked = choose_columns(f"{name}@standard,{name}@freeinpaint" if protocols == 2 else name)
        assert len(asked) == protocols
    with pytest.raises(UsageError, match="It has standard, freeinpaint"):
        brushbench.load_metric("inpaint_reward", "brushnet-paper")
