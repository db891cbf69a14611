"""CLIP score against transformers' own model and processor; sharing; the published loss of the end token."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError, WeightsError
from brushbench.features import Features
from brushbench.metrics.aesthetic import Aesthetic
from brushbench.metrics.base import CAPTION_CUT, PublishedDefectWarning
from brushbench.metrics.clip import ClipScore
from brushbench.metrics.clip_crop import ClipScoreCrop, hole_box
from brushbench.metrics.clip_model import transformers_ids
from brushbench.types import Unscored
from tests.reference.metric_folders import make_sample, random_clip, random_pictures

PROMPTS = ("a small red cat", "two dogs, playing!", "")
LONG = "a very long prompt about blue rivers and old houses " * 10
LONGER = "another text about green hills and new roads " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A model of transformers, saved as transformers saves it."""
    config = CLIPConfig(
        projection_dim=24,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 56,
            "patch_size": 14,
        },
        text_config={"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPModel(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    target = tmp_path_factory.mktemp("stock")
    model.save_pretrained(target)
    return model, target


def test_equals_transformers_on_its_own_keys(stock):
    model, target = stock
    pictures = random_pictures(1, (64, 64), (80, 61), (57, 90))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    expected = []
    for picture, prompt in zip(pictures, PROMPTS, strict=True):
        pixels = torch.from_numpy(np.asarray(processor(Image.fromarray(picture))["pixel_values"]))
        ids, _ = transformers_ids(prompt, 77, keep_end=True)
        with torch.no_grad():
            image = model.get_image_features(pixel_values=pixels).pooler_output
            text = model.get_text_features(input_ids=torch.tensor([ids])).pooler_output
        expected.append(max(100 * torch.cosine_similarity(image, text).item(), 0))
    assert max(expected) > 1
    scores = ClipScore(weights=target)(
        pictures, [make_sample(p, prompt=t) for p, t in zip(pictures, PROMPTS, strict=True)]
    )
    assert scores == pytest.approx(expected, abs=1e-3)


def test_batch_size_order_and_memory_change_nothing(folder):
    pictures = random_pictures(2, (64, 64), (64, 64), (80, 61), (64, 64))
    samples = [make_sample(p, prompt=t) for p, t in zip(pictures, (*PROMPTS, "x"), strict=True)]
    store = Features()
    together = ClipScore(weights=folder)(pictures, samples, store)
    assert ClipScore(weights=folder)(pictures, samples, store) == together
    alone = [ClipScore(weights=folder)([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    backwards = ClipScore(weights=folder)(pictures[::-1], samples[::-1])
    assert backwards[::-1] == pytest.approx(together, abs=1e-4)
    assert len(set(together)) > 1
    assert store.computed == {"model": 1, "image": 2, "text": 4}  # one pass for each size


def test_one_image_pass_serves_clip_score_and_aesthetic_where_pixels_are_equal(folder):
    square, wide = random_pictures(24, (64, 64), (64, 118))
    store = Features()
    for picture, passes in ((square, 1), (wide, 3)):  # 118 -> 103, margin 47: one rounds to 23, one to 24
        sample = make_sample(picture)
        shared = [metric(weights=folder)([picture], [sample], store)[0] for metric in (ClipScore, Aesthetic)]
        alone = [metric(weights=folder)([picture], [sample])[0] for metric in (ClipScore, Aesthetic)]
        assert shared == alone
        assert store.computed["image"] == passes
    assert store.computed["model"] == 1
    assert store.computed["text"] == 1


def test_weights_of_other_content_share_nothing(folder, tmp_path):
    [picture] = random_pictures(24, (64, 64))
    store = Features()
    other = random_clip(tmp_path, seed=1)
    [a], [b] = (ClipScore(weights=w)([picture], [make_sample(picture)], store) for w in (folder, other))
    assert a != b
    assert store.computed["image"] == store.computed["model"] == 2


def test_long_captions_lose_their_end_only_under_brushnet_paper(folder):
    [picture] = random_pictures(24, (64, 64))
    samples = [make_sample(picture, prompt=text) for text in (LONG, LONGER)]
    paper, standard = ClipScore("brushnet-paper", folder), ClipScore("standard", folder)
    with pytest.warns(PublishedDefectWarning, match="loses its end token") as caught:
        first, second = paper([picture] * 2, samples)
    assert len(caught) == 1
    assert first.value == pytest.approx(second.value, rel=1e-5)  # the fault: different captions, one embedding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right, other = standard([picture] * 2, samples)
        paper([picture], [make_sample(picture)])
    assert right.value != pytest.approx(other.value, rel=1e-4)
    assert [score.remark for score in (first, second, right, other)] == [CAPTION_CUT] * 4
    assert transformers_ids(LONG, 77, keep_end=True)[0][-1] == 49407
    assert transformers_ids(LONG, 77, keep_end=False)[0][-1] != 49407


def test_scores_are_never_negative(folder):
    pictures = random_pictures(6, *[(64, 64)] * 6)
    samples = [make_sample(pictures[0], prompt=t) for t in ("", "x", "!", "sky", "night", "car")]
    assert min(ClipScore(weights=folder)(pictures, samples)) >= 0


def test_sizes_of_a_picture_and_its_reference_may_differ(folder):
    picture, reference = random_pictures(24, (64, 64), (32, 48))
    assert ClipScore(weights=folder)([picture], [make_sample(reference)]) == ClipScore(weights=folder)(
        [picture], [make_sample(picture)]
    )


def test_half_precision_is_near(folder):
    [picture] = random_pictures(24, (64, 64))
    full, half = (
        ClipScore(weights=folder, dtype=d)([picture], [make_sample(picture)]) for d in ("float32", "bfloat16")
    )
    assert half == pytest.approx(full, abs=2)
    assert half != full


def test_key_forms_are_checked_strictly(stock, folder, tmp_path):
    _, target = stock
    for source, name, key in (
        (target, "model.safetensors", "text_model.encoder.layers.1.self_attn.k_proj.bias"),
        (folder, "weights.safetensors", "transformer.resblocks.1.attn.in_proj_bias"),
    ):
        state = load_file(source / name)
        broken = tmp_path / name
        broken.parent.mkdir(exist_ok=True)
        (tmp_path / "config.json").write_text((source / "config.json").read_text())
        save_file({k: v for k, v in state.items() if k != key}, broken)
        with pytest.raises(WeightsError, match=key):
            ClipScore(weights=broken)
        save_file({**state, "surplus": torch.zeros(1)}, broken)
        with pytest.raises(WeightsError, match="surplus"):
            ClipScore(weights=broken)
    assert ClipScore(weights=target / "model.safetensors").describe()["weights"]["file"] == "model.safetensors"


def test_configs_of_both_families_and_of_neither(folder, tmp_path):
    state = (folder / "weights.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(state)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny"}'
    )  # timm's own, which open_clip's hub folders hold
    ClipScore(weights=tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError, match="expected open_clip's model_cfg"):
        ClipScore(weights=tmp_path)
    config["vision_cfg"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="depth"):
        ClipScore(weights=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json of its size"):  # taken for the published size
        ClipScore(weights=tmp_path)


def test_misuse_is_refused(folder, monkeypatch, tmp_path):
    with pytest.raises(UnknownNameError, match="float16"):
        ClipScore(weights=folder, dtype="float61")
    with pytest.raises(UsageError, match="device"):
        ClipScore(weights=folder, device="toaster")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="openai/clip-vit-large-patch14"):
        ClipScore()
    assert "1.7 GB" in ClipScore.available()
    assert ClipScore.available(folder) is None


def test_hole_boxes():
    hole = np.zeros((20, 30), dtype=bool)
    assert hole_box(hole) is None
    hole[4:7, 10:22] = True  # 3 high, 12 wide -> 12x12
    rows, columns = hole_box(hole)
    assert (rows, columns) == (slice(0, 12), slice(10, 22))
    hole[:] = False
    hole[5:15, 28:30] = True  # at the right edge: shifted inwards
    assert hole_box(hole) == (slice(5, 15), slice(20, 30))
    assert hole_box(np.ones((20, 30), dtype=bool)) == (slice(0, 20), slice(0, 30))
    rng = np.random.default_rng(0)
    for _ in range(50):
        hole = rng.random((17, 23)) < 0.02
        if hole.any():
            rows, columns = hole_box(hole)
            assert hole[rows, columns].sum() == hole.sum()


def test_the_crop_score_sees_only_the_hole(folder):
    picture, other = random_pictures(14, (64, 64), (64, 64))
    hole = np.zeros((64, 64), dtype=bool)
    hole[10:40, 20:50] = True
    mixed = np.where(hole[..., None], picture, other)
    sample = make_sample(picture, hole)
    crop = ClipScoreCrop(weights=folder)
    assert crop([picture], [sample]) == crop([mixed], [sample])
    assert crop([picture], [sample])[0] > 0
    assert crop([picture], [sample]) == ClipScore(weights=folder)([picture[10:40, 20:50]], [make_sample(picture)])
    none, wrong = crop([picture, picture[:32]], [make_sample(picture), sample])
    assert none == Unscored("there is no hole")
    assert "64x32" in wrong.reason
    with pytest.raises(UsageError, match="It has standard"):
        ClipScoreCrop("brushnet-paper", folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quick_gelu": "x"}, "quick_gelu"),
        ({"quick_gelu": 1}, "quick_gelu"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"embed_dim": "24"}, "embed_dim"),
        ({"embed_dim": None}, "embed_dim"),
        ({"vision_cfg": []}, "vision_cfg"),
        ({"text_cfg": "tiny"}, "text_cfg"),
        ({"vision_cfg.layers": 10**9}, r"vision_cfg\.layers"),
        ({"vision_cfg.layers": [2, 2]}, r"vision_cfg\.layers"),
        ({"vision_cfg.width": 0}, r"vision_cfg\.width"),
        ({"vision_cfg.width": 10**12}, r"vision_cfg\.width"),
        ({"vision_cfg.head_width": 64}, "cannot be built"),
        ({"vision_cfg.patch_size": 57}, "larger than image_size"),
        ({"vision_cfg.mlp_ratio": float("inf")}, r"vision_cfg\.mlp_ratio"),
        ({"text_cfg.layers": True}, r"text_cfg\.layers"),
        ({"text_cfg.heads": -1}, r"text_cfg\.heads"),
        ({"text_cfg.heads": 7}, "cannot be built"),
        ({"text_cfg.vocab_size": 10**10}, r"text_cfg\.vocab_size"),
        ({"vision_cfg.timm_model_name": "vit"}, r"vision_cfg\.timm_model_name"),
    ],
)
def test_a_hostile_config_is_refused_before_anything_is_built(folder, tmp_path, change, sentence):
    config = json.loads((folder / "config.json").read_text())
    for place, value in change.items():
        *outer, name = place.split(".")
        (config[outer[0]] if outer else config)[name] = value
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=sentence):
        ClipScore(weights=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"vision_config": []},
        {"vision_config": {"num_attention_heads": 0}},
        {"vision_config": {"num_hidden_layers": 10**9}},
        {"vision_config": {"hidden_size": "wide"}},
        {"text_config": {"hidden_size": 0}},
        {"projection_dim": -1},
        {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}},
    ],
)
def test_a_hostile_config_of_transformers_is_refused(stock, tmp_path, change):
    _, target = stock
    config = json.loads((target / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (tmp_path / "model.safetensors").write_bytes((target / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"config\.json"):
        ClipScore(weights=tmp_path)


def test_a_logit_scale_of_shape_1_was_refused(folder, stock, tmp_path):
    [picture] = random_pictures(24, (64, 64))
    for source, name in ((folder, "weights.safetensors"), (stock[1], "model.safetensors")):
        state = load_file(source / name)
        save_file({**state, "logit_scale": state["logit_scale"].reshape(1)}, tmp_path / name)
        (tmp_path / "config.json").write_text((source / "config.json").read_text())
        changed = ClipScore(weights=tmp_path / name)([picture], [make_sample(picture)])
        assert changed == ClipScore(weights=source)([picture], [make_sample(picture)])
        save_file({**state, "logit_scale": torch.zeros(2)}, tmp_path / name)
        with pytest.raises(WeightsError, match="logit_scale"):
            ClipScore(weights=tmp_path / name)
