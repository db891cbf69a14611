"""InpaintReward of PrefPaint: a reward for inpainted images that looks at the image and at what was given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench.errors import WeightsError
from brushbench.metrics import clip_model
from brushbench.metrics.base import ModelMetric, Needs, in_groups
from brushbench.metrics.sizes import Depth, Fraction, Sizes, Switch, Width, checked
from brushbench.types import Unscored
from brushbench.weights import assemble, materialise, read_json, read_shapes, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from brushbench.features import Features
    from brushbench.types import JSON, Picture, Region, Sample, Score
    from brushbench.weights import WeightFile

__all__ = ["InpaintReward"]

PREF_PAINT = Needs(
    what="InpaintReward of PrefPaint, a CLIP ViT-B/32 with a head",
    files=("prefpaintReward.pt",),
    size="0.6 GB",
    licence="see the hub",
    source="kd5678/prefpaintReward (hub)",
    hub=("kd5678/prefpaintReward",),
)
# The text tower and a copy of the transformer layer are in the file, and nothing reads them.
SPARE = re.compile(
    r"clip_model\.(?!visual\.).*|vit_block\.encoder_layer\..*|mlp\.last_layer_weight|.*(position_ids|num_batches_tracked)"
)
PUBLISHED: Mapping[str, Any] = {
    "clip": {
        "embed_dim": 512,
        "image_resolution": 224,
        "vision_layers": 12,
        "vision_width": 768,
        "vision_patch_size": 32,
        "vision_heads": 12,
        "quick_gelu": True,
    },
    "vit": {"feature_dim": 1024, "num_heads": 16, "mlp_dim": 1024},
    "mlp_input": 1024,
    "mlp_hidden": [512, 256],
}


class ClipSizes(Sizes):
    """The image tower, in the names of OpenAI's clip."""

    embed_dim: Width
    image_resolution: Width
    vision_layers: Depth
    vision_width: Width
    vision_patch_size: Width
    vision_heads: Width
    quick_gelu: Switch = True


class LayerSizes(Sizes):
    """The one transformer layer of the head."""

    feature_dim: Width
    num_heads: Width
    mlp_dim: Width
    layer_norm_eps: Fraction = 1e-5
    activation: str = "relu"
    norm_first: Switch = False


class RewardSizes(Sizes):
    """Everything that ``config.json`` names."""

    clip: ClipSizes
    vit: LayerSizes
    mlp_input: Width
    mlp_hidden: tuple[Width, Width]


class InpaintReward(ModelMetric):
    """Reward of PrefPaint (Liu et al. 2024) for an inpainted image, as learnt from human ratings; higher is better.

    CLIP ViT-B/32's embeddings of two images, not normalised, side by side; one transformer layer on this single token;
    three linear layers without activations (InpaintReward.py @55f9ba84, ``group`` off: the raw score). No caption is
    read. The second image is what the two published forms disagree on:

    ``standard``: the masked colour image, the reference with a black hole: how PrefPaint was trained.
    ``freeinpaint``: the binary mask, white where it was repainted: what FreeInpaint @f510450d scores with.

    Dropout is off. Both published scripts leave it on, so their numbers are random draws (standard deviation about 1).

    ``weights`` is a folder with ``weights.safetensors`` in the original keys, or the published file; ``config.json``
    with ``clip``, ``vit``, ``mlp_input`` and ``mlp_hidden`` gives other sizes.
    """

    name = "inpaint_reward"
    higher_is_better = True
    region: Region = "whole"
    protocols: ClassVar[tuple[str, ...]] = ("standard", "freeinpaint")
    auto_protocols: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[Needs, ...]] = (PREF_PAINT,)
    caveats: ClassVar[Mapping[str, str]] = dict.fromkeys(
        protocols, "reads no caption; dropout is off, unlike in the published scripts, whose numbers are random draws"
    )

    def _open(self) -> None:
        self._config = find_config(self.weights)
        self._key = f"inpaint_reward {self.weights.sha256} {self._config} {self.device} {self.dtype}"
        self._parameters(self._empty(), read_shapes(self.weights.path))

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "second_image": "binary mask" if self.protocol == "freeinpaint" else "masked"}

    def _empty(self) -> nn.ModuleDict:
        import torch

        with torch.device("meta"):
            return build_model(self._config)

    def _parameters(self, model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = {name.removeprefix("module."): tensor for name, tensor in found.items()}
        return assemble(
            model.state_dict(), plain, what=PREF_PAINT.what, spare=lambda key: SPARE.fullmatch(key) is not None
        )

    def _load(self) -> nn.ModuleDict:
        model = self._empty()
        tensors = self._parameters(model, read_tensors(self.weights.path))
        materialise(model, tensors, what=PREF_PAINT.what, device=self.device, dtype=self.torch_dtype)
        return model

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        return super()._fault(picture, sample) or super()._fault(sample.image, sample)

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        first = self._embedded(store, pictures)
        second = self._embedded(store, [self._given(sample) for sample in samples])
        rewards = [self._reward(store, np.concatenate(pair)) for pair in zip(first, second, strict=True)]
        return [float(reward) for reward in rewards]

    def _given(self, sample: Sample) -> Picture:
        """Return the second image: what the method was given."""
        hole = sample.hole[..., None]
        if self.protocol == "freeinpaint":
            return np.repeat(hole, 3, axis=2).astype(np.uint8) * np.uint8(255)
        return np.where(hole, np.uint8(0), sample.image)

    def _embedded(self, store: Features, pictures: Sequence[Picture]) -> list[Any]:
        """Return CLIP's embedding of each image, float64 (D,), not normalised."""
        import torch

        found: dict[int, Any] = {}
        side = self._config["clip"]["image_resolution"]
        for group in in_groups(pictures):
            pixels = np.stack([clip_model.cropped(pictures[i], side, "even") for i in group])

            def compute(pixels: Any = pixels) -> Any:
                model = store.model(self._key, self._load)
                with torch.inference_mode():
                    values = model.get_submodule("clip_model.visual")(
                        torch.from_numpy(pixels).to(self.device, self.torch_dtype)
                    )
                return values.double().cpu().numpy()

            found.update(zip(group, store.images(self._key, pixels, compute), strict=True))
        return [found[i] for i in range(len(pictures))]

    def _reward(self, store: Features, pair: Any) -> float:
        import torch

        model = store.model(self._key, self._load)
        with torch.inference_mode():
            token = torch.from_numpy(pair).to(self.device, self.torch_dtype).view(1, 1, -1)
            mixed = model.get_submodule("vit_block.transformer_encoder.layers")(token)[:, 0]
            hidden = model.get_submodule("mlp.layers")(mixed)
            return float(model.get_submodule("mlp.last_layer")(hidden).double())


def find_config(weights: WeightFile) -> dict[str, Any]:
    """Return the sizes of an InpaintReward: the published ones without a ``config.json`` beside the weights.

    Raises:
        WeightsError: sizes that are wrong or do not fit together.
    """
    path = weights.beside("config.json")
    given = {**PUBLISHED, **({} if path is None else read_json(path))}
    config = checked(RewardSizes, {key: given[key] for key in PUBLISHED}, str(path))
    width = config["vit"]["feature_dim"]
    if config["mlp_input"] != width or width != 2 * config["clip"]["embed_dim"]:
        raise WeightsError(f"{path}: mlp_input and feature_dim are twice embed_dim. Give the original config.json.")
    if config["vit"].get("activation", "relu") not in ("relu", "gelu"):
        raise WeightsError(f"{path}: vit.activation is {config['vit']['activation']!r}, expected relu or gelu.")
    return config


def build_model(config: Mapping[str, Any]) -> nn.ModuleDict:
    """Return an InpaintReward with random weights, its parts named as in the published file.

    Args:
        config: as :func:`find_config` returns it.

    Raises:
        WeightsError: sizes that do not fit together.
    """
    from torch import nn

    clip, vit = config["clip"], config["vit"]
    visual = clip_model.build_model(
        {
            "embed_dim": clip["embed_dim"],
            "quick_gelu": clip.get("quick_gelu", True),
            "vision_cfg": {
                "image_size": clip["image_resolution"],
                "layers": clip["vision_layers"],
                "width": clip["vision_width"],
                "head_width": clip["vision_width"] // clip["vision_heads"],
                "patch_size": clip["vision_patch_size"],
            },
            "text_cfg": {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1},  # not used
        }
    ).visual
    first, second = config["mlp_hidden"]
    try:
        layer = nn.TransformerEncoderLayer(
            vit["feature_dim"],
            vit["num_heads"],
            vit["mlp_dim"],
            dropout=0.0,
            activation=vit.get("activation", "relu"),
            layer_norm_eps=vit.get("layer_norm_eps", 1e-5),
            norm_first=vit.get("norm_first", False),
            batch_first=True,
        )
    except (AssertionError, RuntimeError, ValueError) as error:
        raise WeightsError(f"This InpaintReward cannot be built: {error}. Give the original config.json.") from error
    # nn.TransformerEncoder would copy the layer; the published file names it as that class does
    encoder = nn.ModuleDict({"layers": nn.Sequential(layer)})
    return nn.ModuleDict(
        {
            "clip_model": nn.ModuleDict({"visual": visual}),
            "vit_block": nn.ModuleDict({"transformer_encoder": encoder}),
            "mlp": nn.ModuleDict(
                {
                    "layers": nn.Sequential(
                        nn.Linear(config["mlp_input"], first), nn.Identity(), nn.Linear(first, second)
                    ),
                    "last_layer": nn.Linear(second, 1, bias=False),
                }
            ),
        }
    )
