"""What a message of `brushnet` advises works: an entry is refused, the message names the remedy, and that is tried."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import brushnet
from brushnet import BrushNetModel, acceleration, attach, blend, encode_conditioning, inject
from brushnet.checkpoints import load_brushnet
from brushnet.conditioning import draw_noise
from tests.brushnet.tiny import make_branch, make_cond, make_inputs, make_unet
from tests.brushnet.tiny_pipelines import generator, make_picture, make_pipe, make_vae, make_xl_pipe

IMAGE, HOLE = make_picture()
PIL_IMAGE, PIL_MASK = PIL.Image.fromarray(IMAGE), PIL.Image.fromarray(HOLE)
LATENTS = make_cond(1, (4, 4))
UNET = make_unet()
BRANCH = make_branch(UNET)
VAE = make_vae()
Try = Callable[[], object]


def ours(pipe: Any = None, **changes: Any) -> Any:
    """Call a BrushNet pipeline: two steps, no decoding."""
    call = {"prompt": "ab", "image": IMAGE, "mask": HOLE, "num_inference_steps": 2, "output_type": "latent"}
    return (pipe or make_pipe(unet=UNET, brushnet=BRANCH, vae=VAE))(**call | changes).images


def stock(**parts: Any) -> StableDiffusionPipeline:
    components = make_pipe(unet=UNET, brushnet=BRANCH, vae=VAE).components
    components.pop("brushnet")
    pipe = StableDiffusionPipeline(**components | parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def attached(pipe: StableDiffusionPipeline | None = None, **options: Any) -> Any:
    """Call a stock pipeline with the branch attached."""
    pipe = pipe or stock()
    with attach(pipe, BRANCH, **options):
        return pipe("ab", num_inference_steps=2, output_type="latent", height=32, width=32).images


def encode(image: Any = IMAGE, hole: Any = HOLE, **options: Any) -> torch.Tensor:
    return encode_conditioning(VAE, image, hole, **options)


def with_nan(model: torch.nn.Module) -> torch.nn.Module:
    next(model.parameters()).view(-1)[0] = float("nan")
    return model


def embeddings(pipe: Any) -> dict[str, Any]:
    prompt, negative = pipe.encode_prompt("ab", "cpu", 1, True)
    return {"prompt": None, "prompt_embeds": prompt, "negative_prompt_embeds": negative}


def without(*parts: str, **given: Any) -> Any:
    """A pipeline that lacks parts, unless they are given."""
    return make_pipe(**{"unet": UNET, "brushnet": BRANCH, "vae": VAE} | dict.fromkeys(parts) | given)


def unet_call(unet: Any = UNET, output: Any = None) -> torch.Tensor:
    inputs = make_inputs(UNET)
    with inject(unet, output):
        return unet(**inputs).sample


def branch_call(batch: int = 2) -> Any:
    inputs = make_inputs(UNET, batch)
    return BRANCH(inputs["sample"], inputs["timestep"], make_cond(batch))


def from_a_thread(work: Try) -> None:
    """Run a call in another thread, and raise here what it raised there."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    for error in raised:
        raise error


def beside_an_attached(work: Try) -> None:
    with attach(stock(), BRANCH, image=IMAGE, mask=HOLE):
        from_a_thread(work)


def transparent() -> PIL.Image.Image:
    mask = PIL.Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (8, 8, 16, 16))
    return mask


def window_without_timesteps(prepare: bool) -> None:
    pipe = stock()
    pipe.scheduler.timesteps = None
    with attach(pipe, BRANCH, image=IMAGE, mask=HOLE, control_guidance_end=0.5):
        if prepare:
            pipe.scheduler.set_timesteps(2)
        pipe.unet(LATENTS[:, :4], torch.tensor(5), torch.zeros(1, 5, 12))


WIDE = np.repeat(HOLE, 2, axis=1)
TWO = [IMAGE, IMAGE]
DAMAGED = partial(with_nan, make_branch(UNET))
GUIDED = {"guidance_scale": 3.0}
# a call that is refused, what the message advises, and the calls that follow the advice
REMEDIES: dict[str, tuple[Try, str, list[Try]]] = {
    # attach
    "attach: nothing": (
        attached, "Pass image and mask, or conditioning_latents, and not both.",
        [lambda: attached(image=IMAGE, mask=HOLE), lambda: attached(conditioning_latents=LATENTS)],
    ),
    "attach: no VAE": (
        lambda: attached(stock(vae=None), image=IMAGE, mask=HOLE),
        "The pipeline has no vae; pass conditioning_latents, or load the missing part.",
        [lambda: attached(stock(vae=VAE), image=IMAGE, mask=HOLE)],
    ),
    "attach: rows": (
        lambda: attached(conditioning_latents=make_cond(2, (4, 4))), "Pass one row, or one per sample, of that size.",
        [lambda: attached(conditioning_latents=LATENTS)],
    ),
    "attach: size": (
        lambda: attached(conditioning_latents=make_cond(1, (8, 8))), "Pass one row, or one per sample, of that size.",
        [lambda: attached(conditioning_latents=LATENTS)],
    ),
    "window": (
        lambda: window_without_timesteps(prepare=False), "call set_timesteps first",
        [lambda: window_without_timesteps(prepare=True)],
    ),
    # pipelines
    "no image": (
        lambda: ours(image=None), "Got no image; pass image and mask (white = repaint), or conditioning_latents.",
        [ours, lambda: ours(image=None, mask=None, conditioning_latents=LATENTS)],
    ),
    "no mask": (lambda: ours(mask=None), "Got no mask; pass image and mask", [ours]),
    "two sizes": (
        lambda: ours(image=None, mask=None, conditioning_latents=LATENTS, height=64),
        "Got height=64, but conditioning_latents of 32 pixels; leave height out.",
        [lambda: ours(image=None, mask=None, conditioning_latents=LATENTS)],
    ),
    "no prompt": (
        lambda: ours(prompt=None), "pass exactly one of them",
        [ours, lambda: ours(**embeddings(without()))],
    ),
    "both prompts": (
        lambda: ours(**embeddings(without()) | {"prompt": "ab"}), "pass exactly one of them",
        [lambda: ours(**embeddings(without()))],
    ),
    "empty prompts": (lambda: ours(prompt=[]), "Got an empty list of prompts; pass at least one.",
                      [lambda: ours(prompt=["ab"])]),
    "images for prompts": (
        lambda: ours(prompt=["ab"] * 3, image=TWO), "Got 2 images for 3 prompts; pass one, or one per prompt.",
        [lambda: ours(prompt=["ab"] * 3), lambda: ours(prompt=["ab"] * 2, image=TWO)],
    ),
    "no text encoder": (
        lambda: ours(without("text_encoder")), "The pipeline has no text_encoder; pass prompt_embeds, or load the",
        [lambda: ours(without("text_encoder"), **embeddings(without())), lambda: ours(without())],
    ),
    "no negative text": (
        lambda: ours(without("text_encoder"), **embeddings(without()) | {"negative_prompt_embeds": None}),
        "pass negative_prompt_embeds, or load the missing part",
        [lambda: ours(without("text_encoder"), **embeddings(without()))],
    ),
    "no VAE": (
        lambda: ours(without("vae")), "The pipeline has no vae; pass conditioning_latents, or load the missing part.",
        [lambda: ours(without("vae"), image=None, mask=None, conditioning_latents=LATENTS), lambda: ours(without())],
    ),
    "no VAE to decode with": (
        lambda: ours(without("vae"), image=None, mask=None, conditioning_latents=LATENTS, output_type="pil"),
        'The pipeline has no vae; pass output_type="latent", or load the missing part.',
        [lambda: ours(without("vae"), image=None, mask=None, conditioning_latents=LATENTS, output_type="latent")],
    ),
    "an inpainting U-Net": (
        lambda: make_pipe(unet=make_unet(in_channels=9), brushnet=BRANCH),
        "give the base model's text-to-image U-Net. An inpainting U-Net keeps its own pipeline: see brushnet.attach.",
        [lambda: make_pipe(unet=UNET, brushnet=BRANCH)],
    ),
    "a branch of another base": (
        lambda: make_xl_pipe(brushnet=BRANCH), "Use an SD 1.5 branch with an SD 1.5 base, an SDXL branch with an SDXL",
        [make_pipe, make_xl_pipe],
    ),
    "a misspelt argument": (
        lambda: ours(mask_image=HOLE), "is mask= meant?", [lambda: ours(mask=HOLE)],
    ),
    "no generator": (
        lambda: ours(generator=0), "torch.Generator().manual_seed(0)",
        [lambda: ours(generator=torch.Generator().manual_seed(0))],
    ),
    "generators": (
        lambda: draw_noise((3, 4, 4, 4), [generator(0)] * 2), "Got 2 generators for 3 samples; pass one, or one per",
        [lambda: draw_noise((3, 4, 4, 4), generator(0)), lambda: draw_noise((3, 4, 4, 4), [generator(0)] * 3)],
    ),
    # pictures and masks
    "no picture": (lambda: encode([]), "Got an empty list of images; pass at least one.", [lambda: encode([IMAGE])]),
    "masks for images": (
        lambda: encode(TWO, [HOLE] * 3), "Got 2 images and 3 masks; pass as many, or one for all.",
        [lambda: encode(TWO, [HOLE] * 2), lambda: encode(TWO, HOLE)],
    ),
    "a mask of another size": (
        lambda: encode(PIL_IMAGE, PIL.Image.fromarray(WIDE)),
        "pass a mask of the image's size. To resize a PIL mask: mask.resize(image.size, PIL.Image.Resampling.NEAREST)",
        [lambda: encode(PIL_IMAGE, PIL.Image.fromarray(WIDE).resize(PIL_IMAGE.size, PIL.Image.Resampling.NEAREST))],
    ),
    "rows of pictures": (
        lambda: encode(TWO, HOLE, batch_size=3), "Got 2 pictures or masks for 3 samples; pass one, or one per prompt.",
        [lambda: encode(IMAGE, HOLE, batch_size=3), lambda: encode([IMAGE] * 3, HOLE, batch_size=3)],
    ),
    "masks of two forms": (
        lambda: encode(TWO, [PIL_MASK, HOLE]), "pass them in one form and on one device",
        [lambda: encode(TWO, [PIL_MASK] * 2), lambda: encode(TWO, [HOLE] * 2)],
    ),
    "floats of PIL": (
        lambda: encode(IMAGE, PIL.Image.fromarray(HOLE.astype(np.float32))),
        "pass an array in 0..1, or convert it to L",
        [
            lambda: encode(IMAGE, HOLE.astype(np.float32)),
            lambda: encode(IMAGE, PIL.Image.fromarray(255 * HOLE.astype(np.float32)).convert("L")),
        ],
    ),
    "a transparent mask": (
        lambda: encode(PIL_IMAGE, transparent()),
        (
            "pass an opaque mask, white = repaint. If what is transparent is to be repainted: "
            'PIL.ImageOps.invert(mask.convert("RGBA").getchannel("A"))'
        ),
        [
            lambda: encode(PIL_IMAGE, PIL_MASK),
            lambda: encode(PIL_IMAGE, PIL.ImageOps.invert(transparent().convert("RGBA").getchannel("A"))),
        ],
    ),
    "values that overshoot": (
        lambda: encode(IMAGE / 250.0), "Where a resize overshoots, clip to 0..1.",
        [lambda: encode(np.clip(IMAGE / 250.0, 0, 1))],
    ),
    "a VAE of NaN": (
        lambda: encode_conditioning(with_nan(make_vae()), IMAGE, HOLE), "load it again, or in float32", [encode],
    ),
    # network and injection
    "an inpainting U-Net for a branch": (
        lambda: BrushNetModel.from_unet(make_unet(in_channels=9)),
        "Pass the base text-to-image U-Net, not an inpainting one.", [lambda: BrushNetModel.from_unet(make_unet())],
    ),
    "a U-Net with adapters": (
        lambda: BrushNetModel.from_unet(with_adapter()), "Give it the base model's own U-Net, without adapters.",
        [lambda: BrushNetModel.from_unet(make_unet())],
    ),
    "residuals of another batch": (
        lambda: unet_call(output=branch_call(1)), "Run the branch on the same latents, at the U-Net's batch size.",
        [lambda: unet_call(output=branch_call(2))],
    ),
    "a wrapped U-Net": (
        lambda: unet_call(torch.nn.Sequential(UNET)), "Unwrap it first",
        [lambda: unet_call(torch.nn.Sequential(UNET)[0])],
    ),
    "a U-Net without a middle": (
        lambda: unet_call(make_unet(mid_block_type=None)), "Use a U-Net with one.", [lambda: unet_call(make_unet())],
    ),
    "another thread": (
        lambda: beside_an_attached(lambda: UNET(**make_inputs(UNET))),
        "Open attach or inject in the thread that calls the U-Net, or give each thread its own U-Net.",
        [
            lambda: beside_an_attached(lambda: attached(image=IMAGE, mask=HOLE)),
            lambda: beside_an_attached(lambda: make_unet()(**make_inputs(UNET))),
        ],
    ),
    "residuals of NaN": (
        lambda: ours(make_pipe(unet=UNET, brushnet=DAMAGED(), vae=VAE)),
        "the file is damaged; download it again", [ours],
    ),
    "a prediction of NaN": (
        lambda: ours(make_pipe(unet=with_nan(make_unet()), brushnet=BRANCH, vae=VAE)),
        "load the weights again, or in float32", [ours],
    ),
    # acceleration
    "fused without attention": (
        lambda: accelerate("fused", make_unet("text-free", mid_block_type="UNetMidBlock2D")),
        "'fused' does nothing on it. Leave it out.",
        [lambda: accelerate("", make_unet("text-free", mid_block_type="UNetMidBlock2D"))],
    ),
    "prepacked without a large weight": (
        lambda: accelerate("prepacked", make_unet()), "'prepacked' does nothing on it. Leave it out.",
        [lambda: accelerate("", make_unet())],
    ),
    # blending
    "blend: grey levels": (
        lambda: blend(IMAGE[..., 0], IMAGE, HOLE), "convert it to RGB first",
        [lambda: blend(np.asarray(PIL.Image.fromarray(IMAGE[..., 0]).convert("RGB")), IMAGE, HOLE)],
    ),
    "blend: a hole of levels": (
        lambda: blend(IMAGE, IMAGE, HOLE * np.uint8(255)), "compare it with a threshold first",
        [lambda: blend(IMAGE, IMAGE, HOLE * np.uint8(255) >= 128)],
    ),
    "blend: sizes": (
        lambda: blend(IMAGE, IMAGE[:16, :16], HOLE), "resize before blending",
        [lambda: blend(IMAGE, np.asarray(PIL.Image.fromarray(IMAGE[:16, :16]).resize((32, 32))), HOLE)],
    ),
    "training: sizes": (
        lambda: learn(IMAGE, HOLE, IMAGE[:16], HOLE[:16]), "Crop the pictures first.",
        [lambda: learn(IMAGE[:16, :16], HOLE[:16, :16], IMAGE[16:, 16:], HOLE[16:, 16:])],
    ),
}  # fmt: skip


def with_adapter() -> Any:
    """A U-Net whose attention was given other names by a low-rank adapter."""
    unet = make_unet()
    block = unet.down_blocks[0].resnets[0]
    block.conv1 = torch.nn.Sequential(block.conv1)
    return unet


def accelerate(speed: str, unet: Any) -> None:
    acceleration.prepare_unet(unet, acceleration.Speed.parse(speed))


def learn(*pairs: np.ndarray) -> None:
    """Check pictures and holes of a training step."""
    from brushnet.training import _checked

    _checked([(pairs[i], pairs[i + 1], "") for i in range(0, len(pairs), 2)], 8)


@pytest.mark.parametrize("case", REMEDIES)
def test_the_remedy_that_a_refusal_names_works(case: str) -> None:
    wrong, advice, right = REMEDIES[case]
    with pytest.raises((ValueError, TypeError, RuntimeError, OSError)) as refused:
        wrong()
    assert advice in " ".join(str(refused.value).split())
    for work in right:
        work()


# Files ----------------------------------------------------------------------------------------------------------------


class Home(NamedTuple):
    """A folder with a saved branch, and its file of weights."""

    path: Path
    file: Path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    BRANCH.save_pretrained(tmp_path)
    return Home(tmp_path, tmp_path / "diffusion_pytorch_model.safetensors")


def pickled(home: Home) -> None:
    """What opens only with code: a whole module."""
    torch.save(BRANCH, home.path / "branch.bin")
    home.file.rename(home.path / "kept")


FILES: dict[str, tuple[Callable[[Home], object], str, Callable[[Home], object]]] = {
    "two files": (
        lambda h: [save_file(load_file(h.file), h.path / f"{n}.safetensors") for n in "ab"] and h.file.unlink(),
        "its files of weights: a.safetensors, b.safetensors. Name the file itself, if it is one of these.",
        lambda h: load_brushnet(h.path / "a.safetensors"),
    ),
    "a shard is missing": (
        lambda h: h.file.rename(h.path / "diffusion_pytorch_model-00001-of-00002.safetensors"),
        "fetch the others too",
        lambda h: save_file({}, h.path / "diffusion_pytorch_model-00002-of-00002.safetensors"),
    ),
    "a config that is none": (
        lambda h: (h.path / "config.json").rename(h.path / "kept") and (h.path / "config.json").write_text("<html>"),
        "expected a small JSON object. Fetch it again.",
        lambda h: (h.path / "kept").rename(h.path / "config.json"),
    ),
    "a pickle of code": (
        pickled, "a pickle that could run code is not opened. Use a .safetensors file.",
        lambda h: (h.path / "kept").rename(h.file),
    ),
    "an empty file": (
        lambda h: h.file.rename(h.path / "kept") and h.file.touch(), "is empty; download it again",
        lambda h: (h.path / "kept").rename(h.file),
    ),
    "a web page": (
        lambda h: h.file.rename(h.path / "kept") and h.file.write_text("<!DOCTYPE html>"),
        "Open the link in a browser and download the file there.", lambda h: (h.path / "kept").rename(h.file),
    ),
    "a pointer": (
        lambda h: h.file.rename(h.path / "kept") and h.file.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run git lfs pull in its repository", lambda h: (h.path / "kept").rename(h.file),
    ),
    "a PyTorch file": (
        lambda h: h.file.rename(h.path / "kept") and torch.save(load_file(h.path / "kept"), h.file),
        "rename it to diffusion_pytorch_model.bin",
        lambda h: h.file.rename(h.path / "diffusion_pytorch_model.bin"),
    ),
    "whole numbers": (
        lambda h: h.file.rename(h.path / "kept") and save_file(
            {name: part.to(torch.int8) for name, part in load_file(h.path / "kept").items()}, h.file
        ),
        "Convert them with the tool that quantised them, or get the original file.",
        lambda h: save_file({name: part.half() for name, part in load_file(h.path / "kept").items()}, h.file),
    ),
    "NaN": (
        lambda h: h.file.rename(h.path / "kept") and save_file(
            {name: part * float("nan") for name, part in load_file(h.path / "kept").items()}, h.file
        ),
        "the file is damaged; download it again", lambda h: (h.path / "kept").rename(h.file),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_the_remedy_for_a_file_of_weights_works(case: str, home: Home) -> None:
    spoil, advice, mend = FILES[case]
    spoil(home)
    with pytest.raises((OSError, ValueError)) as refused:
        load_brushnet(home.path)
    assert advice in str(refused.value)
    loaded = mend(home)
    loaded = loaded if isinstance(loaded, BrushNetModel) else load_brushnet(home.path)
    assert len(loaded.state_dict()) == len(BRANCH.state_dict())


def test_a_pipeline_without_its_branch_is_loaded_as_the_message_says(home: Home) -> None:
    pipe = without("brushnet")
    with pytest.raises(ValueError, match=r"load it with brushnet=BrushNetModel\.from_pretrained"):
        ours(pipe)
    pipe.save_pretrained(home.path / "pipe")
    loaded = brushnet.StableDiffusionBrushNetPipeline.from_pretrained(
        home.path / "pipe", brushnet=BrushNetModel.from_pretrained(home.path)
    )
    ours(loaded)


def test_a_part_of_an_unknown_library_is_passed_as_the_message_says(home: Home) -> None:
    make_pipe(unet=UNET, brushnet=BRANCH, vae=VAE).save_pretrained(home.path / "pipe")
    index = home.path / "pipe" / "model_index.json"
    parts = json.loads(index.read_text())
    load = brushnet.StableDiffusionBrushNetPipeline.from_pretrained
    index.write_text(json.dumps(parts | {"vae": ["evil", "Vae"]}))
    advice = r"Write \[null, null\] there, load that part yourself, and pass it as vae=…"
    with pytest.raises(ValueError, match=advice):
        load(home.path / "pipe", vae=VAE)
    index.write_text(json.dumps(parts | {"vae": [None, None]}))
    ours(load(home.path / "pipe", vae=VAE))
