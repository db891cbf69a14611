"""The contract, kept by every registered method. Weights are random and small; nothing here says how good one is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.diffusion import Batch, DiffusionInpainter
from brushbench import registry
from brushbench.errors import MissingWeightsError
from brushbench.evaluation.sources import Method
from tests.baselines.tiny_bases import make_sample
from tests.baselines.tiny_diffusers import save_pipeline

# What each method is built with, beside the random base; {} names the folder of all weights.
OPTIONS = {
    "blended-latent": {},
    "blended-latent,script": {"variant": "script"},
    "blended-latent,diffusers": {"variant": "diffusers"},
    "blended-latent,shrinking": {"dilations": "2"},
    "brushedit": {"checkpoint": "{}/brushedit"},
    "brushnet": {"checkpoint": "{}/brushnet"},
    "controlnet": {"checkpoint": "{}/controlnet"},
    "controlnet-blended": {"checkpoint": "{}/controlnet"},
    "copy": {},
    "diffusers": {"class": "StableDiffusionInpaintPipeline", "model": "{}/StableDiffusionInpaintPipeline"},
    "flux-fill": {"model": "{}/FluxFillPipeline", "size": "own"},
    "hd-painter": {"checkpoint": "{}/sd_inpainting"},
    "hd-painter,ddim": {"checkpoint": "{}/sd_inpainting", "sigma": "ddim"},
    "latent-copy": {},
    "ns": {},
    "powerpaint": {"checkpoint": "{}/powerpaint"},
    "powerpaint-v2": {"checkpoint": "{}/powerpaint_v2"},
    "sd-inpainting": {"checkpoint": "{}/sd_inpainting"},
    "sdxl-inpainting": {"model": "{}/StableDiffusionXLInpaintPipeline", "size": "own"},
    "telea": {},
}
MODELLESS = ("copy", "ns", "telea")


@pytest.fixture(scope="module")
def folder(methods):
    for name in ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline", "FluxFillPipeline"):
        save_pipeline(name, methods / name)
    return methods


def build(row, folder, **changes):
    name = row.partition(",")[0]
    options = {key: value.format(folder) for key, value in OPTIONS[row].items()}
    if name not in MODELLESS:
        options |= {"steps": "2", "device": "cpu"} | ({} if "model" in options else {"base": str(folder / "base")})
    return registry.build("model", registry.Spec(name, options | changes))


def samples(split="inside"):
    prompts = ["a red star on plain grey", "a blue cross", "two green circles on stripes", ""]
    made = [make_sample(number, 32, 32, prompt) for number, prompt in enumerate(prompts)]
    return [replace(sample, split=split) for sample in made]


def ask(method, some):
    return Method(method).answers(some, [int(sample.id[1:]) for sample in some], "")


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_registered_method_is_here():
    names = registry.names("model")
    competing = [
        name for name in names if not registry.resolve("model", name).__module__.endswith(("oracle", "vae", "jpeg"))
    ]
    assert {row.partition(",")[0] for row in OPTIONS} == set(competing)


@pytest.mark.parametrize("row", OPTIONS)
def test_a_method_keeps_the_contract(row, folder):
    method, some = build(row, folder), samples()
    pictures = ask(method, some)
    assert all(isinstance(picture, np.ndarray) for picture in pictures), pictures
    assert same(pictures, ask(method, some)), "a second run differs"

    # Nothing of the hole is read.
    other = [replace(sample, image=np.where(sample.hole[..., None], np.uint8(9), sample.image)) for sample in some]
    assert same(pictures, ask(method, other)), "the hole's pixels are read"

    # Neighbours and order do not matter: to 1e-4 of the latents, to one level of the pictures.
    order = [2, 0, 3, 1]
    alone = [ask(method, [sample])[0] for sample in some]
    permuted = ask(method, [some[place] for place in order])
    for place, picture in zip(order, permuted, strict=True):
        assert differ(picture, pictures[place]) <= 1
        assert differ(picture, alone[place]) <= 1
    if isinstance(method, DiffusionInpainter):
        whole, parts = latents(method, some), [latents(method, [sample]) for sample in some]
        assert (whole - torch.cat(parts)).abs().max() < 1e-4 * whole.abs().max().clamp(min=1)
        assert (whole[order] - latents(method, [some[place] for place in order])).abs().max() < 1e-4

    # Every size comes back as it was.
    odd = [replace(make_sample(0, 27, 41), split="outside"), replace(make_sample(1, 32, 32), split="brush")]
    assert [picture.shape for picture in ask(method, odd)] == [(27, 41, 3), (32, 32, 3)]


def differ(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def latents(method, some):
    requests = [sample.request(int(sample.id[1:])) for sample in some]
    with torch.set_grad_enabled(method.needs_grad):
        return method.latents(Batch.of(requests, method.factor, method.multiple))


@pytest.mark.parametrize("row", [row for row in OPTIONS if row not in MODELLESS])
def test_missing_weights_are_named_with_the_way_to_get_them(row, folder, tmp_path):
    for option in {"base", "checkpoint", "model"} & set(
        registry.option_names(registry.resolve("model", row.partition(",")[0]))
    ):
        with pytest.raises(MissingWeightsError, match=rf"(?s)No .*Pass {option}=FOLDER"):
            build(row, folder, **{option: str(tmp_path)})


@pytest.mark.parametrize("row", OPTIONS)
def test_a_method_says_what_it_is(row, folder):
    told = build(row, folder).describe()
    assert told["method"]
    assert str(folder) not in str(told)
    if row not in MODELLESS:
        hashes = str(told["weights"]) + str(told.get("branches", ""))
        assert hashes.count("safetensors") >= (4 if "checkpoint" in OPTIONS[row] else 3)
