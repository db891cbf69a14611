"""The nouns: what passes between the rooms. Imports neither torch nor any other room but the errors.

Say ``hole`` (True = repaint) and ``keep`` (True = keep), never a bare ``mask``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from brushbench.errors import UnusableError, UsageError

if TYPE_CHECKING:
    import PIL.Image

    from brushbench.features import Features
    from brushbench.weights import Needs

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
    "Scored",
    "Unscored",
    "as_hole",
    "as_picture",
    "sample_seed",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Picture: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3) RGB
Hole: TypeAlias = npt.NDArray[np.bool_]  # (H, W), True = repaint
Region: TypeAlias = Literal["whole", "hole", "keep", "boundary"]

SPLITS = ("inside", "outside", "brush")
PROTOCOLS = ("standard", "brushnet-paper", "freeinpaint", "published", "published-crop")
NEUTRAL_GREY = 127


def sample_seed(run_seed: int, sample_id: str, repeat: int = 0) -> int:
    """Return the 63-bit seed of one sample: of the run, the sample and the repeat, never of its place in a batch."""
    digest = hashlib.sha256(f"{run_seed}\0{sample_id}\0{repeat}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def as_picture(image: object) -> Picture:
    """Return a picture that is uint8 (H, W, 3) RGB with at least one pixel.

    Raises:
        UnusableError: anything else; nothing is converted, for a float picture may be of 0..1, 0..255 or -1..1.
    """
    if not isinstance(image, np.ndarray) or isinstance(image, np.ma.MaskedArray):
        raise UnusableError(f"the picture is {_kind(image)}, expected a uint8 (H, W, 3) RGB array", "Convert it")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UnusableError(
            f"the picture is {image.dtype} {image.shape}, expected a uint8 (H, W, 3) RGB array", "Convert it"
        )
    return image


def as_hole(hole: object, size: tuple[int, int]) -> Hole:
    """Return a hole as bool (H, W), True = repaint.

    Args:
        hole: bool (H, W), or integers or floats (H, W) that hold nothing but 0 and 1, or nothing but 0 and 255, as
            other libraries write masks: 0 = keep.
        size: (height, width) of the picture.

    Raises:
        UnusableError: another shape, size, type or other values, which may mean anything.
    """
    expected = f"expected a bool array {size} (height, width), True = repaint"
    if not isinstance(hole, np.ndarray) or isinstance(hole, np.ma.MaskedArray):
        raise UnusableError(f"the hole is {_kind(hole)}, {expected}", "Convert it")
    if hole.shape != size or hole.dtype.kind not in "buif":
        raise UnusableError(f"the hole is {hole.dtype} {hole.shape}, {expected}", "Convert it")
    if hole.dtype == np.bool_:
        return hole
    marked = hole != 0
    values = hole[marked]
    if values.size and not (np.all(values == 1) or np.all(values == 255)):
        raise UnusableError(
            f"the hole is {hole.dtype} with values up to {hole.max()}, {expected}, or only 0 and 1, or 0 and 255",
            "Say which values are the hole, such as `mask >= 128`",
        )
    return np.asarray(marked)


def _kind(value: object) -> str:
    return f"a {type(value).__module__}.{type(value).__name__}"


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
        split: ``inside`` | ``outside`` | ``brush``, or the benchmark's own: what kind of hole it is.
    """

    id: str
    image: Picture
    hole: Hole
    prompt: str
    negative_prompt: str
    seed: int
    split: str


@dataclass(frozen=True)
class Sample:
    """One question of a benchmark, with its answer.

    Attributes:
        id: stable within the benchmark; the same picture has the same id in every split.
        image: uint8 (H, W, 3) RGB, the reference.
        hole: bool (H, W), True = repaint. Given as 0 and 1, or 0 and 255, it is converted: see :func:`as_hole`.
        prompt: the caption.
        split: ``inside`` | ``outside`` | ``brush``.
        meta: what the benchmark carries besides: category, style, prompt variant.

    Raises:
        UnusableError: ``image`` is not uint8 (H, W, 3), or ``hole`` no hole of its size.
    """

    id: str
    image: Picture
    hole: Hole
    prompt: str
    split: str
    meta: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no picture or no hole: used as an index, a mask of integers picks rows, and no error."""
        for name in ("id", "prompt", "split"):
            if not isinstance(getattr(self, name), str):
                raise UnusableError(f"the sample's {name} is {_kind(getattr(self, name))}, expected text", "Convert it")
        image = as_picture(self.image)
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "hole", as_hole(self.hole, image.shape[:2]))

    @property
    def keep(self) -> Hole:
        """Bool (H, W), True = keep: the complement of the hole."""
        return ~self.hole

    def request(self, seed: int, negative_prompt: str = "") -> InpaintRequest:
        """Return what a method may see: the picture with its hole painted grey 127."""
        image = self.image.copy()
        image[self.hole] = NEUTRAL_GREY
        return InpaintRequest(self.id, image, self.hole.copy(), self.prompt, negative_prompt, seed, self.split)


class Benchmark(Protocol):
    """A finite, ordered collection of samples, loaded one at a time.

    A class of your own derives from this one, or from :class:`brushbench.benchmarks.base.LazyBenchmark`, which does the
    work. Without a default are ``name``, ``keys``, ``manifest``, the length and the samples.

    Attributes:
        name: of the benchmark; runs on it lie in a folder of this name.
        keys: (sample id, split) in order, known without decoding a picture; ``[i]`` decodes the i-th.
        manifest: name, ``sha256`` of the data, splits, counts, licence, skipped records: part of a run's identity.
        title: what tables call it.
        spec: what it was loaded by: a registered name, ``module:Class`` or ``file.py:Class``; empty where it was made
            in Python.
        loaded_with: the options that load it again, such as its folder.
        digests: record id to the SHA-256 of everything that its samples are made of, so that a run knows which of them
            changed; empty where that is not known.
        limit: how many records it was limited to, in manifest order, for every split.
        skipped: (record, reason) of what was left out.
        notes: sentences for whoever runs it, such as how to get what is left out.
        metric_weights: weights of the metrics that have some of that name; ``tiny``: this repository's small models.
    """

    name: str
    keys: Sequence[tuple[str, str]]
    manifest: Mapping[str, JSON]
    title: str = ""
    spec: str = ""
    loaded_with: Mapping[str, str] = MappingProxyType({})
    digests: Mapping[str, str] = MappingProxyType({})
    limit: int | None = None
    skipped: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    metric_weights: str | None = None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...
    def __iter__(self) -> Iterator[Sample]: ...

    def with_captions(self) -> Benchmark:
        """Return the benchmark for a method that reads captions; one in which a caption is missing refuses, or skips.

        Raises:
            BadRecordError: a record has none.
        """
        return self


@dataclass(frozen=True)
class Capabilities:
    """What a method can do. The driver, :class:`brushbench.evaluation.sources.Method`, sees to every field.

    Attributes:
        text: whether it reads the prompt; without it prompts arrive empty.
        negative_prompt: whether it reads a negative prompt; without it none arrives.
        batch: most requests in one call.
        native_size: pixels; the shorter side of every picture is brought to it before a call, and the result back to
            the picture's own size. None: pictures come at their own size.
        multiple: height and width of every picture in a call are divisible by it; the last row and column are repeated
            up to it, and cut off after.
        needs_grad: whether it computes gradients; else it is called without autograd.
        background: what happens to the kept pixels; ``exact`` ones need no blended variant.
        needs_reference: it sees the answer (:class:`ReferenceInpainter`): a reference line, never ranked.
    """

    text: bool = True
    negative_prompt: bool = False
    batch: int = 1
    native_size: int | None = None
    multiple: int = 1
    needs_grad: bool = False
    background: Literal["exact", "latent-blend", "free"] = "free"
    needs_reference: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that no call can keep to.

        Raises:
            UsageError: ``batch``, ``multiple`` or ``native_size`` is no whole number from 1 on, an unknown
                ``background``, or something else where true or false is expected.
        """
        for name in ("text", "negative_prompt", "needs_grad", "needs_reference"):
            if not isinstance(vars(self)[name], bool):
                raise UsageError(f"Capabilities: {name} is {vars(self)[name]!r}, expected True or False.")
        for name, limit in (("batch", self.batch), ("multiple", self.multiple), ("native_size", self.native_size)):
            if limit is None and name == "native_size":
                continue
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise UsageError(f"Capabilities: {name} is {limit!r}, expected a whole number from 1 on.")
        if self.background not in ("exact", "latent-blend", "free"):
            raise UsageError(f"Capabilities: background is {self.background!r}, expected exact, latent-blend or free.")


class _Described(Protocol):
    capabilities: Capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the run's identity."""
        ...


@runtime_checkable
class Inpainter(_Described, Protocol):
    """One method on the leaderboard."""

    def inpaint(self, requests: Sequence[InpaintRequest]) -> Sequence[Picture | PIL.Image.Image]:
        """Return one picture per request, in order, before blending: uint8 (H, W, 3) RGB, or PIL.

        The requests of a call have one split and one size, as :class:`Capabilities` asks for it. The result for one
        may not depend on its neighbours.
        """
        ...


@runtime_checkable
class ReferenceInpainter(_Described, Protocol):
    """A reference line (``capabilities.needs_reference``): it sees the answer and is never ranked."""

    def inpaint_reference(self, samples: Sequence[Sample]) -> Sequence[Picture | PIL.Image.Image]:
        """Return one picture per sample, in order, as :meth:`Inpainter.inpaint` does."""
        ...


@dataclass(frozen=True)
class Unscored:
    """In place of a score that could not be computed; counted and shown, never averaged in."""

    reason: str


class Scored(float):
    """A score with a remark that is stored beside it, such as that the caption was cut. Otherwise it is a float."""

    __slots__ = ("remark",)
    remark: str

    def __new__(cls, value: float, remark: str) -> Scored:
        """Return ``value`` with ``remark``."""
        scored = super().__new__(cls, value)
        scored.remark = remark
        return scored

    @property
    def value(self) -> float:
        """The score alone."""
        return float(self)

    def __repr__(self) -> str:
        return f"Scored({float(self)!r}, {self.remark!r})"

    def __reduce__(self) -> tuple[type[Scored], tuple[float, str]]:
        return Scored, (float(self), self.remark)


Score: TypeAlias = "float | Scored | Unscored"


class Metric(Protocol):
    """One column of the table.

    A metric of your own needs the attributes without a default, ``describe`` and ``__call__``. Those with a default can
    be read from the class, without loading anything.

    Attributes:
        name: the column's name.
        protocol: the arithmetic that this object computes, one of ``protocols``.
        higher_is_better: direction.
        region: which pixels it judges.
        unit: of a score, empty where it has none.
        display: what tables show: heading suffix and factor, such as ``("x10³", 1e3)``. Stored scores are not scaled.
        protocols: those it has.
        auto_protocols: those that are computed when none is named; ``None``: all of ``protocols``. Empty: ``--metrics
            auto`` leaves the metric out, and its bare name means the first of ``protocols``.
        caveats: what a reader must know of a column, by protocol; stored with the scores and shown under the table.
        needs: the files it needs.
        required_meta: keys that a sample's ``meta`` must have; on other benchmarks ``--metrics auto`` leaves it out.
        reads_caption: whether the caption matters.
        of_set: whether it is one number for a set of images, such as FID, and none per image.
        shown: whether tables show the column where it is not named.
    """

    name: str
    protocol: str
    higher_is_better: bool
    region: Region
    unit: str = ""
    display: tuple[str, float] = ("", 1.0)
    protocols: ClassVar[tuple[str, ...]] = ("standard",)
    auto_protocols: ClassVar[tuple[str, ...] | None] = None
    caveats: ClassVar[Mapping[str, str]] = {}
    needs: ClassVar[tuple[Needs, ...]] = ()
    required_meta: ClassVar[tuple[str, ...]] = ()
    reads_caption: ClassVar[bool] = False
    of_set: ClassVar[bool] = False
    shown: bool = True

    @classmethod
    def available(cls, weights: str | Path | None = None) -> str | None:  # noqa: ARG003  overridden where there are weights
        """Return ``None`` if every needed file is here, else the reason and the way to get it; downloads nothing."""
        return None

    def describe(self) -> Mapping[str, JSON]:
        """Return settings and weight SHA-256: the column's identity."""
        ...

    def __call__(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features | None = None
    ) -> list[Score]:
        """Score each picture against its sample; sizes may differ within a call."""
        ...
