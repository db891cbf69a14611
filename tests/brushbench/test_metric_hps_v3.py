"""HPSv3 on a small random model: keys of the published file, positions, the reward token, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import Qwen2VLConfig, Qwen2VLModel

import brushbench
from brushbench import assets
from brushbench.errors import WeightsError
from brushbench.evaluation import choose_columns
from tests.reference.metric_folders import make_sample, random_pictures

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in the keys of HPSv3.safetensors, with a byte tokenizer."""
    path = tmp_path_factory.mktemp("hps_v3")
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    text = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 270, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=260)
    (path / "config.json").write_text(config.to_json_string(use_diff=False))
    torch.manual_seed(0)
    state = {}
    for name, tensor in Qwen2VLModel(config).state_dict().items():
        old = f"model.{name.removeprefix('language_model.')}" if name.startswith("language_model.") else name
        state[old] = torch.randn_like(tensor) * 0.2
    for number, shape in ((0, (24, 32)), (3, (16, 24)), (5, (2, 16))):
        state |= {f"rm_head.{number}.weight": torch.randn(shape), f"rm_head.{number}.bias": torch.randn(shape[0])}
    save_file({**state, "lm_head.weight": torch.zeros(270, 32)}, path / "HPSv3.safetensors")
    return path


@pytest.fixture(scope="module")
def metric(folder):
    return brushbench.load_metric("hps_v3", weights=folder, device="cpu")


def test_the_score_is_the_first_output_at_the_reward_token(metric, folder):
    """By hand: stock Qwen2VLModel of renamed keys, positions one by one, three layers with ReLU between."""
    [picture] = random_pictures(0, (300, 200))
    [score] = metric([picture], [make_sample(picture, prompt="a red cat")])
    patches, grid = metric._patches(picture)
    assert grid.tolist() == [[1, 40, 28]]  # 560 x 392: the least multiples of 28 with 256 x 28 x 28 pixels or more
    ids = metric._ids("a red cat", 20 * 14)
    assert (ids.count(260), ids.count(261)) == (20 * 14, 1)
    state = load_file(folder / "HPSv3.safetensors")
    model = Qwen2VLModel(Qwen2VLConfig.from_dict(json.loads((folder / "config.json").read_text()))).eval()
    renamed = {
        f"language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name: tensor
        for name, tensor in state.items()
        if not name.startswith(("rm_head", "lm_head"))
    }
    model.load_state_dict(renamed)
    with torch.no_grad():
        one_by_one = torch.arange(len(ids)).expand(3, 1, -1)
        states = model(
            input_ids=torch.tensor([ids]), pixel_values=patches, image_grid_thw=grid, position_ids=one_by_one
        ).last_hidden_state[0, ids.index(261)]
        for number in (0, 3, 5):
            states = state[f"rm_head.{number}.weight"] @ states + state[f"rm_head.{number}.bias"]
            states = states if number == 5 else states.relu()
        in_three_dimensions = model(
            input_ids=torch.tensor([ids]), pixel_values=patches, image_grid_thw=grid,
            mm_token_type_ids=torch.tensor([[int(i == 260) for i in ids]]),
        ).last_hidden_state[0, ids.index(261)]  # fmt: skip
    assert score == pytest.approx(float(states[0]), abs=1e-4)
    mu, sigma = metric._rated(metric._features(None).model(metric._key, metric._load), picture, "a red cat")
    assert (mu, sigma) == pytest.approx(states.tolist(), abs=1e-4)
    for number in (0, 3, 5):
        in_three_dimensions = state[f"rm_head.{number}.weight"] @ in_three_dimensions + state[f"rm_head.{number}.bias"]
        in_three_dimensions = in_three_dimensions if number == 5 else in_three_dimensions.relu()
    assert abs(float(in_three_dimensions[0]) - score) > 1e-3  # the check sees other positions


def test_caption_and_image_matter_and_the_batch_does_not(metric):
    pictures = random_pictures(1, (64, 96), (96, 64))
    samples = [
        make_sample(pictures[0], prompt="a red cat"),
        make_sample(pictures[1], prompt="two {braces} and {text_prompt}"),
    ]
    together = metric(pictures, samples)
    assert together == [metric([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    other = metric([pictures[0]], [make_sample(pictures[0], prompt="a dog")])[0]
    assert abs(other - together[0]) > 1e-4


def test_the_question_has_its_hash():
    import hashlib

    readme = assets.path("data/hps_v3/README.md").read_text("utf-8")
    assert hashlib.sha256(assets.path("data/hps_v3/question.txt").read_bytes()).hexdigest() in readme


def test_it_is_never_in_auto_and_refuses_what_does_not_fit(folder, tmp_path):
    assert "hps_v3" not in {name for name, _ in choose_columns("auto")}
    state = load_file(folder / "HPSv3.safetensors")
    save_file(state, tmp_path / "HPSv3.safetensors")
    with pytest.raises(WeightsError, match=r"holds no config.json and no tokenizer.json. Put the files of Qwen"):
        brushbench.load_metric("hps_v3", weights=tmp_path)
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    brushbench.load_metric("hps_v3", weights=tmp_path, device="cpu")
    save_file({k: v for k, v in state.items() if k != "rm_head.5.weight"}, tmp_path / "HPSv3.safetensors")
    with pytest.raises(WeightsError, match="no reward head of two outputs"):
        brushbench.load_metric("hps_v3", weights=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_file(state, tmp_path / "HPSv3.safetensors")
    with pytest.raises(WeightsError, match="is no tokenizer"):
        brushbench.load_metric("hps_v3", weights=tmp_path)
    good = (folder / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(good.replace("<|image_pad|>", "<|other|>"), "utf-8")
    with pytest.raises(WeightsError, match=r"Give the tokenizer.json of Qwen2-VL\."):
        brushbench.load_metric("hps_v3", weights=tmp_path)
    (tmp_path / "tokenizer.json").write_text(good, "utf-8")  # the remedy, here and for the file that was damaged
    brushbench.load_metric("hps_v3", weights=tmp_path)
