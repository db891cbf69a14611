"""Inpainting pipelines of diffusers as methods, with random weights: they run, repeat themselves, say what they are."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

from baselines.diffusers_pipeline import FACTS, DiffusersPipeline, pipeline_class
from brushbench.errors import MissingWeightsError, UsageError
from brushbench.evaluation.sources import Method
from brushbench.registry import Spec, build
from tests.baselines.tiny_bases import make_sample
from tests.baselines.tiny_diffusers import MAKERS, save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


def method(folder, name, **options):
    if not (folder / name).is_dir():
        save_pipeline(name, folder / name)
    return DiffusersPipeline(name, str(folder / name), **{"steps": 1, "device": "cpu", **options})


def ask(ours, some):
    return Method(ours).answers(some, [int(sample.id[1:]) for sample in some], "")


@pytest.mark.parametrize("name", MAKERS)
def test_a_class_runs_from_its_samples_seeds_and_reads_nothing_of_the_hole(folder, name):
    ours = method(folder, name)
    first, second = make_sample(0, 20, 32, "a red star"), make_sample(1, 20, 32, "a cat")
    other = replace(first, image=np.where(first.hole[..., None], np.uint8(3), first.image))
    pictures = ask(ours, [first, second])
    assert [picture.shape for picture in pictures] == [(20, 32, 3)] * 2
    for found, expected in zip(ask(ours, [second, other]), pictures[::-1], strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert ask(ours, [replace(first, id="s9")])[0].tolist() != pictures[0].tolist()  # another seed

    told = ours.describe()
    assert told["method"] == f"diffusers.{name}"
    assert told["kind"] == FACTS[name].kind
    assert told["strength"] == 1.0
    assert any("safetensors" in file for file in told["weights"])


def test_a_class_keeps_its_own_recommended_settings(folder):
    told = method(folder, "FluxFillPipeline", steps=None).describe()
    assert (told["steps"], told["guidance"], told["guided_by"]) == (50, 30.0, "guidance_scale")


def test_it_is_built_from_the_command_line(folder):
    method(folder, "StableDiffusionInpaintPipeline")
    place = str(folder / "StableDiffusionInpaintPipeline")
    built = build(
        "model", Spec("diffusers", {"class": "StableDiffusionInpaintPipeline", "model": place}), {"device": "cpu"}
    )
    assert built.describe()["steps"] == 50
    with pytest.raises(UsageError, match=r"needs class, model: write diffusers,class=VALUE"):
        build("model", Spec("diffusers", {}))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("os", "no inpainting pipeline 'os'. It has .*FluxFillPipeline"),
        ("StableDiffusionPipeline", "no inpainting pipeline"),
        ("QwenImageControlNetInpaintPipeline", "draws from the global generator"),
        ("StableDiffusionControlNetInpaintPipeline", "asks for control_image"),
        ("KandinskyV22InpaintPipeline", "KandinskyV22InpaintCombinedPipeline makes its own"),
        ("StableAudio3InpaintPipeline", "takes no image"),
    ],
)
def test_other_classes_are_refused_by_name(name, words):
    with pytest.raises(UsageError, match=words):
        pipeline_class(name)


def test_every_class_of_the_table_is_there():
    for name in FACTS:
        assert issubclass(pipeline_class(name), diffusers.DiffusionPipeline)


def test_a_pipeline_that_draws_from_the_global_generator_is_refused(folder, monkeypatch):
    ours = method(folder, "StableDiffusionInpaintPipeline")
    step = type(ours.pipe.scheduler).step
    noisy = lambda self, *args, **more: (torch.randn(1), step(self, *args, **more))[1]  # noqa: E731
    monkeypatch.setattr(type(ours.pipe.scheduler), "step", noisy)
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match="cannot be repeated"):
        ours.inpaint([make_sample(0, 32, 32).request(1)])
    assert torch.equal(before, torch.get_rng_state())


def test_missing_weights_and_invalid_settings_are_named(folder, tmp_path):
    with pytest.raises(MissingWeightsError, match=r"No model for FluxFillPipeline .*Pass model=FOLDER.*licence"):
        DiffusersPipeline("FluxFillPipeline", str(tmp_path))
    with pytest.raises(UsageError, match=r"strength 0\.0"):
        method(folder, "StableDiffusionInpaintPipeline", strength=0.0)


# ------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize(
    ("name", "speed"),
    [
        ("StableDiffusionInpaintPipeline", "exact"),
        ("StableDiffusionXLInpaintPipeline", "exact"),
        ("FluxFillPipeline", "fused"),
        ("StableDiffusion3InpaintPipeline", "fused+channels-last"),
    ],
)
def test_exact_ones_change_rounding_alone_are_used_and_are_recorded(folder, name, speed):
    some = [make_sample(0, 32, 32, "a red star"), make_sample(1, 32, 32, "a cat")]
    plain, quick = method(folder, name, steps=2), method(folder, name, steps=2, speed=speed)
    calls = []
    for at, part in quick.denoiser.named_modules():
        if at.endswith(("to_qkv", "to_kv")):
            part.register_forward_hook(lambda *_: calls.append(1))
    for found, expected in zip(ask(quick, some), ask(plain, some), strict=True):
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert calls  # diffusers makes fused projections for other networks too, and goes on with the separate ones
    assert "speed" not in plain.describe()
    assert quick.describe() == {**plain.describe(), "speed": str(quick.acceleration)}


@pytest.mark.parametrize("speed", ["guidance-2", "deep-2"])
@pytest.mark.parametrize("name", ["StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"])
def test_a_stock_unet_leaves_work_out_and_what_left_none_out_is_refused(folder, name, speed):
    some = [make_sample(0, 32, 32, "a red star"), make_sample(1, 32, 32, "a cat")]
    plain, quick = method(folder, name, steps=3), method(folder, name, steps=3, speed=speed)
    assert all((one != other).any() for one, other in zip(ask(quick, some), ask(plain, some), strict=True))
    single = method(folder, name, steps=1, speed=speed)
    with pytest.raises(UsageError, match=r"left nothing out with steps=1\. Leave it out, or take more steps"):
        single.inpaint([some[0].request(1)])
    assert single.pipe.unet._forward_hooks == {}  # nothing stays behind


def test_bf16_is_the_dtype_of_all_networks_and_is_refused_where_they_have_it_anyway(folder, monkeypatch):
    told = method(folder, "FluxFillPipeline", speed="bf16").describe()
    assert (told["dtype"], told["speed"]) == ("bfloat16", "bf16")
    monkeypatch.setattr("baselines.diffusers_pipeline.choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(UsageError, match=r"FluxFillPipeline computes in bfloat16 on cuda anyway\. Leave it out"):
        method(folder, "FluxFillPipeline", speed="bf16")


def test_blocks_are_compiled(folder):
    blocks = method(folder, "FluxFillPipeline", speed="compiled").denoiser.transformer_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)


@pytest.mark.parametrize(
    ("name", "speed", "words"),
    [
        ("FluxFillPipeline", "exact", "FluxTransformer2DModel has no convolution, and 'channels-last' does nothing"),
        ("FluxFillPipeline", "guidance-2", "guidance work on a UNet2DConditionModel, and FluxFillPipeline has a Flux"),
        ("FluxFillPipeline", "branch-2", "FluxFillPipeline has no branch that could rest"),
        ("QwenImageInpaintPipeline", "fused", "'fused' works on .*, and does nothing on a QwenImageTransformer2DModel"),
        ("StableDiffusion3InpaintPipeline", "compiled", "'compiled' cannot work on this SD3Transformer2DModel"),
        ("StableDiffusionInpaintPipeline", "prepacked", "'prepacked' does nothing on it"),
        ("StableDiffusionInpaintPipeline", "quick", "got 'quick', expected each of these"),
    ],
)
def test_what_does_nothing_on_a_class_is_refused_by_name(folder, name, speed, words):
    with pytest.raises(UsageError, match=words):
        method(folder, name, speed=speed)
    assert method(folder, name)  # the remedy: without it
