"""Every key and shape of the published files maps at full size, none left over (on the meta device)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from brushbench.errors import WeightsError
from brushbench.metrics import clip_model, hps, image_reward
from brushbench.weights import WeightFile, assemble

KEYS = Path(__file__).parents[1] / "golden" / "metrics" / "keys"
NOWHERE = WeightFile(Path("nowhere") / "weights.safetensors")


def published(name: str) -> dict[str, torch.Tensor]:
    """Return the listed keys as tensors on the meta device."""
    found = {}
    for line in (KEYS / name).read_text().splitlines():
        key, shape = line.removesuffix(" torch.float32").removesuffix(" torch.int64").split(" ", 1)
        found[key] = torch.empty(ast.literal_eval(shape), device="meta")
    return found


def test_image_reward():
    keys = published("imagereward_keys.txt")
    assert len(keys) == 625
    with torch.device("meta"):
        model = image_reward.build_model(image_reward.find_config(NOWHERE))
    made = image_reward.stored_parameters(model.state_dict(), keys)
    assert made.keys() == model.state_dict().keys()
    assert set(keys) - {image_reward.original_name(name)[0][0] for name in made} <= {image_reward.COUNTER}
    parts = {part: sum(name.startswith(f"{part}.") for name in made) for part in ("vision", "text", "mlp")}
    assert parts == {"vision": 294, "text": 316, "mlp": 10}
    assert sum(value.numel() for value in made.values()) == pytest.approx(446.7e6, abs=0.1e6)


def test_hps():
    keys = published("hps_vith_keys.txt")
    assert len(keys) == 686
    with torch.device("meta"):
        model = clip_model.build_model(clip_model.find_config(NOWHERE, hps.ARCHITECTURE))
    made = assemble(model.state_dict(), keys, what="HPS")
    assert made.keys() == keys.keys()
    assert sum(value.numel() for value in made.values()) == pytest.approx(986.1e6, abs=0.1e6)


def test_clip_in_both_forms():
    """transformers' own full-size model gives exactly the keys that ours is made of."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        projection_dim=768,
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    )
    with torch.device("meta"):
        stock = CLIPModel(config).state_dict()
        ours = clip_model.build_model(clip_model.find_config(NOWHERE)).state_dict()
    for found in (stock, ours):
        assert clip_model._parameters(ours, found, "CLIP").keys() == ours.keys()
    assert clip_model.find_config(NOWHERE)["quick_gelu"] is True
    assert clip_model._translated(config.to_dict(), "stock")["vision_cfg"]["head_width"] == 64


def test_what_the_keys_do_not_tell():
    """Normalisation and activation: wrong ones load without complaint and move every score."""
    with torch.device("meta"):
        reward = image_reward.build_model(image_reward.find_config(NOWHERE))
        openai = clip_model.build_model(clip_model.find_config(NOWHERE))
        human = clip_model.build_model(clip_model.find_config(NOWHERE, hps.ARCHITECTURE))
    for part, epsilon in (("vision", 1e-6), ("text", 1e-12)):
        norms = [m for m in reward.get_submodule(part).modules() if isinstance(m, torch.nn.LayerNorm)]
        assert {norm.eps for norm in norms} == {epsilon}
    assert reward.get_submodule("text.encoder.layer.0.attention.self").num_attention_heads == 12
    for model, activation in ((openai, "QuickGELU"), (human, "GELU")):
        blocks = [*model.visual.transformer.resblocks, *model.transformer.resblocks]
        assert {type(block.mlp.gelu).__name__ for block in blocks} == {activation}


def test_one_key_too_few_or_too_many_is_refused():
    keys = published("imagereward_keys.txt")
    with torch.device("meta"):
        expected = image_reward.build_model(image_reward.find_config(NOWHERE)).state_dict()
    dropped = keys.pop("mlp.layers.7.bias")
    with pytest.raises(WeightsError, match=r"mlp\.layers\.7\.bias"):
        image_reward.stored_parameters(expected, keys)
    keys["mlp.layers.7.bias"] = dropped
    keys["mlp.layers.8.bias"] = dropped
    with pytest.raises(WeightsError, match=r"mlp\.layers\.8\.bias"):
        image_reward.stored_parameters(expected, keys)
