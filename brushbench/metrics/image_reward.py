"""ImageReward."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench import assets
from brushbench.errors import WeightsError
from brushbench.metrics.base import CAPTION_CUT, ModelMetric, Needs, in_groups, with_remarks
from brushbench.metrics.clip_model import cropped
from brushbench.metrics.sizes import BlipText, BlipVision, checked
from brushbench.weights import assemble, materialise, read_json, read_shapes, read_tensors, sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor, nn

    from brushbench.features import Features
    from brushbench.types import JSON, Picture, Region, Sample, Score
    from brushbench.weights import Recipe, WeightFile

__all__ = ["ImageReward", "build_model", "find_config"]

IMAGE_REWARD = Needs(
    what="ImageReward-v1.0",
    files=("ImageReward.pt",),
    size="1.8 GB",
    licence="Apache-2.0",
    source="THUDM/ImageReward (hub)",
    hub=("THUDM/ImageReward",),
    tiny="image_reward",
)
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the training set's rewards; scores are z-scored
MAX_TOKENS = 35
COUNTER = "blip.text_encoder.embeddings.position_ids"  # 0, 1, 2 …: in the published file, no longer in BERT
PROJECTION = 256  # of the two projections that scoring does not use
PUBLISHED_VISION = {
    "width": 1024,
    "depth": 24,
    "heads": 16,
    "patch": 16,
    "image_size": 224,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,  # timm's; transformers' default for BLIP is 1e-5 and moves the reward by 3e-4
}
PUBLISHED_TEXT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "vocab_size": 30524,
}


# Sizes ----------------------------------------------------------------------------------------------------------------


def find_config(weights: WeightFile) -> dict[str, dict[str, Any]]:
    """Return the sizes of an ImageReward: ``vision`` and ``text``, those of the published model where not given.

    Args:
        weights: ``config.json`` beside it may hold ``{"vision": {width, depth, heads, patch, image_size, mlp_ratio,
            layer_norm_eps}}``; ``med_config.json`` the sizes of the text encoder.

    Raises:
        WeightsError: a config that is not readable or names something else.
    """
    vision, text = dict(PUBLISHED_VISION), dict(PUBLISHED_TEXT)
    config, med = weights.beside("config.json"), weights.beside("med_config.json")
    if config is not None:
        given = read_json(config).get("vision", {})
        if not isinstance(given, dict) or not set(given) <= set(vision):
            raise WeightsError(f"{config}: expected {{'vision': {{{', '.join(vision)}}}}}, got {given!r}.")
        vision.update(given)
    if med is not None:
        given = read_json(med)
        text.update({name: given[name] for name in text if name in given})
    return {
        "vision": {**vision, **checked(BlipVision, vision, str(config))},
        "text": {**text, **checked(BlipText, text, str(med))},
    }


def build_model(config: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Return an ImageReward with random weights: BLIP's image encoder, its text encoder, and the reward head.

    Args:
        config: ``vision`` and ``text`` as :func:`find_config` returns them.

    Returns:
        A ``ModuleDict`` with ``vision``, ``text``, ``vision_proj``, ``text_proj`` (both unused in scoring) and ``mlp``.

    Raises:
        WeightsError: sizes that do not fit together.
    """
    from torch import nn
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    size, text = config["vision"], config["text"]
    width, hidden = size["width"], text["hidden_size"]
    vision_config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=int(width * size["mlp_ratio"]),
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        image_size=size["image_size"],
        patch_size=size["patch"],
        hidden_act="gelu",
        layer_norm_eps=size["layer_norm_eps"],
    )
    # is_decoder makes the cross-attention layers exist; the model is run as an encoder. The stock special
    # tokens lie outside a small vocabulary, and are not used.
    unused = {"bos_token_id": None, "sep_token_id": None}
    text_config = BlipTextConfig(**text, encoder_hidden_size=width, is_decoder=True, **unused)
    # The published head has no activations between its layers.
    head = nn.Sequential(
        nn.Linear(hidden, 1024),
        nn.Dropout(0.2),
        nn.Linear(1024, 128),
        nn.Dropout(0.2),
        nn.Linear(128, 64),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
    try:
        vision_model = BlipVisionModel(vision_config)
        text_model = BlipTextModel(text_config, add_pooling_layer=False)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(f"This ImageReward cannot be built: {error}.") from error
    return nn.ModuleDict(
        {
            "vision": vision_model,
            "text": text_model,
            "vision_proj": nn.Linear(width, PROJECTION),
            "text_proj": nn.Linear(hidden, PROJECTION),
            "mlp": head,
        }
    )


# Weights --------------------------------------------------------------------------------------------------------------

_VISION = (
    ("vision.embeddings.class_embedding", "cls_token"),
    ("vision.embeddings.position_embedding", "pos_embed"),
    ("vision.embeddings.patch_embedding", "patch_embed.proj"),
    ("vision.encoder.layers", "blocks"),
    ("vision.post_layernorm", "norm"),
    ("layer_norm", "norm"),
    ("self_attn.qkv", "attn.qkv"),
    ("self_attn.projection", "attn.proj"),
)


def original_name(name: str) -> Recipe:
    """Return the key of the published file that holds one parameter of :func:`build_model`."""
    if name.startswith("vision."):
        for ours, theirs in _VISION:
            name = name.replace(ours, theirs)
        original = f"blip.visual_encoder.{name}"
    elif name.startswith("text."):
        original = f"blip.text_encoder.{name.removeprefix('text.')}"
    else:
        original = name.replace("mlp.", "mlp.layers.") if name.startswith("mlp.") else f"blip.{name}"
    return (original,), lambda tensor: tensor


def stored_parameters(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a model of :func:`build_model`, whose own is ``expected``, from a published file's tensors.

    Raises:
        WeightsError: keys or shapes that do not fit.
    """
    return assemble(expected, found, original_name, what=IMAGE_REWARD.what, spare=lambda key: key == COUNTER)


# Tokens ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def make_tokenizer(vocabulary: Path) -> Any:
    """Return bert-base-uncased's tokenizer with BLIP's two extra tokens, ``[DEC]`` and ``[ENC]``, at the end.

    Args:
        vocabulary: ``vocab.txt``, one token a line.
    """
    from transformers import BertTokenizer

    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


def _vocabulary(weights: WeightFile, size: int) -> Path:
    """Return the vocabulary beside the weights, or the published one."""
    path = weights.beside("vocab.txt") or assets.path("data/bert-base-uncased/vocab.txt")
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines + 2 != size:
        raise WeightsError(
            f"{path} has {lines} tokens, and the model was built for {size} (two of them its own). "
            "Put the model's own vocab.txt beside the weights."
        )
    return path


# Metric ---------------------------------------------------------------------------------------------------------------


class ImageReward(ModelMetric):
    """Reward of ImageReward-v1.0 (Xu et al. 2023): how well picture and caption go together, about -2..2.

    The whole picture, shortest side to 224 (Pillow's bicubic), torchvision's centre crop. Captions are cut at 35
    tokens, as the model was made, with a remark beside the score. Both protocols are the published arithmetic.
    """

    name = "image_reward"
    higher_is_better = True
    region: Region = "whole"
    display = ("x10", 1e1)
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    reads_caption: ClassVar[bool] = True
    needs: ClassVar[tuple[Needs, ...]] = (IMAGE_REWARD,)
    caveats: ClassVar[Mapping[str, str]] = dict.fromkeys(
        protocols, f"judges the kept pixels too; captions are cut at {MAX_TOKENS} tokens"
    )

    def _open(self) -> None:
        self._config = find_config(self.weights)
        self._vocabulary = _vocabulary(self.weights, self._config["text"]["vocab_size"])
        self._key = f"image_reward {self.weights.sha256} {self._config} {self.device} {self.dtype}"
        stored_parameters(self._empty().state_dict(), read_shapes(self.weights.path))

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "vocabulary_sha256": sha256_file(self._vocabulary)}

    def _empty(self) -> nn.Module:
        import torch

        with torch.device("meta"):
            return build_model(self._config)

    def _load(self) -> nn.Module:
        import torch

        model = self._empty()
        tensors = stored_parameters(model.state_dict(), read_tensors(self.weights.path))
        materialise(model, tensors, what=IMAGE_REWARD.what, device=self.device, dtype=self.torch_dtype)
        positions = torch.arange(self._config["text"]["max_position_embeddings"], device=self.device)
        model.get_submodule("text.embeddings").position_ids = positions.unsqueeze(0)
        return model

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        side = self._config["vision"]["image_size"]
        rewards: dict[int, float] = {}
        for group in in_groups(pictures):
            pixels = np.stack([cropped(pictures[i], side, "even") for i in group])
            prompts = [samples[i].prompt for i in group]
            raw = store.images(self._key, pixels, functools.partial(self._rewards, store, pixels, prompts), *prompts)
            rewards.update({i: (float(value) - MEAN) / DEVIATION for i, value in zip(group, raw[:, 0], strict=True)})
        cut = [self._is_cut(sample.prompt) for sample in samples]
        return with_remarks((rewards[i] for i in range(len(pictures))), (CAPTION_CUT if c else "" for c in cut))

    def _is_cut(self, prompt: str) -> bool:
        return len(make_tokenizer(self._vocabulary)(prompt)["input_ids"]) > MAX_TOKENS

    def _rewards(
        self, store: Features, pixels: npt.NDArray[np.float32], prompts: Sequence[str]
    ) -> npt.NDArray[np.float64]:
        """Return rewards (B, 1) before they are z-scored."""
        import torch

        model: Any = store.model(self._key, self._load)
        ids, mask = self._tokens(prompts)
        with torch.inference_mode():
            image_features = model["vision"](
                torch.from_numpy(pixels).to(self.device, self.torch_dtype)
            ).last_hidden_state
            text_features = model["text"](
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                encoder_hidden_states=image_features,
            ).last_hidden_state
            rewards: npt.NDArray[np.float64] = model["mlp"](text_features[:, 0]).double().cpu().numpy()
        return rewards

    def _tokens(self, prompts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Return ids and mask, padded to the longest caption: what lies beyond is masked out in every layer anyway."""
        tokenizer = make_tokenizer(self._vocabulary)
        encoded = tokenizer(list(prompts), padding="longest", truncation=True, max_length=MAX_TOKENS)
        return encoded["input_ids"], encoded["attention_mask"]
