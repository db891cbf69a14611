"""Metrics of a whole set of images: one number per split and method, not one per image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench.errors import UsageError, WeightsError
from brushbench.metrics.base import ModelMetric, Needs
from brushbench.metrics.clip_model import CLIP_VIT_L14, ClipBackbone, cropped
from brushbench.weights import read_shapes, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    from torch import nn

    from brushbench.features import Features
    from brushbench.types import JSON, Picture, Region, Sample, Score

    Vectors = npt.NDArray[np.float64]

__all__ = ["LEAST", "SetMetric", "SetScore"]

INCEPTION = Needs(
    what="the Inception of 2015 that FID is defined with",
    files=("weights-inception-2015-12-05-6726825d.pth",),
    size="95 MB",
    licence="Apache-2.0",
    source="https://github.com/toshas/torch-fidelity/releases",
    sha256="6726825d",
    tiny="clip",
)
LEAST = 8  # images below which a set has no score
RESAMPLES = 100
SEED = 1234


@dataclass(frozen=True)
class SetScore:
    """One number for a set of images.

    Attributes:
        value: of the whole set.
        low, high: 95 % interval: the bootstrap's quantiles over samples, an image and its reference drawn together,
            moved so that their mean is the value. Repeated images raise both distances, and this takes it off.
        n: images in the set.
    """

    value: float
    low: float
    high: float
    n: int


class SetMetric(ModelMetric):
    """A distance between the images of a method and the references, both as sets of features.

    The features are of the Inception network of 2015 (``weights`` names the file of torch-fidelity; nothing is
    downloaded). Images are brought to 299x299 as that network's own code does, bilinear without antialias
    (``antialias=False`` of torchmetrics, whose default differs); features are float32, sums float64. With
    ``weights="tiny"``, for ``shapes``, they are the image embedding of this repository's small CLIP.

    The two sets are paired: the same scenes. Numbers depend on n, so those of other n, and of papers, do not compare.
    """

    higher_is_better = False
    region: Region = "whole"
    auto_protocols: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[Needs, ...]] = (INCEPTION,)
    of_set: ClassVar[bool] = True

    def _open(self) -> None:
        if self.weights.tiny:
            self._clip = ClipBackbone(self.weights, "", CLIP_VIT_L14.what, self.device, self.torch_dtype)
            return
        found = {name for name in read_shapes(self.weights.path) if name.startswith(("Conv2d_", "Mixed_", "fc."))}
        if not {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight", "fc.weight"} <= found:
            raise WeightsError(f"{self.weights.path} is not {INCEPTION.what}. Fetch {INCEPTION.files[0]}.")

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256."""
        extractor: JSON = "image embedding of the small CLIP" if self.weights.tiny else "Inception 2015, 2048 features"
        return {**super().describe(), "features": extractor, "antialias": False, "resamples": RESAMPLES, "seed": SEED}

    def _score(
        self,
        pictures: Sequence[Picture],  # noqa: ARG002
        samples: Sequence[Sample],  # noqa: ARG002
        features: Features | None,  # noqa: ARG002
    ) -> Sequence[Score]:
        raise UsageError(
            f"{self.name} is one number for a set of images, not one per image. Name it in `brushbench score RUN "
            f"--metrics {self.name}`, or call its score_set(pictures, references)."
        )

    def score_set(self, pictures: Iterable[Picture], references: Iterable[Picture]) -> SetScore:
        """Compare images with their references.

        Args:
            pictures: uint8 (H, W, 3) RGB each.
            references: one per image, in the same order.

        Raises:
            UsageError: fewer than 8 images, or another number of references.
        """
        return self.of_features(self.features_of(pictures), self.features_of(references))

    def of_features(self, made: Vectors, real: Vectors) -> SetScore:
        """Compare features (N, D) of images with those of their references (N, D)."""
        if len(made) != len(real) or len(made) < LEAST:
            raise UsageError(
                f"{self.name} got {len(made)} images and {len(real)} references, expected 8 pairs or more."
            )
        value = self._distance(made, real)
        rng = np.random.default_rng(SEED)
        drawn = [rng.integers(0, len(made), len(made)) for _ in range(RESAMPLES)]
        values = np.array([self._resampled(made[chosen], real[chosen]) for chosen in drawn])
        low, high = np.quantile(values, (0.025, 0.975)) - values.mean() + value
        return SetScore(value, float(low), float(high), len(made))

    @abstractmethod
    def _distance(self, made: Vectors, real: Vectors) -> float:
        """Return the distance of two sets of features (N, D)."""

    def _resampled(self, made: Vectors, real: Vectors) -> float:
        """Return the distance of one draw of the bootstrap."""
        return self._distance(made, real)

    def features_of(self, pictures: Iterable[Picture], features: Features | None = None) -> Vectors:
        """Return float64 (N, D); images are embedded one by one, so that a value does not depend on its neighbours.

        Args:
            pictures: uint8 (H, W, 3) RGB each; taken one at a time, so that a generator needs little memory.
            features: where features are remembered by what the image shows, for other metrics, variants and runs.
        """
        store = self._features(features)
        if self.weights.tiny:
            return np.concatenate([self._clip.pictures(store, [picture], self._pixels) for picture in pictures])
        key = f"inception {self.weights.sha256} {self.device}"

        def embedded(picture: Picture) -> Vectors:
            return store.images(key, picture, lambda: _embedded(store.model(key, self._inception), picture))

        return np.concatenate([embedded(picture) for picture in pictures])

    def _pixels(self, picture: Picture) -> npt.NDArray[np.float32]:
        return cropped(picture, self._clip.side, "down")

    def _inception(self) -> nn.Module:
        """Return torchmetrics' copy of the network, with weights that were read without running code."""
        import tempfile
        from pathlib import Path

        import torch

        try:
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise WeightsError(f"{self.name} needs torch-fidelity: pip install 'brushbench[fid]'.") from error
        with tempfile.TemporaryDirectory() as folder:  # its constructor reads a file, as a pickle that may run code
            safe = Path(folder) / "weights.pth"
            torch.save(read_tensors(self.weights.path), safe)
            try:
                model: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(safe), antialias=False)
            except ModuleNotFoundError as error:
                raise WeightsError(f"{self.name} needs torch-fidelity: pip install 'brushbench[fid]'.") from error
            except RuntimeError as error:
                raise WeightsError(f"{self.weights.path} is not {INCEPTION.what}: {error}.") from error
        return model.to(self.device)


def _embedded(model: nn.Module, picture: Picture) -> Vectors:
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        values = model(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None].to(device))
    array: Vectors = values.double().cpu().numpy()
    return array


def given_features(made: Vectors, real: Vectors, build: Callable[[nn.Module], Any]) -> Any:
    """Return a metric of torchmetrics that was given two sets of features in place of images.

    Args:
        made: of the images, (N, D).
        real: of the references, (N, D).
        build: makes the metric with a feature extractor; this one returns what it is given.
    """
    import torch

    extractor = torch.nn.Identity()
    extractor.num_features = made.shape[1]
    metric = build(extractor)
    metric.update(torch.from_numpy(np.ascontiguousarray(real)), real=True)
    metric.update(torch.from_numpy(np.ascontiguousarray(made)), real=False)
    return metric
