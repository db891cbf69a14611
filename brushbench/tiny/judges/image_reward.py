"""Train a small model of ImageReward's architecture to rank right over wrong captions, clean over spoilt pictures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brushbench.errors import MissingWeightsError
from brushbench.metrics.image_reward import build_model, make_tokenizer, original_name, stored_parameters
from brushbench.tiny.judges.clip import spoilt_sheet
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
from brushbench.training.loop import Draw
from brushbench.types import JSON, Picture
from brushbench.weights import read_tensors

__all__ = ["REWARD_CONFIG", "RewardTask", "load_reward", "small_reward", "vocabulary"]

REWARD_CONFIG: dict[str, dict[str, Any]] = {
    "vision": {
        "width": 128,
        "depth": 4,
        "heads": 4,
        "patch": 8,
        "image_size": 64,
        "mlp_ratio": 4,
        "layer_norm_eps": 1e-6,
    },
    "text": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 384,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 40,
    },
}
WRONG = 4  # captions a scene; they differ from the right one in one attribute
FAR_STEPS = 4000  # so long one of them is another scene's, which is easily told: see data/tiny/README.md
SPOILT_SHARE = 0.25  # of the scenes come with a damaged copy: damage is learnt early
HINT_WEIGHT = 0.5
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Return the tokens of ``vocab.txt``: BERT's special ones and every word of a caption; all others are unknown."""
    return [*_SPECIAL, *words()]


def small_reward(config: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Return an untrained model; its first weights keep a signal's size, which BERT's do not at small widths.

    Args:
        config: ``vision`` and ``text`` as in :data:`REWARD_CONFIG`.
    """
    text = {**config["text"], "vocab_size": len(vocabulary()) + 2}
    model = build_model({"vision": config["vision"], "text": text})
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def load_reward(folder: Path) -> nn.Module:
    """Return a trained model of :data:`REWARD_CONFIG`'s sizes, in float32, from the folder that ``save`` wrote.

    Raises:
        MissingWeightsError: no such folder.
        WeightsError: weights of another size.
    """
    path = folder / "weights.safetensors"
    if not path.is_file():
        raise MissingWeightsError(f"--init-from {folder} holds no weights.safetensors. Give a trained image_reward.")
    model = small_reward(REWARD_CONFIG)
    model.load_state_dict(stored_parameters(model.state_dict(), read_tensors(path)))
    return model


class RewardObjective(nn.Module):
    """ImageReward's ranking loss over pairs, -log sigmoid(better - worse), and the hints."""

    model: Any  # of submodules by name

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.hints = Hints(width, width)

    def train(self, mode: bool = True) -> RewardObjective:
        """Keep the head's dropout off: it would draw from the global generator, and resuming would not be exact."""
        super().train(mode)
        self.model["mlp"].eval()
        return self

    def forward(
        self, images: Tensor, ids: Tensor, mask: Tensor, patches: Tensor, ground: Tensor, clean: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and what is logged.

        Args:
            images: float (n + m, 3, S, S): n clean pictures, then damaged copies of the first m.
            ids: token ids (n (1 + WRONG), length), each scene's right caption first.
            mask: of the same shape, 1 = token.
            patches: see :class:`Hints`, one for each image.
            ground: as above.
            clean: as above.
        """
        each = 1 + WRONG
        scenes = len(ids) // each
        spoilt = len(images) - scenes
        seen = self.model["vision"](images).last_hidden_state
        shown = torch.cat([seen[:scenes].repeat_interleave(each, dim=0), seen[scenes:]])
        read = self.model["text"](
            input_ids=torch.cat([ids, ids[::each][:spoilt]]),
            attention_mask=torch.cat([mask, mask[::each][:spoilt]]),
            encoder_hidden_states=shown,
        ).last_hidden_state
        rewards = self.model["mlp"](read[:, 0])[:, 0]
        said, worse = rewards[: len(ids)].unflatten(0, (scenes, each)), rewards[len(ids) :]
        told, kept = said[:, :1] - said[:, 1:], said[:spoilt, 0] - worse
        hints, more = self.hints(seen[:, 1:], seen[:, 0], patches, ground, clean)
        loss = F.softplus(-told).mean() + F.softplus(-kept).mean() + 0.01 * rewards.square().mean()
        extras = {"right": (told > 0).float().mean(), "preferred": (kept > 0).float().mean(), "hints": hints}
        return loss + HINT_WEIGHT * hints, {**extras, **more}


@dataclass
class RewardTask:
    """The reward model on its stream of scenes.

    Attributes:
        model: from :func:`small_reward`; trained.
        config: its sizes.
        stream: of scenes.
    """

    model: nn.Module
    config: dict[str, dict[str, Any]]
    stream: SceneStream
    _tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.objective = RewardObjective(self.model, self.config["vision"]["width"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.txt"
            _write_vocabulary(path)
            self._tokenizer = make_tokenizer(path)

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return pictures, damaged copies of some, and for each scene the right caption and wrong ones."""
        drawn, rng = self.stream.take(draw)
        images = [one.image for one in drawn]
        count = max(1, round(SPOILT_SHARE * len(images)))
        spoilt = [spoil(images[i], rng.pick(SPOILS), rng, images[i - 1]) for i in range(count)]
        right = [caption(one.scene) for one in drawn]
        captions: list[str] = []
        for i, one in enumerate(drawn):
            if draw.step < FAR_STEPS:
                captions += [right[i], *wrong_captions(one.scene, rng, WRONG - 1), right[i - 1]]
            else:
                captions += [right[i], *wrong_captions(one.scene, rng, WRONG, HARD)]
        hints = hint_tensors([*drawn, *drawn[:count]], self.config["vision"]["patch"])
        clean = torch.cat([torch.ones(len(images)), torch.zeros(count)])
        return {"images": pixels([*images, *spoilt]), "clean": clean, **self._tokens(captions), **hints}

    def _tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        encoded = self._tokenizer(list(captions), padding="longest", return_tensors="pt")
        return {"ids": encoded["input_ids"], "mask": encoded["attention_mask"]}

    def identity(self) -> dict[str, JSON]:
        """Return the model and how its stream repeats."""
        return {"model": self.stream.name, "cache_scenes": self.stream.cache_scenes}

    def pictures(self) -> Picture:
        """Return scenes as the judge sees them."""
        return spoilt_sheet(self.stream.name)

    def save(self, folder: Path) -> None:
        """Write the folder that ``image_reward`` reads: the published keys in half precision, sizes, vocabulary."""
        from safetensors.torch import save_file

        state = self.model.state_dict()
        tensors = {original_name(name)[0][0]: tensor.half().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / "weights.safetensors")
        (folder / "config.json").write_text(json.dumps({"vision": self.config["vision"]}, indent=2) + "\n")
        text = {**self.config["text"], "vocab_size": len(vocabulary()) + 2}
        (folder / "med_config.json").write_text(json.dumps(text, indent=2) + "\n")
        _write_vocabulary(folder / "vocab.txt")


def _write_vocabulary(path: Path) -> None:
    path.write_text("".join(f"{token}\n" for token in vocabulary()), encoding="utf-8")
