"""The training step: what is trained and what is not, its loss beside stock parts, the published bugs mended."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch.nn import functional as F

from brushnet import BrushNetModel, StableDiffusionBrushNetPipeline, encode_conditioning, inject
from brushnet.training import BrushNetTrainingStep, inpainting_pipeline
from tests.brushnet.tiny import SD, make_branch, make_unet
from tests.brushnet.tiny_pipelines import DDIM, generator, make_picture, make_pipe, make_xl_pipe

CAPTIONS = ("abc", "xyz", "cab")


def make_base(family="sd", **components):
    """A stock pipeline, without a branch."""
    if family == "xl":
        parts = dict(make_xl_pipe(**components).components)
        parts.pop("brushnet")
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    parts = dict(make_pipe(**components).components)
    parts.pop("brushnet")
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def make_examples(count=3):
    return [(*make_picture(i), CAPTIONS[i % 3]) for i in range(count)]


def make_step(base, branch=None, **options):
    return BrushNetTrainingStep(branch or BrushNetModel.from_unet(base.unet), base, **options)


def train(step, steps=10, rate=1e-2, **batch_options):
    optimizer = torch.optim.AdamW(step.parameters(), lr=rate)
    losses = []
    for number in range(steps):
        loss, _ = step(**step.batch(make_examples(), generator(number)), **batch_options)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def weights_of(base):
    modules = {name: part for name, part in base.components.items() if isinstance(part, torch.nn.Module)}
    return {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in modules.items()}


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_ten_steps_train_the_branch_and_leave_the_base_as_it_was_bit_for_bit(family):
    base = make_base(family)
    before = weights_of(base)
    step = make_step(base)
    start = {name: tensor.clone() for name, tensor in step.brushnet.state_dict().items()}
    train(step)
    after = weights_of(base)
    assert before.keys() == after.keys() >= {"unet", "vae", "text_encoder"}
    for part, tensors in before.items():
        assert all(torch.equal(tensor, after[part][name]) for name, tensor in tensors.items()), part
    same = [name for name, tensor in step.brushnet.state_dict().items() if torch.equal(tensor, start[name])]
    assert same == []
    assert all(parameter.grad is None for parameter in base.unet.parameters())
    assert set(step.state_dict()) == {f"brushnet.{name}" for name in start}


def test_bug_conv_in_bias_was_shared_with_the_unet_and_stayed_frozen():
    """Published: ``from_unet`` hands the U-Net's own Parameter over, and freezing the U-Net froze it."""
    base = make_base()
    step = make_step(base)
    bias = step.brushnet.conv_in_condition.bias
    assert bias is not base.unet.conv_in.bias
    assert bias.data_ptr() != base.unet.conv_in.bias.data_ptr()
    assert bias.requires_grad
    train(step, steps=2)
    assert not torch.equal(bias, base.unet.conv_in.bias)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_fresh_branch_adds_nothing_so_its_loss_is_the_base_models_own(family):
    base = make_base(family)
    step = make_step(base, caption_dropout=0.0)
    batch = step.batch(make_examples(), generator(3))
    loss, parts = step(**batch)

    size = {"original_size": (32, 32), "crops_coords_top_left": (0, 0), "target_size": (32, 32)}
    pixels = torch.stack([torch.from_numpy(image) for image, _, _ in make_examples()]).permute(0, 3, 1, 2) / 255 * 2 - 1
    options = {"prompt": list(CAPTIONS), "device": "cpu", "num_images_per_prompt": 1}
    with torch.no_grad():
        black = torch.where(torch.stack([torch.from_numpy(h) for _, h, _ in make_examples()])[:, None], -1.0, pixels)
        # One call for pictures and masked pictures, so that rounding is the same.
        modes = base.vae.encode(torch.cat([pixels, black])).latent_dist.mode() * base.vae.config.scaling_factor
        noisy = DDPMScheduler(**{k: v for k, v in DDIM.items() if k.startswith("beta")}).add_noise(
            modes[:3], batch["noise"], batch["timesteps"]
        )
        added = None
        if family == "xl":
            text, _, pooled, _ = base.encode_prompt(**options, do_classifier_free_guidance=False)
            ids = torch.tensor([[*size["original_size"], 0, 0, *size["target_size"]]]).repeat(3, 1)
            added = {"text_embeds": pooled, "time_ids": ids.to(text.dtype)}
        else:
            text, _ = base.encode_prompt(**options, do_classifier_free_guidance=False)
        predicted = base.unet(noisy, batch["timesteps"], text, added_cond_kwargs=added).sample
        residuals = step.brushnet(noisy, batch["timesteps"], torch.rand(3, 5, 4, 4), added_cond_kwargs=added)
    everything = (*residuals.down_block_res_samples, residuals.mid_block_res_sample, *residuals.up_block_res_samples)
    assert all(residual.eq(0).all() for residual in everything)
    # Not bit for bit: with gradients torch takes another kernel for attention.
    assert float(loss) == pytest.approx(float(F.mse_loss(predicted, batch["noise"])), rel=1e-6)
    assert float(parts["loss_hole"]) != float(parts["loss_keep"])


def test_conditioning_is_that_of_the_pipelines():
    base = make_base()
    step = make_step(base)
    batch = step.batch(make_examples(), generator(0))
    with torch.no_grad():
        _, ours = step.encode_pictures(batch["images"], batch["keep"])
    images, holes, _ = zip(*make_examples(), strict=True)
    theirs = encode_conditioning(base.vae, np.stack(images), np.stack(holes))
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert 0 < float(ours[:, 4].mean()) < 1


def test_posterior_is_drawn_from_the_batch_generator_when_asked_for():
    base = make_base()
    step = make_step(base, sample_posterior=True)
    batch = step.batch(make_examples(), generator(0))
    moments = base.vae.encode(torch.from_numpy(make_examples()[0][0]).permute(2, 0, 1)[None] / 255 * 2 - 1).latent_dist
    latents, _ = step.encode_pictures(batch["images"], batch["keep"], batch["posterior"])
    expected = (moments.mean + moments.std * batch["posterior"][:1]) * base.vae.config.scaling_factor
    assert torch.allclose(latents[:1], expected, atol=1e-5)
    plain = make_step(base).batch(make_examples(), generator(0))
    assert "posterior" not in plain
    assert torch.equal(plain["noise"], batch["noise"])  # everything else is drawn before it
    assert step(**batch)[0].isfinite()


def test_residuals_reach_the_loss():
    """A branch that is not zero changes the loss, and the loss is that of the injected prediction."""
    base = make_base()
    branch = make_branch(base.unet)
    step = make_step(base, branch)
    batch = step.batch(make_examples(), generator(1))
    loss, _ = step(**batch)
    with torch.no_grad():
        latents, cond = step.encode_pictures(batch["images"], batch["keep"])
        text, _ = step.encode_text(batch["input_ids"], batch["dropped"], (32, 32))
        noisy = step.noise_schedule.add_noise(latents, batch["noise"], batch["timesteps"])
        with inject(base.unet, branch(noisy, batch["timesteps"], cond)):
            predicted = base.unet(noisy, batch["timesteps"], text).sample
    assert torch.allclose(loss, F.mse_loss(predicted, batch["noise"]), rtol=1e-5)
    zero, _ = make_step(base)(**batch)
    assert abs(float(loss - zero)) > 1e-4


def test_velocity_target():
    base = make_base()
    base.scheduler.register_to_config(prediction_type="v_prediction")
    step = make_step(base)
    batch = step.batch(make_examples(), generator(2))
    loss, _ = step(**batch)
    with torch.no_grad():
        latents, _ = step.encode_pictures(batch["images"], batch["keep"])
        text, _ = step.encode_text(batch["input_ids"], batch["dropped"], (32, 32))
        alpha = base.scheduler.alphas_cumprod[batch["timesteps"]].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * batch["noise"]
        velocity = alpha.sqrt() * batch["noise"] - (1 - alpha).sqrt() * latents
        predicted = base.unet(noisy, batch["timesteps"], text).sample
    assert torch.allclose(loss, F.mse_loss(predicted, velocity), rtol=1e-5)
    assert not torch.allclose(loss, F.mse_loss(predicted, batch["noise"]), rtol=1e-3)


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_gradient_checkpointing_changes_no_gradient(family):
    gradients = []
    for checkpointing in (False, True):
        base = make_base(family)
        step = make_step(base, make_branch(base.unet), gradient_checkpointing=checkpointing)
        loss, _ = step(**step.batch(make_examples(2), generator(1)))
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in step.named_parameters()})
    assert step.brushnet.is_gradient_checkpointing
    assert base.unet.is_gradient_checkpointing
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6, rtol=1e-4), name


def test_without_the_mask_channel_the_saved_branch_never_looks_at_the_mask():
    base = make_base()
    step = make_step(base, make_branch(base.unet), mask_channel=False)
    train(step, steps=3)
    assert not step.brushnet.conv_in_condition.weight[:, 4:8].eq(0).any()
    assert step.brushnet.conv_in_condition.weight[:, 8].eq(0).all()
    images, holes, _ = zip(*make_examples(), strict=True)
    cond = encode_conditioning(base.vae, np.stack(images), np.stack(holes))
    other = torch.cat([cond[:, :4], 1 - cond[:, 4:]], dim=1)
    noise = torch.randn(cond[:, :4].shape, generator=generator(0))
    with torch.no_grad():
        outputs = [step.brushnet(noise, 5, given).mid_block_res_sample for given in (cond, other)]
    assert torch.equal(*outputs)


def test_encoder_injection_leaves_zero_residuals_on_the_way_up():
    base = make_base()
    step = make_step(base, make_branch(base.unet), injection="encoder")
    before = copy.deepcopy(step.brushnet.up_blocks.state_dict())
    train(step, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in step.brushnet.up_blocks.state_dict().items())
    noise = torch.randn(1, 4, 4, 4, generator=generator(0))
    with torch.no_grad():
        down, mid, up = step.brushnet(noise, 5, torch.ones(1, 5, 4, 4), return_dict=False)
    assert all(residual.eq(0).all() for residual in up)
    assert all(residual.ne(0).any() for residual in (*down, mid))


def test_captions_are_dropped_at_the_asked_rate_and_empty_is_empty():
    base = make_base()
    empty = base.tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    shares = {}
    for share in (0.0, 0.3, 1.0):
        batch = make_step(base, caption_dropout=share).batch(make_examples(90), generator(1))
        is_empty = (batch["input_ids"][:, 0] == empty).all(dim=1)
        assert torch.equal(is_empty, batch["dropped"])
        shares[share] = float(is_empty.float().mean())
    assert (shares[0.0], shares[1.0]) == (0.0, 1.0)
    assert 0.15 < shares[0.3] < 0.45


def test_sdxl_drops_to_zeros_as_its_pipelines_do():
    base = make_base("xl")
    step = make_step(base, caption_dropout=1.0)
    batch = step.batch(make_examples(1), generator(0))
    text, added = step.encode_text(batch["input_ids"], batch["dropped"], (32, 48))
    assert text.eq(0).all()
    assert added["text_embeds"].eq(0).all()
    assert added["time_ids"].tolist() == [[32, 48, 0, 0, 32, 48]]


def test_step_is_a_function_of_its_generator_and_leaves_the_global_one_alone():
    base = make_base()
    step = make_step(base, sample_posterior=True)
    state = torch.get_rng_state()
    losses = [step(**step.batch(make_examples(), generator(seed)))[0] for seed in (7, 7, 8)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_base_beside_a_float32_branch():
    base = make_base()
    plain, _ = make_step(make_base())(**make_step(base).batch(make_examples(), generator(1)))
    step = make_step(base, dtype=torch.bfloat16)
    assert (base.unet.dtype, base.text_encoder.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (base.vae.dtype, step.brushnet.dtype) == (torch.float32, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = step(**step.batch(make_examples(), generator(1)))
    loss.backward()
    assert float(loss) == pytest.approx(float(plain), rel=0.05)
    assert {parameter.grad.dtype for parameter in step.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_branch_goes_into_the_pipeline_at_once(family, tmp_path):
    base = make_base(family)
    step = make_step(base)
    train(step, steps=2)
    step.brushnet.save_pretrained(tmp_path)
    image, hole = make_picture()
    pictures = []
    for branch in (step.brushnet, BrushNetModel.from_pretrained(tmp_path)):
        pipe = inpainting_pipeline(base, branch)
        pipe.set_progress_bar_config(disable=True)
        pictures.append(
            pipe("abc", image=image, mask=hole, num_inference_steps=2, generator=generator(0), output_type="np").images[
                0
            ]
        )
    assert np.array_equal(*pictures)
    assert isinstance(pipe, StableDiffusionBrushNetPipeline) == (family == "sd")
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()


def test_what_cannot_be_trained_is_refused_in_one_sentence():
    base = make_base()
    step = make_step(base)
    image, hole = make_picture()
    for examples, error, message in (
        ([], ValueError, "no example"),
        ([(image.astype(np.float32), hole, "a")], TypeError, "uint8"),
        ([(image, hole.astype(np.uint8), "a")], TypeError, "bool"),
        ([(image, hole[:16], "a")], ValueError, "one size"),
        ([(image, hole, "a"), (image[:16], hole[:16], "a")], ValueError, "one size"),
        ([(image[:30], hole[:30], "a")], ValueError, "multiples of 8"),
    ):
        with pytest.raises(error, match=message):
            step.batch(examples, generator(0))
    with pytest.raises(ValueError, match="injection is 'decoder'"):
        make_step(base, injection="decoder")
    with pytest.raises(ValueError, match="caption_dropout"):
        make_step(base, caption_dropout=2)
    with pytest.raises(ValueError, match="widths"):
        make_step(base, BrushNetModel.from_unet(make_unet("sd", **{**SD, "block_out_channels": (8, 16)})))
    base.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="predicts 'sample'"):
        make_step(base)
