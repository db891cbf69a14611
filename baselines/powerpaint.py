"""PowerPaint: one inpainting model whose task is told by learned words: ``P_ctxt``, ``P_shape``, ``P_obj``.

Zhuang et al., ECCV 2024 (arXiv 2312.03594), sec. 3; open-mmlab/PowerPaint 5b4c3d5. Each word is a row of learned
vectors (ten as published) appended to the text encoder's table. Two prompts are encoded and mixed by the *fitting
degree* (sec. 3.3), before ordinary guidance.

* v1 is Stable Diffusion Inpainting with other weights, fed with those embeddings.
  Its published weights are whole. Those of the tiny family are SD Inpainting's but for the attention blocks, which are
  kept alone, with the SHA-256 of the U-Net they belong to.
* v2 is BrushNet *with* cross-attention: the branch reads the task's words through its own text encoder, the frozen base
  model reads the plain prompt. Ours is :class:`brushnet.BrushNetModel`; residuals enter by :func:`brushnet.inject`.

Where we differ: the published v2 pipeline draws the masked picture's latents anew for each half of the guided batch and
from the global generator; the method on the leaderboard takes the mode of the posterior for both. Prompts longer than
the encoder's 77 tokens lose their end, the task's word with it, as published; here with a warning.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from baselines.diffusion import PLACE, Batch
from baselines.guided import GuidedInpainter
from baselines.latents import Reduction
from baselines.powerpaint_text import (
    Task,
    add_task_tokens,
    mixed_embeds,
    stock_names,
    task_prompts,
    task_vectors,
)
from baselines.presets import find_branch, hashes_of
from baselines.sampling import OnStep, guided_denoise, text_rows
from baselines.sd_inpainting import condition, denoise, nine_channels
from brushbench.errors import UsageError, WeightsError
from brushbench.types import JSON
from brushbench.weights import read_tensors
from brushnet import BrushNetModel, encode_conditioning, inject
from brushnet.checkpoints import PUBLISHED_CONFIGS
from brushnet.checks import check_keys

__all__ = [
    "PowerPaint",
    "PowerPaintV2",
    "Task",
    "add_task_tokens",
    "branch",
    "conditioning",
    "denoise",
    "denoise_v2",
    "load_branch",
    "mixed_embeds",
    "task_prompts",
    "task_vectors",
]


ATTENTIONS = "unet/attentions.safetensors"  # where `brushbench train tiny powerpaint --share` keeps its blocks

# ---------------------------------------------------------------------------------------------------------- version 2


def load_branch(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> BrushNetModel:
    """Return v2's branch, a BrushNet with cross-attention.

    Args:
        config: the published ``config.json``.
        state: weights by their published names.

    Raises:
        ValueError: other keys or shapes than the branch's.
    """
    module: BrushNetModel = BrushNetModel.from_config(dict(config))
    expected = module.state_dict()
    differ = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
    check_keys("PowerPaint's branch", expected.keys() - state.keys(), state.keys() - expected.keys(), differ)
    module.load_state_dict({name: value.to(expected[name].dtype) for name, value in state.items()})
    module.eval().requires_grad_(False)
    return module


def branch(
    module: BrushNetModel, sample: Tensor, timestep: Tensor | float, text: Tensor, conditioning: Tensor, scale: float
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Return v2's residuals of one step.

    Args:
        module: from :func:`load_branch`.
        sample: (rows, 4, h, w), the U-Net's own input.
        timestep: of the step.
        text: (rows, tokens, width), the task's words.
        conditioning: (rows, 5, h, w), from :func:`conditioning`.
        scale: factor of all residuals.

    Returns:
        Those of the way down, of the middle, of the way up.
    """
    down, mid, up = module(
        sample, timestep, conditioning, encoder_hidden_states=text, conditioning_scale=scale, return_dict=False
    )
    return list(down), mid, list(up)


def denoise_v2(
    unet: Any,
    module: BrushNetModel,
    scheduler: Any,
    latents: Tensor,
    conditioning: Tensor,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    branch_prompt_embeds: Tensor,
    branch_negative_embeds: Tensor,
    *,
    steps: int,
    guidance: float,
    scale: float = 1.0,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise under v2's branch. The U-Net's first skip stays clean, as with BrushNet.

    Args:
        unet: ``UNet2DConditionModel`` of four input channels.
        module: from :func:`load_branch`.
        scheduler: a stock scheduler.
        latents: (B, 4, h, w) standard normal noise.
        conditioning: (2B, 5, h, w), the unconditional half first; without guidance the second half serves.
        prompt_embeds: (B, tokens, width), the plain prompt, from the ordinary encoder.
        negative_prompt_embeds: the same.
        branch_prompt_embeds: (B, tokens, width), the task's words, from the branch's encoder.
        branch_negative_embeds: the same.
        steps: denoising steps.
        guidance: weight of classifier-free guidance; up to 1 means none.
        scale: factor of the residuals.
        generators: one for each sample, for schedulers that add noise in a step.
        on_step: called with the step's number and the latents after it.

    Returns:
        (B, 4, h, w) scaled latents.
    """
    text = text_rows(prompt_embeds, negative_prompt_embeds, guidance)
    branch_text = text_rows(branch_prompt_embeds, branch_negative_embeds, guidance)
    with inject(unet) as slot:

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            condition = conditioning[-len(sample) :].to(sample)
            slot.set(branch(module, sample, timestep, branch_text, condition, scale))
            noise_pred: Tensor = unet(sample, timestep, encoder_hidden_states=text, return_dict=False)[0]
            return noise_pred

        return guided_denoise(
            predict, scheduler, latents, steps=steps, guidance=guidance, generators=generators, on_step=on_step
        )


def conditioning(
    vae: Any, picture: npt.NDArray[np.uint8], hole: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]
) -> Tensor:
    """Return what v2's branch reads beside the latents.

    Args:
        vae: ``AutoencoderKL``.
        picture: uint8 (H, W, 3) RGB; it is blacked out in the measure of the mask, truncated to uint8, as published.
        hole: uint8 (H, W), hole from 128 on; or bool (H, W), True = hole.

    Returns:
        (1, 5, h, w): the posterior's mean of the blacked-out picture, scaled; then keep (1 = keep).
    """
    share = hole.astype(np.float64) / (1 if hole.dtype == np.bool_ else 255)
    black = (picture * (1 - share[..., None])).astype(np.uint8)
    return encode_conditioning(vae, black, hole)


# ----------------------------------------------------------------------------------------------------------- adapters


@dataclass(eq=False)
class TaskInpainter(GuidedInpainter):
    """What both versions share: the task of a split, and the text encoder that knows the task words.

    Args:
        checkpoint: folder or hub id of the published files instead of the preset's.
        task: ``auto``: ``image-outpainting`` for the split ``outside``, ``text-guided`` for all else; or one task for
            every split.
        fitting_degree: share of prompt A, 0..1; prompts A and B differ in the task ``shape-guided`` only.
        published_words: add the app's words on quality and empty scenes to the prompts. None: not for ``tiny``, whose
            vocabulary lacks them.

    The other options are those of :class:`~baselines.diffusion.DiffusionInpainter`.
    """

    checkpoint: str | None = field(default=None, metadata=PLACE)
    task: Literal["auto", "text-guided", "shape-guided", "object-removal", "image-outpainting"] = "auto"
    fitting_degree: float = 1.0
    published_words: bool | None = None

    version: ClassVar[Literal["v1", "v2"]]

    def __post_init__(self) -> None:
        """Check the options, find the weights, load them."""
        if not 0 <= self.fitting_degree <= 1:
            raise UsageError(f"fitting_degree is {self.fitting_degree}, expected 0 to 1.")
        if self.published_words is None:
            self.published_words = self.preset != "tiny"
        self.branch = self.find()
        super().__post_init__()

    @abstractmethod
    def find(self) -> Path:
        """Return the folder of the published files."""

    def read_words(self, pipe: Any, file: Path) -> None:
        """Load the text encoder that knows the task words, and make the tokenizer that goes with it.

        Raises:
            WeightsError: damaged, or weights of something else.
        """
        tokenizer, encoder = copy.deepcopy(pipe.tokenizer), copy.deepcopy(pipe.text_encoder)
        try:
            state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
            encoder.load_state_dict(stock_names(state, encoder.state_dict()))
            self.tokenizer, self.text_encoder = add_task_tokens(tokenizer, encoder, task_vectors(state))
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise WeightsError(f"{file} does not load as PowerPaint's text encoder: {error}") from error

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings, which task serves which split, and the SHA-256 of all weights."""
        tasks = {"outside": self.task_for("outside"), "others": self.task_for("inside")}
        return {**super().describe(), "tasks": tasks, "branches": self.own_hashes()}

    def own_hashes(self) -> dict[str, JSON]:
        """Return the SHA-256 of PowerPaint's own weights."""
        return {"powerpaint": hashes_of(self.branch)}

    def task_for(self, split: str) -> Task:
        """Return the task that serves a split."""
        if self.task != "auto":
            return self.task
        return "image-outpainting" if split == "outside" else "text-guided"

    def prompts(self, batch: Batch) -> list[dict[str, str]]:
        """Return the prompts of each sample, from :func:`task_prompts`."""
        negative = batch.negative_prompts or [""] * len(batch.prompts)
        task, words = self.task_for(batch.split), bool(self.published_words)
        return [
            task_prompts(task, *pair, version=self.version, published_words=words)
            for pair in zip(batch.prompts, negative, strict=True)
        ]

    def task_embeds(self, prompts: Sequence[Mapping[str, str]]) -> tuple[Tensor, Tensor]:
        """Return the mixed text of the task and that of its negative prompts."""
        return mixed_embeds(self.tokenizer, self.text_encoder, prompts, self.fitting_degree)


@dataclass(eq=False)
class PowerPaint(TaskInpainter):
    """Generate by version 1: an inpainting U-Net and a text encoder, trained on tasks told by learned words.

    Args:
        reduce: how the hole is reduced to latents: ``nearest`` looks at the top-left pixel under a latent, as
            published; ``any`` at all of them.

    The other options are those of :class:`TaskInpainter`.
    """

    reduce: Reduction = "nearest"

    method = "PowerPaint"
    version = "v1"

    def find(self) -> Path:
        """Return the folder with ``unet/`` and ``text_encoder/``."""
        file, patterns = "text_encoder/text_encoder.safetensors", ("unet/*", "text_encoder/*")
        return find_branch(self.preset, "powerpaint", self.checkpoint, holds=(file,), patterns=patterns)

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the pipeline with PowerPaint's U-Net; its text encoder stands beside it."""
        pipe = super().load(device, dtype)
        pipe.unet = self.read_unet(pipe.unet).to(device, dtype)
        self.read_words(pipe, self.branch / "text_encoder" / "text_encoder.safetensors")
        return pipe

    @property
    def shared(self) -> Path | None:
        """Return where the SD Inpainting lies that attention blocks kept alone belong to; None for a whole U-Net."""
        if not (self.branch / ATTENTIONS).is_file():
            return None
        return find_branch(self.preset, "sd-inpainting", holds=("unet/config.json", "config.json"))

    def read_unet(self, unet: Any) -> Any:
        """Return the U-Net of nine channels; attention blocks kept alone are set into SD Inpainting's.

        Raises:
            WeightsError: damaged, of another network, or trained over another SD Inpainting.
        """
        shared = self.shared
        if not shared:
            return nine_channels(unet, self.branch)
        network = nine_channels(unet, shared)
        file = self.branch / ATTENTIONS
        state = read_tensors(file)
        with safe_open(file, "pt") as weights:
            over = (weights.metadata() or {}).get("over")
        way = f"Train it over this one: brushbench train tiny powerpaint --share --init-from {shared}."
        if over not in hashes_of(shared).values():
            raise WeightsError(
                f"{file} was trained over a U-Net with SHA-256 {over}; that of {shared} is another. {way}"
            )
        expected = {name: weight for name, weight in network.state_dict().items() if ".attentions." in name}
        differ = {name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape}
        if wrong := (expected.keys() ^ state.keys()) | differ:
            raise WeightsError(
                f"{file} does not hold the attention blocks of the U-Net in {shared}: {len(wrong)} of its weights are "
                f"missing, unknown or of another shape ({min(wrong)}). {way}"
            )
        network.load_state_dict(state, strict=False)
        return network

    def own_hashes(self) -> dict[str, JSON]:
        """Return the SHA-256 of PowerPaint's own weights, and of an SD Inpainting that they share."""
        shared = self.shared
        return super().own_hashes() | ({"sd-inpainting": hashes_of(shared)} if shared else {})

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        positive, negative = self.task_embeds(self.prompts(batch))
        return denoise(
            self.pipe.unet,
            self.pipe.scheduler,
            self.start_noise(batch),
            condition(self.pipe.vae, batch, self.factor, self.reduce),
            positive,
            negative,
            **self.settings,
            generators=batch.generators,
        )


@dataclass(eq=False)
class PowerPaintV2(TaskInpainter):
    """Generate by version 2: a BrushNet with cross-attention that reads the task's words, beside a frozen base.

    The base is the preset's. The released demo used a fine-tuned one (realisticVisionV60B1), see ``base``.

    Args:
        scale: factor of the branch's residuals.

    The other options are those of :class:`TaskInpainter`.
    """

    scale: float = 1.0

    method = "PowerPaint v2"
    version = "v2"

    def find(self) -> Path:
        """Return the folder with the branch and the text encoder, which the published repositories hold one deeper."""
        inner, file = "PowerPaint_Brushnet", "diffusion_pytorch_model.safetensors"
        found = find_branch(
            self.preset, "powerpaint-v2", self.checkpoint, holds=(file, f"{inner}/{file}"), patterns=(f"{inner}/*",)
        )
        return found / inner if (found / inner).is_dir() else found

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the text-to-image pipeline; branch and text encoder stand beside it."""
        pipe = super().load(device, dtype)
        beside = self.branch / "config.json"
        config = json.loads(beside.read_text()) if beside.is_file() else PUBLISHED_CONFIGS["PowerPaint v2"]
        try:
            module = load_branch(config, load_file(self.branch / "diffusion_pytorch_model.safetensors"))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise WeightsError(f"{self.branch} does not load as PowerPaint's branch: {error}") from error
        self.module = module.to(device, dtype)
        encoders = [self.branch / f"pytorch_model{suffix}" for suffix in (".safetensors", ".bin")]
        self.read_words(pipe, next((file for file in encoders if file.is_file()), encoders[-1]))
        return pipe

    def latents(self, batch: Batch) -> Tensor:
        """Return the scaled latents (B, 4, h, w) of the finished pictures."""
        prompts = self.prompts(batch)
        positive, negative = self.task_embeds(prompts)
        plain = self.embeds(batch, [each["U"] for each in prompts], [each["negative_U"] for each in prompts])
        known = torch.cat(
            [conditioning(self.pipe.vae, *pair) for pair in zip(batch.pictures, batch.holes, strict=True)]
        )
        return denoise_v2(
            self.pipe.unet,
            self.module,
            self.pipe.scheduler,
            self.start_noise(batch),
            torch.cat([known, known]),
            **plain,
            branch_prompt_embeds=positive,
            branch_negative_embeds=negative,
            **self.settings,
            scale=self.scale,
            generators=batch.generators,
        )
