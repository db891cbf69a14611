"""The CLIP model that several metrics stand on: sizes, weights in both key forms, pixels, tokens, embeddings.

The model is open_clip's, which HPS and the aesthetic head were made with; weights in the keys of transformers are
renamed on loading: the two forms hold the same tensors, with q, k and v together or apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from brushbench.errors import WeightsError, printable, reason_of
from brushbench.metrics.base import Needs, in_groups
from brushbench.metrics.sizes import ClipConfig, checked
from brushbench.weights import assemble, materialise, read_json, read_shapes, read_tensors, same_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    import torch
    from torch import Tensor

    from brushbench.features import Features
    from brushbench.types import Picture
    from brushbench.weights import Recipe, WeightFile

__all__ = [
    "CLIP_VIT_L14",
    "ClipBackbone",
    "build_model",
    "cropped",
    "find_config",
    "normalised",
    "open_clip_ids",
    "transformers_ids",
    "unit",
]

CLIP_VIT_L14 = Needs(
    what="CLIP ViT-L/14 of OpenAI",
    files=("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    size="1.7 GB",
    licence="MIT",
    source="openai/clip-vit-large-patch14 (hub)",
    hub=("openai/clip-vit-large-patch14", "timm/vit_large_patch14_clip_224.openai"),
    tiny="clip",
)
PUBLISHED = (
    "ViT-L-14-quickgelu"  # not "ViT-L-14": its plain GELU does not fit OpenAI's weights, and open_clip only warns
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SPARE = re.compile(r"aesthetic\.(weight|bias)|input_resolution|context_length|vocab_size|.*embeddings\.position_ids")


# Sizes ----------------------------------------------------------------------------------------------------------------


def find_config(weights: WeightFile, published: str = PUBLISHED) -> dict[str, Any]:
    """Return open_clip's model_cfg for a weight file.

    Args:
        weights: a ``config.json`` beside it (open_clip's model_cfg, or transformers' CLIPConfig) or an
            ``open_clip_config.json`` gives the size; without one it is the published size.
        published: open_clip's name of that size.

    Raises:
        WeightsError: a config that is neither.
    """
    wrapped = weights.beside("open_clip_config.json")
    if wrapped is not None:
        return _open_clip(read_json(wrapped).get("model_cfg", {}), str(wrapped))
    path = weights.beside("config.json")
    if path is not None:
        config = read_json(path)
        of_transformers = config.get("model_type") == "clip" or "vision_config" in config
        return _translated(config, str(path)) if of_transformers else _open_clip(config, str(path))
    import open_clip

    return _open_clip(open_clip.get_model_config(published), published)


def _open_clip(config: object, source: str) -> dict[str, Any]:
    """Check open_clip's model_cfg."""
    needed, known = {"embed_dim", "vision_cfg", "text_cfg"}, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    if not isinstance(config, Mapping) or not needed <= set(config) or not set(config) <= known:
        got = f"the keys {sorted(map(str, config))}" if isinstance(config, Mapping) else f"a {type(config).__name__}"
        raise WeightsError(
            f"{source} has {got}, expected open_clip's model_cfg ({', '.join(sorted(known))}) "
            "or transformers' CLIPConfig."
        )
    sizes = checked(ClipConfig, config, source)
    side, patch = sizes["vision_cfg"].get("image_size", 224), sizes["vision_cfg"]["patch_size"]
    if patch > side:
        raise WeightsError(f"{source}: patch_size {patch} is larger than image_size {side}. Give the original config.")
    return sizes


def _translated(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translate transformers' CLIPConfig."""
    from transformers import CLIPConfig

    try:
        whole = CLIPConfig.from_dict(dict(config))
        vision, text = whole.vision_config, whole.text_config
        activations = {vision.hidden_act, text.hidden_act}
        if (vision.layer_norm_eps, text.layer_norm_eps) != (1e-5, 1e-5) or len(activations) != 1:
            raise WeightsError(f"{source} asks for other normalisation or activations than CLIP has.")
        translated = {
            "embed_dim": whole.projection_dim,
            "quick_gelu": vision.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
                "patch_size": vision.patch_size,
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "layers": text.num_hidden_layers,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
            },
        }
    except WeightsError:
        raise
    except Exception as error:  # transformers checks types and values in ways of its own
        raise WeightsError(f"{source} is no config of a CLIP: {reason_of(error)}. Give the original file.") from error
    if not activations <= {"gelu", "quick_gelu"}:
        raise WeightsError(f"{source}: hidden_act is {printable(str(activations))}, expected gelu or quick_gelu.")
    return _open_clip(translated, source)


def build_model(config: Mapping[str, Any]) -> Any:
    """Return an open_clip ``CLIP`` with random weights.

    Args:
        config: open_clip's model_cfg: ``embed_dim``, ``vision_cfg``, ``text_cfg``, ``quick_gelu`` (False if absent).

    Raises:
        WeightsError: a size that open_clip does not know, or sizes that do not fit together.
    """
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    try:
        return CLIP(
            embed_dim=config["embed_dim"],
            vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
            text_cfg=CLIPTextCfg(**config["text_cfg"]),
            quick_gelu=config.get("quick_gelu", False),
        )
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(
            f"The config of this CLIP cannot be built: {error}. Expected open_clip's model_cfg."
        ) from error


# Weights --------------------------------------------------------------------------------------------------------------

_OUTSIDE_BLOCKS = {
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_INSIDE_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def transformers_name(name: str) -> Recipe:
    """Return which keys of transformers' CLIPModel make one parameter of open_clip's CLIP, and how."""
    import torch

    block = _BLOCK.fullmatch(name)
    if block is None:
        stem, dot, kind = name.rpartition(".")
        if name in ("visual.proj", "text_projection"):
            return (_OUTSIDE_BLOCKS[name],), lambda tensor: tensor.T
        whole = _OUTSIDE_BLOCKS.get(name)
        return (whole or f"{_OUTSIDE_BLOCKS[stem]}{dot}{kind}",), lambda tensor: tensor
    tower = "vision_model" if block[1] else "text_model"
    layer = f"{tower}.encoder.layers.{block[2]}"
    if block[3].startswith("attn.in_proj_"):
        kind = block[3].removeprefix("attn.in_proj_")
        return [f"{layer}.self_attn.{part}_proj.{kind}" for part in "qkv"], lambda *parts: torch.cat(parts)
    stem, _, kind = block[3].rpartition(".")
    return (f"{layer}.{_INSIDE_BLOCKS[stem]}.{kind}",), lambda tensor: tensor


def _parameters(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Check and rename a state dict in open_clip's or transformers' keys."""
    renamed = any(key.startswith(("vision_model.", "text_model.")) for key in found)

    def recipe(name: str) -> Recipe:
        keys, make = transformers_name(name) if renamed else same_name(name)
        if name == "logit_scale":  # some files hold it as a vector of one
            return keys, lambda tensor: tensor.reshape(())
        return keys, make

    return assemble(expected, found, recipe, what=what, spare=lambda key: SPARE.fullmatch(key) is not None)


# Pixels ---------------------------------------------------------------------------------------------------------------


def cropped(picture: Picture, side: int, halving: Literal["down", "even"]) -> npt.NDArray[np.float32]:
    """Return what CLIP sees, float32 (3, side, side): shortest side to ``side`` (Pillow's bicubic), the middle square.

    Args:
        picture: uint8 (H, W, 3) RGB.
        side: of the square.
        halving: of an odd margin: transformers rounds ``down``, torchvision to the ``even`` neighbour. Square pictures
            have no margin, so there the two agree.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    shortest = min(height, width)
    size = (int(side * width / shortest), int(side * height / shortest))
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    left, top = ((s - side) // 2 if halving == "down" else round((s - side) / 2) for s in size)
    crop = resized[top : top + side, left : left + side]
    return normalised(crop.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def normalised(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Take CLIP's mean from (3, H, W) on the 0..1 scale and divide by its deviation."""
    mean, deviation = (np.asarray(x, dtype=np.float32)[:, None, None] for x in (MEAN, STD))
    scaled: npt.NDArray[np.float32] = (values - mean) / deviation
    return scaled


# Tokens ---------------------------------------------------------------------------------------------------------------


@functools.cache
def _simple_tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@functools.cache
def _transformers_tokenizer() -> Any:
    """Build transformers' CLIP tokenizer, without the network, from the vocabulary that open_clip ships."""
    from transformers import CLIPTokenizer

    simple = _simple_tokenizer()
    specials = {simple.sot_token_id: "<|startoftext|>", simple.eot_token_id: "<|endoftext|>"}
    vocabulary = {specials.get(number, token): number for token, number in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks))


def open_clip_ids(prompt: str, limit: int) -> tuple[list[int], bool]:
    """Return open_clip's token ids (text cleaned of HTML and mojibake, no padding), and whether they were cut.

    A long caption is cut to ``limit`` ids and keeps its end token.
    """
    tokenizer = _simple_tokenizer()
    ids = [tokenizer.sot_token_id, *tokenizer.encode(prompt), tokenizer.eot_token_id]
    return _cut(ids, limit, keep_end=True)


def transformers_ids(prompt: str, limit: int, keep_end: bool) -> tuple[list[int], bool]:
    """Return transformers' token ids (text not cleaned, no padding), and whether they were cut.

    Args:
        prompt: the caption.
        limit: of ids.
        keep_end: whether a long caption keeps its end token. The published script slices it off, so that the start
            token is pooled and every long caption gets the same embedding.
    """
    return _cut(list(_transformers_tokenizer()(prompt)["input_ids"]), limit, keep_end)


def _cut(ids: list[int], limit: int, keep_end: bool) -> tuple[list[int], bool]:
    if len(ids) <= limit:
        return ids, False
    return ([*ids[: limit - 1], ids[-1]] if keep_end else ids[:limit]), True


# Embeddings -----------------------------------------------------------------------------------------------------------


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale vectors (…, D) to length 1."""
    scaled: npt.NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


class ClipBackbone:
    """One CLIP model in a :class:`Features`: checked when made, loaded when first used.

    Attributes:
        config: open_clip's model_cfg.
        key: names the model: weights, sizes, device and dtype. Metrics with the same key share it and its embeddings.
    """

    def __init__(
        self, weights: WeightFile, published: str, what: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Read the size and check every key and shape.

        Raises:
            WeightsError: the file does not hold this model.
        """
        self.weights, self.what, self.device, self.dtype = weights, what, device, dtype
        self.config = find_config(weights, published)
        self.key = f"clip {weights.sha256} {sorted(self.config.items())} {device} {dtype}"
        _parameters(self._empty().state_dict(), read_shapes(weights.path), what)

    @property
    def side(self) -> int:
        """Side in pixels of the square that the model sees."""
        return int(self.config["vision_cfg"].get("image_size", 224))

    @property
    def context(self) -> int:
        """Largest number of token ids."""
        return int(self.config["text_cfg"].get("context_length", 77))

    def _empty(self) -> Any:
        import torch

        with torch.device("meta"):
            return build_model(self.config)

    def _load(self) -> Any:
        model = self._empty()
        tensors = _parameters(model.state_dict(), read_tensors(self.weights.path), self.what)
        materialise(model, tensors, what=self.what, device=self.device, dtype=self.dtype)
        model.attn_mask = _causal(self.context, self.device, self.dtype)
        return model

    def images(self, store: Features, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Embed float32 (B, 3, S, S) as float64 (B, D), not normalised."""

        def compute() -> npt.NDArray[np.float64]:
            import torch

            model = store.model(self.key, self._load)
            with torch.inference_mode():
                return _array(model.encode_image(torch.from_numpy(pixels).to(self.device, self.dtype)))

        return store.images(self.key, pixels, compute)

    def pictures(
        self,
        store: Features,
        pictures: Sequence[Picture],
        prepare: Callable[[Picture], npt.NDArray[np.float32]],
    ) -> npt.NDArray[np.float64]:
        """Embed pictures (B, D), in batches of equal size: those share a pass or none does.

        Args:
            store: where models and embeddings are kept.
            pictures: uint8 (H, W, 3) each.
            prepare: makes the float32 (3, S, S) that the model sees.
        """
        found: dict[int, npt.NDArray[np.float64]] = {}
        for group in in_groups(pictures):
            pixels = np.stack([prepare(pictures[i]) for i in group])
            found.update(zip(group, self.images(store, pixels), strict=True))
        return np.stack([found[i] for i in range(len(pictures))])

    def text(self, store: Features, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Embed one caption (D,), not normalised; attention is causal, so padding would change nothing."""

        def compute() -> npt.NDArray[np.float64]:
            import torch

            model = store.model(self.key, self._load)
            with torch.inference_mode():
                embedded = _encode_text(model, torch.tensor([ids], device=self.device))
                return _array(embedded[0])

        return store.text(self.key, ids, compute)


def _encode_text(model: Any, ids: Tensor) -> Tensor:
    """Run the text tower over (1, n) ids; open_clip's own method only takes the full context length."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled: Tensor = x[:, int(ids[0].argmax())] @ model.text_projection  # the first highest id: the end token
    return pooled


def _causal(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.full((length, length), float("-inf"), device=device, dtype=dtype).triu(1)


def _array(values: Tensor) -> npt.NDArray[np.float64]:
    array: npt.NDArray[np.float64] = values.double().cpu().numpy()
    return array
