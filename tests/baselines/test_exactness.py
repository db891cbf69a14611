"""Where a method must equal a simpler one exactly: its own part switched off, or given nothing to do."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)

from baselines import hd_painter
from baselines.blended_latent import BlendedLatent
from baselines.controlnet import ControlNet, ControlNetBlended, control_image
from baselines.diffusion import Batch
from baselines.hd_painter import painta
from baselines.latents import encode_scaled
from baselines.powerpaint import PowerPaint
from baselines.powerpaint_text import encode_text
from baselines.sampling import guided_denoise
from baselines.sd_inpainting import SdInpainting, condition, denoise, masked_image
from baselines.vae import Vae
from brushbench import assets
from brushbench.benchmarks.shapes import Shapes
from tests.baselines.tiny_bases import make_sample


@pytest.fixture(scope="module")
def folder(methods):
    return methods


def options(folder, checkpoint=None, **more):
    beside = {"checkpoint": str(folder / checkpoint)} if checkpoint else {}
    return {"base": str(folder / "base"), "steps": 3, "device": "cpu", **beside, **more}


def batch_for(method, samples=None):
    requests = [sample.request(7 + i) for i, sample in enumerate(samples or [make_sample(0, 32, 32, "a red star")])]
    return Batch.of(requests, method.factor, method.multiple)


def close(found, expected, limit=1e-5):
    return (found - expected).abs().max() <= limit * expected.abs().max()


def test_blended_latent_with_an_all_hole_mask_is_text_to_image(folder):
    sample = make_sample(0, 32, 32, "a red star")
    everything = replace(sample, hole=np.ones_like(sample.hole))
    method = BlendedLatent(**options(folder), variant="diffusers")
    batch = batch_for(method, [everything])
    expected = method.run(method.pipe, batch, height=32, width=32)
    assert close(method.latents(batch), expected)
    assert not close(method.latents(batch_for(method, [sample])), expected)


@pytest.fixture(scope="module")
def inpainting(folder):
    """SD Inpainting, its inputs, and what plain DDIM makes of them over HD-Painter's timesteps, 999 first."""
    method = SdInpainting(**options(folder, "sd_inpainting"))
    batch = batch_for(method)
    scheduler = DDIMScheduler.from_config(
        method.pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    inputs = (method.start_noise(batch), condition(method.pipe.vae, batch, method.factor, "nearest"))
    text = method.embeds(batch)
    plain = denoise(method.pipe.unet, scheduler, *inputs, **text, steps=4, guidance=4.0)
    masks = hd_painter.hole_masks(batch.holes[0], method.factor)
    shared = {**text, "holes": masks, "tokens": [1, 2, 3], "steps": 4, "guidance": 4.0}
    return method, inputs, shared, plain


def test_painta_with_coefficient_1_is_sd_inpainting(inpainting, monkeypatch):
    method, inputs, shared, plain = inpainting
    own = hd_painter.denoise(method.pipe.unet, *inputs, **shared, rasg=False)
    assert not close(own, plain)
    monkeypatch.setattr(painta, "_coefficients", lambda _b, hidden, *_: torch.ones(len(hidden) // 2, hidden.shape[1]))
    assert close(hd_painter.denoise(method.pipe.unet, *inputs, **shared, rasg=False), plain)


@pytest.mark.parametrize("sigma", ["released", "ddim"])
def test_rasg_at_eta_0_is_ddim(inpainting, sigma):
    method, inputs, shared, plain = inpainting
    shared = {**shared, "painta": False, "sigma": sigma}
    assert close(hd_painter.denoise(method.pipe.unet, *inputs, **shared, eta=0.0), plain)
    assert not close(hd_painter.denoise(method.pipe.unet, *inputs, **shared, eta=0.5), plain)


def test_the_gradient_of_a_sample_is_its_own_in_a_batch(folder):
    method = hd_painter.HdPainter(**options(folder, "sd_inpainting"), eta=0.5)
    some = [make_sample(number, 32, 32, prompt) for number, prompt in enumerate(["a red star", "two blue circles"])]
    with torch.enable_grad():
        together = method.latents(batch_for(method, some))
        first = method.latents(batch_for(method, some[:1]))
    assert close(together[:1], first, 1e-4)


def test_powerpaint_with_fitting_degree_1_and_one_prompt_is_its_plain_pipeline(folder):
    method = PowerPaint(**options(folder, "powerpaint"))
    batch = batch_for(method)
    positive, negative = (
        encode_text(method.tokenizer, method.text_encoder, [text]) for text in ("a red star P_obj", " P_obj")
    )
    pipe = StableDiffusionInpaintPipeline(**method.pipe.components, requires_safety_checker=False)
    hole = torch.from_numpy(batch.holes)[:, None].float()
    pixels = torch.from_numpy(batch.pictures).permute(0, 3, 1, 2).float() / 255
    clean = condition(pipe.vae, batch, method.factor, "nearest")[:, 1:]
    expected = pipe(
        prompt_embeds=positive, negative_prompt_embeds=negative, image=pixels, mask_image=hole, strength=1.0,
        masked_image_latents=clean, latents=batch.noise, num_inference_steps=3, guidance_scale=method.guidance,
        height=32, width=32, output_type="latent",
    ).images  # fmt: skip
    assert close(method.latents(batch), expected)
    method.fitting_degree = 0.5  # the two prompts are the same, so nothing changes
    assert close(method.latents(batch), expected, 1e-4)


def test_sd_inpainting_is_the_stock_pipeline(folder):
    method = SdInpainting(**options(folder, "sd_inpainting"))
    batch = batch_for(method)
    pipe = StableDiffusionInpaintPipeline(**method.pipe.components, requires_safety_checker=False)
    pixels = torch.from_numpy(batch.pictures).permute(0, 3, 1, 2).float() / 255
    masked = pipe.vae.encode(masked_image(batch.pictures[0], batch.holes[0])).latent_dist.mode()
    expected = method.run(
        pipe, batch, image=pixels, mask_image=torch.from_numpy(batch.holes)[:, None].float(), strength=1.0,
        masked_image_latents=masked * pipe.vae.config.scaling_factor, height=32, width=32,
    )  # fmt: skip
    assert close(method.latents(batch), expected)


@pytest.mark.parametrize("blended", [False, True])
def test_controlnet_is_the_stock_pipeline(folder, blended):
    method = (ControlNetBlended if blended else ControlNet)(**options(folder, "controlnet"), scale=0.7)
    batch = batch_for(method)
    cls = StableDiffusionControlNetInpaintPipeline if blended else StableDiffusionControlNetPipeline
    pipe = cls(**method.pipe.components, controlnet=method.controlnet, requires_safety_checker=False)
    control = control_image(batch.pictures[0], batch.holes[0])
    shared = {"controlnet_conditioning_scale": 0.7, "height": 32, "width": 32}
    if not blended:
        assert close(method.latents(batch), method.run(pipe, batch, image=control, **shared))
        return
    pixels = torch.from_numpy(batch.pictures).permute(0, 3, 1, 2).float() / 255
    hole = torch.from_numpy(batch.holes)[:, None].float()
    # The stock pipeline draws the picture's latents from their posterior, where ours takes the mode.
    pipe._encode_vae_image = lambda image, generator: encode_scaled(method.pipe.vae, batch.pictures)
    expected = method.run(pipe, batch, image=pixels, mask_image=hole, control_image=control, strength=1.0, **shared)
    assert close(method.latents(batch), expected)


def test_the_loop_is_the_stock_one(folder):
    method = BlendedLatent(**options(folder), variant="diffusers", scheduler="euler_a")
    batch, again = batch_for(method), batch_for(method)
    text = method.embeds(batch)
    both = torch.cat([text["negative_prompt_embeds"], text["prompt_embeds"]])
    found = guided_denoise(
        lambda sample, t: method.pipe.unet(sample, t, encoder_hidden_states=both).sample,
        method.pipe.scheduler, method.start_noise(batch), **method.settings, generators=batch.generators,
    )  # fmt: skip
    assert close(found, method.run(method.pipe, again, height=32, width=32))


def test_controlnet_blended_reaches_the_vae_line_on_the_kept_pixels(tmp_path):
    """To 2.5 dB, five pixels off the hole: the autoencoder is not local, and the line has the truth in the hole too."""
    network = ControlNetModel.from_unet(tiny_unet(), conditioning_embedding_out_channels=(4, 4, 8))
    network.save_pretrained(tmp_path / "controlnet")
    options = {"preset": "tiny", "checkpoint": str(tmp_path / "controlnet"), "steps": 4, "device": "cpu"}
    some = list(Shapes(split="inside", limit=3))[1:]
    line = kept_psnr(Vae(device="cpu").inpaint_reference(some), some)
    requests = [sample.request(3) for sample in some]
    assert kept_psnr(ControlNetBlended(**options, reduce="any").inpaint(requests), some) > line - 2.5
    assert kept_psnr(ControlNet(**options).inpaint(requests), some) < line - 10


def tiny_unet():
    return UNet2DConditionModel.from_pretrained(assets.path("data/tiny/base") / "unet", dtype=torch.float32)


def kept_psnr(pictures, samples):
    """Mean PSNR over the pixels that are at least five away from the hole."""
    values = []
    for picture, sample in zip(pictures, samples, strict=True):
        keep = ~cv2.dilate(sample.hole.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        values.append(10 * np.log10(255**2 / np.mean((picture.astype(float) - sample.image)[keep] ** 2)))
    return float(np.mean(values))
