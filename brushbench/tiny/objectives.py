"""What the compared methods learn from: their networks, started so that the base's prediction is kept, and their loss.

The loss is the base's own: predict the noise, plain mean squared error over the whole latent (BrushNet, sec. 3.2).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "TASK_WORDS",
    "VECTORS",
    "ControlNetInpainting",
    "InpaintingObjective",
    "PowerPaint",
    "SdInpainting",
    "TaskTokens",
    "is_attention",
    "nine_channels",
    "text_encoder_with_tasks",
]

TASK_WORDS = ("P_ctxt", "P_shape", "P_obj")
VECTORS = 4  # per task word; published: 10, which leaves no room for a caption in 32 tokens


# ---------------------------------------------------------------------------------------------------------- networks


def nine_channels(unet: Any) -> Any:
    """Return a copy of a U-Net that reads hole and masked picture beside the latents; the new weights are zero.

    Channels: noisy latents 4, hole 1 (1 = hole), scaled latents of the masked picture 4.
    """
    from diffusers import UNet2DConditionModel

    wide = UNet2DConditionModel.from_config(unet.config, in_channels=9)
    state = dict(unet.state_dict())
    state["conv_in.weight"] = F.pad(state["conv_in.weight"], (0, 0, 0, 0, 0, 5))
    wide.load_state_dict(state)
    return wide


class TaskTokens(nn.Module):
    """A table of token embeddings with the learned rows of each task word behind it, named as PowerPaint names them."""

    def __init__(self, table: nn.Embedding, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.wrapped = table
        self.trainable_embeddings = nn.ParameterDict({w: nn.Parameter(v.clone()) for w, v in vectors.items()})

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return (…, width) embeddings; ids behind the table's end are the task words' rows, in order."""
        learned = [self.trainable_embeddings[word] for word in TASK_WORDS]
        return F.embedding(input_ids, torch.cat([self.wrapped.weight, *learned]))

    def ids(self, word: str) -> list[int]:
        """Return the token ids of a task word."""
        first = self.wrapped.num_embeddings + VECTORS * TASK_WORDS.index(word)
        return list(range(first, first + VECTORS))


def text_encoder_with_tasks(tokenizer: Any, text_encoder: Any) -> Any:
    """Return a copy of a text encoder whose table holds task words, each row of which begins as that of "a"."""
    encoder = copy.deepcopy(text_encoder).requires_grad_(False)
    table = encoder.get_input_embeddings()
    letter = tokenizer("a").input_ids[1]
    vectors = {word: table.weight[letter].detach().expand(VECTORS, -1) for word in TASK_WORDS}
    encoder.set_input_embeddings(TaskTokens(table, vectors))
    return encoder


# --------------------------------------------------------------------------------------------------------- objectives


class InpaintingObjective(nn.Module, ABC):
    """The loss of a method on pictures and holes. The frozen parts are no submodules: no checkpoint holds them."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        from diffusers import DDPMScheduler

        for part in (base.vae, base.text_encoder, base.unet):
            part.requires_grad_(False).eval()
        self.base = SimpleNamespace(
            vae=base.vae, text_encoder=base.text_encoder, unet=base.unet, tokenizer=base.tokenizer
        )
        self.schedule = DDPMScheduler.from_pretrained(base.folder / "scheduler", clip_sample=False)

    def forward(
        self, images: Tensor, keep: Tensor, noise: Tensor, timesteps: Tensor, **text: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error over the whole latent, and that inside the holes and outside them.

        Args:
            images: uint8 (B, 3, H, W).
            keep: bool (B, 1, H, W), True = keep.
            noise: (B, 4, h, w).
            timesteps: int64 (B,).
            text: token ids, as :meth:`text` takes them.
        """
        self.follow(images.device)
        pixels = images.float() / 255 * 2 - 1
        with torch.no_grad():
            latents = self.encode(pixels)
            noisy = self.schedule.add_noise(latents, noise, timesteps)
        error = (self.predict(noisy, timesteps, self.text(**text), pixels, keep).float() - noise).square()
        hole = _at_size(~keep, noise)
        parts = {"loss_hole": _mean_where(error, hole), "loss_keep": _mean_where(error, 1 - hole)}
        return error.mean(), parts

    def follow(self, device: torch.device) -> None:
        """Move the frozen parts to where the batch is; the trainer moves what is trained."""
        for part in (self.base.vae, self.base.text_encoder, self.base.unet):
            part.to(device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mode of the autoencoder's posterior, scaled, (B, 4, h, w) for pixels in -1..1."""
        latents: Tensor = self.base.vae.encode(pixels).latent_dist.mode() * self.base.vae.config.scaling_factor
        return latents

    def text(self, input_ids: Tensor) -> Tensor:
        """Return (B, tokens, width) for token ids (B, tokens)."""
        with torch.no_grad():
            hidden: Tensor = self.base.text_encoder(input_ids)[0]
        return hidden

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return the predicted noise (B, 4, h, w)."""


class SdInpainting(InpaintingObjective):
    """A U-Net of nine channels, trained whole; the masked picture has its hole at 0, which is mid-grey."""

    def __init__(self, base: Any, unet: Any) -> None:
        super().__init__(base)
        self.unet = unet.requires_grad_(True).to(memory_format=torch.channels_last)  # a tenth quicker on a CPU

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return the noise that the nine-channel U-Net predicts."""
        with torch.no_grad():
            masked = self.encode(pixels * keep)
        predicted: Tensor = self.unet(torch.cat([noisy, _at_size(~keep, noisy), masked], dim=1), timesteps, text).sample
        return predicted


class ControlNetInpainting(InpaintingObjective):
    """A copy of the U-Net's encoder beside the frozen U-Net; it reads RGB in 0..1 with the hole at -1."""

    def __init__(self, base: Any, controlnet: Any) -> None:
        super().__init__(base)
        self.controlnet = controlnet.requires_grad_(True).to(memory_format=torch.channels_last)

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, pixels: Tensor, keep: Tensor) -> Tensor:
        """Return the noise that the base predicts under the ControlNet's residuals."""
        control = ((pixels + 1) / 2).where(keep, -1.0)
        down, mid = self.controlnet(noisy, timesteps, text, control, return_dict=False)
        predicted: Tensor = self.base.unet(
            noisy, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        return predicted


class PowerPaint(SdInpainting):
    """SD Inpainting whose task is told by learned words in the caption; U-Net and words are trained (PowerPaint v1).

    Args:
        base: the frozen parts.
        unet: of nine channels.
        text_encoder: from :func:`text_encoder_with_tasks`.
        over: file of SD Inpainting's U-Net; all of it but the attention blocks stays as it is. None: all is trained.
    """

    def __init__(self, base: Any, unet: Any, text_encoder: Any, over: Path | None = None) -> None:
        super().__init__(base, unet)
        self.over = over
        if over:
            for name, weight in self.unet.named_parameters():
                weight.requires_grad_(is_attention(name))
        self.base.text_encoder = text_encoder
        self.task_words = text_encoder.get_input_embeddings().trainable_embeddings  # registers the rows as trained

    def text(self, ids_a: Tensor, ids_b: Tensor, fitting: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``fitting`` (B,) of the text of prompt A, the rest of prompt B (PowerPaint, sec. 3.3)."""
        a, b = self.base.text_encoder(torch.cat([ids_a, ids_b]))[0].chunk(2)
        share = fitting[:, None, None]
        mixed: Tensor = share * a + (1 - share) * b
        return mixed


def is_attention(name: str) -> bool:
    """Say whether a weight of a U-Net belongs to one of its attention blocks."""
    return ".attentions." in name


def _at_size(hole: Tensor, latents: Tensor) -> Tensor:
    return F.interpolate(hole.float(), size=latents.shape[-2:])


def _mean_where(error: Tensor, where: Tensor) -> Tensor:
    return ((error * where).sum() / (where.sum() * error.shape[1]).clamp(min=1)).detach()
