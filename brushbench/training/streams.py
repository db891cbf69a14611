"""What a branch learns from: endless streams of pictures with masks and captions: scenes, benchmarks or BrushData."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from brushbench import registry
from brushbench.benchmarks import layout_of
from brushbench.errors import UnknownNameError
from brushbench.registry import Spec, parse_spec
from brushbench.tiny.scenes import caption, render, sample_scene
from brushbench.training.brushdata import BrushData, TrainingPicture, identify
from brushbench.training.holes import stream_rng
from brushbench.types import JSON, Benchmark
from brushbench.weights import is_hub_id

__all__ = ["BenchmarkPictures", "PictureStream", "Scenes", "Tars", "open_pictures", "to_square"]

ORDER = 2  # purpose of the random numbers of the order
HELD_OUT_SEED = 1


class PictureStream(Protocol):
    """An endless stream of pictures to learn from; what stands at a place depends on the seed and the place alone."""

    def take(self, seed: int, first: int, size: int) -> list[TrainingPicture]:
        """Return the pictures at places ``first`` … ``first + size - 1``."""
        ...

    def shown(self, count: int) -> list[TrainingPicture]:
        """Return pictures for the contact sheets, the same each time."""
        ...

    def identity(self) -> dict[str, JSON]:
        """Return what identifies the data by its content; where it lies does not."""
        ...

    def describe(self) -> dict[str, JSON]:
        """Return what is worth knowing at the end, such as the records that were passed over."""
        ...


class Scenes:
    """Rendered scenes; sheets show held-out ones. With several objects, all of them together are one more mask."""

    def take(self, seed: int, first: int, size: int) -> list[TrainingPicture]:
        """Render the stream's scenes."""
        return [_scene(seed, first + i, "train") for i in range(size)]

    def shown(self, count: int) -> list[TrainingPicture]:
        """Render held-out scenes."""
        return [_scene(HELD_OUT_SEED, i, "held-out") for i in range(count)]

    def identity(self) -> dict[str, JSON]:
        """Return the name of the stream; the seed is the loop's."""
        return {"data": "scenes"}

    def describe(self) -> dict[str, JSON]:
        """Nothing is passed over."""
        return {}


def _scene(seed: int, index: int, domain: str) -> TrainingPicture:
    scene = sample_scene(seed, index, domain=domain)
    drawn = render(scene)
    masks = drawn.masks
    if len(masks) > 1:
        masks = np.concatenate([masks, masks.any(axis=0, keepdims=True)])
    return TrainingPicture(drawn.image, masks, caption(scene))


class BenchmarkPictures:
    """The pictures of a benchmark, shuffled anew each time round; its holes, but for ``brush``, are the masks.

    A branch that learnt from a benchmark must not be measured on it.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self._places: dict[str, list[int]] = {}
        for place, (name, split) in enumerate(benchmark.keys):
            of_picture = self._places.setdefault(name, [])
            if split != "brush" or not of_picture:
                of_picture.append(place)
        self._names = list(self._places)

    def take(self, seed: int, first: int, size: int) -> list[TrainingPicture]:
        """Load the stream's pictures."""
        return [self._load(self._name_at(seed, first + i)) for i in range(size)]

    def shown(self, count: int) -> list[TrainingPicture]:
        """Load the first pictures."""
        return [self._load(name) for name in self._names[:count]]

    def identity(self) -> dict[str, JSON]:
        """Return the benchmark's name and the hash of its pictures and records."""
        return {"data": self.benchmark.manifest["name"], "data_sha256": self.benchmark.manifest["sha256"]}

    def describe(self) -> dict[str, JSON]:
        """Nothing is passed over."""
        return {}

    def _name_at(self, seed: int, place: int) -> str:
        epoch, number = divmod(place, len(self._names))
        return self._names[int(stream_rng(seed, epoch, ORDER).permutation(len(self._names))[number])]

    def _load(self, name: str) -> TrainingPicture:
        samples = [self.benchmark[place] for place in self._places[name]]
        masks = np.stack([sample.hole for sample in samples if sample.split != "brush"] or [samples[0].hole])
        return TrainingPicture(samples[0].image, masks, samples[0].prompt)


class Tars:
    """BrushData's records."""

    def __init__(self, source: str, with_masks: bool) -> None:
        self.source, self.with_masks = source, with_masks
        self._data: BrushData | None = None

    @functools.cached_property
    def _identity(self) -> dict[str, JSON]:
        return identify(self.source)

    def take(self, seed: int, first: int, size: int) -> list[TrainingPicture]:
        """Read on, or from the start if places are asked for that have gone by."""
        if self._data is None or self._data.seed != seed:
            self._data = BrushData(self.source, seed, self.with_masks)
        return self._data.take(first, size)

    def shown(self, count: int) -> list[TrainingPicture]:
        """Read the first records."""
        return BrushData(self.source, with_masks=self.with_masks).take(0, count)

    def identity(self) -> dict[str, JSON]:
        """Return the hash of the tars; see :func:`~brushbench.training.brushdata.identify`."""
        return {"data": "brushdata", **self._identity}

    def describe(self) -> dict[str, JSON]:
        """Return how many records could not be used, by reason."""
        return {"skipped": dict(self._data.skipped) if self._data else {}}


def open_pictures(data: str, masks: str) -> PictureStream:
    """Return the stream that ``data`` names; see :class:`BrushNetRecipe`.

    Raises:
        UnknownNameError: neither ``scenes``, a folder, a tar, a benchmark nor a hub id.
        DataError: a folder that holds neither tars nor a benchmark.
    """
    path = Path(data).expanduser()
    if data == "scenes":
        return Scenes()
    if path.is_file() or (path.is_dir() and any(path.rglob("*.tar"))):
        return Tars(str(path), masks == "segmentation")
    if path.is_dir():
        return BenchmarkPictures(
            registry.build("benchmark", Spec(layout_of(path), {"root": str(path)})).with_captions()
        )
    spec = parse_spec(data)
    if spec.name in registry.names("benchmark"):
        return BenchmarkPictures(registry.build("benchmark", spec).with_captions())
    if is_hub_id(data):
        return Tars(data, masks == "segmentation")
    raise UnknownNameError("data", data, ["scenes", "a folder of tars", *registry.names("benchmark")])


def to_square(picture: TrainingPicture, side: int) -> TrainingPicture:
    """Bring a picture's shorter side to ``side`` pixels and crop the middle; nothing is squeezed.

    Pictures are resized by Pillow's Lanczos filter, masks by nearest neighbour at the same places. A mask may be empty
    after the crop.
    """
    height, width = picture.image.shape[:2]
    if (height, width) == (side, side):
        return picture
    short = min(height, width)
    new_height, new_width = max(side, round(height * side / short)), max(side, round(width * side / short))
    top, left = (new_height - side) // 2, (new_width - side) // 2
    resized = Image.fromarray(picture.image).resize((new_width, new_height), Image.Resampling.LANCZOS)
    image = np.asarray(resized)[top : top + side, left : left + side]
    rows = ((np.arange(side) + top + 0.5) * height / new_height).astype(np.int64)
    columns = ((np.arange(side) + left + 0.5) * width / new_width).astype(np.int64)
    masks = picture.masks[:, rows[:, None], columns[None, :]]
    return TrainingPicture(np.ascontiguousarray(image), masks, picture.caption)
