"""Learned perceptual distance on SqueezeNet 1.1."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from brushbench.errors import MissingWeightsError
from brushbench.features import Features, digest
from brushbench.metrics.base import NOTHING_KEPT, ModelMetric, Needs, at_reference_size, in_groups
from brushbench.types import JSON, Picture, Region, Sample, Score, Unscored
from brushbench.weights import assemble, materialise, read_shapes, read_tensors, same_name, sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

__all__ = ["LPIPS", "SQUEEZENET", "build_model", "distance_maps", "shifted"]

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
LINEAR_FILE = "functional/image/lpips_models/squeeze.pth"  # in the package torchmetrics
MOST_AT_ONCE = 16
CPU_PIXELS = 128 * 128  # more at once is slower on a CPU


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
        compared = [self._comparable(p, s) for p, s in zip(pictures, samples, strict=True)]
        scores: list[Score] = [one if isinstance(one, Unscored) else math.nan for one in compared]
        good = [(i, one) for i, one in enumerate(compared) if not isinstance(one, Unscored)]
        store = self._features(features)
        for group in in_groups([one for _, one in good], MOST_AT_ONCE):
            places, most = [good[i][0] for i in group], self._most(good[group[0]][1])
            for start in range(0, len(places), most):
                part = places[start : start + most]
                together = [one for i, one in good if i in part]
                scores_of = self._distances(together, [samples[i] for i in part], store)
                for place, score in zip(part, scores_of, strict=True):
                    scores[place] = score
        return scores

    def _most(self, picture: Picture) -> int:
        """Return how many pictures of this size go through the network at once: on a CPU what its caches hold."""
        pixels = picture.shape[0] * picture.shape[1]
        return MOST_AT_ONCE if self.device.type == "cuda" else max(1, min(MOST_AT_ONCE, CPU_PIXELS // pixels))

    def _comparable(self, picture: Picture, sample: Sample) -> Picture | Unscored:
        compared = at_reference_size(picture, sample, self.protocol)
        if not isinstance(compared, Unscored):
            if min(compared.shape[:2]) < SMALLEST:
                return Unscored(f"the picture is smaller than the {SMALLEST}x{SMALLEST} that LPIPS can see")
            if self.protocol == "standard" and not sample.keep.any():
                return NOTHING_KEPT
        return compared

    def _distances(self, pictures: Sequence[Picture], samples: Sequence[Sample], store: Features) -> list[float]:
        """Return the distance of each picture; all are of one size."""
        import torch

        model, linear = store.model(self._key, self._load)
        content = self._content(samples)
        with torch.inference_mode():
            references = store.reference(
                self._key, content, lambda: self._maps(model, [self._prepared(s.image, s) for s in samples])
            )
            maps = self._maps(model, [self._prepared(p, s) for p, s in zip(pictures, samples, strict=True)])
            layers = [
                torch.nn.functional.conv2d(a.sub_(b).square_(), w)  # the references stay as they are
                for a, b, w in zip(maps, references, linear, strict=True)
            ]
            if self.protocol == "brushnet-paper":
                return [float(sum(layer[i].double().mean() for layer in layers)) for i in range(len(samples))]
            return [_over_kept([layer[i : i + 1] for layer in layers], s.keep) for i, s in enumerate(samples)]

    def _content(self, samples: Sequence[Sample]) -> str:
        """Name what the references' features depend on: under ``standard`` not on the hole."""
        arrays = [(s.image,) if self.protocol == "standard" else (s.image, s.hole) for s in samples]
        return digest(*(array for group in arrays for array in group))

    def _prepared(self, picture: Picture, sample: Sample) -> npt.NDArray[np.float32]:
        """Return (H, W, 3) in -1..1 with the hole neutralised as the protocol says."""
        keep = sample.keep[..., None]
        if self.protocol == "standard":
            picture = np.where(keep, picture, sample.image)
            return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)
        return (picture.astype(np.float32) / np.float32(255) * keep) * np.float32(2) - np.float32(1)

    def _maps(self, model: nn.Module, prepared: Sequence[npt.NDArray[np.float32]]) -> list[Tensor]:
        import torch

        images = torch.from_numpy(np.stack(prepared)).permute(0, 3, 1, 2).to(self.device)  # channels last in memory
        return distance_maps(model.get_submodule("features"), shifted(images).to(self.torch_dtype))[0]


def shifted(images: Tensor) -> Tensor:
    """Return float (B, 3, H, W) in -1..1 as the network takes them."""
    import torch

    shift, scale = (torch.tensor(row, device=images.device).view(1, 3, 1, 1) for row in (SHIFT, SCALE))
    return (images - shift) / scale


def distance_maps(features: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the maps that LPIPS compares, each channel vector of unit length, and the last map as it is.

    Args:
        features: ``squeezenet1_1.features``.
        images: (B, 3, H, W), as :func:`shifted` makes them.

    Returns:
        One float32 (B, C, h, w) per tap, and the network's output.
    """
    import torch

    maps, x = [], images
    for index, layer in enumerate(features.children()):
        x = layer(x)
        if index in TAPS:
            values = x.float()
            length = torch.linalg.vector_norm(values, dim=1, keepdim=True)
            maps.append(values / torch.sqrt(1e-8 + torch.square(length)))
    return maps, x


def _linear_file() -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    if spec is not None and spec.origin and (file := Path(spec.origin).parent / LINEAR_FILE).is_file():
        return file
    raise MissingWeightsError(
        "The linear weights of LPIPS travel in the package torchmetrics: pip install torchmetrics."
    )


def _over_kept(layers: Sequence[Tensor], keep: npt.NDArray[np.bool_]) -> float:
    """Sum the layers at the picture's size and average over the kept pixels."""
    import torch

    enlarged = [torch.nn.functional.interpolate(layer, keep.shape, mode="bilinear") for layer in layers]
    total = torch.stack(enlarged).double().sum(dim=0)[0, 0]
    return float(total[torch.from_numpy(keep).to(total.device)].mean())
