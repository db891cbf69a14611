"""BrushNet inside stock pipelines: equal to the BrushNet pipelines, silent when it should be, and gone afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from brushnet import BrushNetModel, attach, attachment, encode_conditioning, inject
from tests.brushnet.tiny import make_branch, make_cond, make_inputs, make_unet, relative
from tests.brushnet.tiny_pipelines import generator, make_picture, make_pipe, make_xl_pipe

SIZE = 32  # pixels: latents of 4 x 4


def stock(kind: type[DiffusionPipeline], **more: Any) -> DiffusionPipeline:
    """A stock pipeline of the tiny components."""
    ours = make_xl_pipe() if "XL" in kind.__name__ else make_pipe()
    components = {name: part for name, part in ours.components.items() if name != "brushnet"} | more
    options = {"add_watermarker": False} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    pipe = kind(**components, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def options(batch: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": ["a cat"] * batch,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "height": SIZE,
        "width": SIZE,
        "latents": torch.randn(batch, 4, SIZE // 8, SIZE // 8, generator=generator(1)),
        "output_type": "latent",
    } | changes


def pictures(count: int = 1) -> dict[str, Any]:
    images, holes = zip(*(make_picture(seed, SIZE, SIZE) for seed in range(count)), strict=True)
    return {"image": np.stack(images), "mask": np.stack(holes)}


def count_rows(brushnet: BrushNetModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write down the batch of every call of the branch."""
    rows: list[int] = []
    forward = brushnet.forward

    def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(brushnet, "forward", counted)
    return rows


def hook_counts(module: nn.Module) -> list[int]:
    return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]


# ---------------------------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_attached_stock_pipeline_equals_the_brushnet_pipeline(guidance: float, guess_mode: bool) -> None:
    pipe, brushnet = stock(StableDiffusionPipeline), make_branch(make_unet())
    call = options(2, guidance_scale=guidance)
    with attach(pipe, brushnet, **pictures(2), conditioning_scale=0.7, guess_mode=guess_mode):
        ours = pipe(**call).images
    theirs = make_pipe(brushnet=brushnet)(
        **call, **pictures(2), brushnet_conditioning_scale=0.7, guess_mode=guess_mode
    ).images
    assert relative(ours, theirs) < 1e-5
    assert relative(ours, pipe(**call).images) > 1e-3


def test_attached_sdxl_equals_the_brushnet_pipeline() -> None:
    pipe, brushnet = stock(StableDiffusionXLPipeline), make_branch(make_unet("sdxl"))
    with attach(pipe, brushnet, **pictures()):
        ours = pipe(**options()).images
    assert relative(ours, make_xl_pipe(brushnet=brushnet)(**options(), **pictures()).images) < 1e-5
    assert relative(ours, pipe(**options()).images) > 1e-3


STOCK = {
    "text-to-image": (StableDiffusionPipeline, "sd"),
    "image-to-image": (StableDiffusionImg2ImgPipeline, "sd"),
    "inpainting": (StableDiffusionInpaintPipeline, "sd"),
    "inpainting, nine channels": (StableDiffusionInpaintPipeline, "sd"),
    "controlnet": (StableDiffusionControlNetPipeline, "sd"),
    "perturbed attention": (StableDiffusionPAGPipeline, "sd"),
    "XL": (StableDiffusionXLPipeline, "sdxl"),
    "XL image-to-image": (StableDiffusionXLImg2ImgPipeline, "sdxl"),
}


def arguments(task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return components and call arguments; what starts from a picture takes no initial latents."""
    components: dict[str, Any] = {}
    call, picture = options(), torch.rand(1, 3, SIZE, SIZE, generator=generator(3))
    if task == "controlnet":
        with torch.random.fork_rng():
            torch.manual_seed(6)
            controlnet = ControlNetModel.from_unet(make_unet(), conditioning_embedding_out_channels=(4,) * 4)
        return {"controlnet": controlnet.eval()}, call | {"image": picture}
    if task == "perturbed attention":
        return components, call | {"pag_scale": 2.0}
    if "image-to-image" in task or "inpainting" in task:
        del call["latents"]
        call |= {"image": picture, "num_inference_steps": 4}
    if "image-to-image" in task:
        del call["height"], call["width"]
    if "inpainting" in task:
        call["mask_image"] = picture[:, :1].round()
    if "nine channels" in task:
        components["unet"] = make_unet(in_channels=9)
    return components, call


@pytest.mark.parametrize("task", STOCK)
def test_any_stock_pipeline(task: str) -> None:
    kind, family = STOCK[task]
    components, call = arguments(task)
    pipe, base = stock(kind, **components), make_unet(family)

    def run() -> Tensor:
        return pipe(**call, generator=generator(5)).images

    plain = run()
    with attach(pipe, BrushNetModel.from_unet(base), **pictures()):  # untrained: adds exact zeros
        assert torch.equal(run(), plain)
    with attach(pipe, make_branch(base), **pictures(), conditioning_scale=0):
        assert torch.equal(run(), plain)
    with attach(pipe, make_branch(base), **pictures()):
        assert relative(run(), plain) > 1e-3
    assert torch.equal(run(), plain)


@pytest.mark.parametrize(
    ("kind", "guidance", "guess_mode", "rows"),
    [
        (StableDiffusionPipeline, 3.0, False, [2, 2]),
        (StableDiffusionPipeline, 3.0, True, [2, 2]),
        (StableDiffusionPipeline, 1.0, False, [2, 2]),
        (StableDiffusionXLPipeline, 3.0, False, [4, 4]),
        (StableDiffusionPAGPipeline, 3.0, False, [6, 6]),
    ],
)
def test_branch_runs_once_for_both_guidance_halves(
    kind: type[DiffusionPipeline], guidance: float, guess_mode: bool, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = stock(kind)
    brushnet = make_branch(make_unet("sdxl" if "XL" in kind.__name__ else "sd"))
    counted = count_rows(brushnet, monkeypatch)
    with attach(pipe, brushnet, **pictures(2), guess_mode=guess_mode):
        pipe(**options(2, guidance_scale=guidance))
    assert counted == rows


def test_pictures_are_encoded_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, sizes = stock(StableDiffusionPipeline), []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        sizes.append((kwargs["height"], kwargs["width"], kwargs["batch_size"]))
        return encode_conditioning(*args, **kwargs)

    monkeypatch.setattr(attachment, "encode_conditioning", spy)
    with attach(pipe, make_branch(pipe.unet), **pictures()) as same:
        assert same is pipe
        pipe(**options())
        pipe(**options())
        pipe(**options(latents=None, height=16, width=24))
        pipe(**options(1, latents=None, num_images_per_prompt=2))
    assert sizes == [(32, 32, 1), (16, 24, 1), (32, 32, 2)]


def test_ready_conditioning_and_own_text() -> None:
    pipe, call = stock(StableDiffusionPipeline), options()
    brushnet = make_branch(pipe.unet)
    given = encode_conditioning(pipe.vae, image=pictures()["image"], hole=pictures()["mask"])
    with attach(pipe, brushnet, **pictures()):
        expected = pipe(**call).images
    with attach(pipe, brushnet, conditioning_latents=given):
        assert torch.equal(pipe(**call).images, expected)

    reader = make_branch(pipe.unet, cross_attention=True)
    texts = make_inputs(pipe.unet, batch=2)["encoder_hidden_states"]
    results = []
    for text in (None, texts, texts[:1]):
        with attach(pipe, reader, conditioning_latents=given, encoder_hidden_states=text):
            results.append(pipe(**call).images)
    assert relative(results[1], results[0]) > 1e-4
    assert relative(results[2], results[1]) > 1e-4


# ---------------------------------------------------------------------------------------------------- no trace


def test_no_trace_is_left() -> None:
    pipe = stock(StableDiffusionPipeline)
    before, plain = hook_counts(pipe.unet), pipe(**options()).images
    with attach(pipe, make_branch(pipe.unet), **pictures()):
        pipe(**options())
    with pytest.raises(RuntimeError, match="within"), attach(pipe, make_branch(pipe.unet), **pictures()):
        raise RuntimeError("within")
    assert hook_counts(pipe.unet) == before
    assert "brushnet" not in pipe.components
    assert torch.equal(pipe(**options()).images, plain)


def test_compiled_unet_inside_an_injection() -> None:
    pipe = stock(StableDiffusionPipeline, unet=make_unet("single"))
    pipe.vae_scale_factor = 8
    brushnet = make_branch(pipe.unet)
    with attach(pipe, brushnet, conditioning_latents=make_cond(1, (4, 4))):
        expected = pipe(**options()).images
    torch.compiler.reset()
    with inject(pipe.unet):
        pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
        with attach(pipe, torch.compile(brushnet, backend="eager"), conditioning_latents=make_cond(1, (4, 4))):
            assert relative(pipe(**options()).images, expected) < 1e-5
    with pytest.raises(RuntimeError, match="compiled before the injection"), attach(pipe, brushnet, **pictures()):
        pass
    torch.compiler.reset()


# ---------------------------------------------------------------------------------------------------- bad input


def test_bad_input_gets_one_clear_sentence() -> None:
    pipe = stock(StableDiffusionPipeline)
    brushnet, picture = make_branch(pipe.unet), pictures()
    both = picture | {"conditioning_latents": make_cond(1)}
    for wrong in ({}, {"image": picture["image"]}, both, both | {"mask": None}, both | {"image": None}):
        with (
            pytest.raises(ValueError, match="Pass image and mask, or conditioning_latents"),
            attach(pipe, brushnet, **wrong),
        ):
            pass
    for shape in ((1, 4, 4, 4), (5, 4, 4), (4,)):
        with (
            pytest.raises(ValueError, match=r"expected \(N, 5, h, w\)"),
            attach(pipe, brushnet, conditioning_latents=torch.zeros(shape)),
        ):
            pass
    with (
        pytest.raises(ValueError, match="no vae; pass conditioning_latents"),
        attach(stock(StableDiffusionPipeline, vae=None), brushnet, **picture),
    ):
        pass
    with (
        pytest.raises(ValueError, match="different base models"),
        attach(pipe, make_branch(make_unet("sdxl")), **picture),
    ):
        pass
    with attach(pipe, brushnet, **pictures(2)), pytest.raises(ValueError, match=r"2 pictures .* 1 samples"):
        pipe(**options())
    with (
        attach(pipe, brushnet, conditioning_latents=make_cond(1)),
        pytest.raises(ValueError, match="works on 1 samples of 4x4"),
    ):
        pipe(**options())
    with (
        pytest.raises(TypeError, match="conditioning_scale must be one finite number"),
        attach(pipe, brushnet, **picture, conditioning_scale="1"),
    ):
        pass
    brushnet.conv_in_condition.weight[0, 0, 0, 0] = float("nan")
    with (
        attach(pipe, brushnet, **picture),
        pytest.raises(ValueError, match=r"NaN or infinity in conv_in_condition.weight"),
    ):
        pipe(**options())
