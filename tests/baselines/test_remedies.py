"""What a message of a method advises works: it is carried out as it stands there, with random weights."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel

from baselines.blended_latent import denoise
from baselines.brushnet import find_checkpoint
from baselines.diffusion import load_base
from baselines.guided import load_network
from baselines.hd_painter.rasg import _step
from baselines.powerpaint import PowerPaint
from baselines.powerpaint_text import encode_text
from baselines.presets import find_base
from brushbench import load_inpainter
from brushbench.errors import BrushbenchError
from tests.baselines.single_file import write_single_file
from tests.baselines.tiny_bases import make_request, save_xl_base
from tests.baselines.tiny_diffusers import save_pipeline


@pytest.fixture(scope="module")
def folder(methods: Path) -> Path:
    """Weights of every method; and a base of the SDXL family, and one with another noise schedule."""
    if not (methods / "xl").exists():
        save_xl_base(methods / "xl")
        other = shutil.copytree(methods / "base", methods / "other")
        DDIMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(other / "scheduler")
    return methods


def one_image(spec: str, folder: Path) -> None:
    """Build a method of a spec in which {} is the folder of weights, and make one image."""
    text = spec.replace("{}", str(folder))
    text += "" if "base=" in text else f",base={folder / 'base'}"
    text += "" if "steps=" in text else ",steps=2"
    method = load_inpainter(text, device="cpu")
    method.inpaint([make_request(0, 32, 32)])


BRUSHNET = "brushnet,checkpoint={}/brushnet"
# the method that is refused, what the message advises, and the methods that follow the advice
ADVICE: dict[str, tuple[str, str, list[str]]] = {
    "two kinds of numbers": (
        f"{BRUSHNET},speed=bf16,dtype=float32", "Leave one out.",
        [f"{BRUSHNET},speed=bf16", f"{BRUSHNET},dtype=float32"],
    ),
    "no branch to rest": ("latent-copy,speed=branch-2", "Leave branch-… out.", ["latent-copy"]),
    "no guidance to rest": (
        f"{BRUSHNET},guidance=1,speed=guidance-2+branch-2", "Leave guidance-… out.",
        [f"{BRUSHNET},guidance=1,speed=branch-2"],
    ),
    "gradients of every step": (
        "hd-painter,checkpoint={}/sd_inpainting,speed=deep-2", "Leave deep-2 out.",
        ["hd-painter,checkpoint={}/sd_inpainting"],
    ),
    "nothing left out": (
        f"{BRUSHNET},steps=1,speed=branch-2", "Leave it out, or take more steps.",
        [f"{BRUSHNET},steps=1", f"{BRUSHNET},steps=2,speed=branch-2"],
    ),
    "an option of another variant": (
        "blended-latent,variant=script,skip=1", "variant=script has no skip. Leave it out.",
        ["blended-latent,variant=script"],
    ),
    "another scheduler": (
        "blended-latent,scheduler=unipc", "Leave scheduler out.", ["blended-latent"],
    ),
    "another noise schedule": (
        "blended-latent,base={}/other", "Choose another base.", ["blended-latent,base={}/base"],
    ),
    "no base": (
        "latent-copy,base={}/nothing", "Pass base=FOLDER, a folder that a stock diffusers pipeline was saved to",
        ["latent-copy,base={}/base"],
    ),
    "no weights beside the base": (
        "controlnet,checkpoint={}/nothing", "Pass checkpoint=FOLDER or FILE",
        ["controlnet,checkpoint={}/controlnet",
         "controlnet,checkpoint={}/controlnet/diffusion_pytorch_model.safetensors"],
    ),
    "no published weights": (
        "controlnet,preset=sd15,checkpoint={}/nothing", "Pass checkpoint=FOLDER or FILE: published at https://",
        ["controlnet,preset=sd15,checkpoint={}/controlnet"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_on_a_method_works(case: str, folder: Path) -> None:
    refused, advice, instead = ADVICE[case]
    with pytest.raises(BrushbenchError) as error:
        one_image(refused, folder)
    assert advice in " ".join(str(error.value).split())
    for spec in instead:
        one_image(spec, folder)


def test_a_method_on_a_base_of_the_sdxl_family_is_replaced_as_the_message_says(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BrushbenchError, match=r"Choose preset=sd15; of SDXL there is sdxl-inpainting\."):
        one_image("blended-latent,base={}/xl", folder)
    one_image("blended-latent", folder)  # a base of the kind of preset=sd15
    save_pipeline("StableDiffusionXLInpaintPipeline", tmp_path / "model")
    method = load_inpainter(f"sdxl-inpainting,model={tmp_path / 'model'},size=own,steps=2", device="cpu")
    method.inpaint([make_request(0, 32, 32)])


def test_a_model_that_cannot_be_repeated_is_saved_with_another_scheduler_or_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "StableDiffusionInpaintPipeline"
    save_pipeline(name, tmp_path / "model")
    spec = f"diffusers,class={name},model={tmp_path / 'model'},steps=2"
    random = type(load_inpainter(spec, device="cpu").pipe.scheduler)  # type: ignore[attr-defined]
    step = random.step
    monkeypatch.setattr(random, "step", lambda self, *args, **more: (torch.randn(1), step(self, *args, **more))[1])
    request = make_request(0, 32, 32)
    with pytest.raises(BrushbenchError) as error:
        load_inpainter(spec, device="cpu").inpaint([request])
    assert "Save the model with a deterministic scheduler, or choose another class." in str(error.value)
    pipe = getattr(diffusers, name).from_pretrained(tmp_path / "model")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "model")
    load_inpainter(spec, device="cpu").inpaint([request])
    save_pipeline("FluxFillPipeline", tmp_path / "flux")
    spec = f"diffusers,class=FluxFillPipeline,model={tmp_path / 'nothing'},steps=2"
    with pytest.raises(BrushbenchError, match="Pass model=FOLDER"):
        load_inpainter(spec, device="cpu")
    spec = spec.replace("nothing", "flux")
    load_inpainter(spec, device="cpu").inpaint([request])


def test_a_single_file_gets_its_configurations_or_becomes_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(folder / "base", tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    alone = (
        write_single_file(folder / "base", tmp_path / "alone" / "model.safetensors")
        if ((tmp_path / "alone").mkdir() is None)
        else None
    )
    with pytest.raises(BrushbenchError) as error:
        load_base(find_base("tiny", alone))
    advice = (
        "Save it as a folder with save_pretrained, or put the file beside a model_index.json and its configurations"
    )
    assert advice in str(error.value)
    shutil.copy(alone, tmp_path / "base" / "model.safetensors")
    pipe = load_base(find_base("tiny", tmp_path / "base" / "model.safetensors"))
    pipe.save_pretrained(tmp_path / "saved")
    one_image(f"latent-copy,base={tmp_path / 'saved'}", folder)


def test_a_damaged_folder_is_saved_again(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base", tmp_path / "base")
    next((tmp_path / "base" / "unet").glob("*.safetensors")).write_bytes(b"x")
    with pytest.raises(BrushbenchError, match="Save it again with save_pretrained"):
        load_base(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    load_base(folder / "base").save_pretrained(tmp_path / "base")
    load_base(tmp_path / "base")


def test_a_folder_of_several_networks_is_named_by_its_file_or_gets_a_config(folder: Path, tmp_path: Path) -> None:
    source = folder / "sd_inpainting" / "unet"
    for name in ("a", "b"):
        shutil.copy(source / "diffusion_pytorch_model.safetensors", tmp_path / f"{name}.safetensors")
    config = json.loads((source / "config.json").read_text())
    load = partial(load_network, UNet2DConditionModel, config=config)
    with pytest.raises(BrushbenchError, match=r"it holds 2 \.safetensors files, expected one, or a config\.json"):
        load(tmp_path)
    load(tmp_path / "a.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "diffusion_pytorch_model.safetensors")
    load(tmp_path)


def test_the_authors_folders_are_put_into_one_as_the_message_says(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BrushbenchError) as error:
        find_checkpoint("sdxl", "random", str(tmp_path / "nothing"))
    assert "Fetch the folders segmentation_mask_brushnet_ckpt_sdxl_v1 and random_mask_brushnet_ckpt_sdxl_v0 by" in (
        str(error.value)
    )
    both = re.findall(r"\S+_mask_brushnet_ckpt_sdxl_v\d", str(error.value))
    assert len(both) == 2
    assert "by hand from" in str(error.value)
    for name in both:
        shutil.copytree(folder / "brushnet", tmp_path / "one" / name)
    one_image(f"brushnet,checkpoint={tmp_path / 'one'}", folder)
    with pytest.raises(BrushbenchError, match="masks=random does without this one") as error:
        find_checkpoint("tiny", "segmentation", str(tmp_path / "nothing"))
    shutil.rmtree(tmp_path / "one" / both[0])  # of segmentation
    one_image(f"brushnet,checkpoint={tmp_path / 'one'},masks=random", folder)


def test_a_caption_that_pushes_its_word_out_is_shortened(folder: Path) -> None:
    method = PowerPaint(base=str(folder / "base"), checkpoint=str(folder / "powerpaint"), steps=1, device="cpu")
    with pytest.warns(UserWarning, match="Shorten the caption 'a red star"):
        encode_text(method.tokenizer, method.text_encoder, ["a red star " * 20 + "P_obj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_text(method.tokenizer, method.text_encoder, ["a red star P_obj"])


def test_an_eta_that_asks_for_too_much_noise_is_made_smaller() -> None:
    latents = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 4, 4))).float()
    step = (latents, latents, latents, 999, 499)
    with pytest.raises(ValueError, match=r"Take a smaller eta\."):
        _step(*step, eta=9.0, sigma="ddim")
    _step(*step, eta=0.1, sigma="ddim")


def test_every_step_of_a_loop_gets_its_noise(folder: Path) -> None:
    clean, text = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 32)
    unet = load_base(folder / "base").unet
    loop = partial(
        denoise, unet, clean, torch.ones(1, 1, 8, 8), text, text, variant="paper", steps=2, guidance=1.0, latents=clean
    )
    with pytest.raises(ValueError, match=r"Got 1 noises for 2 steps; pass one for each\."):
        loop(noises=[clean])
    loop(noises=[clean, clean])
