"""What messages on weights and packages advise works: small weights are put where the message says. No network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

from brushbench import assets, load_metric
from brushbench.errors import WeightsError
from brushbench.tracking import TRACKERS
from brushbench.types import Sample
from tests.brushbench.conftest import Command

ROOT = Path(__file__).parents[2]
EVAL = "eval -m copy --bench d --variants raw"


@pytest.fixture(autouse=True)
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches: of torch, of the hub, and of programs that keep weights in the home directory."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def tiny(metric: str) -> Path:
    return assets.path(f"data/tiny/metrics/{metric}")


def put(metric: str, file: Path, lacking: str = "") -> Path:
    """Put small weights at a file of any name, with the configurations that belong beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for beside in tiny(metric).iterdir():
        if beside.suffix in (".json", ".txt"):
            shutil.copy(beside, file.parent)
    tensors = load_file(tiny(metric) / "weights.safetensors")
    tensors = {name: part for name, part in tensors.items() if not (lacking and name.startswith(lacking))}
    if file.suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


def in_hub_cache(tmp_path: Path, repository: str, file: str, metric: str) -> None:
    """What a download leaves behind."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    put(metric, folder / "snapshots" / "abc" / file)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def test_weights_that_no_hub_has_are_fetched_and_named_or_put_where_the_message_says(
    brushbench: Command, tmp_path: Path
) -> None:
    told = brushbench(f"{EVAL} --metrics psnr,lpips")
    pattern = r"Fetch (\S+) \(.*\) from .* and pass it as (--weights lpips=)FILE, or put it into (\S+?)\.? "
    name, option, folder = re.findall(pattern, f"{told} ")[0]
    file = put("lpips", tmp_path / "fetched" / name)
    assert "Unavailable" not in brushbench(f"score runs/folder/copy --metrics lpips {option}{file}")
    shutil.copytree(file.parent, folder)
    assert "Unavailable" not in brushbench(f"{EVAL} --metrics psnr,lpips --out cached")


@pytest.mark.parametrize(
    ("metric", "model"),
    [("clip_score", "clip"), ("hps_v2", "hps"), ("image_reward", "image_reward")],
)
def test_weights_of_a_hub_id_are_named_as_the_message_says(metric: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as refused:
        load_metric(metric)
    pattern = r"Pass weights=(\S+) to download it, or a folder or file: (\S+) "
    repository, name = re.findall(pattern, str(refused.value))[0]
    file = put(model, tmp_path / "fetched" / name)
    in_hub_cache(tmp_path, repository, name, model)
    for place in (file, file.parent, repository):
        score_with(metric, place)


def test_the_head_beside_clip_or_in_torchs_cache(brushbench: Command, tmp_path: Path) -> None:
    clip = put("clip", tmp_path / "clip" / "weights.safetensors", lacking="aesthetic.")
    command = f"{EVAL} --metrics psnr,aesthetic --weights clip_score={clip}"
    told = brushbench(command)
    pattern = r"Fetch (\S+) \(.*\) from .* and put it beside (\S+), or into the cache of torch\."
    name, beside = re.findall(pattern, told)[0]
    tensors = load_file(tiny("clip") / "weights.safetensors")
    head = {"weight": tensors["aesthetic.weight"], "bias": tensors["aesthetic.bias"]}
    torch.save(head, Path(beside).parent / name)
    assert "Unavailable" not in brushbench(command)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (Path(beside).parent / name).rename(checkpoints / name)
    assert "Unavailable" not in brushbench(command)


def test_one_column_of_two_weights_is_scored_again_with_one_of_them(brushbench: Command, tmp_path: Path) -> None:
    for place, name in (("a", "one"), ("b", "two")):
        file = put("lpips", tmp_path / place / "weights.safetensors")
        tensors = load_file(file)
        save_file(
            {key: part * (1.01 if place == "b" else 1) for key, part in tensors.items()},
            tmp_path / f"{place}.safetensors",
        )
        brushbench(f"{EVAL} --name {name} --metrics psnr,lpips --weights lpips={place}.safetensors")
    told = brushbench("leaderboard runs", 3)
    (command,) = re.findall(r"Score one again: brushbench (score \S+ --metrics \S+ --weights lpips=)PATH", told)
    brushbench(command + ("a" if command.split()[1].endswith("two") else "b") + ".safetensors")
    brushbench("leaderboard runs")


# Files that are wrong -------------------------------------------------------------------------------------------------


def change(folder: Path, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    file = folder / "weights.safetensors"
    changed = {name: how(part.clone()) for name, part in load_file(file).items()}
    file.unlink()
    save_file(changed, file)


def score_with(metric: str, weights: Path | str) -> None:
    """Weights are read in part when a metric is loaded, and whole when it first scores."""
    picture = np.zeros((24, 24, 3), np.uint8)
    load_metric(metric, weights=weights)([picture], [Sample("a", picture, np.eye(24, dtype=bool), "a star", "inside")])


def edit(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


# the metric, its small model, what is done to it, what the message advises, and which of the original files that brings
DAMAGES: dict[str, tuple[str, str, Callable[[Path], object], str, str]] = {
    "cut": (
        "lpips", "lpips", lambda f: (f / "weights.safetensors").write_bytes(b"\x08"), "Fetch the file again.",
        "weights.safetensors",
    ),
    "NaN": (
        "lpips", "lpips", lambda f: change(f, lambda part: part * float("nan")), "Fetch the file again.",
        "weights.safetensors",
    ),
    "whole numbers": (
        "lpips", "lpips", lambda f: change(f, lambda part: part.to(torch.int8)),
        "Fetch the original weights, or convert them.", "weights.safetensors",
    ),
    "another model": (
        "lpips", "lpips", lambda f: save_file({"x": torch.zeros(1)}, f / "weights.safetensors"),
        "Give the original file, and the config.json of its size if it is not the published one.",
        "weights.safetensors",
    ),
    "no file": (
        "lpips", "lpips", lambda f: (f / "weights.safetensors").unlink(),
        "expected one of weights.safetensors, squeezenet",
        "weights.safetensors",
    ),
    "no config": (
        "clip_score", "clip", lambda f: (f / "config.json").unlink(), "and the config.json of its size", "config.json",
    ),
    "a config that is no JSON": (
        "clip_score", "clip", lambda f: (f / "config.json").write_text("{"), "Fetch the file again.", "config.json",
    ),
    "a config of another kind": (
        "clip_score", "clip", lambda f: edit(f / "config.json", embed_dim="x"),
        "Give the config.json that belongs to the weights: embed_dim, vision_cfg, text_cfg", "config.json",
    ),
    "a patch larger than the image": (
        "clip_score", "clip",
        lambda f: edit(f / "config.json", vision_cfg={"image_size": 8, "patch_size": 16, "layers": 1, "width": 64}),
        "Give the original config.", "config.json",
    ),
    "no vocabulary": (
        "image_reward", "image_reward", lambda f: (f / "vocab.txt").unlink(),
        "Put the model's own vocab.txt beside the weights.", "vocab.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_the_remedy_for_wrong_weights_works(case: str, tmp_path: Path) -> None:
    metric, model, damage, advice, original = DAMAGES[case]
    folder = put(model, tmp_path / "given" / "weights.safetensors").parent
    damage(folder)
    with pytest.raises(WeightsError) as refused:
        score_with(metric, folder)
    assert advice in str(refused.value)
    shutil.copy(tiny(model) / original, folder / original)
    score_with(metric, folder)


def test_a_hub_that_is_out_of_reach_is_replaced_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as refused:
        load_metric("clip_score", weights="openai/clip-vit-large-patch14")
    (name,) = re.findall(r"Check the id and the network, or pass weights=FILE: (\S+) from ", str(refused.value))
    load_metric("clip_score", weights=put("clip", tmp_path / "given" / name))


# Packages -------------------------------------------------------------------------------------------------------------

EXTRAS = {
    "photos": "sklearn", "fid": "torch_fidelity", "adam8bit": "bitsandbytes", "train": "tensorboard", "ray": "ray",
    "slurm": "submitit", **TRACKERS,
}  # fmt: skip


def texts() -> Iterator[str]:
    for package in ("brushbench", "baselines", "brushnet"):
        for file in (ROOT / package).rglob("*.py"):
            yield file.read_text("utf-8")


def test_an_extra_brings_the_module_that_was_missing() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in texts() for extra in re.findall(r"brushbench\[([a-z0-9]+)\]", text)}
    assert named
    assert named <= set(EXTRAS)
    distributions = packages_distributions()
    for extra, module in EXTRAS.items():
        brought = {canonicalize_name(Requirement(line).name) for line in extras[extra]}
        assert brought & set(map(canonicalize_name, distributions.get(module, [module]))), extra


@pytest.mark.slow
def test_pip_takes_what_a_message_says_it_installs() -> None:
    """Without the network: of extras that are installed here; an extra that there is not is a warning of pip."""
    extras = [f"brushbench[{extra}]" for extra in ("photos", "train")]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", *extras, "torchmetrics"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stderr
