"""PowerPaint's text: the prompts of its tasks, the learned words, and the mixing of two prompts.

Zhuang et al., ECCV 2024 (arXiv 2312.03594), sec. 3.2 and 3.3; open-mmlab/PowerPaint 5b4c3d5, ``app.py`` (add_task).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

__all__ = ["Task", "add_task_tokens", "mixed_embeds", "stock_names", "task_prompts", "task_vectors"]

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
    task: Task,
    prompt: str,
    negative_prompt: str = "",
    version: Literal["v1", "v2"] = "v1",
    published_words: bool = True,
) -> dict[str, str]:
    """Return the prompts of a task.

    Args:
        task: ``text-guided`` | ``shape-guided`` | ``object-removal`` | ``image-outpainting``.
        prompt: what the finished picture shows.
        negative_prompt: what it must not show.
        version: ``v1``: the words follow the text. ``v2``: the branch reads the words alone.
        published_words: with the app's words on quality and empty scenes.

    Returns:
        ``A``, ``B``, ``negative_A``, ``negative_B``, to be mixed; for v2 also ``U`` and ``negative_U``, the plain
        prompts of the base model.

    Raises:
        ValueError: no such task.
    """
    if task not in WORDS:
        raise ValueError(f"Got the task {task!r}; expected one of {', '.join(get_args(Task))}.")
    words = dict(zip(("A", "B", "negative_A", "negative_B"), WORDS[task], strict=True))
    scene = SCENE.get(task) if published_words else None
    if version == "v2":
        plain = f"{prompt} {scene}" if scene else prompt
        return {**words, "U": plain, "negative_U": negative_prompt}
    # v1 says "empty scene blur" when outpainting too, and names poor quality only where an object is wanted.
    positive = f"empty scene blur {prompt}" if scene else prompt
    negative = negative_prompt + QUALITY if published_words and not scene else negative_prompt
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
    written = [with_tokens(tokenizer, prompt) for prompt in prompts]
    _warn_of_lost_words(tokenizer, prompts, written)
    ids = tokenizer(
        written,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    hidden: Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return hidden


def _warn_of_lost_words(tokenizer: Any, prompts: Sequence[str], written: Sequence[str]) -> None:
    """Say which prompt is so long that its end, the task's word with it, is cut off."""
    most = tokenizer.model_max_length
    for prompt, text in zip(prompts, written, strict=True):
        found = len(tokenizer(text, truncation=False).input_ids)
        if found > most and text != prompt:
            warnings.warn(
                f"A prompt has {found} tokens with its task's word, and the text encoder reads {most}: the word is cut "
                f"off. Shorten the caption {prompt[:60]!r}.",
                stacklevel=3,
            )


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


def stock_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published text encoder's weights by the names that the installed transformers gives them.

    Args:
        state: with keys ``text_model.…token_embedding.wrapped.weight``; the learned words are left out.
        expected: the stock encoder's own state dict.
    """
    short = not any(name.startswith("text_model.") for name in expected)
    renamed = {name.replace(".wrapped.", "."): value for name, value in state.items() if LEARNED not in name}
    renamed = {name.removeprefix("text_model.") if short else name: value for name, value in renamed.items()}
    # position_ids are counted, not learned: older files hold them, newer encoders do not ask for them.
    return {name: value for name, value in renamed.items() if name in expected or not name.endswith("position_ids")}
