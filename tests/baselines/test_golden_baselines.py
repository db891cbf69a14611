"""Parity with recorded runs of the published implementations; see ``tests/golden/baselines/README.md``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from baselines import blended_latent, brushedit, controlnet, hd_painter, powerpaint, sd_inpainting
from baselines.hd_painter.rasg import _step, betas
from baselines.powerpaint_text import stock_names
from baselines.sampling import guide


@pytest.fixture(scope="module")
def cases(golden_dir):
    return golden_dir / "baselines"


def run(case, name):
    settings = case / "runs" / f"{name}.json"
    told = json.loads(settings.read_text()) if settings.is_file() else {}
    return told, load_file(settings.with_suffix(".safetensors"))


def picture(path, mode="RGB"):
    return np.array(Image.open(path).convert(mode))


def load_unet(case):
    unet = UNet2DConditionModel.from_pretrained(case / "model" / "unet", dtype=torch.float32)
    return unet.eval().requires_grad_(False)


def off(found, expected):
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_sd_inpainting(cases):
    case = cases / "sd_inpaint"
    told, tensors = run(case, "ddim_single")
    seen = []
    found = sd_inpainting.denoise(
        load_unet(case), DDIMScheduler.from_config(told["scheduler_config"]), tensors["latents_start"],
        torch.cat([tensors["mask_latent"], tensors["masked_image_latents"]], dim=1),
        tensors["prompt_embeds"], tensors["negative_prompt_embeds"],
        steps=told["num_inference_steps"], guidance=told["guidance_scale"],
        on_step=lambda _number, latents: seen.append(latents),
    )  # fmt: skip
    assert off(found, tensors["latents_final"]) < 1e-4
    for number, latents in enumerate(seen):
        assert off(latents, tensors[f"latents.{number}"]) < 1e-4


@pytest.mark.parametrize(("name", "variant"), [("sd2_plain", "script"), ("ldm_thin_shrink2", "paper")])
def test_blended_latent(cases, name, variant):
    case = cases / "blended_latent"
    told, tensors = run(case, name)
    masks = tensors.get("mask_schedule", tensors.get("mask_latent"))
    hole = picture(case / "img" / f"{told['mask']}.png", "L")
    ours = blended_latent.latent_masks(
        hole, tuple(masks.shape[-2:]), variant=variant, dilations=told.get("mask_dilation_iterations", 0)
    )
    assert off(ours, masks) == 0
    found = blended_latent.denoise(
        load_unet(case), tensors["z0"], ours, tensors["prompt_embeds"], tensors["negative_prompt_embeds"],
        variant=variant, steps=told["num_inference_steps"], guidance=told["guidance_scale"],
        latents=tensors["latents_start"], start=told.get("blending_start", 0.0), skip=told.get("skip_steps", 0),
        noises=[tensors[f"step_noise.{number}"] for number in range(len(told["timesteps"]))],
    )  # fmt: skip
    assert off(found, tensors["latents_final"]) < 1e-4


def test_hd_painters_attention(cases):
    case, layer = cases / "hd_painter", "down_blocks.1.attentions.0"
    told, tensors = run(case, "painta")
    block = BasicTransformerBlock(32, 4, 8, cross_attention_dim=32).eval().requires_grad_(False)
    block.load_state_dict({name: value.float() for name, value in load_file(case / "block.safetensors").items()})
    text = torch.cat([tensors["negative_prompt_embeds"], tensors["prompt_embeds"]])
    given = (block, tensors[f"block.{layer}.input"], text, told["token_idx"])
    assert off(hd_painter.coefficients(*given, (8, 8)), tensors[f"coefficients.{layer}"]) < 1e-4
    assert off(hd_painter.painta_block(*given, tensors["mask_half"]), tensors[f"block.{layer}.output"]) < 1e-4


def test_hd_painters_step(cases):
    told, tensors = run(cases / "hd_painter", "rasg_eta01")
    alpha = (1 - betas()).cumprod(0)[told["timesteps"][0]].item()
    noise_pred = guide(tensors["eps.0"], told["guidance_scale"])
    clean = (tensors["latents.0"] - (1 - alpha) ** 0.5 * noise_pred) / alpha**0.5
    found = _step(clean, noise_pred, tensors["gradient.0"], *told["timesteps"][:2], told["eta"], "released")
    assert off(found, tensors["latents.1"]) < 1e-4


def test_hd_painters_holes_and_tokens(cases):
    case = cases / "hd_painter"
    masks = hd_painter.hole_masks(picture(case / "img" / "odd_mask.png", "L"))
    expected = load_file(case / "runs" / "odd_masks.safetensors")
    names = {"pixels": "mask_pixels", "half": "mask_half", "quarter": "mask_quarter", "condition": "condition"}
    for ours, theirs in names.items():
        assert torch.equal(masks[ours], expected[theirs].float())
    told, _ = run(case, "painta")
    tokenizer = CLIPTokenizer.from_pretrained(cases / "powerpaint_v1" / "model" / "tokenizer")
    assert hd_painter.token_indices(tokenizer, told["prompt"], told["positive_suffix"])[:6] == told["token_idx"][:6]


def test_powerpaints_words(cases):
    case = cases / "powerpaint_v1"
    told, tensors = run(case, "shape_guided_tau06")
    state = load_file(case / "model" / "published_layout" / "text_encoder.safetensors")
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(case / "model" / "text_encoder")).eval()
    encoder.load_state_dict(stock_names(state, encoder.state_dict()))
    tokenizer = CLIPTokenizer.from_pretrained(case / "model" / "tokenizer")
    words = powerpaint.task_vectors(state)
    assert {word: rows.shape[0] for word, rows in words.items()} == {"P_ctxt": 10, "P_shape": 10, "P_obj": 10}
    powerpaint.add_task_tokens(tokenizer, encoder, words)
    prompts = powerpaint.task_prompts(told["task"], told["prompt"], told["negative_prompt"])
    for ours, theirs in (("A", "promptA"), ("B", "promptB"), ("negative_A", "negative_promptA")):
        assert prompts[ours] == told[theirs]
    positive, negative = powerpaint.mixed_embeds(tokenizer, encoder, prompts, told["fitting_degree"])
    assert off(positive, tensors["prompt_embeds"]) < 1e-5
    assert off(negative, tensors["negative_prompt_embeds"]) < 1e-5


def test_powerpaint_2s_prompts(cases):
    told, _ = run(cases / "powerpaint_v2", "removal_rect")
    prompts = powerpaint.task_prompts(told["task"], told["prompt"], told["negative_prompt"], version="v2")
    assert prompts["U"] == told["promptU"]
    assert prompts["negative_U"] == told["negative_promptU"]
    assert (prompts["A"], prompts["negative_A"]) == (told["promptA"].strip(), told["negative_promptA"].strip())


def test_controlnets_condition(cases):
    case = cases / "controlnet_inpaint"
    _, tensors = run(case, "cni_ddim")
    found = controlnet.control_image(picture(case / "img" / "a.png"), picture(case / "img" / "a_mask.png", "L"))
    assert off(found, tensors["control"]) == 0


def test_brushedits_blending(cases):
    case = cases / "brushedit_blend"
    image, generated, blended = (picture(case / f"odd_soft.{k}.png") for k in ("image", "generated", "blended"))
    found = brushedit.blend(image, picture(case / "odd_soft.mask.png", "L"), generated)
    assert np.abs(found.astype(int) - blended).max() <= 1
