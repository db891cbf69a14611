"""Learned perceptual distance on SqueezeNet 1.1."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.errors import MissingWeightsError
from brushbench.features import Features, digest
from brushbench.metrics.base import NOTHING_KEPT, ModelMetric, Needs, at_reference_size
from brushbench.types import JSON, Picture, Region, Sample, Score, Unscored
from brushbench.weights import assemble, materialise, read_shapes, read_tensors, same_name, sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

__all__ = ["LPIPS", "SQUEEZENET", "build_model"]

SQUEEZENET = Needs(
    what="SqueezeNet 1.1, the backbone of LPIPS",
    files=("squeezenet1_1-b8a52dc0.pth",),
    size="5 MB",
    licence="BSD-3-Clause",
    source="https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    sha256="b8a52dc0",
    tiny="lpips",
)
TAPS = (1, 4, 7, 9, 10, 11, 12)  # the layers of torchvision's squeezenet1_1.features whose outputs are compared
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
SMALLEST = 17  # side in pixels below which the last layers have nothing left to see
# The linear weights travel in the wheels of torchmetrics and lpips, the same values under the same keys.
LINEAR_FILES = (("torchmetrics", "functional/image/lpips_models/squeeze.pth"), ("lpips", "weights/v0.1/squeeze.pth"))


def build_model() -> nn.Module:
    """Return SqueezeNet 1.1 without its classifier, with the keys ``features.*`` of torchvision's checkpoint."""
    from torch import nn
    from torchvision.models import squeezenet1_1

    return nn.ModuleDict({"features": squeezenet1_1(weights=None).features})


class LPIPS(ModelMetric):
    """LPIPS of Zhang et al. 2018 (v0.1, SqueezeNet), 0 for identical pictures; lower is better.

    ``brushnet-paper``: as evaluate_brushnet.py of BrushNet @0f9d9e5 has it: the hole is black in both pictures, and the
    distance is averaged over the whole frame, hole included. A picture without kept pixels scores 0.

    ``standard``: the hole is filled from the reference in the picture, so that only kept pixels can differ; the map
    of distances, each layer brought to the picture's size (bilinear), is averaged over the kept pixels.

    Both use the same backbone, so that one file serves both.
    """

    name = "lpips"
    higher_is_better = False
    region: Region = "keep"
    display = ("x10³", 1e3)
    protocols: ClassVar[tuple[str, ...]] = ("standard", "brushnet-paper")
    needs: ClassVar[tuple[Needs, ...]] = (SQUEEZENET,)
    caveats: ClassVar[Mapping[str, str]] = {
        "brushnet-paper": "averaged over the blackened hole too, so it scales with the kept area"
    }

    def _open(self) -> None:
        self._linear = _linear_file()
        self._key = f"lpips {self.weights.sha256} {self.device} {self.dtype}"
        self._parameters(read_shapes(self.weights.path))

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "linear_sha256": sha256_file(self._linear)}

    def _parameters(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        import torch

        with torch.device("meta"):
            expected = build_model().state_dict()
        # torchvision's checkpoint holds the classifier too
        return assemble(
            expected, found, same_name, what=SQUEEZENET.what, spare=lambda key: key.startswith("classifier.")
        )

    def _load(self) -> tuple[nn.Module, list[Tensor]]:
        import torch

        with torch.device("meta"):
            model = build_model()
        tensors = self._parameters(read_tensors(self.weights.path))
        materialise(model, tensors, what=SQUEEZENET.what, device=self.device, dtype=self.torch_dtype)
        linear = read_tensors(self._linear)
        return model, [linear[f"lin{i}.model.1.weight"].to(self.device, torch.float32) for i in range(len(TAPS))]

    def _score(self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None) -> list[Score]:
        store = self._features(features)
        return [self._one(picture, sample, store) for picture, sample in zip(pictures, samples, strict=True)]

    def _one(self, picture: Picture, sample: Sample, store: Features) -> Score:
        import torch

        compared = at_reference_size(picture, sample, self.protocol)
        if isinstance(compared, Unscored):
            return compared
        keep = sample.keep
        if min(keep.shape) < SMALLEST:
            return Unscored(f"the picture is smaller than the {SMALLEST}x{SMALLEST} that LPIPS can see")
        if self.protocol == "standard" and not keep.any():
            return NOTHING_KEPT
        model, linear = store.model(self._key, self._load)
        with torch.inference_mode():
            reference = store.reference(
                self._key, self._content(sample), lambda: self._maps(model, self._prepared(sample.image, sample))
            )
            mine = self._maps(model, self._prepared(compared, sample))
            layers = [
                torch.nn.functional.conv2d(torch.square(a - b), w)
                for a, b, w in zip(mine, reference, linear, strict=True)
            ]
            return _over_frame(layers) if self.protocol == "brushnet-paper" else _over_kept(layers, keep)

    def _content(self, sample: Sample) -> str:
        """Name what the reference's features depend on: under ``standard`` not on the hole."""
        return digest(sample.image) if self.protocol == "standard" else digest(sample.image, sample.hole)

    def _prepared(self, picture: Picture, sample: Sample) -> npt.NDArray[np.float32]:
        """Return (H, W, 3) in -1..1 with the hole neutralised as the protocol says."""
        keep = sample.keep[..., None]
        if self.protocol == "standard":
            picture = np.where(keep, picture, sample.image)
            return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return (picture.astype(np.float32) / np.float32(255) * keep) * np.float32(2) - np.float32(1)

    def _maps(self, model: nn.Module, prepared: npt.NDArray[np.float32]) -> list[Tensor]:
        """Return the compared feature maps, each channel vector of unit length, float32 (1, C, h, w)."""
        import torch

        def row(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=self.device).view(1, 3, 1, 1)

        x = torch.from_numpy(prepared).to(self.device).permute(2, 0, 1).unsqueeze(0)
        x = ((x - row(SHIFT)) / row(SCALE)).to(self.torch_dtype)
        maps = []
        for index, layer in enumerate(model.get_submodule("features").children()):
            x = layer(x)
            if index in TAPS:
                values = x.float()
                maps.append(values / torch.sqrt(1e-8 + torch.square(values).sum(dim=1, keepdim=True)))
        return maps


def _linear_file() -> Path:
    for package, path in LINEAR_FILES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin and (file := Path(spec.origin).parent / path).is_file():
            return file
    raise MissingWeightsError(
        "The linear weights of LPIPS travel in the package torchmetrics: pip install torchmetrics."
    )


def _over_frame(layers: Sequence[Tensor]) -> float:
    """Sum the layers' means over all pixels."""
    return float(sum(layer.double().mean() for layer in layers))


def _over_kept(layers: Sequence[Tensor], keep: npt.NDArray[np.bool_]) -> float:
    """Sum the layers at the picture's size and average over the kept pixels."""
    import torch

    enlarged = [torch.nn.functional.interpolate(layer, keep.shape, mode="bilinear") for layer in layers]
    total = torch.stack(enlarged).double().sum(dim=0)[0, 0]
    return float(total[torch.from_numpy(keep).to(total.device)].mean())
