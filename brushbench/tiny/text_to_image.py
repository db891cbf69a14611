"""Train the tiny family's base: a CLIP text encoder and a stock diffusion U-Net, jointly, on the frozen VAE's latents.

The objective is Stable Diffusion's: predict the noise, plain mean squared error, one caption in ten dropped.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.errors import MissingWeightsError, UsageError
from brushbench.tiny.scenes import caption, render, sample_scene, words
from brushbench.tiny.vae import decode_unscaled, encode_unscaled
from brushbench.training.loop import Draw, contact_sheet, fit
from brushbench.training.settings import FitConfig, FitResult
from brushbench.types import JSON, Picture

__all__ = [
    "NOISE_SCHEDULE",
    "TextToImageTask",
    "build_text_encoder",
    "build_tokenizer",
    "build_unet",
    "generate",
    "load_text_to_image",
    "start_text_to_image",
    "train_text_to_image",
]

MAX_TOKENS = 32
CAPTION_DROP = 0.1
NOISE_SCHEDULE: dict[str, Any] = {  # Stable Diffusion 1.5's
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
END = "<|endoftext|>"
_SYMBOLS = "!\"#$%&'()*+,-./0123456789:;<=>?@[]^_`abcdefghijklmnopqrstuvwxyz{|}~"
_PROMPTS = (
    "a large red circle on plain grey",
    "a medium yellow star on slate stripes",
    "a small white cross on teal dots",
    "a large black triangle on tan checks",
    "a painting of a medium green square on a rose gradient",
    "a painting of a large orange star on olive noise",
    "a large purple circle left of a small yellow square on plain tan",
    "a medium blue triangle above a medium white circle on grey stripes",
)


# ------------------------------------------------------------------------------------------------------------ parts


def build_tokenizer() -> Any:
    """Return a ``CLIPTokenizer`` that makes one token of every word a caption may hold, and letters of any other."""
    from transformers import CLIPTokenizer

    merges: list[tuple[str, str]] = []
    for word in words():  # joined from the end: only one pair of a word can ever merge, so words never disturb another
        symbols = [*word[:-1], word[-1] + "</w>"]
        for cut in range(len(symbols) - 1, 0, -1):
            pair = (symbols[cut - 1], "".join(symbols[cut:]))
            if pair not in merges:
                merges.append(pair)
    pieces = [*_SYMBOLS, *(symbol + "</w>" for symbol in _SYMBOLS), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    for special in ("<|startoftext|>", END):
        vocabulary[special] = len(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary))
        Path(folder, "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS, pad_token=END)


def build_text_encoder(tokenizer: Any, hidden: int = 128, layers: int = 2) -> Any:
    """Return an untrained ``CLIPTextModel`` for the tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet(channels: tuple[int, int, int] = (64, 96, 128), text_width: int = 128) -> Any:
    """Return an untrained ``UNet2DConditionModel`` in Stable Diffusion's pattern, with three levels.

    Cross attention sits at the latent's size, at half of it and, in the middle block, at a quarter.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=tuple(width // 32 for width in channels),  # diffusers reads this as the number of heads
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


class NoisePrediction(nn.Module):
    """Noise prediction: mean squared error between the noise added and the noise predicted."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet
        from diffusers import DDPMScheduler

        self.scheduler = DDPMScheduler(**NOISE_SCHEDULE, clip_sample=False)

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, input_ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for scaled latents and noise (B, 4, h, w), timesteps (B,) and token ids (B, 32)."""
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        text = self.text_encoder(input_ids)[0]
        predicted = self.unet(noisy, timesteps, text).sample
        return F.mse_loss(predicted, noise), {}


@dataclass
class TextToImageTask:
    """Text encoder and U-Net on the training stream of scenes.

    Attributes:
        vae: the frozen autoencoder, with its scaling factor set.
        tokenizer: from :func:`build_tokenizer`.
        text_encoder: trained.
        unet: trained.
        cache_scenes: keep the latents of the first so many scenes and go round and round in them; 0 = never repeat.
            A multiple of the batch size.
    """

    vae: Any
    tokenizer: Any
    text_encoder: Any
    unet: Any
    cache_scenes: int = 0
    _cache: dict[int, tuple[Tensor, list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.objective = NoisePrediction(self.text_encoder, self.unet)
        self.vae.requires_grad_(False).eval()

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return latents, noise, timesteps and token ids of the stream's next scenes."""
        latents, captions = self._encoded(draw)
        generator = draw.generator()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(0, NOISE_SCHEDULE["num_train_timesteps"], (draw.size,), generator=generator)
        dropped = torch.rand(draw.size, generator=generator) < CAPTION_DROP
        kept = ["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)]
        return {"latents": latents, "noise": noise, "timesteps": timesteps, "input_ids": self.tokens(kept)}

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return int64 (n, 32) token ids, padded as the stock pipelines pad."""
        batch = self.tokenizer(
            list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        ids: Tensor = batch.input_ids
        return ids

    def _encoded(self, draw: Draw) -> tuple[Tensor, list[str]]:
        if self.cache_scenes % draw.size:
            raise UsageError(f"--cache-latents {self.cache_scenes} is not a multiple of the batch size {draw.size}.")
        first = draw.first % self.cache_scenes if self.cache_scenes else draw.first
        if first in self._cache:
            return self._cache[first]
        scenes = [sample_scene(draw.seed, first + i) for i in range(draw.size)]
        latents = encode_unscaled(self.vae, np.stack([render(scene).image for scene in scenes]))
        result = latents.float().cpu() * self.vae.config.scaling_factor, [caption(scene) for scene in scenes]
        if self.cache_scenes:
            self._cache[first] = result
        return result

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": "text-to-image", "cache_scenes": self.cache_scenes}

    def pictures(self) -> Picture:
        """Return one picture for each of eight fixed prompts, two noises each."""
        parts = {"vae": self.vae, "tokenizer": self.tokenizer, "text_encoder": self.text_encoder, "unet": self.unet}
        return contact_sheet(generate(parts, [*_PROMPTS, *_PROMPTS], seed=0), 8)

    def save(self, folder: Path) -> None:
        """Write a folder that ``StableDiffusionPipeline.from_pretrained`` reads, in half precision."""
        from diffusers import PNDMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=copy.deepcopy(self.vae).half(),
            text_encoder=copy.deepcopy(self.text_encoder).half(),
            tokenizer=self.tokenizer,
            unet=copy.deepcopy(self.unet).half(),
            scheduler=PNDMScheduler(**NOISE_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
        # transformers loads in the type the config names; diffusers loads in float32: name that, so both agree.
        path = folder / "text_encoder" / "config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2, sort_keys=True) + "\n"
        )


# --------------------------------------------------------------------------------------------------------- training


def start_text_to_image(vae_folder: Path, seed: int) -> TextToImageTask:
    """Return a fresh base on a trained autoencoder; the first weights follow from the seed.

    Raises:
        MissingWeightsError: no autoencoder there.
    """
    from diffusers import AutoencoderKL

    if not (vae_folder / "config.json").exists():
        raise MissingWeightsError(
            f"No autoencoder in {vae_folder}. Train one (brushbench train tiny vae --out DIR) and pass DIR/model."
        )
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return TextToImageTask(vae, tokenizer, build_text_encoder(tokenizer), build_unet())


def load_text_to_image(folder: Path) -> TextToImageTask:
    """Return a base that was saved before, in float32.

    Raises:
        MissingWeightsError: no pipeline there.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if not (folder / "model_index.json").exists():
        raise MissingWeightsError(
            f"No diffusers pipeline in {folder}. Train one with brushbench train tiny text-to-image."
        )
    return TextToImageTask(
        AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32),
    )


def train_text_to_image(
    config: FitConfig, *, vae: Path | None = None, init_from: Path | None = None, cache_scenes: int = 0
) -> FitResult:
    """Train text encoder and U-Net; the pipeline ends under ``config.out / "model"``.

    Args:
        config: how to train.
        vae: folder of the frozen autoencoder, for a fresh start.
        init_from: folder of a saved pipeline to go on from, with a fresh optimizer and the steps counted on.
        cache_scenes: see :class:`TextToImageTask`.

    Raises:
        UsageError: neither or both of ``vae`` and ``init_from``.
        MissingWeightsError: nothing at either of them.
    """
    if (vae is None) == (init_from is None):
        raise UsageError("Give either the autoencoder to start on (--vae) or the pipeline to go on from (--init-from).")
    task = start_text_to_image(vae, config.seed) if vae else load_text_to_image(init_from or Path())
    task.cache_scenes = cache_scenes
    return fit(task, config)


@torch.no_grad()
def generate(
    parts: Any, prompts: Sequence[str], seed: int = 0, steps: int = 20, guidance: float = 4.0, batch_size: int = 16
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8 (n, H, W, 3): one picture a prompt, by DDIM with classifier-free guidance.

    Args:
        parts: mapping with ``vae``, ``tokenizer``, ``text_encoder`` and ``unet`` (a pipeline's ``components`` will do).
        prompts: captions.
        seed: of the first noise; picture i depends on (seed, i) alone.
        steps: DDIM steps.
        guidance: guidance scale.
        batch_size: pictures at once.
    """
    from diffusers import DDIMScheduler

    vae, unet, tokenizer = parts["vae"], parts["unet"], parts["tokenizer"]
    side = unet.config.sample_size
    scheduler = DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(steps)
    pictures = []
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        generators = [torch.Generator().manual_seed(seed * 1_000_003 + start + i) for i in range(len(texts))]
        latents = torch.stack([torch.randn((4, side, side), generator=g) for g in generators]).to(unet.device)
        ids = tokenizer([""] * len(texts) + texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = parts["text_encoder"](ids.to(unet.device))[0]
        for t in scheduler.timesteps:
            empty, named = unet(torch.cat([latents, latents]), t, text).sample.chunk(2)
            latents = scheduler.step(empty + guidance * (named - empty), t, latents).prev_sample
        pictures.append(decode_unscaled(vae, latents / vae.config.scaling_factor))
    return np.concatenate(pictures)
