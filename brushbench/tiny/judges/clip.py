"""Train the CLIP models of the tiny family: the plain one, the aesthetic head on it, and the preference model.

The tables of tokens hold all of CLIP's 49,408 rows in the file, and only the rows that captions of scenes use while
training; the others stay zero: a word that no scene knows says nothing.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.errors import MissingWeightsError
from brushbench.metrics.clip_model import build_model, open_clip_ids
from brushbench.tiny.judges.scenes import (
    HARD,
    SPOILS,
    Hints,
    SceneStream,
    hint_tensors,
    pixels,
    spoil,
    wrong_captions,
)
from brushbench.tiny.scenes import caption, words
from brushbench.training.loop import Draw, contact_sheet
from brushbench.types import JSON, Picture
from brushbench.weights import read_json, read_tensors

__all__ = ["CLIP_CONFIG", "AestheticTask", "ClipTask", "encode_captions", "hps_from_clip", "load_clip", "small_clip"]

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 96,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 4},
}
TABLE = "token_embedding.weight"
SPOILT_SHARE = 0.3
WRONG = 4  # captions a scene that differ from the right one in one attribute
HINT_WEIGHT = 0.5
MOST_SCALE = 4.6  # log of the largest logit scale, as in CLIP


# -------------------------------------------------------------------------------------------------------------- tokens


@functools.cache
def used_ids() -> tuple[int, ...]:
    """Return the ids of CLIP's vocabulary that captions of scenes use, rising; start and end token come last."""
    ids = {number for word in words() for number in open_clip_ids(word, 77)[0]}
    return tuple(sorted(ids))


@functools.cache
def _rows() -> Mapping[str, tuple[int, ...]]:
    place = {number: row for row, number in enumerate(used_ids())}
    return {word: tuple(place[n] for n in open_clip_ids(word, 77)[0][1:-1]) for word in words()}


def encode_captions(captions: Sequence[str]) -> Tensor:
    """Return rows of the small table, int64 (n, longest), padded with zeros behind the end token."""
    rows, (start, end) = _rows(), (len(used_ids()) - 2, len(used_ids()) - 1)
    ids = [[start, *(row for word in text.split() for row in rows[word]), end] for text in captions]
    longest = max(map(len, ids))
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids])


# --------------------------------------------------------------------------------------------------------------- model


def small_clip(config: Mapping[str, Any]) -> Any:
    """Return an untrained CLIP of this size whose table holds the used rows only; it also returns patch tokens."""
    model = build_model({**config, "text_cfg": {**config["text_cfg"], "vocab_size": len(used_ids())}})
    model.visual.output_tokens = True
    return model


def load_clip(folder: Path, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Return a CLIP that was saved before, with the small table, and its config.

    Args:
        folder: with ``weights.safetensors`` and ``config.json``.
        changes: keys of the config that are to be others.

    Raises:
        MissingWeightsError: no such folder.
    """
    if not (folder / "weights.safetensors").is_file():
        raise MissingWeightsError(
            f"No CLIP in {folder}. Train one first: brushbench train tiny judges --which clip, and pass it as --clip."
        )
    config = {**read_json(folder / "config.json"), **changes}
    model = small_clip(config)
    tensors = {k: v.float() for k, v in read_tensors(folder / "weights.safetensors").items() if "aesthetic" not in k}
    tensors[TABLE] = tensors[TABLE][list(used_ids())]
    model.load_state_dict(tensors)
    return model, config


def hps_from_clip(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return a trained CLIP with plain GELU in QuickGELU's place, as HPS has it; fine-tuning heals the difference."""
    return load_clip(folder, quick_gelu=False)


def save_clip(model: Any, config: Mapping[str, Any], folder: Path, extra: Mapping[str, Tensor] | None = None) -> None:
    """Write ``weights.safetensors`` (open_clip's keys, half precision) and ``config.json``."""
    from safetensors.torch import save_file

    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    table = torch.zeros(config["text_cfg"]["vocab_size"], state[TABLE].shape[1], dtype=torch.float16)
    table[list(used_ids())] = state[TABLE].cpu()
    state = {**state, TABLE: table, **{name: tensor.half().contiguous() for name, tensor in (extra or {}).items()}}
    save_file(state, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def embed_text(model: Any, ids: Tensor) -> Tensor:
    """Return unit embeddings (n, D) of padded rows (n, length); the end token is the highest row, as in CLIP."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(ids), device=x.device), ids.argmax(dim=1)] @ model.text_projection
    return F.normalize(pooled, dim=-1)


# ------------------------------------------------------------------------------------------------- CLIP and preference


class ClipObjective(nn.Module):
    """CLIP's contrastive loss with captions that are wrong by one attribute among the negatives, and the hints.

    With ``preference`` each scene comes twice, clean and spoilt, and the caption has to choose the clean one: the loss
    of HPS v2 over a pair of pictures.
    """

    def __init__(self, model: Any, *, preference: bool) -> None:
        super().__init__()
        self.model, self.preference = model, preference
        width = model.visual.class_embedding.shape[0]
        self.hints = Hints(width, model.text_projection.shape[1])

    def forward(
        self, images: Tensor, ids: Tensor, patches: Tensor, ground: Tensor, clean: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what is logged.

        Args:
            images: float (n, 3, S, S) of n scenes, with ``preference`` 2n: the clean ones first.
            ids: rows (n (1 + wrong), length), each scene's right caption first.
            patches: see :class:`Hints`, one for each image.
            ground: as above.
            clean: as above.
        """
        pooled, tokens = self.model.visual(images)
        seen = F.normalize(pooled, dim=-1)
        scenes = len(images) // 2 if self.preference else len(images)
        said = embed_text(self.model, ids).unflatten(0, (scenes, -1))
        scale = self.model.logit_scale.clamp(max=MOST_SCALE).exp()
        logits = scale * seen[:scenes] @ said[:, 0].T
        near = scale * torch.einsum("nd,nkd->nk", seen[:scenes], said[:, 1:])
        which = torch.arange(scenes, device=images.device)
        table = torch.cat([logits, near], dim=1)
        loss = 0.5 * (F.cross_entropy(table, which) + F.cross_entropy(logits.T, which))
        extras = {
            "right": (table.argmax(dim=1) == which).float().mean(),
            "nearest": (near.amax(dim=1) < logits.diagonal()).float().mean(),
        }
        if self.preference:
            margin = logits.diagonal() - scale * (seen[scenes:] * said[:, 0]).sum(dim=1)
            loss = loss + F.softplus(-margin).mean()
            extras["preferred"] = (margin > 0).float().mean()
        summary = seen * seen.shape[1] ** 0.5
        hints, more = self.hints(tokens, summary, patches, ground, clean)
        return loss + HINT_WEIGHT * hints, {**extras, **more, "hints": hints}


@dataclass
class ClipTask:
    """A CLIP on its stream of scenes.

    Attributes:
        model: from :func:`small_clip`; trained.
        config: open_clip's model_cfg, with the whole vocabulary.
        stream: of scenes.
        preference: clean against spoilt as well; without it some pictures are spoilt, so that damage is known too.
    """

    model: Any
    config: dict[str, Any]
    stream: SceneStream
    preference: bool = False

    def __post_init__(self) -> None:
        self.objective = ClipObjective(self.model, preference=self.preference)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return pictures, right and wrong captions, and what the hints teach."""
        drawn, rng = self.stream.take(draw)
        images = [one.image for one in drawn]
        spoilt = [spoil(image, rng.pick(SPOILS), rng, images[(i + 1) % len(images)]) for i, image in enumerate(images)]
        more = HARD if self.preference else ()
        captions = [t for one in drawn for t in (caption(one.scene), *wrong_captions(one.scene, rng, WRONG, more))]
        hints = hint_tensors(drawn, self.config["vision_cfg"]["patch_size"])
        if self.preference:
            shown, clean = [*images, *spoilt], [1.0] * len(images) + [0.0] * len(images)
            hints = {name: torch.cat([tensor, tensor]) for name, tensor in hints.items()}
        else:
            clean = [float(rng.uniform() >= SPOILT_SHARE) for _ in images]
            shown = [image if c else bad for image, bad, c in zip(images, spoilt, clean, strict=True)]
        return {"images": pixels(shown), "ids": encode_captions(captions), "clean": torch.tensor(clean), **hints}

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": self.stream.name, "cache_scenes": self.stream.cache_scenes}

    def pictures(self) -> Picture:
        """Return scenes as the judge sees them."""
        return spoilt_sheet(self.stream.name)

    def save(self, folder: Path) -> None:
        """Write the folder that ``clip_score`` or ``hps_v2.1`` read."""
        save_clip(self.model, self.config, folder)


def spoilt_sheet(stream: str) -> Picture:
    """Return clean scenes above their damaged copies, one kind of damage a column."""
    drawn, rng = SceneStream(stream).take(Draw(0, 0, 0, len(SPOILS)))
    images = [one.image for one in drawn]
    spoilt = [
        spoil(image, kind, rng, images[i - 1]) for i, (image, kind) in enumerate(zip(images, SPOILS, strict=True))
    ]
    return contact_sheet(np.stack([*images, *spoilt]), len(SPOILS))


# ----------------------------------------------------------------------------------------------------------- aesthetic


class AestheticObjective(nn.Module):
    """A linear score of unit embeddings that ranks clean over spoilt; clean pictures have about 6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 1)

    def forward(self, clean: Tensor, spoilt: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss for embeddings (n, D) of the same scenes, and the share ranked rightly."""
        good, bad = self.head(clean)[:, 0], self.head(spoilt)[:, 0]
        anchor = (good.mean() - 6.0).square()
        return F.softplus(bad - good).mean() + 0.1 * anchor, {"right": (good > bad).float().mean()}


@dataclass
class AestheticTask:
    """The aesthetic head on a frozen CLIP, whose embeddings are the data.

    Attributes:
        clip: from :func:`load_clip`; not trained.
        config: its model_cfg.
        stream: of scenes.
    """

    clip: Any
    config: dict[str, Any]
    stream: SceneStream

    def __post_init__(self) -> None:
        self.clip = copy.deepcopy(self.clip).requires_grad_(False).eval()
        self.objective = AestheticObjective(self.config["embed_dim"])

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return the embeddings of scenes and of their damaged copies."""
        drawn, rng = self.stream.take(draw)
        images = [one.image for one in drawn]
        spoilt = [spoil(image, rng.pick(SPOILS), rng, images[i - 1]) for i, image in enumerate(images)]
        with torch.no_grad():
            seen = F.normalize(self.clip.visual(pixels([*images, *spoilt]))[0], dim=-1)
        return {"clean": seen[: len(images)], "spoilt": seen[len(images) :]}

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": self.stream.name, "cache_scenes": self.stream.cache_scenes}

    def pictures(self) -> Picture:
        """Return scenes as the judge sees them."""
        return spoilt_sheet(self.stream.name)

    def save(self, folder: Path) -> None:
        """Write CLIP's folder with the head in the same file."""
        head = self.objective.head
        save_clip(self.clip, self.config, folder, {"aesthetic.weight": head.weight, "aesthetic.bias": head.bias})
