"""The BrushNet adapter: which branch, from which seed, what identifies it, and that neighbours do not matter."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from baselines.brushnet import BrushNet, describe_branch, find_checkpoint
from baselines.diffusion import Batch
from baselines.latents import decode_scaled
from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError, WeightsError
from brushbench.evaluation.sources import Method
from brushbench.registry import Spec, build
from brushbench.types import Inpainter
from brushnet import BrushNetModel
from tests.baselines.tiny_bases import make_request, save_base, save_xl_base
from tests.brushnet.tiny import make_branch, make_unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model beside branches of both kinds, named as published."""
    root = tmp_path_factory.mktemp("weights")
    unet = load_unet(save_base(root / "base"))
    branch = make_branch(unet)
    branch.save_pretrained(root / "ckpt" / "segmentation_mask_brushnet_ckpt")
    with torch.no_grad():
        branch.brushnet_mid_block.bias += 1.0
    branch.save_pretrained(root / "ckpt" / "random_mask_brushnet_ckpt")
    return root


def load_unet(base):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32)


def method(folder, **options):
    defaults = {"checkpoint": str(folder / "ckpt"), "base": str(folder / "base"), "steps": 2, "device": "cpu"}
    return BrushNet(**defaults | options)


@pytest.fixture(scope="module")
def ours(folder):
    return method(folder)


def differ(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_it_is_an_inpainter_with_the_settings_that_were_asked_for(folder):
    built = build("model", Spec("baselines.brushnet:BrushNet", {
        "checkpoint": str(folder / "ckpt"), "base": str(folder / "base"), "scale": "0.8", "steps": "3",
        "guess_mode": "true", "start": "0.25", "masks": "random", "scheduler": "ddim",
    }), {"device": "cpu", "dtype": "float32"})  # fmt: skip
    assert isinstance(built, Inpainter)
    told = built.describe()
    assert (told["scale"], told["steps"], told["guess_mode"], told["start"]) == (0.8, 3, True, 0.25)
    assert (told["scheduler"], told["guidance"], told["masks"], list(told["branches"])) == (
        "ddim",
        4.0,
        "random",
        ["random"],
    )
    assert str(folder) not in str(told)
    with pytest.raises(UnknownNameError, match=r"Did you mean 'scale'"):
        build("model", Spec("baselines.brushnet:BrushNet", {"scal": "1"}))


def test_each_split_gets_the_branch_for_its_masks(folder, ours):
    request = make_request()
    asked = {split: replace(request, split=split) for split in ("inside", "outside", "brush")}
    by_split = {split: ours.inpaint([one])[0] for split, one in asked.items()}
    assert differ(by_split["inside"], by_split["outside"]) == 0
    assert differ(by_split["inside"], by_split["brush"]) > 0
    for kind, split in (("segmentation", "inside"), ("random", "brush")):
        only = method(folder, masks=kind)
        assert differ(only.inpaint([asked["inside"]])[0], by_split[split]) == 0
        assert differ(only.inpaint([asked["brush"]])[0], by_split[split]) == 0


@pytest.mark.parametrize("inner", ["model", "brushnet"])
def test_the_folder_of_a_training_was_no_checkpoint(folder, tmp_path, inner):
    shutil.copytree(folder / "ckpt" / "random_mask_brushnet_ckpt", tmp_path / inner)
    found = find_checkpoint("tiny", "random", str(tmp_path))
    assert found == tmp_path / inner
    assert describe_branch(found) == describe_branch(folder / "ckpt" / "random_mask_brushnet_ckpt")


def test_one_checkpoint_serves_every_split(folder):
    one = method(folder, checkpoint=str(folder / "ckpt" / "random_mask_brushnet_ckpt"))
    hashes = one.describe()["branches"]
    assert hashes["segmentation"] == hashes["random"]
    assert one.pipe_for("segmentation") is one.pipe_for("random")


def test_the_picture_is_the_pipelines_from_the_requests_seed(ours):
    request = make_request()
    pipe = ours.pipe_for("segmentation")
    latents = pipe(
        prompt=request.prompt, image=Image.fromarray(request.image), mask=request.hole, num_inference_steps=2,
        generator=torch.Generator().manual_seed(request.seed), guidance_scale=4.0, output_type="latent",
    ).images  # fmt: skip
    assert differ(ours.inpaint([request])[0], decode_scaled(pipe.vae, latents)[0]) == 0


def test_a_picture_does_not_depend_on_its_neighbours_or_their_sizes(ours):
    requests = [make_request(0), make_request(1, 48, 72), make_request(2), make_request(3, negative="a blue square")]
    together = Method(ours).ask(requests)
    for request, picture in zip(requests, together, strict=True):
        assert picture.shape == request.image.shape
        assert differ(picture, ours.inpaint([request])[0]) <= 1


def test_requests_that_do_not_go_together_are_refused_with_the_way_to_ask(ours):
    for other in (make_request(1, 48, 72), replace(make_request(1), split="brush"), make_request(1, negative="blue")):
        with pytest.raises(UsageError, match=r"Method\(inpainter\)\.ask\(requests\)"):
            ours.inpaint([make_request(0), other])


def test_micro_batches_change_latents_by_less_than_1e_4(ours):
    requests = [make_request(i) for i in range(3)]
    whole = ours.latents(Batch.of(requests, ours.factor, ours.multiple))
    parts = [ours.latents(Batch.of([request], ours.factor, ours.multiple)) for request in requests]
    assert (whole - torch.cat(parts)).abs().max() < 1e-4


def test_nothing_of_the_hole_is_read_and_the_seed_decides(ours):
    request = make_request()
    image = request.image.copy()
    image[request.hole] = 255
    assert differ(ours.inpaint([replace(request, image=image)])[0], ours.inpaint([request])[0]) == 0
    assert differ(ours.inpaint([replace(request, seed=7)])[0], ours.inpaint([request])[0]) > 0
    assert differ(ours.inpaint([replace(request, prompt="a blue cross")])[0], ours.inpaint([request])[0]) > 0


def test_odd_sizes_come_back_as_they_were(ours):
    (picture,) = Method(ours).ask([make_request(0, 61, 50)])
    assert picture.shape == (61, 50, 3)
    assert picture.dtype == np.uint8


def test_scale_0_does_not_hear_the_branch(folder):
    silent = method(folder, scale=0.0)
    inside, brush = (silent.inpaint([replace(make_request(), split=split)])[0] for split in ("inside", "brush"))
    assert differ(inside, brush) == 0


def test_sdxl_bases_run_too(tmp_path_factory):
    root = tmp_path_factory.mktemp("xl")
    save_xl_base(root / "base")
    make_branch(make_unet("sdxl")).save_pretrained(root / "branch")
    ours = BrushNet("sdxl", base=str(root / "base"), checkpoint=str(root / "branch"), steps=2, device="cpu")
    requests = [make_request(0, 32, 32), make_request(1, 32, 32, negative="blue")]
    together = Method(ours).ask(requests)
    for request, picture in zip(requests, together, strict=True):
        assert differ(picture, ours.inpaint([request])[0]) <= 1


def test_weights_that_are_not_there_or_do_not_fit_are_named(folder, tmp_path):
    with pytest.raises(MissingWeightsError, match=r"for segmentation masks .*Pass checkpoint=FOLDER"):
        method(folder, checkpoint=str(tmp_path))
    with pytest.raises(MissingWeightsError, match="the preset sdxl has none") as missing:
        find_checkpoint("sdxl", "random")
    assert "Fetch the folders segmentation_mask_brushnet_ckpt_sdxl_v1 and" in str(missing.value)
    assert "huggingface.co" not in str(missing.value)  # those are of Stable Diffusion 1.5, and do not fit
    for kind in ("segmentation", "random"):  # the remedy: both folders in one
        (tmp_path / "sdxl" / f"{kind}_mask_brushnet_ckpt_sdxl_v1").mkdir(parents=True)
        (tmp_path / "sdxl" / f"{kind}_mask_brushnet_ckpt_sdxl_v1" / "config.json").touch()
        assert kind in find_checkpoint("sdxl", kind, str(tmp_path / "sdxl")).name
    BrushNetModel.from_unet(make_unet("sd")).save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match="different base models"):
        method(folder, checkpoint=str(tmp_path / "other")).inpaint([make_request()])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"start": 0.5, "end": 0.2}, "start is 0.5"),
    ],
)
def test_options_that_cannot_be_right_are_refused(folder, options, words):
    with pytest.raises(UsageError, match=words):
        method(folder, **options)
