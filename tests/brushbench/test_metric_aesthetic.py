"""The aesthetic score against open_clip's own preprocessing and model."""

from __future__ import annotations

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.metrics.aesthetic import Aesthetic
from brushbench.metrics.clip_model import build_model
from tests.reference.metric_folders import CLIP_CONFIG, make_sample, random_clip, random_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp("clip"))


def test_equals_open_clip(folder):
    state = load_file(folder / "weights.safetensors")
    weight, bias = state.pop("aesthetic.weight"), state.pop("aesthetic.bias")
    with torch.random.fork_rng():
        model = build_model(CLIP_CONFIG).eval()
    model.load_state_dict(state)
    prepare = open_clip.image_transform(56, is_train=False)
    pictures = random_pictures(1, (64, 64), (80, 61), (57, 90), (70, 70))
    with torch.no_grad():
        images = model.encode_image(torch.cat([prepare(Image.fromarray(p))[None] for p in pictures]))
        expected = (images / images.norm(dim=-1, keepdim=True)) @ weight[0] + bias
    scores = Aesthetic("brushnet-paper", folder)(pictures, [make_sample(p) for p in pictures])
    assert scores == pytest.approx(expected.tolist(), abs=1e-4)
    assert len(set(scores)) == 4
    alone = [Aesthetic("standard", folder)([p], [make_sample(p)])[0] for p in pictures]
    assert alone == pytest.approx(scores, abs=1e-5)


def test_activation_matters_and_comes_from_the_config(folder, tmp_path):
    """Newer open_clip builds plain GELU for OpenAI's weights and only warns; the score moves."""
    [picture] = random_pictures(2, (64, 64))
    plain = random_clip(tmp_path, quick_gelu=False)
    a, b = (Aesthetic(weights=w)([picture], [make_sample(picture)])[0] for w in (folder, plain))
    assert abs(a - b) > 1e-4


def test_the_published_head_beside_the_model(folder, tmp_path, monkeypatch):
    [picture] = random_pictures(3, (64, 64))
    bare = random_clip(tmp_path / "clip", head=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"sa_0_4_vit_l_14_linear\.pth"):
        Aesthetic(weights=bare)
    assert "LAION-AI/aesthetic-predictor" in Aesthetic.available(bare)
    state = load_file(folder / "weights.safetensors")
    head = {"weight": state["aesthetic.weight"], "bias": state["aesthetic.bias"]}
    torch.save(head, bare / "sa_0_4_vit_l_14_linear.pth")
    assert Aesthetic.available(bare) is None
    assert Aesthetic(weights=bare)([picture], [make_sample(picture)]) == Aesthetic(weights=folder)(
        [picture], [make_sample(picture)]
    )
    torch.save({**head, "weight": torch.zeros(1, 768)}, bare / "sa_0_4_vit_l_14_linear.pth")
    with pytest.raises(WeightsError, match="768"):
        Aesthetic(weights=bare)


def test_the_head_is_part_of_the_identity(folder):
    described = Aesthetic(weights=folder).describe()
    assert described["head_sha256"] == described["weights"]["sha256"]
