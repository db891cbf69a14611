"""What metrics have in common: the table of what they need, the checks of a call, the place where models are kept.

Imports no torch. A metric is constructed as ``Cls(protocol="standard")``, one with a model as
``Cls(protocol="standard", weights=None, device="auto", dtype="float32")``.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from brushbench.devices import DTYPES, choose_device, choose_dtype
from brushbench.errors import UnknownNameError, UnusableError, UsageError, WeightsError
from brushbench.files import surrogate
from brushbench.metrics.answers import as_score
from brushbench.types import JSON, Hole, Metric, Picture, Sample, Score, Scored, Unscored, as_picture
from brushbench.weights import Needs, WeightFile, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from brushbench.features import Features

__all__ = [
    "CAPTION_CUT",
    "NOTHING_KEPT",
    "BaseMetric",
    "ModelMetric",
    "Needs",
    "PublishedDefectWarning",
    "at_reference_size",
    "in_groups",
    "with_remarks",
]

CAPTION_CUT = "the caption is longer than the model reads and was cut"  # a remark beside a score
MOST_NARROW = 1000  # longer side over the shorter one: resizing to 224 then takes 150 MB
NOTHING_KEPT = Unscored("nothing kept: the hole is the whole picture")


class PublishedDefectWarning(UserWarning):
    """A defect of the published script is being reproduced on purpose, under ``brushnet-paper``."""


class BaseMetric(Metric):
    """A metric without weights: checks the call, and asks ``_score`` for the pictures that can be judged.

    Class attributes are those of :class:`brushbench.types.Metric`.
    """

    def __init__(self, protocol: str = "standard") -> None:
        """Choose the arithmetic.

        Args:
            protocol: one of ``protocols``.

        Raises:
            UsageError: a protocol that the metric does not have.
        """
        if protocol not in self.protocols:
            raise UsageError(f"Metric {self.name!r} has no protocol {protocol!r}. It has {', '.join(self.protocols)}.")
        self.protocol = protocol

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {
            "metric": self.name,
            "protocol": self.protocol,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
        }

    @overload
    def __call__(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None = None
    ) -> list[Score]: ...
    @overload
    def __call__(
        self,
        pictures: Picture,
        samples: Picture | None = None,
        features: Features | None = None,
        *,
        hole: Hole | None = None,
        prompt: str = "",
    ) -> Score: ...
    def __call__(
        self,
        pictures: Sequence[Picture] | Picture,
        samples: Sequence[Sample] | Picture | None = None,
        features: Features | None = None,
        *,
        hole: Hole | None = None,
        prompt: str = "",
    ) -> list[Score] | Score:
        """Score each picture against its sample; or one array against another, ``metric(picture, reference, hole=…)``.

        Args:
            pictures: uint8 (H, W, 3) RGB each; sizes may differ within a call. Or one array (H, W, 3).
            samples: one per picture, in the same order. Or the reference of the one array, uint8 (H, W, 3); ``None``
                for metrics without a reference.
            features: shared with other metrics and earlier calls; without it the metric keeps its own.
            hole: of the one array: bool (H, W), True = repaint, or 0 and 1, or 0 and 255; ``None``: nothing.
            prompt: of the one array.

        Returns:
            One float, ``Scored`` or ``Unscored`` per picture, in order; of the one array its own.

        Raises:
            UsageError: the two lists differ in length, or hold no samples.
            UnusableError: the reference or the hole of the one array is of another type or size.
        """
        if isinstance(pictures, np.ndarray) and (samples is None or isinstance(samples, np.ndarray)):
            reference = pictures if samples is None else samples
            nothing = np.zeros(reference.shape[:2], dtype=bool)
            sample = Sample("array", reference, nothing if hole is None else hole, prompt, "inside")
            return self._score_all([pictures], [sample], features)[0]
        lists = isinstance(pictures, list | tuple | np.ndarray) and isinstance(samples, list | tuple)
        if not lists or hole is not None or prompt:
            raise UsageError(
                f"{self.name} takes lists of pictures and samples, or one picture, its reference, hole= and prompt=."
            )
        return self._score_all(list(pictures), list(samples or ()), features)

    def _score_all(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> list[Score]:
        if len(pictures) != len(samples):
            raise UsageError(
                f"{self.name} got {len(pictures)} pictures and {len(samples)} samples, expected one sample per picture."
            )
        if strange := [type(sample).__name__ for sample in samples if not isinstance(sample, Sample)]:
            raise UsageError(f"{self.name} got a {strange[0]} as sample, expected a brushbench.Sample.")
        scores: list[Score] = []
        good: list[int] = []
        for index, (picture, sample) in enumerate(zip(pictures, samples, strict=True)):
            fault = self._fault(picture, sample)
            scores.append(fault or Unscored("not computed"))
            if fault is None:
                good.append(index)
        if good:
            computed = self._score([pictures[i] for i in good], [samples[i] for i in good], features)
            for i, score in zip(good, computed, strict=True):
                scores[i] = as_score(score)
        return scores

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        """Return why a picture cannot be judged at all; a metric with more conditions asks this first."""
        try:
            as_picture(picture)
        except UnusableError as error:
            return Unscored(error.problem)
        if self.reads_caption and surrogate(sample.prompt):
            return Unscored("the caption holds half a character (a lone surrogate), which no model reads")
        return None

    @abstractmethod
    def _score(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None
    ) -> Sequence[Score]:
        """Score pictures that passed the checks."""


def with_remarks(values: Iterable[float], remarks: Iterable[str]) -> list[Score]:
    """Return scores, each with its remark; an empty remark says nothing."""
    return [Scored(value, remark) if remark else value for value, remark in zip(values, remarks, strict=True)]


def at_reference_size(picture: Picture, sample: Sample, protocol: str) -> Picture | Unscored:
    """Return the picture at the size of its reference, for metrics that compare pixel with pixel.

    The published script resizes what it reads (evaluate_brushnet.py, Pillow's default: bicubic), so ``brushnet-paper``
    does; ``standard`` refuses, because a resized picture is not what the method made.
    """
    height, width = sample.image.shape[:2]
    if picture.shape[:2] == (height, width):
        return picture
    if protocol != "brushnet-paper":
        size = f"{picture.shape[1]}x{picture.shape[0]}"
        return Unscored(f"the picture is {size}, the reference {width}x{height}")
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


class ModelMetric(BaseMetric):
    """A metric that needs weights: found and checked when it is constructed, loaded at the first call.

    A subclass names its files in ``needs`` and checks them in ``_open``.
    """

    def __init__(
        self,
        protocol: str = "standard",
        weights: str | Path | None = None,
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        """Find the weights and check every key and shape, without loading the model.

        Args:
            protocol: one of ``protocols``.
            weights: a file, a folder, a hub id, ``"tiny"``, or ``None`` for the local caches.
            device: ``auto`` takes CUDA if it is there, else the CPU.
            dtype: ``float32``, ``float16`` or ``bfloat16``, of the model; scores accumulate in float64.

        Raises:
            UsageError: a protocol, device or dtype that does not exist.
            MissingWeightsError: the weights are not here; says how to get them.
            WeightsError: they are here but are not those of this model.
        """
        super().__init__(protocol)
        if dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, DTYPES)
        self.dtype = dtype
        self.device = choose_device(device)
        self.torch_dtype = choose_dtype(dtype, self.device)
        self.weights = self._find(weights)
        self._own: Features | None = None
        self._warned: set[str] = set()
        self._open()

    @classmethod
    def _find(cls, weights: str | Path | None, download: bool = True) -> WeightFile:
        """Return the file of the model."""
        return resolve(weights, cls.needs[0], download)

    @abstractmethod
    def _open(self) -> None:
        """Read the sizes and check every key and shape of ``self.weights``; load nothing."""

    @classmethod
    def available(cls, weights: str | Path | None = None) -> str | None:
        """Return ``None`` if every needed file is here, else the reason and the way to get it; downloads nothing."""
        try:
            cls._find(weights, download=False)
        except WeightsError as error:
            return str(error)
        return None

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        return {**super().describe(), "dtype": self.dtype, "weights": self.weights.describe()}

    def _fault(self, picture: Picture, sample: Sample) -> Unscored | None:
        fault = super()._fault(picture, sample)
        if fault is None and max(picture.shape[:2]) > MOST_NARROW * min(picture.shape[:2]):
            height, width = picture.shape[:2]
            return Unscored(f"the picture is {width}x{height}, too narrow to be resized for {self.needs[0].what}")
        return fault

    def _features(self, features: Features | None) -> Features:
        """Return what was passed, or a store of the metric's own."""
        from brushbench.features import Features

        if features is not None:
            return features
        if self._own is None:
            self._own = Features()
        return self._own

    def _warn_once(self, text: str) -> None:
        """Warn of a reproduced defect, once for each metric and text."""
        import warnings

        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"{self.name} under {self.protocol}: {text}", PublishedDefectWarning, stacklevel=2)


def in_groups(pictures: Sequence[Picture], limit: int = 16) -> Iterator[list[int]]:
    """Yield the indexes of pictures in batches of equal size, at most ``limit`` each.

    What a model sees of pictures of one size is either equal for two metrics or is not, so whole batches are shared.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(index)
    for indexes in by_size.values():
        for start in range(0, len(indexes), limit):
            yield indexes[start : start + limit]
