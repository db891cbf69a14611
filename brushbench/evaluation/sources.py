"""Where a run's pictures come from: a method, or a folder of pictures made elsewhere."""

from __future__ import annotations

import hashlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from brushbench.devices import free_memory, refuse_broken_device
from brushbench.errors import (
    DataError,
    UnusableError,
    UsageError,
    WeightsError,
    printable,
    reason_of,
    without_addresses,
)
from brushbench.files import is_file, read_bytes
from brushbench.isolation import world_of
from brushbench.pictures import ImageFile
from brushbench.plugins import explained
from brushbench.records import State
from brushbench.types import (
    JSON,
    NEUTRAL_GREY,
    Capabilities,
    Inpainter,
    InpaintRequest,
    Picture,
    ReferenceInpainter,
    Sample,
)

__all__ = ["Answer", "ImageFolder", "Method", "NoPicture", "Source", "as_json"]

LONGEST_SIDE = 8192  # pixels, of a picture brought to a method's native size
IMAGE_SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class NoPicture:
    """Why a source has no picture for a sample.

    Attributes:
        state: ``failed`` | ``missing``.
        reason: in one line, without what differs from one process to the next.
        traceback: of the exception, where there was one.
    """

    state: State
    reason: str
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> NoPicture:
        """Return the failure that an exception stands for."""
        trace = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode()
        return cls("failed", reason_of(error), without_addresses(trace))


Answer: TypeAlias = "Picture | NoPicture"
Asked = TypeVar("Asked", Sample, InpaintRequest)


class Source(Protocol):
    """Where a run's pictures come from."""

    capabilities: Capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and hashes that decide the pictures."""
        ...

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:
        """Return a picture, or the reason why there is none, for each sample."""
        ...


class Method:
    """A method as a source: gives it requests as its capabilities say, and checks what comes back.

    A call holds requests of one split and one size, at most ``capabilities.batch`` of them, and never mixes those with
    and without a negative prompt: SDXL reads none as zeros, not as empty text, and a picture must not depend on its
    neighbours. Pictures are brought to ``native_size`` and padded to ``multiple``, and the results back; prompts that
    the method does not read are left out. A call that fails is repeated one request at a time, so that only what fails
    is failed.

    Args:
        inpainter: the method.

    Raises:
        UsageError: it is no method; the message says what it lacks.
    """

    def __init__(self, inpainter: Inpainter | ReferenceInpainter) -> None:
        _check_inpainter(inpainter)
        self.inpainter: Any = inpainter
        self.capabilities = inpainter.capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the method's own description, and how pictures are resized for it where they are.

        Raises:
            UsageError: the description holds what JSON has no word for; the message names the key.
        """
        name = type(self.inpainter).__name__
        with explained(type(self.inpainter).__module__, name, "described"), world_of(type(self.inpainter)):
            own = self.inpainter.describe()
        if not isinstance(own, Mapping):
            raise UsageError(f"{name}.describe() returned {_in_words(own)}, expected a dict of its settings.")
        try:
            plain = {str(key): as_json(value, f"{name}.describe()[{key!r}]") for key, value in own.items()}
        except RecursionError:
            raise UsageError(f"{name}.describe() is nested without end, expected a dict of its settings.") from None
        side = self.capabilities.native_size
        return plain if side is None else {**plain, "resize": f"shorter side to {side} pixels, Lanczos; hole: any"}

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:
        """Ask the method; a reference line sees the samples, all others requests that do not hold the answer.

        Raises:
            UsageError: the method refuses its settings.
            WeightsError: the method's weights are missing or damaged.
        """
        if self.capabilities.needs_reference:
            return self._ask(list(samples), self.inpainter.inpaint_reference)
        return self.ask([sample.request(seed, negative_prompt) for sample, seed in zip(samples, seeds, strict=True)])

    def ask(self, requests: Sequence[InpaintRequest]) -> list[Answer]:
        """Return a picture, or the reason why there is none, for each request; sizes and splits may differ."""
        can = self.capabilities
        told = [
            replace(
                request,
                prompt=request.prompt if can.text else "",
                negative_prompt=request.negative_prompt if can.negative_prompt else "",
            )
            for request in requests
        ]
        return self._ask(told, self.inpainter.inpaint)

    def _ask(self, asked: Sequence[Asked], call: Callable[[Sequence[Asked]], Sequence[Any]]) -> list[Answer]:
        can, answers, fitted = self.capabilities, dict[int, Answer](), dict[int, Asked]()
        for place, one in enumerate(asked):
            working = _working_size(one.image, can)
            if any(side + -side % can.multiple > LONGEST_SIDE for side in working):
                answers[place] = NoPicture("failed", _too_long(one.image, working))
            else:
                fitted[place] = _fit(one, working, can.multiple)
        for places in _calls(fitted, can.batch):
            results = self._call([fitted[place] for place in places], call)
            for place, result in zip(places, results, strict=True):
                answers[place] = _answer(result, asked[place].image, fitted[place].image, can)
        return [answers[place] for place in range(len(asked))]

    def _call(self, asked: Sequence[Asked], call: Callable[[Sequence[Asked]], Sequence[Any]]) -> list[Any]:
        """Return one result or :class:`NoPicture` for each; what fails together is tried one by one.

        Raises:
            BrokenDeviceError: the GPU is of no use to this process any more: every further image would fail.
        """
        try:
            with world_of(type(self.inpainter)), _autograd(self.capabilities.needs_grad):
                return _counted(call(asked), len(asked))
        except (UsageError, WeightsError):
            raise  # not the fault of one picture
        except Exception as error:  # a method may raise anything; a run of 600 pictures must not die of one
            refuse_broken_device(error)
            failure = NoPicture.of(error)
        if len(asked) == 1:
            return [failure]
        free_memory()  # behind the except: until there the exception holds all that the failed call had in memory
        return [self._call([one], call)[0] for one in asked]


def _check_inpainter(found: object) -> None:
    """Refuse what is no method.

    Raises:
        UsageError: says what was got, and what a method has.
    """
    wanted = "A method is an object with capabilities, describe() and inpaint(requests); see CONTRIBUTING.md."
    if isinstance(found, type):
        raise UsageError(
            f"Got the class {found.__name__} as a method, expected an object: {found.__name__}(). {wanted}"
        )
    if isinstance(found, FunctionType):
        raise UsageError(f"Got the function {found.__name__} as a method. {wanted}")
    if not isinstance(found, Inpainter | ReferenceInpainter):
        absent = [name for name in ("capabilities", "describe", "inpaint") if name not in dir(found)]
        raise UsageError(f"Got {_in_words(found)} as a method, without {', '.join(absent)}. {wanted}")
    can = found.capabilities
    if not isinstance(can, Capabilities):
        raise UsageError(
            f"{type(found).__name__}.capabilities is {_in_words(can)}, expected Capabilities(...). {wanted}"
        )
    if not isinstance(found, ReferenceInpainter if can.needs_reference else Inpainter):
        lacking = "inpaint_reference" if can.needs_reference else "inpaint"
        raise UsageError(f"{type(found).__name__} has no {lacking}(), which its capabilities ask for. {wanted}")


def as_json(value: object, name: str) -> JSON:
    """Return a value of a description as JSON: paths and NaN as text, NumPy's numbers and arrays as Python's.

    Args:
        value: what a plug-in said of itself.
        name: what messages call it.

    Raises:
        UsageError: JSON has no word for it.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(part, f"{name}[{key!r}]") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part, f"{name}[{place}]") for place, part in enumerate(value)]
    raise UsageError(f"{name} is {_in_words(value)}, expected texts, numbers, and lists and dicts of them.")


def _counted(results: Any, count: int) -> list[Any]:
    """Return a method's results as a list, each with its own memory.

    Raises:
        TypeError: no sequence of pictures.
        ValueError: too few, too many, or one buffer for several.
    """
    if isinstance(results, Mapping | str | bytes) or not isinstance(results, Iterable):
        raise TypeError(f"the method returned {_in_words(results)}, expected a list with one picture per request")
    listed = list(results)
    if len(listed) != count:
        raise ValueError(f"the method returned {len(listed)} pictures, expected {count}")
    buffers = [one.__array_interface__["data"][0] for one in listed if isinstance(one, np.ndarray) and one.size]
    if len(set(buffers)) < len(buffers):
        raise ValueError("the method returned one buffer for several pictures")
    return [one.copy() if isinstance(one, np.ndarray) else one for one in listed]  # a method may use its buffer again


def _calls(asked: Mapping[int, Asked], most: int) -> Iterable[list[int]]:
    """Yield the places of what goes into each call."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, one in asked.items():
        negative = isinstance(one, InpaintRequest) and bool(one.negative_prompt)
        groups.setdefault((one.split, one.image.shape, negative), []).append(place)
    for places in groups.values():
        for start in range(0, len(places), most):
            yield places[start : start + most]


def _working_size(image: Picture, can: Capabilities) -> tuple[int, int]:
    """Return the height and width that a method works at: its native size for the shorter side, or the picture's."""
    height, width = image.shape[:2]
    if can.native_size is None:
        return height, width
    scale = can.native_size / min(height, width)
    return max(can.native_size, round(height * scale)), max(can.native_size, round(width * scale))


def _too_long(image: Picture, working: tuple[int, int]) -> str:
    height, width = image.shape[:2]
    return (
        f"{height} x {width} pixels would be {working[0]} x {working[1]} or more at the method's native size and "
        f"multiple, expected at most {LONGEST_SIDE} per side"
    )


def _fit(one: Asked, working: tuple[int, int], multiple: int) -> Asked:
    """Bring a picture and its hole to a method's size, and pad them; a pixel is hole if any that it stands for is."""
    image, hole = one.image, one.hole
    if image.shape[:2] != working:
        shrinks = working[0] < image.shape[0]
        hole = _resized(hole.astype(np.uint8) * 255, working, "BOX" if shrinks else "NEAREST") > 0
        image = _resized(image, working, "LANCZOS")
        if isinstance(one, InpaintRequest):
            image[hole] = NEUTRAL_GREY
    if working[0] % multiple or working[1] % multiple:
        image, hole = _padded(image, multiple), _padded(hole, multiple)
    return one if image is one.image else replace(one, image=image, hole=hole)


def _resized(array: Picture, size: tuple[int, int], filter_name: str) -> Picture:
    from PIL import Image

    return np.array(Image.fromarray(array).resize(size[::-1], Image.Resampling[filter_name]))


def _padded(array: Any, multiple: int) -> Any:
    """Repeat the last row and column of a picture or hole until both sides are divisible."""
    height, width = array.shape[:2]
    margins = [(0, -height % multiple), (0, -width % multiple)] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, margins, mode="edge")


def _answer(result: Any, own: Picture, given: Picture, can: Capabilities) -> Answer:
    """Check a method's result, cut its padding off and bring it to the picture's own size."""
    from PIL import Image

    if isinstance(result, NoPicture):
        return result
    picture = np.asarray(result) if isinstance(result, Image.Image) and result.mode == "RGB" else result
    plain = isinstance(picture, np.ndarray) and not isinstance(picture, np.ma.MaskedArray)
    if not plain or picture.dtype != np.uint8 or picture.shape != given.shape:
        return NoPicture("failed", f"the method returned {_in_words(result)}, expected uint8 {given.shape}, or PIL RGB")
    height, width = _working_size(own, can)
    picture = picture[:height, :width]
    return picture if picture.shape == own.shape else _resized(picture, own.shape[:2], "LANCZOS")


def _in_words(result: Any) -> str:
    from PIL import Image

    if isinstance(result, np.ndarray):
        kind = "" if type(result) is np.ndarray else f"a {type(result).__name__}: "
        return f"{kind}{result.dtype} {result.shape}"
    if isinstance(result, Image.Image):
        return f"a PIL picture of mode {result.mode}, {result.height} x {result.width}"
    return "None" if result is None else f"a {type(result).__name__}"


def _autograd(needed: bool) -> AbstractContextManager[object]:
    """Turn torch's autograd on or off for one call; nothing to do where torch was never imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return nullcontext()
    context: AbstractContextManager[object] = torch.enable_grad() if needed else torch.no_grad()
    return context


class ImageFolder:
    """A source of pictures made elsewhere: ``DIR/SPLIT/ID.png``, or ``DIR/ID.png`` where one split is scored.

    Args:
        folder: where the pictures lie; PNG, WebP, BMP, TIFF or JPEG, lossless ones preferred.
        splits: the splits that are scored.

    Raises:
        DataError: no such folder, or pictures for several splits that do not say of which split they are.
    """

    capabilities = Capabilities(text=True, batch=64)

    def __init__(self, folder: Path | str, splits: Sequence[str]) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise DataError(f"--images {self.folder} is no folder. Name the folder that holds your pictures.")
        self.flat = not any((self.folder / split).is_dir() for split in splits)
        if self.flat and len(splits) > 1:
            raise DataError(
                f"{self.folder} has none of the folders {', '.join(splits)}. Put each split's pictures in a folder "
                "of its name, or score one split with --split."
            )

    def describe(self) -> Mapping[str, JSON]:
        """Return where the folder is, and a hash over every picture in it."""
        digest = hashlib.sha256()
        for file in sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and is_file(p)):
            digest.update(f"{file.relative_to(self.folder).as_posix()}\0".encode("utf-8", "surrogateescape"))
            digest.update(hashlib.sha256(read_bytes(file, "picture")).digest())
        return {
            "method": "pictures made elsewhere",
            "folder": str(self.folder.resolve()),
            "sha256": digest.hexdigest(),
        }

    def path_of(self, sample: str, split: str) -> Path:
        """Return where the picture of a sample is expected, as a PNG."""
        return (self.folder if self.flat else self.folder / split) / f"{sample}.png"

    def find(self, sample: str, split: str) -> Path | None:
        """Return the picture of a sample, whatever its format, or ``None``."""
        wanted = self.path_of(sample, split)
        endings = (ending for suffix in IMAGE_SUFFIXES for ending in (suffix, suffix.upper()))
        # What is no regular file is found as well, so that reading it says what it is.
        return next((file for end in endings if os.path.lexists(file := wanted.with_name(f"{sample}{end}"))), None)

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:  # noqa: ARG002
        """Read each sample's picture."""
        return [self._read(sample) for sample in samples]

    def _read(self, sample: Sample) -> Answer:
        file = self.find(sample.id, sample.split)
        if file is None:
            wanted = self.path_of(sample.id, sample.split)
            return NoPicture("missing", f"no picture {wanted.name} in {wanted.parent}")
        source = ImageFile(file)
        try:
            picture = source.decode(source.data())
        except UnusableError as error:
            return NoPicture("failed", printable(error.problem))
        (height, width), (got_height, got_width) = sample.image.shape[:2], picture.shape[:2]
        if picture.shape != sample.image.shape:
            return NoPicture(
                "failed", f"{file} is {got_height} x {got_width}, expected {height} x {width} (height x width)"
            )
        return picture
