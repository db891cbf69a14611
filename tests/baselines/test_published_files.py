"""Weights as they are published: folders, single files, whole pipelines; damaged and foreign ones are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from safetensors.torch import load_file, save_file

from baselines.blended_latent import BlendedLatent
from baselines.controlnet import ControlNet
from baselines.hd_painter import HdPainter
from baselines.powerpaint import PowerPaint, PowerPaintV2
from baselines.powerpaint_text import encode_text, task_vectors
from baselines.sd_inpainting import SdInpainting
from brushbench.errors import UsageError, WeightsError
from tests.baselines.tiny_bases import make_request, save_xl_base

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(methods):
    return methods


def make(cls, folder, checkpoint, **options):
    return cls(**{"base": str(folder / "base"), "steps": 1, "device": "cpu", "checkpoint": str(checkpoint)} | options)


def picture(method):
    return method.inpaint([make_request(0, 32, 32)])[0]


def test_a_file_a_folder_and_a_whole_pipeline_give_one_result(folder, tmp_path):
    place = folder / "sd_inpainting"
    expected = picture(make(SdInpainting, folder, place))
    assert np.array_equal(picture(make(SdInpainting, folder, place / "unet" / WEIGHTS)), expected)
    assert np.array_equal(picture(make(SdInpainting, folder, place / "unet")), expected)
    pipe = make(SdInpainting, folder, place).pipe
    StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False).save_pretrained(tmp_path / "whole")
    whole = make(SdInpainting, folder, tmp_path / "whole", base=None)
    assert np.array_equal(picture(whole), expected)
    assert "branches" not in whole.describe()


def test_a_controlnet_may_be_a_folder(folder):
    assert picture(make(ControlNet, folder, folder / "controlnet")).shape == (32, 32, 3)


def test_damaged_and_foreign_weights_are_named(folder, tmp_path):
    state = load_file(folder / "sd_inpainting" / "unet" / WEIGHTS)
    state.pop("conv_out.weight")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(WeightsError, match=r"does not load as UNet2DConditionModel: .* appear to be missing"):
        make(SdInpainting, folder, tmp_path / "short.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="does not load as UNet2DConditionModel"):
        make(SdInpainting, folder, tmp_path / "broken.safetensors")
    with pytest.raises(WeightsError, match="reads 4 channels, expected 9"):
        make(SdInpainting, folder, folder / "base" / "unet")


def test_powerpaints_text_encoder_must_hold_its_words(folder, tmp_path):
    place = folder / "powerpaint" / "text_encoder" / "text_encoder.safetensors"
    plain = {key: value for key, value in load_file(place).items() if "trainable" not in key}
    with pytest.raises(ValueError, match="no weights of a PowerPaint text encoder"):
        task_vectors(plain)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "unet").symlink_to(folder / "powerpaint" / "unet")
    save_file(plain, tmp_path / "text_encoder" / "text_encoder.safetensors")
    with pytest.raises(WeightsError, match="does not load as PowerPaint's text encoder"):
        make(PowerPaint, folder, tmp_path)


def test_the_split_chooses_the_task_and_the_run_says_so(folder):
    method = make(PowerPaint, folder, folder / "powerpaint")
    assert method.describe()["tasks"] == {"outside": "image-outpainting", "others": "text-guided"}
    request = make_request(0, 32, 32)
    inside, outside = (method.inpaint([replace(request, split=split)])[0] for split in ("inside", "outside"))
    assert not np.array_equal(inside, outside)
    one = make(PowerPaint, folder, folder / "powerpaint", task="text-guided")
    assert np.array_equal(one.inpaint([replace(request, split="outside")])[0], inside)
    assert make(PowerPaintV2, folder, folder / "powerpaint_v2").describe()["tasks"]["outside"] == "image-outpainting"


def test_a_caption_that_pushes_the_task_word_out_is_said(folder):
    method = make(PowerPaint, folder, folder / "powerpaint")
    with pytest.warns(UserWarning, match="the word is cut off"):
        encode_text(method.tokenizer, method.text_encoder, ["a red star " * 20 + "P_obj"])


def test_a_users_own_word_is_not_a_task_word(folder):
    method = make(PowerPaint, folder, folder / "powerpaint")
    one, other = (encode_text(method.tokenizer, method.text_encoder, [text]) for text in ("p_obj_0", "P_obj_0"))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (BlendedLatent, {"variant": "script", "skip": 1}, "variant=script has no skip"),
        (BlendedLatent, {"variant": "paper", "skip": 9, "steps": 5}, "skip is 9, expected 0 to 4"),
        (BlendedLatent, {"variant": "paper", "scheduler": "unipc"}, "DDIM loop of its own"),
        (HdPainter, {"scheduler": "euler"}, "DDIM loop of its own"),
        (HdPainter, {"eta": -1.0}, "eta is -1"),
        (PowerPaint, {"fitting_degree": 2.0}, "fitting_degree is 2"),
        (ControlNet, {"scale": float("nan")}, "scale is nan"),
    ],
)
def test_invalid_settings_are_refused(folder, cls, options, words):
    places = {ControlNet: "controlnet", PowerPaint: "powerpaint", HdPainter: "sd_inpainting"}
    beside = {"checkpoint": str(folder / places[cls])} if cls in places else {}
    with pytest.raises(UsageError, match=words):
        cls(**{"base": str(folder / "base"), "device": "cpu", **beside, **options})


def test_a_base_of_the_sdxl_family_is_refused(folder, tmp_path):
    save_xl_base(tmp_path / "xl")
    with pytest.raises(UsageError, match="of SDXL there is sdxl-inpainting"):
        BlendedLatent(base=str(tmp_path / "xl"), device="cpu")
