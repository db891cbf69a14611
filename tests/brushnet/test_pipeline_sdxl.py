"""The SDXL pipeline against a naive loop and the stock pipeline: pooled text, sizes, both halves, half precision."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline

from brushnet import BrushNetModel, StableDiffusionXLBrushNetPipeline, encode_conditioning
from tests.brushnet.tiny import make_branch, make_unet, relative
from tests.brushnet.tiny_pipelines import DDIM, generator, make_picture, make_xl_pipe
from tests.reference.naive_pipeline import naive_conditioning, naive_denoise

TOLERANCE = 2e-5
DRAWS = torch.Generator().manual_seed(11)
EMBEDS, NEGATIVE = torch.randn(2, 2, 7, 12, generator=DRAWS)
POOLED, NEGATIVE_POOLED = torch.randn(2, 2, 8, generator=DRAWS)
TEXT = {
    "prompt": "a cat",
    "prompt_2": "a dog",
    "prompt_embeds": None,
    "negative_prompt_embeds": None,
    "pooled_prompt_embeds": None,
    "negative_pooled_prompt_embeds": None,
}


@pytest.fixture(scope="module")
def pipe():
    return make_xl_pipe()


@pytest.fixture(autouse=True)
def fresh_scheduler(pipe):
    pipe.scheduler = DDIMScheduler(**DDIM)


@pytest.fixture
def call():
    image, hole = make_picture()
    return embeddings(1) | {"image": image, "mask": hole, "num_inference_steps": 3, "output_type": "latent"}


def embeddings(count):
    return {
        "prompt_embeds": EMBEDS[:count],
        "negative_prompt_embeds": NEGATIVE[:count],
        "pooled_prompt_embeds": POOLED[:count],
        "negative_pooled_prompt_embeds": NEGATIVE_POOLED[:count],
    }


def run(pipe, call, **changes):
    """Run with a fresh generator; return the pictures or latents."""
    return pipe(**{"generator": generator(3), **call, **changes}).images


SIZES = {
    "defaults": ({}, None, [32, 32, 0, 0, 32, 32]),
    "own sizes": (
        {"original_size": (48, 40), "crops_coords_top_left": (4, 8), "target_size": [64, 24]},
        None,
        [48, 40, 4, 8, 64, 24],
    ),
    "negative sizes": (
        {"negative_original_size": (16, 8), "negative_crops_coords_top_left": (1, 2), "negative_target_size": (8, 8)},
        [16, 8, 1, 2, 8, 8],
        [32, 32, 0, 0, 32, 32],
    ),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("guess", [False, True])
@pytest.mark.parametrize("halves", [1, 2])
def test_a_batch_of_two_gives_the_naive_loop(pipe, name, guess, halves):
    options, negative, positive = SIZES[name]
    cond = torch.cat([naive_conditioning(pipe.vae, *make_picture(seed)) for seed in range(2 * halves)])
    noise = torch.randn(2, 4, 4, 4, generator=generator(5))
    # As published, the sizes repeat as negative, positive, negative, positive beside texts of n, n, p, p.
    added = {
        "text_embeds": torch.cat([NEGATIVE_POOLED, POOLED]),
        "time_ids": torch.tensor([negative or positive, positive] * 2, dtype=torch.float32),
    }
    expected = naive_denoise(
        pipe.unet, pipe.brushnet, DDIMScheduler(**DDIM), noise, cond, torch.cat([NEGATIVE, EMBEDS]), 4, 5.0, 0.8,
        0.0, 0.75, guess, added,
    )  # fmt: skip
    ours = pipe(
        **embeddings(2), **options, conditioning_latents=cond, latents=noise, num_inference_steps=4, guess_mode=guess,
        brushnet_conditioning_scale=0.8, control_guidance_end=0.75, output_type="latent",
    ).images  # fmt: skip
    assert relative(ours, expected[-1]) < TOLERANCE


def test_windows_count_on_the_schedule_that_denoising_end_cuts(pipe):
    cond = naive_conditioning(pipe.vae, *make_picture(1, 24, 40))
    noise = torch.randn(1, 4, 3, 5, generator=generator(5))
    added = {
        "text_embeds": torch.cat([NEGATIVE_POOLED[:1], POOLED[:1]]),
        "time_ids": torch.tensor([[24.0, 40, 0, 0, 24, 40]] * 2),
    }
    text = torch.cat([NEGATIVE[:1], EMBEDS[:1]])
    expected = naive_denoise(
        pipe.unet, pipe.brushnet, EulerDiscreteScheduler(beta_schedule="scaled_linear"), noise, cond, text, 8, 5.0,
        start=0.25, end=0.5, added=added, keep_steps=4,
    )  # fmt: skip
    pipe.scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    ours = pipe(
        **embeddings(1), conditioning_latents=cond, latents=noise, num_inference_steps=8, denoising_end=0.5,
        control_guidance_start=0.25, control_guidance_end=0.5, output_type="latent",
    ).images  # fmt: skip
    assert len(expected) == 4
    assert relative(ours, expected[-1]) < TOLERANCE


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, [2, 2, 2]),
        ({"negative_pooled_prompt_embeds": POOLED[:1]}, [1, 1, 1]),
        ({"guess_mode": True}, [1, 1, 1]),
        ({"guidance_scale": 1.0}, [1, 1, 1]),
        ({"control_guidance_end": 0.4}, [2]),
    ],
)
def test_the_branch_runs_on_both_halves_unless_they_are_equal(monkeypatch, pipe, call, options, batches):
    seen = []
    forward = pipe.brushnet.forward

    def counted(sample, *args, **kwargs):
        seen.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipe.brushnet, "forward", counted)
    run(pipe, call, **options)
    assert seen == batches


@pytest.mark.parametrize("silence", ["zero convolutions", "scale 0"])
def test_a_silent_branch_is_exactly_the_stock_pipeline(pipe, call, silence):
    brushnet = BrushNetModel.from_unet(pipe.unet) if silence == "zero convolutions" else pipe.brushnet
    options = {"brushnet_conditioning_scale": 0.0} if silence == "scale 0" else {}
    parts = {name: part for name, part in pipe.components.items() if name != "brushnet"} | {"add_watermarker": False}
    inpainted = run(StableDiffusionXLBrushNetPipeline(**parts, brushnet=brushnet), call, **TEXT, **options)
    del call["image"], call["mask"]
    expected = run(StableDiffusionXLPipeline(**parts), call, **TEXT, height=32, width=32)
    assert torch.equal(inpainted, expected)


def test_a_list_of_generators_makes_samples_independent_of_their_batch(pipe, call):
    pairs = [make_picture(seed) for seed in range(2)]
    whole = run(
        pipe, call, **embeddings(2), image=[image for image, _ in pairs], mask=[hole for _, hole in pairs],
        generator=[generator(0), generator(1)],
    )  # fmt: skip
    for row, (image, hole) in enumerate(pairs):
        own = {name: value[row : row + 1] for name, value in embeddings(2).items()}
        alone = run(pipe, call, **own, image=image, mask=hole, generator=[generator(row)])
        assert (whole[row : row + 1] - alone).abs().max() < 1e-4


def test_half_precision_encodes_in_float32_and_starts_from_the_same_noise(call):
    low = make_xl_pipe().to(torch.float16)
    seen = []
    low.unet.register_forward_pre_hook(lambda _m, args, _k: seen.append(args[0]), with_kwargs=True)
    images = run(low, call, output_type="pt")
    assert torch.equal(seen[0][:1], torch.randn(1, 4, 4, 4, generator=generator(3)).half())
    assert torch.isfinite(images).all()
    assert (low.vae.dtype, low.unet.dtype) == (torch.float16, torch.float16)


def test_save_load_and_the_forks_folder(tmp_path, pipe, call):
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionXLBrushNetPipeline.from_pretrained(tmp_path, add_watermarker=False)
    assert list(pipe.config.brushnet) == ["diffusers", "BrushNetModel"]
    assert torch.equal(run(loaded, call, **TEXT), run(pipe, call, **TEXT))


def test_embeddings_replace_all_text_parts(pipe, call):
    missing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    bare = make_xl_pipe(**missing)
    assert torch.equal(run(bare, call), run(pipe, call))
    with pytest.raises(ValueError, match="no tokenizer_2 and no text_encoder_2"):
        run(bare, call, **TEXT)


def test_models_that_are_offloaded_whole_give_the_same_picture(pipe, call):
    expected = run(pipe, call, **TEXT, output_type="pt")
    offloaded = make_xl_pipe()
    offloaded.enable_model_cpu_offload(device="cpu")  # the hooks are the same as for an accelerator
    for _ in range(2):
        assert torch.equal(run(offloaded, call, **TEXT, output_type="pt"), expected)


def test_models_that_are_offloaded_layer_by_layer_give_the_same_picture(pipe, call):
    expected = run(pipe, call, **TEXT, output_type="pt")
    offloaded = make_xl_pipe()
    for part in offloaded.components.values():  # what enable_sequential_cpu_offload does
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=bool(part._parameters))
    assert {parameter.device.type for parameter in offloaded.unet.parameters()} == {"meta"}
    assert torch.equal(run(offloaded, call, **TEXT, output_type="pt"), expected)


def test_ready_conditioning_equals_its_pictures_and_a_callback_sees_the_stock_tensors(pipe, call):
    expected = run(pipe, call)
    cond = encode_conditioning(pipe.vae, call["image"], call["mask"])
    names = ["latents", "prompt_embeds", "negative_prompt_embeds", "add_text_embeds", "add_time_ids"]
    seen = []
    ours = run(
        pipe, call, image=None, mask=None, conditioning_latents=cond,
        callback_on_step_end=lambda _pipe, _step, _t, tensors: seen.append(set(tensors)) or tensors,
        callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert torch.equal(ours, expected)
    assert seen == [set(names)] * 3


def test_bad_input_gets_one_clear_sentence(pipe, call):
    with pytest.raises(TypeError, match="original_sizes"):
        run(pipe, call, original_sizes=(8, 8))
    with pytest.raises(ValueError, match="width=20; expected a positive multiple of 8"):
        run(pipe, call, width=20)
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        run(pipe, call, image=[call["image"]] * 2)
    for share in (0.0, 1.5, "0.5"):
        with pytest.raises(ValueError, match=f"denoising_end={share!r}; expected a share above 0"):
            run(pipe, call, denoising_end=share)
    with pytest.raises(ValueError, match="different base models"):
        make_xl_pipe(brushnet=make_branch(make_unet("sd")))
