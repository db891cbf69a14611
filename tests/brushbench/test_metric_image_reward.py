"""ImageReward: what may not matter does not, what is cut is counted, and one pass serves both protocols."""

from __future__ import annotations

import json

import pytest
import torch

from brushbench.errors import WeightsError
from brushbench.features import Features
from brushbench.metrics.base import CAPTION_CUT
from brushbench.metrics.image_reward import DEVIATION, MEAN, ImageReward, make_tokenizer
from brushbench.types import Scored
from tests.reference.metric_folders import make_sample, random_pictures, random_reward

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ("a small red cat", "two dogs playing in the snow, and a bird in a tree by the old river", "", "word " * 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_reward(tmp_path_factory.mktemp("reward"))


def test_padding_batch_size_and_order_change_nothing(folder):
    pictures = random_pictures(1, (64, 64), (64, 64), (80, 61), (64, 64))
    samples = [make_sample(p, prompt=t) for p, t in zip(pictures, PROMPTS, strict=True)]
    metric = ImageReward(weights=folder)
    together = metric(pictures, samples)
    alone = [ImageReward(weights=folder)([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-3)
    assert metric(pictures[::-1], samples[::-1])[::-1] == pytest.approx(together, rel=1e-5, abs=1e-3)
    assert len(set(together)) == 4
    assert sum(isinstance(score, Scored) for score in together) == 1


def test_equals_the_published_padding_to_35(folder):
    [picture] = random_pictures(2, (64, 64))
    metric = ImageReward("brushnet-paper", folder)
    model = metric._load()
    tokens = make_tokenizer(metric._vocabulary)(
        PROMPTS[0], padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    pixels = (
        torch.from_numpy(picture).permute(2, 0, 1)[None] / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)
    ) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        seen = model["vision"](pixels).last_hidden_state
        state = model["text"](
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen
        ).last_hidden_state[:, 0]
        for layer in model["mlp"]:
            state = layer(state)
    expected = (state.item() - MEAN) / DEVIATION
    assert metric([picture], [make_sample(picture, prompt=PROMPTS[0])]) == pytest.approx([expected], rel=1e-5, abs=1e-3)


def test_caption_and_picture_both_matter(folder):
    a, b = random_pictures(3, (64, 64), (64, 64))
    scores = ImageReward(weights=folder)([a, a, b], [make_sample(a), make_sample(a, prompt="x"), make_sample(a)])
    assert len({round(score, 4) for score in scores}) == 3


def test_half_precision_is_near(folder):
    [picture] = random_pictures(3, (64, 64))
    full, half = (
        ImageReward(weights=folder, dtype=d)([picture], [make_sample(picture)])[0] for d in ("float32", "bfloat16")
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.1, abs=5)


def test_both_protocols_share_one_pass(folder):
    [picture] = random_pictures(4, (64, 64))
    store = Features()
    a, b = (ImageReward(p, folder)([picture], [make_sample(picture)], store) for p in ("standard", "brushnet-paper"))
    assert a == b
    assert store.computed == {"model": 1, "image": 1}


def test_long_captions_are_cut_at_35_and_say_so(folder):
    [picture] = random_pictures(5, (64, 64))
    metric = ImageReward(weights=folder)
    words = ["red " * 40 + tail for tail in ("cat", "dog")]
    first, second, again = metric([picture] * 3, [make_sample(picture, prompt=w) for w in (*words, words[0])])
    assert first == pytest.approx(second, rel=1e-5, abs=1e-3)
    assert first == pytest.approx(again, rel=1e-5, abs=1e-3)
    assert {score.remark for score in (first, second, again)} == {CAPTION_CUT}


def test_strict_keys_vocabulary_and_config(folder, tmp_path):
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    for name in ("config.json", "med_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    counter = {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}
    torch.save({**state, **counter}, tmp_path / "ImageReward.pt")
    ImageReward(weights=tmp_path)  # the published file holds this counter
    torch.save({**state, "blip.surplus": torch.zeros(1)}, tmp_path / "ImageReward.pt")
    with pytest.raises(WeightsError, match=r"blip\.surplus"):
        ImageReward(weights=tmp_path)
    gone = "blip.text_encoder.encoder.layer.1.crossattention.self.query.weight"
    torch.save({k: v for k, v in state.items() if k != gone}, tmp_path / "ImageReward.pt")
    with pytest.raises(WeightsError, match=gone.replace(".", r"\.")):
        ImageReward(weights=tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(WeightsError, match="5 tokens"):
        ImageReward(weights=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vision": {"width": 24, "layers": 2}}))
    with pytest.raises(WeightsError, match="layer_norm_eps"):
        ImageReward(weights=tmp_path)
