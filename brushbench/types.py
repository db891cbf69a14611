"""The nouns: what passes between the rooms. Imports neither torch nor any other room.

Say ``hole`` (True = repaint) and ``keep`` (True = keep), never a bare ``mask``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from brushbench.features import Features

__all__ = [
    "JSON",
    "PROTOCOLS",
    "SPLITS",
    "Benchmark",
    "Capabilities",
    "Hole",
    "InpaintRequest",
    "Inpainter",
    "Metric",
    "Picture",
    "ReferenceInpainter",
    "Region",
    "Sample",
    "Score",
    "Unscored",
    "sample_seed",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Picture: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Hole: TypeAlias = npt.NDArray[np.bool_]  # (H, W), True = repaint
Region: TypeAlias = Literal["whole", "hole", "keep", "boundary"]

SPLITS = ("inside", "outside", "brush")
PROTOCOLS = ("standard", "brushnet-paper")
NEUTRAL_GREY = 127


def sample_seed(run_seed: int, sample_id: str, repeat: int = 0) -> int:
    """Return the 63-bit seed of one sample: of the run, the sample and the repeat, never of its place in a batch."""
    digest = hashlib.sha256(f"{run_seed}\0{sample_id}\0{repeat}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class InpaintRequest:
    """What a method is allowed to see. Made only by :meth:`Sample.request`.

    Attributes:
        id: the sample's id.
        image: uint8 (H, W, 3) RGB; every hole pixel is grey 127, so the ground truth cannot leak.
        hole: bool (H, W), True = repaint.
        prompt: what the finished picture shows.
        negative_prompt: what it must not show; methods without one ignore it.
        seed: 63-bit seed of this sample.
    """

    id: str
    image: Picture
    hole: Hole
    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class Sample:
    """One question of a benchmark, with its answer.

    Attributes:
        id: stable within the benchmark; the same picture has the same id in every split.
        image: uint8 (H, W, 3) RGB, the reference.
        hole: bool (H, W), True = repaint.
        prompt: the caption.
        split: ``inside`` | ``outside`` | ``brush``.
        meta: what the benchmark carries besides: category, style, prompt variant.
    """

    id: str
    image: Picture
    hole: Hole
    prompt: str
    split: str
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def keep(self) -> Hole:
        """Bool (H, W), True = keep: the complement of the hole."""
        return ~self.hole

    def request(self, seed: int, negative_prompt: str = "") -> InpaintRequest:
        """Return what a method may see: the picture with its hole painted grey 127."""
        image = self.image.copy()
        image[self.hole] = NEUTRAL_GREY
        return InpaintRequest(self.id, image, self.hole.copy(), self.prompt, negative_prompt, seed)


class Benchmark(Protocol):
    """A finite, ordered collection of samples, loaded one at a time.

    ``keys`` lists (sample id, split) in order without decoding a picture; ``[i]`` decodes the i-th.
    """

    name: str
    keys: Sequence[tuple[str, str]]
    manifest: Mapping[str, JSON]  # name, sha256 of the data, splits, counts, licence, skipped records
    loaded_with: Mapping[str, str]  # the options that load it again, such as its folder

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...
    def __iter__(self) -> Iterator[Sample]: ...


@dataclass(frozen=True)
class Capabilities:
    """What a method can do, so that the toolkit asks nothing else of it."""

    text: bool = True  # does the prompt matter?
    negative_prompt: bool = False
    batch: int = 1  # largest batch it takes at once
    native_size: int | None = None  # side in pixels it was trained for; None = any
    multiple: int = 1  # height and width must be divisible by this
    needs_grad: bool = False
    background: Literal["exact", "latent-blend", "free"] = "free"  # what happens to the kept pixels
    needs_reference: bool = False  # sees the answer: a reference line, never ranked


class _Described(Protocol):
    capabilities: Capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the run's identity."""
        ...


@runtime_checkable
class Inpainter(_Described, Protocol):
    """One method on the leaderboard."""

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return one uint8 (H, W, 3) picture a request, in order, before blending.

        The result for one request may not depend on its neighbours.
        """
        ...


@runtime_checkable
class ReferenceInpainter(_Described, Protocol):
    """A reference line (``capabilities.needs_reference``): it sees the answer and is never ranked."""

    def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
        """Return one uint8 (H, W, 3) picture a sample, in order."""
        ...


@dataclass(frozen=True)
class Unscored:
    """Stands where a score cannot be had; counted and shown, never averaged in."""

    reason: str


Score: TypeAlias = "float | Unscored"


class Metric(Protocol):
    """One column of the table."""

    name: str
    protocol: str
    unit: str
    higher_is_better: bool
    region: Region

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        ...

    def __call__(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None = None
    ) -> list[Score]:
        """Score each picture against its sample; sizes may differ within a call."""
        ...
