"""HPSv3: how people rate an image for a caption, by a vision-language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench import assets
from brushbench.errors import WeightsError, reason_of
from brushbench.metrics.base import ModelMetric, Needs
from brushbench.weights import assemble, materialise, read_json, read_shapes, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from brushbench.features import Features
    from brushbench.types import Picture, Region, Sample, Score

__all__ = ["HpsV3"]

HPS_V3 = Needs(
    what="HPSv3, a Qwen2-VL-7B with a reward head",
    files=("HPSv3.safetensors",),
    size="16 GB",
    licence="MIT",
    source="MizzenAI/HPSv3 (hub), with config.json and tokenizer.json of Qwen/Qwen2-VL-7B-Instruct beside it",
)
REWARD = "<|Reward|>"
PIXELS = 256 * 28 * 28  # of the image that the model sees, about
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
)
HEAD = (0, 3, 5)  # the linear layers of rm_head; between them ReLU and dropout
QUESTION = "data/hps_v3/question.txt"


class HpsV3(ModelMetric):
    """Mean mu of the rating that HPSv3 (Ma et al. 2025) predicts for an image and its caption; higher is better.

    A Qwen2-VL-7B reads the image (256·28·28 pixels, Pillow's bicubic) and a fixed question with the caption in it; a
    head of three layers turns the state at the token ``<|Reward|>`` into (mu, sigma); the score is mu. Stock
    transformers, with what the published code (hpsv3 1.0.0, transformers 4.45) does: positions are counted one by one
    over text and image, not in three dimensions; the head is float32.

    ``weights`` is a folder with ``HPSv3.safetensors`` in the original keys (or ``weights.safetensors``), and with
    ``config.json`` and ``tokenizer.json`` of Qwen/Qwen2-VL-7B-Instruct. With ``dtype="bfloat16"``, as published, it
    takes 16 GB of memory. Never in ``auto``.
    """

    name = "hps_v3"
    higher_is_better = True
    region: Region = "whole"
    auto_protocols: ClassVar[tuple[str, ...]] = ()
    reads_caption: ClassVar[bool] = True
    needs: ClassVar[tuple[Needs, ...]] = (HPS_V3,)
    caveats: ClassVar[Mapping[str, str]] = {"standard": "judges the kept pixels too"}

    def _open(self) -> None:
        from transformers import Qwen2VLConfig

        files = {name: self.weights.beside(name) for name in ("config.json", "tokenizer.json")}
        if absent := [name for name, file in files.items() if file is None]:
            raise WeightsError(
                f"{self.weights.path.parent} holds no {' and no '.join(absent)}. Put the files of "
                "Qwen/Qwen2-VL-7B-Instruct beside the weights."
            )
        shapes = read_shapes(self.weights.path)
        config, tokenizer = (file for file in files.values() if file is not None)
        given = read_json(config)
        try:
            self._config = Qwen2VLConfig.from_dict(given)
        except Exception as error:  # transformers checks types and values in ways of its own
            raise WeightsError(f"{config} is no config of a Qwen2-VL: {reason_of(error)}.") from error
        words = shapes.get("model.embed_tokens.weight", shapes.get("model.language_model.embed_tokens.weight"))
        if words is not None:  # the published embeddings were enlarged for the new token
            self._config.text_config.vocab_size = words.shape[0]
        self._widths = [int(shapes[f"rm_head.{i}.weight"].shape[0]) for i in HEAD if f"rm_head.{i}.weight" in shapes]
        if len(self._widths) != len(HEAD) or self._widths[-1] != 2:
            raise WeightsError(f"{self.weights.path} has no reward head of two outputs (rm_head.0, .3, .5).")
        self._tokenizer = read_tokenizer(tokenizer)
        self._key = f"hps_v3 {self.weights.sha256} {self._config.to_json_string()} {self.device} {self.dtype}"
        self._parameters(self._empty(), shapes)

    def _empty(self) -> nn.ModuleDict:
        """Build the model without values; its tables of positions, which no file holds, are there."""
        from accelerate import init_empty_weights
        from torch import nn
        from transformers import Qwen2VLModel

        hidden = self._config.text_config.hidden_size
        first, second, last = self._widths
        with init_empty_weights(include_buffers=False):
            layers = [nn.Linear(hidden, first), nn.ReLU(), nn.Identity(), nn.Linear(first, second), nn.ReLU()]
            head = nn.Sequential(*layers, nn.Linear(second, last))
            return nn.ModuleDict({"model": Qwen2VLModel(self._config), "rm_head": head})

    def _parameters(self, model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        named = {_present_name(name): tensor for name, tensor in found.items()}
        return assemble(model.state_dict(), named, what=HPS_V3.what, spare=lambda key: key == "lm_head.weight")

    def _load(self) -> nn.ModuleDict:
        model = self._empty()
        tensors = self._parameters(model, read_tensors(self.weights.path))
        materialise(model, tensors, what=HPS_V3.what, device=self.device, dtype=self.torch_dtype)
        model["rm_head"].float()
        model.to(self.device)  # the tables of positions too
        return model

    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        store = self._features(features)
        model = store.model(self._key, self._load)
        return [self._rated(model, p, s.prompt)[0] for p, s in zip(pictures, samples, strict=True)]

    def _rated(self, model: Any, picture: Picture, prompt: str) -> tuple[float, float]:
        """Return mu and sigma."""
        import torch

        patches, grid = self._patches(picture)
        ids = self._ids(prompt, int(grid.prod()) // self._config.vision_config.spatial_merge_size**2)
        tokens = torch.tensor([ids], device=self.device)
        network = model["model"]
        with torch.inference_mode():
            seen = network.get_image_features(patches.to(self.device, self.torch_dtype), grid.to(self.device))
            embedded = network.language_model.embed_tokens(tokens)
            places = (tokens == self._config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, torch.cat(list(seen.pooler_output)).to(embedded))
            positions = torch.arange(len(ids), device=self.device).expand(3, 1, -1)  # counted one by one
            states = network.language_model(inputs_embeds=embedded, position_ids=positions).last_hidden_state
            reward = states[0, ids.index(self._reward_id)].float()
            mu, sigma = model["rm_head"](reward).double().tolist()
        return mu, sigma

    @property
    def _reward_id(self) -> int:
        return int(self._tokenizer.token_to_id(REWARD))

    def _ids(self, prompt: str, image_tokens: int) -> list[int]:
        question = assets.path(QUESTION).read_text("utf-8").replace("{text_prompt}", prompt)
        image = "<|image_pad|>"
        text = CHAT.format(image=image, question=question)
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        place = ids.index(self._tokenizer.token_to_id(image))
        return [*ids[:place], *[self._config.image_token_id] * image_tokens, *ids[place + 1 :]]

    def _patches(self, picture: Picture) -> tuple[Tensor, Tensor]:
        """Return the image as Qwen2-VL takes it: patches (N, D), and the grid (1, 3) that they make."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        vision = self._config.vision_config
        processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": PIXELS, "longest_edge": PIXELS},
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )
        made = processor(np.ascontiguousarray(picture), return_tensors="pt", input_data_format="channels_last")
        return made["pixel_values"], made["image_grid_thw"]


def _present_name(name: str) -> str:
    """Return the name that transformers 5 gives to a key: ``visual.`` and ``model.`` were beside each other once."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def read_tokenizer(file: Path) -> Any:
    """Read a ``tokenizer.json`` and add the reward token behind its last one, if it is not there.

    Raises:
        WeightsError: the file is no tokenizer, or lacks the token of images.
    """
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise WeightsError(f"{file} is no tokenizer: {reason_of(error)}. Fetch the file again.") from error
    if tokenizer.token_to_id("<|image_pad|>") is None:
        raise WeightsError(f"{file} has no token <|image_pad|>. Give the tokenizer.json of Qwen2-VL.")
    tokenizer.add_special_tokens([AddedToken(REWARD, special=True, normalized=False)])
    return tokenizer
