"""Pictures: where they come from, and how they are made batch by batch."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from brushbench.config import RunConfig
from brushbench.engines.shard import Shard
from brushbench.errors import BrushbenchError, DataError, RunError, UnusableError
from brushbench.evaluation.plan import Batch, make_plan
from brushbench.files import is_file
from brushbench.pictures import ImageFile
from brushbench.progress import track
from brushbench.store import PictureRow, RunFolder, State, pixel_sha256
from brushbench.types import JSON, Benchmark, Capabilities, Picture, Sample, sample_seed

__all__ = ["ImageFolder", "Method", "NoPicture", "Source", "ask", "generate"]

BLACK = 2  # a picture with no value above this is black: what a safety checker leaves
IMAGE_SUFFIXES = (".png", ".webp", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class NoPicture:
    """Why a source has no picture for a sample."""

    state: State
    reason: str


Answer: TypeAlias = "Picture | NoPicture"


class Source(Protocol):
    """Where a run's pictures come from."""

    capabilities: Capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings and hashes that decide the pictures."""
        ...

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:
        """Return a picture, or the reason why there is none, for each sample; samples are of one split."""
        ...


class Method:
    """A source that asks a method, through requests that do not hold the answer."""

    def __init__(self, inpainter: Any) -> None:
        self.inpainter = inpainter
        self.capabilities: Capabilities = inpainter.capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the method's own description."""
        description: Mapping[str, JSON] = self.inpainter.describe()
        return description

    def answers(self, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:
        """Ask the method; one with ``for_split`` is asked through what that returns for the samples' split."""
        if self.capabilities.needs_reference:
            pictures = self.inpainter.inpaint_reference(samples)
        else:
            by_split = getattr(self.inpainter, "for_split", None)
            method = by_split(samples[0].split) if by_split else self.inpainter
            pictures = method.inpaint(
                [s.request(seed, negative_prompt) for s, seed in zip(samples, seeds, strict=True)]
            )
        if len(pictures) != len(samples):
            raise BrushbenchError(f"The method returned {len(pictures)} pictures for {len(samples)} requests.")
        return [_checked(picture, sample) for picture, sample in zip(pictures, samples, strict=True)]


def _checked(picture: Any, sample: Sample) -> Answer:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape != sample.image.shape:
        got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        return NoPicture("failed", f"the method returned {got}, expected uint8 {sample.image.shape}")
    return picture


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
        """Return a hash over every picture in the folder."""
        digest = hashlib.sha256()
        for file in sorted(p for p in self.folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
            digest.update(f"{file.relative_to(self.folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return {"method": "pictures made elsewhere", "sha256": digest.hexdigest()}

    def path_of(self, sample: str, split: str) -> Path:
        """Return where the picture of a sample is expected, as a PNG."""
        return (self.folder if self.flat else self.folder / split) / f"{sample}.png"

    def find(self, sample: str, split: str) -> Path | None:
        """Return the picture of a sample, whatever its format, or ``None``."""
        wanted = self.path_of(sample, split)
        files = (wanted.with_name(f"{sample}{suffix}") for suffix in IMAGE_SUFFIXES)
        return next((file for file in files if is_file(file)), None)

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
            return NoPicture("failed", error.problem)
        (height, width), (got_height, got_width) = sample.image.shape[:2], picture.shape[:2]
        if picture.shape != sample.image.shape:
            return NoPicture(
                "failed", f"{file} is {got_height} x {got_width}, expected {height} x {width} (height x width)"
            )
        return picture


def generate(
    folder: RunFolder, source: Source, benchmark: Benchmark, config: RunConfig, shard: Shard, retry_failed: bool = False
) -> None:
    """Make every picture of a shard that is not there yet.

    A method that raises on a batch is asked again one request at a time; what still fails is recorded as failed and
    the run goes on, unless not one picture of the first batch comes out: then the error is raised.

    Raises:
        RunLockedError: another process works on the same shard.
    """
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats)
    with folder.lock(str(shard)):
        mine = shard.take(plan)
        if retry_failed:
            for batch in mine:
                if folder.finished(batch.number) and any(row.state == "failed" for row in folder.rows(batch.number)):
                    folder.discard(batch.number)
        left = [batch for batch in mine if not folder.finished(batch.number)]
        first = len(left) == len(plan)
        for batch in track(left, f"{config.name}: generate", lambda b: len(b.indexes)):
            _generate_batch(folder, source, benchmark, config, batch, fail_fast=first)
            first = False


def _generate_batch(
    folder: RunFolder, source: Source, benchmark: Benchmark, config: RunConfig, batch: Batch, fail_fast: bool
) -> None:
    samples = [benchmark[i] for i in batch.indexes]
    seeds = [sample_seed(config.seed, sample.id, batch.repeat) for sample in samples]
    start = time.perf_counter()
    answers = ask(source, samples, seeds, config.negative_prompt)
    seconds = time.perf_counter() - start
    if fail_fast and all(isinstance(a, NoPicture) and a.state == "failed" for a in answers):
        reasons = "; ".join(sorted({a.reason for a in answers if isinstance(a, NoPicture)}))
        folder.abandon()  # else the mended method, or mended pictures, would be refused as other settings
        raise RunError(f"{config.name} made no picture of the first batch: {reasons}. Nothing was written.")
    rows: list[PictureRow] = []
    pictures: list[Picture | None] = []
    for sample, seed, answer in zip(samples, seeds, answers, strict=True):
        if isinstance(answer, NoPicture):
            rows.append(PictureRow(sample.id, sample.split, batch.repeat, seed, answer.state, answer.reason))
            pictures.append(None)
            continue
        black = int(answer.max()) <= BLACK < int(sample.image.max())
        state: State = "black" if black else "ok"
        reason = "all pixels are black" if black else ""
        rows.append(PictureRow(sample.id, sample.split, batch.repeat, seed, state, reason, pixel_sha256(answer)))
        pictures.append(answer)
    folder.commit(batch.number, rows, pictures)
    folder.log_timing({"batch": batch.number, "pictures": len(samples), "seconds": seconds, **_peak_memory()})


def ask(source: Source, samples: Sequence[Sample], seeds: Sequence[int], negative_prompt: str) -> list[Answer]:
    """Return a source's answers; where it raises, ask again one by one, so that only what fails is failed."""
    try:
        return source.answers(samples, seeds, negative_prompt)
    except BrushbenchError:
        raise
    except Exception as error:  # a method may raise anything; a run of 600 pictures must not die of one
        if len(samples) == 1:
            return [NoPicture("failed", f"{type(error).__name__}: {error}")]
        return [a for s, seed in zip(samples, seeds, strict=True) for a in ask(source, [s], [seed], negative_prompt)]


def _peak_memory() -> dict[str, JSON]:
    peak: dict[str, JSON] = {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["peak_cuda_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return peak
