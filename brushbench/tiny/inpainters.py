"""Train the inpainting methods that the embedded BrushNet is compared with: SD Inpainting, ControlNet, PowerPaint v1.

All start from the embedded base, learn from the scenes and holes of the embedded BrushNets, and minimise the base's own
objective: predict the noise, plain mean squared error over the whole latent (BrushNet, sec. 3.2). Half of the holes are
those of the branch for segmentation masks, half brush strokes as for random masks. They are saved in the layout in
which the published weights of the method lie.

Sources: the model card of ``stable-diffusion-inpainting``; Zhang et al., ICCV 2023 (ControlNet) and the card of
``control_v11p_sd15_inpaint``; Zhuang et al., ECCV 2024 (PowerPaint). Where we differ: SD Inpainting and PowerPaint also
learnt from holes that cover the whole picture, here none do; ControlNet learnt from occlusions of optical flow.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from brushbench import assets
from brushbench.errors import UnknownNameError, UsageError
from brushbench.tiny.objectives import (
    ControlNetInpainting,
    PowerPaint,
    SdInpainting,
    is_attention,
    nine_channels,
    text_encoder_with_tasks,
)
from brushbench.tiny.text_to_image import MAX_TOKENS, load_text_to_image
from brushbench.training.brushdata import TrainingPicture
from brushbench.training.holes import HOLES, draw_hole, stream_rng
from brushbench.training.loop import Draw, contact_sheet, fit
from brushbench.training.settings import FitConfig, FitResult
from brushbench.training.streams import Scenes
from brushbench.types import JSON, NEUTRAL_GREY, Hole, Picture

__all__ = ["METHODS", "InpainterRecipe", "InpainterTask", "start_inpainter", "train_inpainter"]

METHODS = ("sd-inpainting", "controlnet", "powerpaint")
SHOWN, KIND, TASK = 3, 4, 5  # purposes that keep random streams apart; holes take the BrushNets' own
ATTENTIONS = "attentions.safetensors"  # what a PowerPaint that shares SD Inpainting's U-Net adds to it
ALL_DROPPED = 0.05  # share of PowerPaint's samples without caption and task word


@dataclass(frozen=True)
class InpainterRecipe:
    """What is trained; how is :class:`~brushbench.training.settings.FitConfig`'s.

    Attributes:
        method: one of :data:`METHODS`.
        base: folder of the base model, saved by ``brushbench train tiny text-to-image``.
        init_from: folder of saved weights of the same method to continue from, with a fresh optimizer; for
            ``powerpaint`` also those of ``sd-inpainting``, from which the published one started.
        blobs: share of segmentation holes that are an uneven disc round the object instead of its outline.
        caption_dropout: share of captions replaced by the empty one.
        share: of ``powerpaint``, train and save the U-Net's attention blocks and the task words alone; all else is read
            from the SD Inpainting that ``init_from`` names. Published: the whole U-Net.
    """

    method: str
    base: Path | None = None
    init_from: Path | None = None
    blobs: float = 0.33
    caption_dropout: float = 0.1
    share: bool = False


# --------------------------------------------------------------------------------------------------------------- task


@dataclass
class InpainterTask:
    """One method on the stream of scenes, for :func:`brushbench.training.loop.fit`."""

    objective: Any
    recipe: InpainterRecipe

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return pictures, holes, noise, timesteps and token ids of the stream's next scenes."""
        pictures = Scenes().take(draw.seed, draw.first, draw.size)
        holes = [
            self._hole(picture, stream_rng(draw.seed, place, HOLES), stream_rng(draw.seed, place, KIND))
            for place, picture in enumerate(pictures, start=draw.first)
        ]
        images = torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2).contiguous()
        generator = draw.generator()
        unet = self.objective.base.unet
        side, channels = unet.config.sample_size, unet.config.in_channels
        noise = torch.randn((draw.size, channels, side, side), generator=generator)
        timesteps = torch.randint(
            0, self.objective.schedule.config.num_train_timesteps, (draw.size,), generator=generator
        )
        dropped = torch.rand(draw.size, generator=generator) < self.recipe.caption_dropout
        captions = ["" if drop else p.caption for p, drop in zip(pictures, dropped.tolist(), strict=True)]
        keep = ~torch.from_numpy(np.stack(holes))[:, None]
        return {"images": images, "keep": keep, "noise": noise, "timesteps": timesteps} | self._text(
            captions, pictures, holes, draw
        )

    def _hole(self, picture: TrainingPicture, rng: np.random.Generator, kind: np.random.Generator) -> Hole:
        """Return the hole that a BrushNet of one of the two kinds, by chance, meets at this place."""
        masks = "segmentation" if kind.random() < 0.5 else "random"
        return draw_hole(picture, masks, self.recipe.blobs, rng)

    def _text(
        self, captions: Sequence[str], pictures: Sequence[TrainingPicture], holes: Sequence[Hole], draw: Draw
    ) -> dict[str, Tensor]:
        if not isinstance(self.objective, PowerPaint):
            return {"input_ids": self._ids([(caption, None) for caption in captions])}
        told = []
        for place, (picture, hole) in enumerate(zip(pictures, holes, strict=True), start=draw.first):
            told.append(task_of(picture, hole, stream_rng(draw.seed, place, TASK)))
        kept = ["" if words[0] is None else caption for caption, words in zip(captions, told, strict=True)]
        return {
            "ids_a": self._ids([(caption, words[0]) for caption, words in zip(kept, told, strict=True)]),
            "ids_b": self._ids([(caption, words[1]) for caption, words in zip(kept, told, strict=True)]),
            "fitting": torch.tensor([words[2] for words in told]),
        }

    def _ids(self, prompts: Sequence[tuple[str, str | None]]) -> Tensor:
        """Return int64 (n, tokens): captions, each followed by its task word, padded as the stock pipelines pad."""
        tokenizer = self.objective.base.tokenizer
        rows = []
        for caption, word in prompts:
            start, *text, end = tokenizer(caption).input_ids
            learned = self.objective.base.text_encoder.get_input_embeddings().ids(word) if word else []
            row = [start, *text[: MAX_TOKENS - 2 - len(learned)], *learned, end]
            rows.append(row + [tokenizer.pad_token_id] * (MAX_TOKENS - len(row)))
        return torch.tensor(rows)

    def pictures(self) -> Picture:
        """Return rows of input | result | reference of held-out scenes, made by the method's stock pipeline."""
        shown = Scenes().shown(16)
        holes = [self._hole(p, stream_rng(place, SHOWN), stream_rng(place, KIND)) for place, p in enumerate(shown)]
        results = sample_pictures(self, shown, holes)
        inputs = [
            np.where(hole[..., None], np.uint8(NEUTRAL_GREY), p.image) for p, hole in zip(shown, holes, strict=True)
        ]
        rows = [part for three in zip(inputs, results, [p.image for p in shown], strict=True) for part in three]
        return contact_sheet(np.stack(rows), 12)

    def save(self, folder: Path) -> None:
        """Write the weights in half precision, in the layout of the published ones, and ``recipe.json``."""
        if isinstance(self.objective, ControlNetInpainting):
            _half(self.objective.controlnet).save_pretrained(folder, safe_serialization=True)
        elif isinstance(self.objective, PowerPaint):
            _save_powerpaint(self.objective, folder)
        else:
            _half(self.objective.unet).save_pretrained(folder / "unet", safe_serialization=True)
        (folder / "recipe.json").write_text(json.dumps(self.identity(), indent=2) + "\n")

    def identity(self) -> dict[str, JSON]:
        """Return what must be equal for a checkpoint to be continued; where weights lie does not matter."""
        recipe = self.recipe
        told: dict[str, JSON] = {
            "model": recipe.method,
            "data": "scenes",
            "blobs": recipe.blobs,
            "caption_dropout": recipe.caption_dropout,
            "continued": recipe.init_from is not None,
        }
        return told | {"share": True} if recipe.share else told


def task_of(picture: TrainingPicture, hole: Hole, rng: np.random.Generator) -> tuple[str | None, str | None, float]:
    """Return the task words of prompts A and B that a hole stands for, and the share of A (PowerPaint, sec. 3.2, 3.3).

    A hole that is most of the picture is outpainting (``P_ctxt``). Among the others an object's hole, and half of the
    brush strokes, ask for the caption's object (``P_obj``); one object's hole in three tells how tightly the object
    fills it instead (``P_shape`` by the object's share of the hole, the rest ``P_ctxt``); other strokes are context.
    """
    chance, dropped = rng.random(2)
    if dropped < ALL_DROPPED:
        return None, None, 1.0
    if hole.mean() > 0.5:
        return "P_ctxt", "P_ctxt", 1.0
    covered = [mask for mask in picture.masks if (mask & hole).sum() >= 0.9 * mask.sum()]
    if not covered:
        return ("P_obj", "P_obj", 1.0) if chance < 0.5 else ("P_ctxt", "P_ctxt", 1.0)
    if chance < 2 / 3:
        return "P_obj", "P_obj", 1.0
    largest = max(covered, key=lambda mask: int(mask.sum()))
    return "P_shape", "P_ctxt", float((largest & hole).sum() / hole.sum())


def _half(network: Any) -> Any:
    saved = copy.deepcopy(network).to("cpu", torch.float16, memory_format=torch.contiguous_format)
    saved.register_to_config(_name_or_path="")
    return saved


def _save_powerpaint(objective: PowerPaint, folder: Path) -> None:
    """Write ``unet/`` and ``text_encoder/`` with the file and key names of JunhaoZhuang/PowerPaint-v1.

    One that shares SD Inpainting's U-Net has its attention blocks there, and the SHA-256 of the U-Net they belong to.
    """
    from safetensors.torch import save_file

    from brushbench.weights import sha256_file

    for name in ("unet", "text_encoder"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    unet = _half(objective.unet)
    unet.save_config(folder / "unet")
    state = unet.state_dict()
    if objective.over:
        state = {name: value for name, value in state.items() if is_attention(name)}
        save_file(state, folder / "unet" / ATTENTIONS, metadata={"over": sha256_file(objective.over)})
    else:
        save_file(state, folder / "unet" / "unet.safetensors")
    state = objective.base.text_encoder.state_dict()
    named = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in state.items()}
    halves = {key: value.half().contiguous() for key, value in named.items() if value.is_floating_point()}
    save_file(halves, folder / "text_encoder" / "text_encoder.safetensors")


@torch.no_grad()
def sample_pictures(task: InpainterTask, pictures: Sequence[TrainingPicture], holes: Sequence[Hole]) -> list[Picture]:
    """Return uint8 pictures by the stock pipeline of the method: 20 DDIM steps, guidance 4; text-guided for PowerPaint.

    Args:
        task: what is trained.
        pictures: of the base's size.
        holes: bool (H, W), True = repaint.
    """
    from diffusers import DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionInpaintPipeline

    objective, base = task.objective, task.objective.base
    words = ["P_obj"] * len(pictures) if isinstance(objective, PowerPaint) else [None] * len(pictures)
    ids = [task._ids([(c, w) for c, w in zip(captions, words, strict=True)]) for captions in (
        [picture.caption for picture in pictures], [""] * len(pictures)
    )]  # fmt: skip
    positive, negative = (base.text_encoder(rows.to(base.text_encoder.device))[0] for rows in ids)
    parts = {
        "vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "safety_checker": None,
        "feature_extractor": None, "requires_safety_checker": False,
        "scheduler": DDIMScheduler.from_config(objective.schedule.config, set_alpha_to_one=False),
    }  # fmt: skip
    asked: dict[str, Any] = {
        "prompt_embeds": positive, "negative_prompt_embeds": negative, "num_inference_steps": 20, "guidance_scale": 4.0,
        "generator": [torch.Generator().manual_seed(place) for place in range(len(pictures))], "output_type": "pil",
    }  # fmt: skip
    pixels = torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2).float() / 255
    hole = torch.from_numpy(np.stack(holes))[:, None]
    if isinstance(objective, ControlNetInpainting):
        pipe = StableDiffusionControlNetPipeline(**parts, unet=base.unet, controlnet=objective.controlnet)
        asked["image"] = pixels.masked_fill(hole, -1.0)
    else:
        pipe = StableDiffusionInpaintPipeline(**parts, unet=objective.unet)
        side = pixels.shape[-1]
        asked |= {"image": pixels, "mask_image": hole.float(), "height": side, "width": side, "strength": 1.0}
    pipe.set_progress_bar_config(disable=True)
    made: list[Image.Image] = pipe(**asked).images
    return [np.asarray(picture) for picture in made]


# ----------------------------------------------------------------------------------------------------------- training


def start_inpainter(recipe: InpainterRecipe, seed: int = 0) -> InpainterTask:
    """Return what is trained, with its first weights.

    Raises:
        UnknownNameError: no such method.
        UsageError: weights to continue from that are of another method.
        MissingWeightsError: no base there.
    """
    from diffusers import ControlNetModel

    if recipe.method not in METHODS:
        raise UnknownNameError("method", recipe.method, METHODS)
    folder = recipe.base or assets.path("data/tiny/base")
    loaded = load_text_to_image(folder)
    base = SimpleNamespace(
        vae=loaded.vae, text_encoder=loaded.text_encoder, unet=loaded.unet, tokenizer=loaded.tokenizer, folder=folder
    )
    torch.manual_seed(seed)
    if recipe.method == "controlnet":
        control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32, 64))
        if recipe.init_from:
            file = recipe.init_from / "diffusion_pytorch_model.safetensors"
            if not file.is_file():
                raise UsageError(
                    f"--init-from {recipe.init_from} holds no ControlNet. Give the model/ of such a training."
                )
            _load(control, file)
        return InpainterTask(ControlNetInpainting(base, control), recipe)
    unet = nine_channels(base.unet)
    saved_unet = _unet_of(recipe.init_from) if recipe.init_from else None
    if saved_unet:
        _load(unet, saved_unet)
    if recipe.method == "sd-inpainting":
        return InpainterTask(SdInpainting(base, unet), recipe)
    encoder = text_encoder_with_tasks(base.tokenizer, base.text_encoder)
    saved = recipe.init_from / "text_encoder" / "text_encoder.safetensors" if recipe.init_from else None
    if saved and saved.is_file():
        _load(encoder, saved)
    if recipe.share and not saved_unet:
        raise UsageError("--share has no U-Net to share. Give an SD Inpainting's model/ by --init-from.")
    return InpainterTask(PowerPaint(base, unet, encoder, over=saved_unet if recipe.share else None), recipe)


def _unet_of(folder: Path) -> Path:
    """Return the file of a whole inpainting U-Net in the folder of a training's weights."""
    if (folder / "unet" / ATTENTIONS).is_file():
        raise UsageError(
            f"--init-from {folder} holds attention blocks alone. Go on with that training by --resume, or give an SD "
            "Inpainting's model/."
        )
    for name in ("unet", "diffusion_pytorch_model"):
        if (folder / "unet" / f"{name}.safetensors").is_file():
            return folder / "unet" / f"{name}.safetensors"
    raise UsageError(f"--init-from {folder} holds no unet/. Give the model/ of such a training.")


def _load(network: Any, path: Path) -> None:
    from brushbench.weights import read_tensors

    tensors = {name: tensor.float() for name, tensor in read_tensors(path).items()}
    own = network.state_dict()
    named = {name if name in own else name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    try:
        network.load_state_dict(named, strict=True)
    except RuntimeError as error:
        raise UsageError(f"{path} is of another method or size: {str(error).splitlines()[0]}") from None


def train_inpainter(config: FitConfig, recipe: InpainterRecipe) -> FitResult:
    """Train one method; its folder ends under ``config.out / "model"``.

    Raises:
        UnknownNameError: no such method.
        UsageError: see :func:`start_inpainter`.
        MissingWeightsError: no base there.
        ConfigMismatchError: what is to be resumed was made by another recipe.
    """
    return fit(start_inpainter(recipe, config.seed), config)
