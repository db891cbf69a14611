"""Checkpoints as other people's tools, downloads and ill will leave them: they load, or one sentence says why not."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brushnet import BrushNetModel
from brushnet.checkpoints import load_brushnet
from brushnet.checks import check_config
from tests.brushnet.tiny import make_branch, make_unet

FILE = "diffusion_pytorch_model.safetensors"
BIN = "diffusion_pytorch_model.bin"
KEY = "up_blocks.0.resnets.0.conv1.weight"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved branch; tests copy it."""
    folder = tmp_path_factory.mktemp("saved") / "branch"
    make_branch(make_unet("single")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(home: Path) -> dict[str, Tensor]:
    return load_file(home / FILE)


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    """A folder with the branch's config.json and no weights yet."""
    shutil.copy(home / "config.json", tmp_path)
    return tmp_path


def is_it(model: BrushNetModel, weights: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], part) for name, part in weights.items())


# ---------------------------------------------------------------------------------------------------- what loads

Weights = dict[str, Tensor]
WRAPPED: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "module": lambda w: {"module": w, "global_step": 5},
    "a wrapper in a wrapper": lambda w: {"model": {"state_dict": w}},
    "DataParallel": lambda w: {f"module.{name}": part for name, part in w.items()},
    "torch.compile": lambda w: {f"_orig_mod.{name}": part for name, part in w.items()},
    "both": lambda w: {f"module._orig_mod.{name}": part for name, part in w.items()},
    "brushnet.": lambda w: {f"brushnet.{name}": part for name, part in w.items()},
    "beside the U-Net": lambda w: {f"brushnet.{k}": v for k, v in w.items()} | {"unet.conv_in.weight": torch.ones(1)},
    "all at once": lambda w: {
        "state_dict": {f"module.brushnet.{k}": v for k, v in w.items()} | {"module.unet.conv_in.bias": torch.ones(1)}
    },
}


@pytest.mark.parametrize("form", WRAPPED)
def test_a_wrapped_state_dict_was_refused_as_a_controlnet(folder: Path, weights: Weights, form: str) -> None:
    torch.save(WRAPPED[form](weights), folder / BIN)
    assert is_it(load_brushnet(folder), weights)
    torch.save(WRAPPED[form](weights), folder / "run.ckpt")
    assert is_it(load_brushnet(folder / "run.ckpt"), weights)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "brushnet.safetensors", BIN])
def test_a_file_of_another_usual_name_was_not_found(folder: Path, weights: Weights, name: str) -> None:
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file(weights, folder / name)
    assert is_it(load_brushnet(folder), weights)


@pytest.mark.parametrize("inner", ["model", "brushnet", "model/brushnet"])
def test_the_folder_of_a_training_was_not_a_checkpoint(
    home: Path, weights: Weights, tmp_path: Path, inner: str
) -> None:
    shutil.copytree(home, tmp_path / inner)
    (tmp_path / "log.csv").write_text("step,loss\n1,0.5\n")
    torch.save({"optimizer": {}}, tmp_path / "step-1.pt")
    assert is_it(load_brushnet(tmp_path), weights)
    assert is_it(load_brushnet(tmp_path / inner), weights)


def test_the_only_variant_there_is_loads_in_every_way(home: Path, weights: Weights, folder: Path) -> None:
    half = {name: part.half() for name, part in weights.items()}
    save_file(half, folder / FILE.replace(".", ".fp16."))
    expected = {name: part.float() for name, part in half.items()}
    assert is_it(load_brushnet(folder), expected)
    assert is_it(load_brushnet(folder, variant="fp16"), expected)
    assert is_it(load_brushnet(folder / FILE.replace(".", ".fp16.")), expected)
    with pytest.raises(OSError, match=r"expected diffusion_pytorch_model.bf16.safetensors.*model.fp16.safetensors"):
        load_brushnet(folder, variant="bf16")
    save_file(weights, folder / FILE)
    assert is_it(load_brushnet(folder), weights)


@pytest.mark.parametrize("pattern", ["{}-0000{}-of-00002{}", "{}.fp16-0000{}-of-00002{}", "{}-0000{}-of-00002.fp16{}"])
def test_shards_of_either_name(folder: Path, weights: Weights, pattern: str) -> None:
    names = sorted(weights)
    for i, part in enumerate((names[:9], names[9:]), start=1):
        save_file({name: weights[name] for name in part}, folder / pattern.format(Path(FILE).stem, i, ".safetensors"))
    assert is_it(load_brushnet(folder), weights)
    next(folder.glob("*00002-of*")).unlink()
    with pytest.raises(OSError, match="holds 1 of 2 shards"):
        load_brushnet(folder)


def test_several_files_to_choose_from_are_named(folder: Path, weights: Weights) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(weights, folder / name)
    with pytest.raises(OSError, match=r"its files of weights: a.safetensors, b.safetensors. Name the file itself"):
        load_brushnet(folder)
    assert is_it(load_brushnet(folder / "b.safetensors"), weights)  # as advised


# ---------------------------------------------------------------------------------------------------- what does not


def test_a_counter_among_the_weights_is_named_as_such(folder: Path, weights: Weights) -> None:
    torch.save(weights | {"global_step": torch.tensor(5)}, folder / BIN)
    with pytest.raises(ValueError, match=r"1 unexpected \(global_step\)"):
        load_brushnet(folder)


NUMBERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "int8": (lambda t: (t * 10).to(torch.int8), "int8|I8"),
    "uint8": (lambda t: t.to(torch.uint8), "uint8|U8"),
    "int64": (lambda t: t.long(), "int64|I64"),
    "bool": (lambda t: t > 0, "bool|BOOL"),
    "float8 e4m3": (lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn|F8_E4M3"),
    "float8 e5m2": (lambda t: t.to(torch.float8_e5m2), "float8_e5m2|F8_E5M2"),
    "complex": (lambda t: t.to(torch.complex64), "complex64|C64"),
    "sparse": (lambda t: t.to_sparse(), "sparse"),
    "quantised": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
    "meta": (lambda t: t.to("meta"), "meta device"),
}
ONLY_PICKLED = ("sparse", "quantised", "meta")  # safetensors has no such tensors


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*quant.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (kind, suffix)
        for kind in NUMBERS
        for suffix in (".bin", ".safetensors")
        if kind not in ONLY_PICKLED or suffix == ".bin"
    ],
)
def test_numbers_that_are_no_plain_floats_were_loaded_and_run(
    folder: Path, weights: Weights, kind: str, suffix: str
) -> None:
    change, name = NUMBERS[kind]
    path = folder / f"diffusion_pytorch_model{suffix}"
    changed = weights | {KEY: change(weights[KEY])}
    if suffix == ".bin":
        torch.save(changed, path)
    else:
        save_file(changed, path)
    message = rf"{path.name} holds .*({name}).* numbers in {KEY}|{path.name} is damaged, or holds more than weights"
    for load in (load_brushnet, BrushNetModel.from_pretrained):
        with pytest.raises((ValueError, OSError), match=message):
            load(folder)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "web page": (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "is a web page, not weights"),
    "web page in capitals": (b"\n <HTML><body>404</body></HTML>", "is a web page, not weights"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "run git lfs pull"),
    "nothing": (b"", "is empty; download it again"),
    "text": (b"not weights", "is damaged, or holds more than weights"),
    "zeros": (bytes(4096), "is damaged, or holds more than weights"),
    "a header without end": (b"\xff" * 64, "is damaged, or holds more than weights"),
    "a header that is no JSON": ((9).to_bytes(8, "little") + b'{"a": [1,' + bytes(99), "is damaged"),
    "a zip without weights": (b"PK\x05\x06" + bytes(18), "is damaged"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".ckpt"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_download_leaves_instead_of_weights_is_named(folder: Path, kind: str, suffix: str) -> None:
    content, message = FOREIGN[kind]
    path = folder / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(OSError, match=message):
        load_brushnet(path)


@pytest.mark.parametrize("keep", [1, 8, 100, 5000, -1])
def test_a_download_that_broke_off(home: Path, weights: Weights, folder: Path, keep: int) -> None:
    torch.save(weights, folder / BIN)
    for source, name in ((folder / BIN, "cut.bin"), (home / FILE, "cut.safetensors")):
        (folder / name).write_bytes(source.read_bytes()[:keep])
        with pytest.raises(OSError, match=f"{name} is damaged"):
            load_brushnet(folder / name)


def test_a_pytorch_file_named_safetensors(folder: Path, weights: Weights) -> None:
    torch.save(weights, folder / FILE)
    with pytest.raises(
        OSError, match=r"is a PyTorch file in spite of its name; rename it to diffusion_pytorch_model.bin"
    ):
        load_brushnet(folder)
    (folder / FILE).rename(folder / BIN)  # as advised
    assert is_it(load_brushnet(folder), weights)


class Malice:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("form", ["bare", "zip", "legacy", "among weights", "in a wrapper"])
def test_no_pickle_was_ever_executed(folder: Path, weights: Weights, form: str, suffix: str) -> None:
    import pickle

    path, ran = folder / f"evil{suffix}", folder / "ran"
    bad = Malice(ran)
    if form == "bare":
        path.write_bytes(pickle.dumps(bad))
    elif form == "legacy":
        torch.save({"weight": bad}, path, _use_new_zipfile_serialization=False)
    else:
        held = {"zip": {"weight": bad}, "among weights": weights | {"args": bad}, "in a wrapper": {"state_dict": bad}}
        torch.save(held[form], path)
    with pytest.raises(OSError, match=r"is damaged, or holds more than weights|is a PyTorch file"):
        load_brushnet(path)
    path.rename(folder / f"diffusion_pytorch_model{suffix}")
    with pytest.raises(OSError, match=r"damaged|PyTorch file|holds no weights"):
        BrushNetModel.from_pretrained(folder)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling link"])
def test_special_files_are_refused_by_name(folder: Path, kind: str) -> None:
    path = folder / FILE
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "gone")
    for place in (path, folder):
        with pytest.raises(OSError, match=r"neither a file nor a folder|holds no weights"):
            load_brushnet(place)


HUGE = 10**9
CONFIGS: dict[str, Any] = {
    "layers of 10^9": {"layers_per_block": HUGE},
    "no layers": {"layers_per_block": 0},
    "layers as text": {"layers_per_block": "2"},
    "layers as a list": {"layers_per_block": [1, 1]},
    "half a layer": {"layers_per_block": 1.5},
    "layers true": {"layers_per_block": True},
    "zero widths": {"block_out_channels": [0]},
    "negative widths": {"block_out_channels": [-16]},
    "widths as a number": {"block_out_channels": 16},
    "widths as an object": {"block_out_channels": {"0": 16}},
    "no widths": {"block_out_channels": []},
    "10,000 widths": {"block_out_channels": [16] * 10_000},
    "huge widths": {"block_out_channels": [65536]},
    "widths of no whole group": {"block_out_channels": [18]},
    "blocks as text": {"down_block_types": "DownBlock2D"},
    "blocks as numbers": {"down_block_types": [1]},
    "an unknown block": {"down_block_types": ["os.system"]},
    "a block too many": {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
    "an unknown middle": {"mid_block_type": "MidBlock3D"},
    "a middle as a list": {"mid_block_type": ["MidBlock2D"]},
    "an unknown activation": {"act_fn": "x"},
    "an activation as an object": {"act_fn": {"a": 1}},
    "groups of 0": {"norm_num_groups": 0},
    "epsilon as text": {"norm_eps": "1e-5"},
    "epsilon NaN": {"norm_eps": float("nan")},
    "epsilon 0": {"norm_eps": 0},
    "a switch as text": {"flip_sin_to_cos": "yes"},
    "a switch as a number": {"use_linear_projection": 1},
    "pooling as null": {"global_pool_conditions": None},
    "channels of 10^9": {"in_channels": HUGE},
    "channels as a list": {"conditioning_channels": [5]},
    "a scale of 0": {"mid_block_scale_factor": 0},
    "a scale of infinity": {"mid_block_scale_factor": float("inf")},
    "padding of 10^9": {"downsample_padding": HUGE},
    "attention of 10^9 layers": {"transformer_layers_per_block": HUGE},
    "attention per resolution, one too many": {"transformer_layers_per_block": [1, 1]},
    "heads of 0": {"attention_head_dim": 0},
    "heads as text": {"num_attention_heads": "8"},
    "text as an object": {"cross_attention_dim": {}},
    "an unknown embedding": {"addition_embed_type": "text"},
    "an embedding without sizes": {"addition_embed_type": "text_time"},
    "classes": {"class_embed_type": "timestep"},
    "an unknown shift": {"resnet_time_scale_shift": "spatial"},
    "an unknown order": {"brushnet_conditioning_channel_order": "gbr"},
    "an order as a list": {"brushnet_conditioning_channel_order": ["rgb"]},
    "upcast as text": {"upcast_attention": "x"},
    "unused widths as text": {"conditioning_embedding_out_channels": "16"},
    "unused width of 10^30": {"encoder_hid_dim": 10**30},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_hostile_configurations_are_refused_before_anything_is_built(
    folder: Path, weights: Weights, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(weights, folder / FILE)
    config = json.loads((folder / "config.json").read_text()) | CONFIGS[case]
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(torch.nn, "Conv2d", None)  # nothing can be built
    (name,) = CONFIGS[case]
    for load in (load_brushnet, BrushNetModel.from_pretrained):
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"{name}|addition_time_embed_dim") as caught:
            load(folder)
        assert len(str(caught.value)) < 500
        assert time.monotonic() - start < 5


NO_OBJECT: dict[str, str] = {
    "a list": "[1, 2]",
    "a number": "5",
    "null": "null",
    "empty": "",
    "cut": '{"act_fn": "si',
    "a web page": "<!DOCTYPE html>",
    "nested without end": '{"a":' * 100_000,
    "a number of 5,000 digits": '{"layers_per_block": ' + "9" * 5000 + "}",
    "10 MB": '{"a": "' + "x" * 10_000_000 + '"}',
}


@pytest.mark.parametrize("case", NO_OBJECT)
def test_a_config_that_is_no_object_is_one_sentence(folder: Path, weights: Weights, case: str) -> None:
    save_file(weights, folder / FILE)
    (folder / "config.json").write_text(NO_OBJECT[case])
    for load in (load_brushnet, BrushNetModel.from_pretrained):
        with pytest.raises(OSError, match=r"config.json (is no configuration|holds a \w+; expected a JSON object)"):
            load(folder)


def test_names_in_a_config_are_data(folder: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a configuration names is never imported."""
    save_file(weights, folder / FILE)
    config = json.loads((folder / "config.json").read_text())
    for field, value in (("_class_name", "BrushNetModel"), ("auto_map", {"AutoModel": "evil.Model"})):
        config |= {field: value, "_diffusers_version": ["0"], "_name_or_path": {"evil": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(folder)
    assert is_it(load_brushnet(folder), weights)


def test_every_known_configuration_passes_the_check() -> None:
    small = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    default = dict(BrushNetModel(**small).config)
    golden = Path(__file__).parents[1] / "golden" / "brushnet"
    for name in ("keys_sd15.json", "keys_sdxl.json"):
        check_config(default | json.loads((golden / name).read_text())["brushnet_config"])
    for changed in ({"upcast_attention": None}, {"only_cross_attention": [True]}, {"num_attention_heads": (4,)}):
        check_config(default | changed)
    assert copy.deepcopy(default) == default
