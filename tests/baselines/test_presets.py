"""Base models in the forms that people have them: folders, single files, half-precision ones, and damaged ones."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from baselines.diffusion import load_base
from baselines.latent_copy import LatentCopy
from baselines.presets import describe_base, find_base
from baselines.vae import Vae
from brushbench.errors import WeightsError
from brushbench.evaluation.sources import Method
from tests.baselines.single_file import write_single_file
from tests.baselines.tiny_bases import make_request, make_sample, save_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def test_loading_shows_no_bars_of_other_libraries(folder, capfd):
    from diffusers.utils import logging

    load_base(folder)
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert logging.is_progress_bar_enabled()


def test_a_base_that_was_saved_in_half_precision_alone_loads(folder, tmp_path):
    """Case checkpoint_layouts: "no file named diffusion_pytorch_model.bin", with "Save it again" as its remedy."""
    pipe = load_base(folder)
    pipe.to(dtype=torch.float16).save_pretrained(tmp_path / "all", variant="fp16")
    assert not (tmp_path / "all" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    shutil.copytree(folder, tmp_path / "some")
    shutil.rmtree(tmp_path / "some" / "unet")
    shutil.copytree(tmp_path / "all" / "unet", tmp_path / "some" / "unet")
    whole = load_base(folder).unet.state_dict()
    for name in ("all", "some"):
        loaded = load_base(tmp_path / name)
        assert loaded.unet.dtype == torch.float32
        assert all(torch.equal(value, whole[key].half().float()) for key, value in loaded.unet.state_dict().items())
        assert set(describe_base(tmp_path / name)) == {"unet", "vae", "text_encoder"}


def test_a_single_file_beside_its_configurations_gives_the_folders_pictures(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    file = write_single_file(folder, tmp_path / "base" / "model.safetensors")
    request = make_request()
    ours, theirs = (LatentCopy(base=str(place), steps=2, device="cpu") for place in (file, folder))
    assert np.array_equal(ours.inpaint([request])[0], theirs.inpaint([request])[0])
    assert set(ours.describe()["weights"]["file"]) == {"model.safetensors"}
    answers = [Method(Vae(base=str(place), device="cpu")).answers([make_sample()], [0], "") for place in (file, folder)]
    assert np.array_equal(answers[0][0], answers[1][0])


def test_a_single_file_of_the_embedded_size_needs_no_configurations(tmp_path):
    tiny = find_base()
    file = write_single_file(tiny, tmp_path / "mine.safetensors")
    ours, theirs = load_base(find_base("tiny", file)), load_base(tiny)
    for part in ("unet", "vae", "text_encoder"):
        mine, other = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key].float(), other[key].float()) for key in mine), part


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1"])
def test_a_file_that_is_no_model_is_one_sentence(content, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors does not load as"):
        LatentCopy(base=str(file), device="cpu")
