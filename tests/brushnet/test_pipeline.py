"""The SD 1.5 pipeline against a naive loop, against the stock pipeline, and in what it promises and refuses."""

from __future__ import annotations

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from brushnet import BrushNetModel, StableDiffusionBrushNetPipeline, encode_conditioning, inject
from tests.brushnet.tiny import make_branch, make_unet, relative
from tests.brushnet.tiny_pipelines import (
    DDIM,
    generator,
    load_ip_adapter,
    make_picture,
    make_pipe,
    make_vae,
    make_xl_pipe,
)
from tests.reference.naive_pipeline import naive_conditioning, naive_denoise

TOLERANCE = 2e-5
EMBEDS = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(11))
TEXT = {"prompt": "a cat", "prompt_embeds": None, "negative_prompt_embeds": None}
NEGATIVE = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(12))


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture(autouse=True)
def fresh_scheduler(pipe):
    pipe.scheduler = DDIMScheduler(**DDIM)


@pytest.fixture
def call():
    """Arguments of a small call that needs nothing but the networks."""
    image, hole = make_picture()
    return {
        "prompt_embeds": EMBEDS[:1],
        "negative_prompt_embeds": NEGATIVE[:1],
        "image": image,
        "mask": hole,
        "num_inference_steps": 3,
        "output_type": "latent",
    }


def run(pipe, call, **changes):
    """Run with a fresh generator; return the pictures or latents."""
    return pipe(**{"generator": generator(3), **call, **changes}).images


def branch_calls(monkeypatch, pipe):
    """Record the batch size of every run of the branch."""
    seen = []
    forward = pipe.brushnet.forward

    def counted(sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.brushnet, "forward", counted)
    return seen


SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm++ karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_gives_the_naive_loop(pipe, name):
    kind, options = SCHEDULERS[name]
    config = {key: value for key, value in DDIM.items() if key in inspect.signature(kind).parameters}
    image, hole = make_picture(1, 24, 40)  # latents 3x5: odd sizes
    cond = naive_conditioning(pipe.vae, image, hole)
    noise = torch.randn(1, 4, 3, 5, generator=(ours_generator := generator(3)))
    naive_scheduler = kind(**config, **options)
    takes_generator = "generator" in inspect.signature(naive_scheduler.step).parameters
    expected = naive_denoise(
        pipe.unet, pipe.brushnet, naive_scheduler, noise, cond, torch.cat([NEGATIVE[:1], EMBEDS[:1]]), 4,
        scale=0.7, start=0.25, step_kwargs={"generator": ours_generator} if takes_generator else {},
    )  # fmt: skip

    pipe.scheduler = kind(**config, **options)
    ours = pipe(
        prompt_embeds=EMBEDS[:1], negative_prompt_embeds=NEGATIVE[:1], image=Image.fromarray(image), mask=hole,
        num_inference_steps=4, generator=generator(3), brushnet_conditioning_scale=0.7, control_guidance_start=0.25,
        output_type="latent",
    ).images  # fmt: skip
    assert relative(ours, expected[-1]) < TOLERANCE


@pytest.mark.parametrize(("guidance", "halves"), [(7.5, 1), (7.5, 2), (1.0, 1)])
@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.0, 0.5), (0.3, 0.6)])
def test_guidance_guess_mode_windows_and_own_halves_give_the_naive_loop(pipe, guidance, guess, halves, start, end):
    guided = guidance > 1
    cond = torch.cat([naive_conditioning(pipe.vae, *make_picture(seed)) for seed in range(2 * halves)])
    noise = torch.randn(2, 4, 4, 4, generator=generator(5))
    text = torch.cat([NEGATIVE, EMBEDS]) if guided else EMBEDS
    expected = naive_denoise(
        pipe.unet, pipe.brushnet, DDIMScheduler(**DDIM), noise, cond, text, 4, guidance, 0.8, start, end, guess
    )
    steps = []
    pipe(
        prompt_embeds=EMBEDS, negative_prompt_embeds=NEGATIVE, conditioning_latents=cond, latents=noise,
        guidance_scale=guidance, guess_mode=guess, control_guidance_start=start, control_guidance_end=end,
        brushnet_conditioning_scale=0.8, num_inference_steps=4, output_type="latent",
        callback_on_step_end=lambda _pipe, _step, _t, tensors: steps.append(tensors["latents"]) or tensors,
    )  # fmt: skip
    assert len(steps) == len(expected)
    assert max(map(relative, steps, expected)) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, [1, 1, 1]),
        ({"guidance_scale": 1.0}, [1, 1, 1]),
        ({"guess_mode": True}, [1, 1, 1]),
        ({"num_images_per_prompt": 2}, [2, 2, 2]),
        ({"control_guidance_start": 0.5}, [1]),
        ({"brushnet_conditioning_scale": 0.0}, []),
    ],
)
def test_the_branch_runs_once_a_guided_step_and_not_at_all_when_silent(monkeypatch, pipe, call, options, batches):
    seen = branch_calls(monkeypatch, pipe)
    run(pipe, call, **options)
    assert seen == batches


def test_the_branch_runs_on_both_halves_when_they_differ(monkeypatch, pipe, call):
    seen = branch_calls(monkeypatch, pipe)
    cond = torch.cat([encode_conditioning(pipe.vae, *make_picture(seed)) for seed in range(2)])
    run(pipe, call, image=None, mask=None, conditioning_latents=cond)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("silence", ["zero convolutions", "scale 0", "empty window"])
def test_a_silent_branch_is_exactly_the_stock_pipeline(pipe, call, silence):
    brushnet = BrushNetModel.from_unet(pipe.unet) if silence == "zero convolutions" else pipe.brushnet
    window = {"control_guidance_start": 0.4, "control_guidance_end": 0.6}
    options = {"scale 0": {"brushnet_conditioning_scale": 0}, "empty window": window}.get(silence, {})
    components = {name: part for name, part in pipe.components.items() if name != "brushnet"}
    ours = StableDiffusionBrushNetPipeline(**components, brushnet=brushnet, requires_safety_checker=False)
    stock = StableDiffusionPipeline(**components, requires_safety_checker=False)
    inpainted = run(ours, call, **TEXT, **options)

    del call["image"], call["mask"]
    expected = run(stock, call, **TEXT, height=32, width=32)
    assert torch.equal(inpainted, expected)


def test_a_list_of_generators_makes_samples_independent_of_their_batch(pipe):
    pairs = [make_picture(seed) for seed in range(4)]
    embeds, negative = EMBEDS.repeat(2, 1, 1), NEGATIVE.repeat(2, 1, 1)
    common = {"num_inference_steps": 3, "output_type": "latent", "eta": 1.0}

    def some(rows):
        return pipe(
            image=[pairs[i][0] for i in rows], mask=[pairs[i][1] for i in rows], prompt_embeds=embeds[rows],
            negative_prompt_embeds=negative[rows], generator=[generator(i) for i in rows], **common,
        ).images  # fmt: skip

    whole = some([0, 1, 2, 3])
    parts = torch.cat([some([i]) for i in range(4)])
    assert (whole - parts).abs().max() < 1e-4


def test_the_order_is_a_a_b_b_and_one_picture_serves_all(pipe):
    pairs = [make_picture(seed) for seed in range(2)]
    common = {"num_inference_steps": 2, "output_type": "latent"}
    noise = torch.randn(4, 4, 4, 4, generator=generator(9))
    whole = pipe(
        image=[Image.fromarray(image) for image, _ in pairs], mask=[hole for _, hole in pairs], prompt_embeds=EMBEDS,
        negative_prompt_embeds=NEGATIVE, num_images_per_prompt=2, latents=noise, **common,
    ).images  # fmt: skip
    for row, which in enumerate((0, 0, 1, 1)):
        alone = pipe(
            image=pairs[which][0], mask=pairs[which][1], prompt_embeds=EMBEDS[which : which + 1],
            negative_prompt_embeds=NEGATIVE[which : which + 1], latents=noise[row : row + 1], **common,
        ).images  # fmt: skip
        assert relative(whole[row : row + 1], alone) < TOLERANCE

    one = {"image": pairs[0][0], "mask": pairs[0][1]}
    twice = {"image": [pairs[0][0]] * 2, "mask": [pairs[0][1]] * 2}
    shared, own = (
        pipe(prompt_embeds=EMBEDS, negative_prompt_embeds=NEGATIVE, latents=noise[:2], **p, **common).images
        for p in (one, twice)
    )
    assert relative(shared, own) < TOLERANCE


def test_ready_conditioning_equals_its_pictures(pipe, call):
    expected = run(pipe, call)
    cond = encode_conditioning(pipe.vae, call.pop("image"), call.pop("mask"))
    for rows in (cond, torch.cat([cond, cond])):
        ours = run(pipe, call, conditioning_latents=rows)
        assert torch.equal(ours, expected)


def test_resized_pictures_are_blacked_out_first(pipe, call):
    image, hole = make_picture(0, 45, 39)
    leaky = image.copy()
    leaky[hole] = 255 - leaky[hole]
    size = {"height": 40, "width": 24}
    runs = [run(pipe, call, image=Image.fromarray(a), mask=hole, **size) for a in (image, leaky)]
    assert runs[0].shape == (1, 4, 5, 3)
    assert torch.equal(*runs)
    assert run(pipe, call, image=Image.fromarray(image), mask=hole).shape == (1, 4, 5, 4)


def test_only_the_given_generator_is_used(pipe, call):
    before = torch.random.get_rng_state()
    run(pipe, call, sample_posterior=True, eta=1.0)
    first, second = (run(pipe, call, generator=None) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, second)


def test_drawing_from_the_posterior_keeps_the_initial_noise(pipe, call):
    noise = torch.randn(1, 4, 4, 4, generator=(drawn := generator(3)))
    cond = encode_conditioning(pipe.vae, call["image"], call["mask"], drawn)
    ours = run(pipe, call, sample_posterior=True)
    expected = run(pipe, call, image=None, mask=None, conditioning_latents=cond, latents=noise)
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, run(pipe, call))


def test_half_precision_starts_from_the_same_noise(pipe, call):
    low = make_pipe().to(torch.bfloat16)
    seen = []
    low.unet.register_forward_pre_hook(lambda _m, args, _k: seen.append(args[0]), with_kwargs=True)
    ours = run(low, call)
    noise = torch.randn(1, 4, 4, 4, generator=generator(3))
    assert torch.equal(seen[0][:1], noise.bfloat16())
    assert ours.dtype == torch.bfloat16
    assert relative(ours.float(), run(pipe, call)) < 0.1


def test_outputs_are_what_their_type_says(pipe, call):
    latents = run(pipe, call)
    forms = {kind: run(pipe, call, output_type=kind) for kind in ("pt", "np", "pil")}
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(forms["pt"], (decoded / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(forms["np"], forms["pt"].permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert forms["pil"][0].size == (32, 32)
    images, flagged = pipe(**call, generator=generator(3), return_dict=False)
    assert torch.equal(images, latents)
    assert flagged is None


def test_a_callback_may_change_latents_and_end_the_guidance(monkeypatch, pipe, call):
    seen = branch_calls(monkeypatch, pipe)
    names = ["latents", "prompt_embeds"]

    def end_guidance(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return {**tensors, "latents": tensors["latents"] * 0}

    ours = run(pipe, call, callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=names)
    assert float(ours.abs().max()) == 0
    assert seen == [1, 1, 1]


def test_text_clip_skip_and_timesteps_go_through(pipe, call):
    call |= TEXT | {"negative_prompt": "dog"}
    plain = run(pipe, call)
    assert not torch.equal(plain, run(pipe, call, clip_skip=1))
    assert not torch.equal(plain, run(pipe, call, guidance_rescale=0.7))
    pipe.scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear")
    run(pipe, call, timesteps=[900, 500, 100])
    assert pipe.scheduler.timesteps.tolist() == [900, 500, 100]


@pytest.mark.parametrize("make", [make_pipe, make_xl_pipe])
def test_an_image_prompt_reaches_the_unet_and_not_the_branch(call, make):
    pipe = make()
    load_ip_adapter(pipe.unet)
    call |= TEXT
    call["ip_adapter_image_embeds"] = [torch.randn(2, 1, 8, generator=generator(7))]
    kind = StableDiffusionPipeline if make is make_pipe else StableDiffusionXLPipeline
    stock = kind.from_pipe(pipe)
    stock.set_progress_bar_config(disable=True)
    silent, heard = (run(pipe, call, brushnet_conditioning_scale=scale) for scale in (0.0, 1.0))
    del call["image"], call["mask"]
    assert torch.equal(silent, run(stock, call, height=32, width=32))
    assert not torch.equal(silent, heard)


def test_a_vae_of_factor_4_sets_the_sizes(call):
    pipe = make_pipe(vae=make_vae(3))
    image, hole = make_picture(1, 22, 33)
    assert run(pipe, call, image=image, mask=hole).shape == (1, 4, 5, 8)
    assert run(pipe, call, height=20, width=12).shape == (1, 4, 5, 3)
    with pytest.raises(ValueError, match="height=18; expected a positive multiple of 4"):
        run(pipe, call, height=18, width=12)


def test_steps_that_are_given_one_by_one_need_no_number(pipe, call):
    ours = run(pipe, call, timesteps=None, num_inference_steps=1)
    assert torch.isfinite(ours).all()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear")
    assert torch.isfinite(run(pipe, call, timesteps=[900, 500, 100], num_inference_steps=None)).all()


def test_a_model_index_does_not_say_what_is_imported(tmp_path, monkeypatch, pipe):
    pipe.save_pretrained(tmp_path / "pipe")
    index = tmp_path / "pipe" / "model_index.json"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_part.py").write_text("raise SystemExit('imported')")
    saved = json.loads(index.read_text())
    for library in ("evil_part", "os", "subprocess", "", 3, {"a": 1}):
        index.write_text(json.dumps(saved | {"scheduler": [library, "DDIMScheduler"]}))
        with pytest.raises(ValueError, match=r"takes scheduler from .* not imported; expected one of diffusers"):
            StableDiffusionBrushNetPipeline.from_pretrained(tmp_path / "pipe")
    index.write_text(json.dumps(saved))
    StableDiffusionBrushNetPipeline.from_pretrained(tmp_path / "pipe")


def test_save_and_load_round_trip(tmp_path, pipe, call):
    expected = run(pipe, call, **TEXT)
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionBrushNetPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, call, **TEXT), expected)


def test_a_folder_of_the_published_fork_loads(tmp_path, pipe, call):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionBrushNetPipeline"
    assert index["brushnet"] == ["diffusers", "BrushNetModel"]
    index |= {"_diffusers_version": "0.27.0.dev0", "image_encoder": [None, None], "requires_safety_checker": True}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "brushnet" / "config.json").read_text())
    (tmp_path / "brushnet" / "config.json").write_text(json.dumps(config | {"_diffusers_version": "0.27.0.dev0"}))
    loaded = StableDiffusionBrushNetPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(run(loaded, call), run(pipe, call))


def test_a_base_model_and_a_branch_make_a_pipeline_and_missing_text_parts_stay_missing(tmp_path, pipe, call):
    parts = {name: part for name, part in pipe.components.items() if name != "brushnet"}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "base")
    loaded = StableDiffusionBrushNetPipeline.from_pretrained(
        tmp_path / "base", brushnet=pipe.brushnet, text_encoder=None, tokenizer=None
    )
    expected = run(pipe, call)
    assert torch.equal(run(loaded, call), expected)
    loaded.save_pretrained(tmp_path / "again")
    again = StableDiffusionBrushNetPipeline.from_pretrained(tmp_path / "again")
    assert again.text_encoder is None
    assert torch.equal(run(again, call), expected)
    converted = StableDiffusionBrushNetPipeline.from_pipe(StableDiffusionPipeline(**parts), brushnet=pipe.brushnet)
    assert torch.equal(run(converted, call), expected)


def test_models_that_are_offloaded_whole_give_the_same_picture(pipe, call):
    expected = run(pipe, call, **TEXT, output_type="pt")
    offloaded = make_pipe()
    offloaded.enable_model_cpu_offload(device="cpu")  # the hooks are the same as for an accelerator
    for _ in range(2):
        assert torch.equal(run(offloaded, call, **TEXT, output_type="pt"), expected)


def test_models_that_are_offloaded_layer_by_layer_give_the_same_picture(pipe, call):
    expected = run(pipe, call, **TEXT, output_type="pt")
    offloaded = make_pipe()
    for part in offloaded.components.values():  # what enable_sequential_cpu_offload does
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))
    assert {parameter.device.type for parameter in offloaded.unet.parameters()} == {"meta"}
    assert torch.equal(run(offloaded, call, **TEXT, output_type="pt"), expected)


def test_hooks_are_gone_after_a_call_and_after_an_exception(pipe, call):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, call, callback_on_step_end=stop)
    for module in pipe.unet.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_unet_and_branch_give_the_same_latents(pipe, call, in_place):
    expected = run(pipe, call)
    torch.compiler.reset()
    compiled = make_pipe()
    with inject(compiled.unet):
        if in_place:
            compiled.unet.compile(backend="eager")
            compiled.brushnet.compile(backend="eager")
        else:
            compiled.unet = torch.compile(compiled.unet, backend="eager")
            compiled.brushnet = torch.compile(compiled.brushnet, backend="eager")
        ours = run(compiled, call)
    assert relative(ours, expected) < TOLERANCE


COND = torch.zeros(1, 5, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"brushnet_scale": 1.0}, TypeError, "brushnet_scale"),
        ({"height": 30}, ValueError, "height=30; expected a positive multiple of 8"),
        ({"width": 20}, ValueError, "width=20"),
        ({"image": None}, ValueError, "Got no image"),
        ({"mask": None}, ValueError, "Got no mask"),
        ({"image": [make_picture()[0]] * 2}, ValueError, "2 images for 1 prompts"),
        ({"mask": [make_picture()[1]] * 3}, ValueError, "3 masks for 1 prompts"),
        ({"prompt": "a cat"}, ValueError, "Got both of prompt and prompt_embeds"),
        ({"prompt_embeds": None}, ValueError, "Got neither"),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.5}, ValueError, "start=0.6"),
        ({"control_guidance_end": 1.5}, ValueError, "end=1.5"),
        ({"control_guidance_end": None}, TypeError, "end=None; expected one number"),
        ({"control_guidance_start": [0.0, 0.5]}, TypeError, r"start=\[0.0, 0.5\]"),
        ({"prompt_embeds": None, "prompt": 3}, TypeError, "prompt is a int; expected a text or a list"),
        ({"prompt_embeds": None, "prompt": []}, ValueError, "empty list of prompts"),
        ({"brushnet_conditioning_scale": [1.0]}, TypeError, "conditioning_scale"),
        ({"brushnet_conditioning_scale": "1", "control_guidance_end": 0.1}, TypeError, "conditioning_scale must be"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, ValueError, r"\(1, 4, 4, 4\)"),
        ({"generator": [generator(0), generator(1)]}, ValueError, "2 generators for 1 samples"),
        ({"conditioning_latents": COND[:, :4]}, ValueError, r"\(1, 4, 4, 4\); expected \(1 or 2, 5, h, w\)"),
        ({"conditioning_latents": COND.repeat(3, 1, 1, 1)}, ValueError, "1 or 2"),
        ({"conditioning_latents": COND.repeat(2, 1, 1, 1), "guidance_scale": 1.0}, ValueError, r"expected \(1, 5"),
        ({"conditioning_latents": COND, "height": 64}, ValueError, "height=64"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt=0; expected at least 1"),
        ({"num_images_per_prompt": None}, TypeError, "num_images_per_prompt=None; expected a whole number"),
        ({"height": 32.0}, TypeError, "height=32.0; expected a whole number"),
        ({"output_type": "PIL"}, ValueError, "output_type='PIL'; expected one of pil, np, pt, latent"),
        ({"conditioning_latents": COND * float("nan")}, ValueError, "residuals hold NaN"),
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps=0; expected at least 1"),
        ({"num_inference_steps": -1}, ValueError, "num_inference_steps=-1; expected at least 1"),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps=1001; expected at most 1000"),
        ({"num_inference_steps": 10**30}, ValueError, "expected at most 1000"),
        ({"num_inference_steps": 1.5}, TypeError, "num_inference_steps=1.5; expected a whole number"),
        ({"num_inference_steps": 2.0}, TypeError, "num_inference_steps=2.0; expected a whole number"),
        ({"num_inference_steps": True}, TypeError, "num_inference_steps=True; expected a whole number"),
        ({"num_inference_steps": "5"}, TypeError, "num_inference_steps='5'"),
        ({"num_inference_steps": None}, TypeError, "num_inference_steps=None"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale=nan; expected a finite number"),
        ({"guidance_scale": "7"}, TypeError, "guidance_scale='7'; expected one number"),
        ({"guidance_scale": [7.5]}, TypeError, r"guidance_scale=\[7.5\]; expected one number"),
        ({"guidance_scale": None}, TypeError, "guidance_scale=None"),
        ({"eta": float("inf")}, ValueError, "eta=inf"),
        ({"guidance_rescale": "x"}, TypeError, "guidance_rescale='x'"),
        ({"clip_skip": -1}, ValueError, "clip_skip=-1; expected at least 0"),
        ({"clip_skip": 1.0}, TypeError, "clip_skip=1.0"),
        ({"brushnet_conditioning_scale": True}, TypeError, "conditioning_scale must be one finite number; got True"),
        ({"control_guidance_end": True}, TypeError, "end=True"),
        ({"num_images_per_prompt": True}, TypeError, "num_images_per_prompt=True"),
        ({"generator": 5}, TypeError, r"generator is 5; expected a torch.Generator .*manual_seed\(0\)"),
        ({"generator": [5]}, TypeError, r"generator is \[5\]"),
        ({"prompt_embeds": None, "prompt": [None]}, TypeError, "prompt holds a NoneType"),
        ({"prompt_embeds": None, "prompt": ("a",)}, TypeError, "prompt is a tuple"),
        ({"prompt_embeds": None, "prompt": b"a"}, TypeError, "prompt is a bytes"),
        ({"negative_prompt_embeds": None, "negative_prompt": [3]}, TypeError, "negative_prompt holds a int"),
        ({"mask": np.ones((64, 64), bool)}, ValueError, "mask is 64x64 pixels and its image 32x32"),
        ({"mask_image": make_picture()[1]}, TypeError, "no argument 'mask_image'; is mask= meant"),
        ({"init_image": make_picture()[0]}, TypeError, "no argument 'init_image'; is image= meant"),
        ({"controlnet_conditioning_scale": 1.0}, TypeError, "is brushnet_conditioning_scale= meant"),
        ({"num_inference_step": 5}, TypeError, "is num_inference_steps= meant"),
        ({"strength_of_nothing": 1}, TypeError, "no argument 'strength_of_nothing'."),
    ],
)
def test_bad_input_gets_one_clear_sentence(pipe, call, change, error, words):
    with pytest.raises(error, match=words):
        run(pipe, call, **change)


def test_a_mask_that_keeps_everything_is_a_warning(pipe, call):
    with pytest.warns(UserWarning, match="nothing is repainted"):
        run(pipe, call, mask=np.zeros((32, 32), bool))


def test_a_window_in_lists_of_one_is_taken_as_published(pipe, call):
    ours = run(pipe, call, control_guidance_start=[0.0], control_guidance_end=[0.5])
    assert torch.equal(ours, run(pipe, call, control_guidance_end=0.5))


def test_a_call_without_a_branch_is_refused(call):
    with pytest.raises(ValueError, match="no brushnet; load it with brushnet="):
        run(make_pipe(brushnet=None), call)


def test_what_a_missing_vae_would_do_is_refused_before_any_step(monkeypatch, call):
    pipe = make_pipe(vae=None)
    seen = branch_calls(monkeypatch, pipe)
    with pytest.raises(ValueError, match="no vae; pass conditioning_latents"):
        run(pipe, call)
    with pytest.raises(ValueError, match='no vae; pass output_type="latent"'):
        run(pipe, call, conditioning_latents=COND, output_type="pil")
    assert seen == []
    assert run(pipe, call, conditioning_latents=COND).shape == (1, 4, 4, 4)


def test_text_without_an_encoder_is_refused(call):
    pipe = make_pipe(text_encoder=None, tokenizer=None)
    with pytest.raises(ValueError, match="no tokenizer and no text_encoder; pass prompt_embeds"):
        run(pipe, call, **TEXT)
    with pytest.raises(ValueError, match="pass negative_prompt_embeds"):
        run(pipe, call, negative_prompt_embeds=None)


@pytest.mark.parametrize(
    ("part", "words"),
    [("brushnet", r"branch holds NaN or infinity in up_blocks\.0"), ("unet", "U-Net's prediction holds NaN")],
)
def test_nan_in_weights_is_named_at_the_first_step(call, part, words):
    pipe = make_pipe()
    next(iter(getattr(pipe, part).up_blocks.parameters())).flatten()[0] = float("nan")
    with pytest.raises(ValueError, match=words):
        run(pipe, call)


def test_residuals_that_overflow_are_named_at_the_first_step(pipe, call):
    with pytest.raises(ValueError, match=r"BrushNet's residuals hold NaN or infinity: .* torch.float32 overflows"):
        run(pipe, call, brushnet_conditioning_scale=3.3e38)


def test_an_sdxl_branch_on_an_sd_base_is_refused():
    with pytest.raises(ValueError, match="different base models"):
        make_pipe(brushnet=make_branch(make_unet("sdxl")))


def test_an_inpainting_unet_is_refused():
    with pytest.raises(ValueError, match=r"reads 9 channels, the branch 4; .* see brushnet.attach"):
        make_pipe(unet=make_unet("sd", in_channels=9, out_channels=4), brushnet=make_branch(make_unet("sd")))


def test_global_pooling_switches_guess_mode_on_as_published(monkeypatch, pipe, call):
    modes, forward = [], pipe.brushnet.forward

    def spy(*args, **kwargs):
        modes.append(kwargs["guess_mode"])
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.brushnet, "forward", spy)
    pipe.brushnet.register_to_config(global_pool_conditions=True)
    run(pipe, call)
    assert modes == [True] * 3
