"""Checkpoints in every form they are published or saved in, and those that must not load."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from brushnet import BrushNetModel, checkpoints
from brushnet.checkpoints import PUBLISHED_CONFIGS, load_brushnet
from brushnet.checks import check_weights
from tests.brushnet.tiny import make_branch, make_unet

FILE = "diffusion_pytorch_model.safetensors"
KEY = "up_blocks.0.resnets.0.conv1.weight"


@pytest.fixture(scope="module")
def trained() -> BrushNetModel:
    return make_branch(make_unet("sdxl"))


@pytest.fixture
def saved(trained: BrushNetModel, tmp_path: Path) -> Path:
    trained.save_pretrained(tmp_path / "branch")
    return tmp_path / "branch"


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name].to(theirs[name]), theirs[name]) for name in ours)


def configuration(model: BrushNetModel) -> dict[str, object]:
    """As JSON has it: tuples are lists; without the fields that only say where it comes from."""
    fields: dict[str, object] = json.loads(model.to_json_string())
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> Path:
    weights = load_file(folder / FILE) | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, folder / FILE)
    return folder


# ---------------------------------------------------------------------------------------------------- what loads


def test_a_saved_folder(trained: BrushNetModel, saved: Path) -> None:
    for loaded in (load_brushnet(saved), load_brushnet(str(saved)), BrushNetModel.from_pretrained(saved)):
        assert same(loaded, trained)
        assert configuration(loaded) == configuration(trained)
        assert not loaded.training
    model, info = BrushNetModel.from_pretrained(saved, output_loading_info=True)
    assert same(model, trained)
    assert not info["missing_keys"]


def test_a_folder_of_the_published_fork(trained: BrushNetModel, saved: Path) -> None:
    """Its config.json also names the fork's version and which fields kept their defaults."""
    config = json.loads((saved / "config.json").read_text())
    config |= {"_diffusers_version": "0.27.0.dev0", "_use_default_values": ["global_pool_conditions"]}
    (saved / "config.json").write_text(json.dumps(config))
    assert same(load_brushnet(saved), trained)


def test_the_branch_of_a_whole_pipeline(trained: BrushNetModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path / "brushnet")
    (tmp_path / "model_index.json").write_text(json.dumps({"brushnet": ["diffusers", "BrushNetModel"]}))
    assert same(load_brushnet(tmp_path), trained)
    assert same(load_brushnet(tmp_path, subfolder="brushnet"), trained)


@pytest.mark.parametrize("variant", ["fp16", None], ids=["asked for", "found"])
def test_half_precision_variant(trained: BrushNetModel, tmp_path: Path, variant: str | None) -> None:
    half = copy.deepcopy(trained).half()
    half.save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [FILE.replace(".", ".fp16.")]
    loaded = load_brushnet(tmp_path, variant=variant, dtype=torch.float16)
    assert same(loaded, half)
    assert loaded.dtype == torch.float16
    assert load_brushnet(tmp_path).dtype == torch.float32


def test_sharded_weights(trained: BrushNetModel, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same(load_brushnet(tmp_path), trained)


def test_a_single_file_with_its_config_beside(trained: BrushNetModel, saved: Path) -> None:
    assert same(load_brushnet(saved / FILE), trained)
    torch.save(trained.state_dict(), saved / "weights.bin")
    assert same(load_brushnet(saved / "weights.bin", dtype=torch.bfloat16), copy.deepcopy(trained).bfloat16())


@pytest.mark.parametrize("family", PUBLISHED_CONFIGS)
def test_a_single_file_of_a_published_family(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by keys alone; the widths are made small, for the real ones take gigabytes."""
    config = dict(PUBLISHED_CONFIGS[family])
    depth = len(config.get("down_block_types", range(4)))
    config |= {"block_out_channels": (8,) * depth, "norm_num_groups": 4, "attention_head_dim": 2, "layers_per_block": 1}
    config |= {"transformer_layers_per_block": 1}
    monkeypatch.setattr(checkpoints, "PUBLISHED_CONFIGS", {**PUBLISHED_CONFIGS, family: config})
    published = BrushNetModel(**config)
    path = tmp_path / FILE
    save_file(published.state_dict(), path)
    assert same(load_brushnet(path), published)
    assert same(load_brushnet(tmp_path), published)  # the folder, without a config.json
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel", "in_channels": 9}))
    assert same(load_brushnet(path), published)  # another model's config.json says nothing


def test_published_configurations_are_the_published_ones() -> None:
    own = Path(__file__).parents[1] / "golden"
    for family, name in (("SD 1.5", "sd15"), ("SDXL", "sdxl")):
        keys = json.loads((own / "brushnet" / f"keys_{name}.json").read_text())["keys"]
        with torch.device("meta"):
            model = BrushNetModel(**PUBLISHED_CONFIGS[family])
        assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == keys


# ---------------------------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize("form", ["folder", "file", "from_pretrained"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({KEY: None}, rf"1 missing \({KEY}\)"),
        ({"controlnet_mid_block.weight": torch.ones(1)}, r"1 unexpected \(controlnet_mid_block.weight\)"),
        ({KEY: torch.ones(2, 3)}, "shape"),
        ({KEY: torch.full((32, 64, 3, 3), float("nan"))}, f"holds NaN or infinity in {KEY}"),
    ],
    ids=["missing", "unexpected", "shape", "NaN"],
)
def test_wrong_weights_are_refused(saved: Path, change: dict[str, Tensor | None], message: str, form: str) -> None:
    rewrite(saved, change)
    load = BrushNetModel.from_pretrained if form == "from_pretrained" else load_brushnet
    with pytest.raises(ValueError, match=message) as caught:
        load(saved / FILE if form == "file" else saved)
    assert str(saved) in str(caught.value)
    assert "randomly" not in str(caught.value)  # stock diffusers advises to leave such weights random


def test_a_branch_of_another_base_model(saved: Path, tmp_path: Path) -> None:
    make_branch(make_unet("sd")).save_pretrained(tmp_path / "sd")
    shutil.copy(tmp_path / "sd" / FILE, saved / FILE)
    for load in (load_brushnet, BrushNetModel.from_pretrained):
        with pytest.raises(ValueError, match=r"shape.* a branch of another base model"):
            load(saved)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"322 missing .*1 unexpected .* a ControlNet, a U-Net"):
        load_brushnet(tmp_path / "other.safetensors")


def test_a_file_that_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"optimizer": {}, "step": 3}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="it is no mapping of names to tensors"):
        load_brushnet(tmp_path / "run.pt")


def test_nothing_there(tmp_path: Path) -> None:
    for source in (tmp_path / "none", "runs/none.safetensors", "./a/b/c"):
        with pytest.raises(OSError, match="neither a file nor a folder"):
            load_brushnet(source)
    with pytest.raises(OSError, match=r"holds no weights of a BrushNet branch: expected diffusion_pytorch_model.safet"):
        load_brushnet(tmp_path)


def test_check_weights_sees_every_kind_of_damage() -> None:
    for dtype, value in ((torch.float32, float("inf")), (torch.float16, float("nan")), (torch.bfloat16, float("-inf"))):
        model = nn.Linear(300, 300).to(dtype)
        check_weights(model)
        model.weight.data[7, 5] = value
        with pytest.raises(ValueError, match="The branch holds NaN or infinity in weight"):
            check_weights(model, "The branch")
    large = nn.Linear(300, 300).half()
    nn.init.constant_(large.weight, 6e4)  # finite, though its sum is beyond float16
    check_weights(large)
    check_weights(nn.Linear(3, 3, device="meta"))
