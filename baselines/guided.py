"""What the methods with a denoising loop of their own share: a Stable Diffusion 1.x or 2.x base, text, start noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypedDict, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from baselines.diffusion import Batch, DiffusionInpainter
from baselines.presets import reads_pooled_text
from brushbench.errors import UsageError, WeightsError

__all__ = ["Embeds", "GuidedInpainter", "Settings", "load_network"]


NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


class Embeds(TypedDict):
    """The text of a batch, each (B, tokens, width)."""

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor


class Settings(TypedDict):
    """What every denoising loop takes."""

    steps: int
    guidance: float


@dataclass(eq=False)
class GuidedInpainter(DiffusionInpainter):
    """A method with a denoising loop of its own on a Stable Diffusion 1.x or 2.x base.

    The options are those of :class:`~baselines.diffusion.DiffusionInpainter`.
    """

    own_ddim: ClassVar[bool] = False  # the loop is DDIM over Stable Diffusion's own noise schedule, and nothing else

    def __post_init__(self) -> None:
        """Check the options, load the weights."""
        if self.own_ddim and self.scheduler != "ddim":
            raise UsageError(
                f"scheduler is {self.scheduler!r}, and this method has a DDIM loop of its own. Leave scheduler out."
            )
        super().__post_init__()

    def load(self, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the stock pipeline whose parts the method uses.

        Raises:
            UsageError: a base of the SDXL family, or with another noise schedule than the method's own loop has.
        """
        if reads_pooled_text(self.folder):
            raise UsageError(
                f"{type(self).__name__} runs on Stable Diffusion 1.x and 2.x, and this base is of the SDXL family. "
                "Choose preset=sd15; of SDXL there is sdxl-inpainting."
            )
        pipe = super().load(device, dtype)
        told = {name: pipe.scheduler.config.get(name) for name in NOISE_SCHEDULE}
        if self.own_ddim and told != NOISE_SCHEDULE:
            raise UsageError(
                f"{self.folder} was trained with the noise schedule {told}, and the method's own loop has "
                f"{NOISE_SCHEDULE}. Choose another base."
            )
        return pipe

    @property
    def settings(self) -> Settings:
        """Steps and guidance, as the loops take them."""
        return {"steps": cast("int", self.steps), "guidance": cast("float", self.guidance)}  # set from the preset

    def start_noise(self, batch: Batch) -> Tensor:
        """Return the start noise (B, 4, h, w) in the U-Net's dtype, on its device."""
        return batch.noise.to(self.pipe.unet.device, self.pipe.unet.dtype)

    def embeds(
        self, batch: Batch, prompts: Sequence[str] | None = None, negative_prompts: Sequence[str] | None = None
    ) -> Embeds:
        """Return the text as the stock pipeline encodes it; no negative prompt is the empty one.

        Args:
            batch: whose prompts are read unless others are given.
            prompts: B texts.
            negative_prompts: B texts.
        """
        positive = list(prompts or batch.prompts)
        negative = list(negative_prompts or batch.negative_prompts or [""] * len(positive))
        embeds = self.pipe.encode_prompt(positive, self.pipe.unet.device, 1, True, negative_prompt=negative)
        return {"prompt_embeds": embeds[0], "negative_prompt_embeds": embeds[1]}


def load_network(cls: Any, place: Path, config: Mapping[str, Any], *, unlike: str = "another kind") -> Any:
    """Load a network of diffusers from wherever it was published, in float32, on the CPU, frozen.

    Args:
        cls: ``UNet2DConditionModel`` or ``ControlNetModel``.
        place: a folder that it was saved to, or a file of weights, in diffusers' names or in the original ones.
        config: what the network is like where no ``config.json`` of its class lies beside the weights.
        unlike: what other weights may have been taken for it, for the message.

    Raises:
        WeightsError: damaged, incomplete, or weights of another network.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        beside = place / "config.json"
        if beside.is_file() and any(place.glob("diffusion_pytorch_model*")):
            network, report = cls.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
            problem = {kind: keys for kind, keys in report.items() if keys}
        else:
            with TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(_config(place, cls.__name__) or dict(config)))
                network = cls.from_single_file(str(_file(place)), config=folder, torch_dtype=torch.float32)
            problem = {"missing": [name for name, weight in network.named_parameters() if weight.is_meta]}
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, SingleFileComponentError) as error:
        raise WeightsError(f"{place} does not load as {cls.__name__}: {error}") from error
    if any(problem.values()):
        raise WeightsError(f"{place} does not hold a whole {cls.__name__}, or one of {unlike}: {problem}")
    return network.requires_grad_(False).eval()


def _config(place: Path, name: str) -> dict[str, Any]:
    """Return the configuration in a folder, or beside a file, if it is of a class of that name; else nothing."""
    folder = place if place.is_dir() else place.parent
    if not (folder / "config.json").is_file():
        return {}
    told = json.loads((folder / "config.json").read_text("utf-8"))
    ours = isinstance(told, dict) and (place.is_dir() or told.get("_class_name") == name)
    return told if ours else {}


def _file(place: Path) -> Path:
    """Return a file as it is, and the only file of weights in a folder."""
    if place.is_file():
        return place
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise OSError(f"it holds {len(files)} .safetensors files, expected one, or a config.json")
    return files[0]
