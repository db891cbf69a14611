"""PowerPaint: one inpainting model whose task is told by learned words: ``P_ctxt``, ``P_shape``, ``P_obj``.

Zhuang et al., ECCV 2024 (arXiv 2312.03594), sec. 3; open-mmlab/PowerPaint 5b4c3d5. Each word is a row of learned
vectors (ten as published) appended to the text encoder's table. Two prompts are encoded and mixed by the *fitting
degree* (sec. 3.3), before ordinary guidance.

* v1 is Stable Diffusion Inpainting with other weights, fed with those embeddings.
* v2 is BrushNet *with* cross-attention: the branch reads the task's words through its own text encoder, the frozen base
  model reads the plain prompt. Ours is :class:`brushnet.BrushNetModel`; residuals enter by :func:`brushnet.inject`.

Where we differ: the published v2 pipeline draws the masked picture's latents anew for each half of the guided batch and
from the global generator; the method on the leaderboard takes the mode of the posterior for both. Prompts longer than
the encoder's 77 tokens lose their end, the task's word with it, as published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baselines.sampling import OnStep, guided_denoise, text_rows
from baselines.sd_inpainting import denoise
from brushnet import BrushNetModel, encode_conditioning, inject
from brushnet.checkpoints import check_keys

__all__ = [
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

Task: TypeAlias = Literal["text-guided", "shape-guided", "object-removal", "image-outpainting"]

# The words of each task: prompt A, prompt B, negative prompts A and B (published ``app.py``, add_task).
WORDS: Mapping[Task, tuple[str, str, str, str]] = {
    "text-guided": ("P_obj", "P_obj", "P_obj", "P_obj"),
    "shape-guided": ("P_shape", "P_ctxt", "P_shape", "P_ctxt"),
    "object-removal": ("P_ctxt", "P_ctxt", "P_obj", "P_obj"),
    "image-outpainting": ("P_ctxt", "P_ctxt", "P_obj", "P_obj"),
}
QUALITY = ", worst quality, low quality, normal quality, bad quality, blurry"
SCENE = {"object-removal": "empty scene blur", "image-outpainting": "empty scene"}
LEARNED = ".trainable_embeddings."


def task_prompts(
    task: Task, prompt: str, negative_prompt: str = "", version: Literal["v1", "v2"] = "v1"
) -> dict[str, str]:
    """Return the prompts of a task.

    Args:
        task: ``text-guided`` | ``shape-guided`` | ``object-removal`` | ``image-outpainting``.
        prompt: what the finished picture shows.
        negative_prompt: what it must not show.
        version: ``v1``: the words follow the text. ``v2``: the branch reads the words alone.

    Returns:
        ``A``, ``B``, ``negative_A``, ``negative_B``, to be mixed; for v2 also ``U`` and ``negative_U``, the plain
        prompts of the base model.

    Raises:
        ValueError: no such task.
    """
    if task not in WORDS:
        raise ValueError(f"Got the task {task!r}; expected one of {', '.join(get_args(Task))}.")
    words = dict(zip(("A", "B", "negative_A", "negative_B"), WORDS[task], strict=True))
    scene = SCENE.get(task)
    if version == "v2":
        plain = f"{prompt} {scene}" if scene else prompt
        return {**words, "U": plain, "negative_U": negative_prompt}
    # v1 says "empty scene blur" when outpainting too, and names poor quality only where an object is wanted.
    positive = f"empty scene blur {prompt}" if scene else prompt
    negative = negative_prompt if scene else negative_prompt + QUALITY
    return {name: f"{negative if name.startswith('negative') else positive} {word}" for name, word in words.items()}


def add_task_tokens(tokenizer: Any, text_encoder: Any, vectors: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Append the learned words to a tokenizer and a text encoder, in place.

    Args:
        tokenizer: ``CLIPTokenizer``.
        text_encoder: ``CLIPTextModel``.
        vectors: for each word (n, width); its tokens are called ``word_0`` … ``word_{n-1}``.

    Returns:
        Both, with ``n`` more tokens for each word.

    Raises:
        ValueError: vectors of another width than the encoder's.
    """
    from tokenizers import AddedToken

    width = text_encoder.get_input_embeddings().weight.shape[1]
    for word, rows in vectors.items():
        if rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"The vectors of {word} have the shape {tuple(rows.shape)}; expected (n, {width}).")
    names = [f"{word}_{number}" for word, rows in vectors.items() for number in range(len(rows))]
    # transformers 5 lower-cases added tokens unless told otherwise; then they would match a caption's own "p_obj_0".
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    ids = tokenizer.convert_tokens_to_ids(names)
    if max(ids) >= text_encoder.get_input_embeddings().num_embeddings:
        text_encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[ids] = torch.cat(list(vectors.values())).to(table)
    return tokenizer, text_encoder


def task_vectors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the learned words out of the published text encoder's state dict.

    Args:
        state: with keys ``…token_embedding.trainable_embeddings.P_obj`` and so on.

    Returns:
        For each word (n, width).

    Raises:
        ValueError: no such key.
    """
    found = {key.rpartition(LEARNED)[2]: value for key, value in state.items() if LEARNED in key}
    if not found:
        raise ValueError(f"No key has {LEARNED!r} in it: these are no weights of a PowerPaint text encoder.")
    return found


def with_tokens(tokenizer: Any, prompt: str) -> str:
    """Return a prompt with each learned word written out as its tokens: ``P_obj`` as ``P_obj_0 P_obj_1 …``."""
    lengths: dict[str, int] = {}
    for token in tokenizer.get_added_vocab():
        if match := re.fullmatch(r"(P_[a-z]+)_\d+", token):
            lengths[match[1]] = lengths.get(match[1], 0) + 1

    def tokens(match: re.Match[str]) -> str:
        return " ".join(f"{match[0]}_{number}" for number in range(lengths.get(match[0], 0))) or match[0]

    return re.sub(r"\bP_[a-z]+\b", tokens, prompt)


@torch.no_grad()
def encode_text(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    """Return (B, tokens, width) last hidden states of prompts, in which the learned words are written out."""
    ids = tokenizer(
        [with_tokens(tokenizer, prompt) for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    hidden: Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return hidden


def mixed_embeds(
    tokenizer: Any,
    text_encoder: Any,
    prompts: Mapping[str, str] | Sequence[Mapping[str, str]],
    fitting_degree: float,
) -> tuple[Tensor, Tensor]:
    """Return the text that a task reads: ``fitting_degree`` of prompt A, the rest of prompt B (sec. 3.3).

    Args:
        tokenizer: with the learned words, from :func:`add_task_tokens`.
        text_encoder: the same.
        prompts: ``A``, ``B``, ``negative_A``, ``negative_B``, from :func:`task_prompts`; one such mapping, or one for
            each sample.
        fitting_degree: 0..1; the negative prompts are mixed by the same number, as published.

    Returns:
        Prompt and negative prompt embeddings, each (B, tokens, width).
    """
    rows = [prompts] if isinstance(prompts, Mapping) else prompts
    a, b, negative_a, negative_b = (
        encode_text(tokenizer, text_encoder, [row[name] for row in rows])
        for name in ("A", "B", "negative_A", "negative_B")
    )
    rest = 1 - fitting_degree
    return fitting_degree * a + rest * b, fitting_degree * negative_a + rest * negative_b


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
