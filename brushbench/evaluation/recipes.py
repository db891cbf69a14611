"""The recipes behind the commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from brushbench import registry
from brushbench.benchmarks.memory import as_benchmark
from brushbench.config import RunConfig, RunHeader, make_config
from brushbench.devices import allow_tf32, choose_device, free_memory
from brushbench.engines.shard import Shard
from brushbench.errors import BrushbenchError, DataError, RunError, UnknownNameError, UsageError, printable
from brushbench.evaluation.columns import choose_columns
from brushbench.evaluation.generation import generate
from brushbench.evaluation.loading import load_benchmark, load_inpainter
from brushbench.evaluation.mended import mended_records, remake, remember
from brushbench.evaluation.provenance import code_of, contents_of, make_header, source_file
from brushbench.evaluation.scoring import Scoring, choose_variants, score
from brushbench.evaluation.sources import ImageFolder, Method, NoPicture, Source
from brushbench.features import Features
from brushbench.progress import say
from brushbench.records import PictureKey
from brushbench.registry import Spec, parse_spec
from brushbench.runs import Run
from brushbench.store import RunFolder
from brushbench.types import Benchmark, Inpainter, Picture, Sample, sample_seed

__all__ = ["Made", "Session", "carry_out", "configure", "evaluate", "inpaint_one", "rescore", "score_images"]


@dataclass(frozen=True)
class Session:
    """How much of a run is done now; no part of its identity.

    Attributes:
        shard: the part of the plan.
        retry_failed: generate images that failed in an earlier session again.
        retry_before: of these, leave batches alone that were committed later, in seconds since 1970: another worker of
            the same command has tried them again.
        max_failed: failed images that are tolerated before the first one comes out.
        overwrite: remove the run that the folder holds, whatever its settings.
        announce: say how many images were made and how many are reused.
        rescan: look at every image again: they are not the method's, and may have changed.
    """

    shard: Shard = field(default_factory=Shard)
    retry_failed: bool = False
    max_failed: int = 0
    overwrite: bool = False
    announce: bool = True
    rescan: bool = False
    retry_before: float = math.inf


def evaluate(
    inpainter: str | Spec | Inpainter,
    benchmark: str | Path | Benchmark | Sequence[Sample] | Any,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    metrics: str | Sequence[str] = "auto",
    variants: str | Sequence[str] = "auto",
    split: str | Sequence[str] = "all",
    limit: int | None = None,
    seed: int = 1234,
    repeats: int = 1,
    batch_size: int = 4,
    negative_prompt: str = "",
    shard: str | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tf32: bool = False,
    low_memory: bool = False,
    features: Features | None = None,
    retry_failed: bool = False,
    max_failed: int = 0,
    overwrite: bool | None = None,
    notify: Callable[[str], None] = say,
) -> Run:
    """Run a method over a benchmark and score it; what is already there is not generated again.

    Args:
        inpainter: a spec such as ``"brushnet,scale=0.8"``, or an object with the interface of an inpainter.
        benchmark: a name, a folder, or a loaded benchmark (which has its own split and limit); or a list of
            :class:`Sample`, a ``datasets.Dataset`` or a ``DataFrame``: see :mod:`brushbench.benchmarks.memory`.
        out: the run's folder; ``runs/BENCHMARK/NAME`` by default.
        name: label in tables; the spec by default.
        metrics: as in :class:`Scoring`.
        variants: as in :class:`Scoring`.
        split: ``all``, one, or several of inside, outside, brush.
        limit: images in manifest order, for every split.
        seed: of the run; each sample's own seed follows from it and the sample's id.
        repeats: images per sample.
        batch_size: requests given to the method at once; part of the run's identity.
        negative_prompt: given with every request.
        shard: ``i/n``: this process generates part i of n.
        weights: as in :class:`Scoring`.
        device: ``auto`` takes CUDA where there is one.
        dtype: of the method's weights.
        tf32: let the method's float32, such as its autoencoder's, round to TF32 on CUDA; metrics never do.
        low_memory: keep one metric model in memory at a time.
        features: as in :class:`Scoring`; share one between calls on the same benchmark.
        retry_failed: generate images that failed in an earlier session again.
        max_failed: failed images that are tolerated: if more than that, and more than the first 7, fail before one
            comes out, the run stops.
        overwrite: remove the run that the folder holds and start again. By default that is done only for an object
            whose class has no file, such as one from a notebook: whether it is still the same cannot be known.
        notify: called with sentences for a person; they are printed to stderr unless it says otherwise.

    Raises:
        UnknownNameError: an unknown name, before any weight is loaded.
        UsageError: invalid settings, or ``split`` or ``limit`` with a loaded benchmark.
        ConfigMismatchError: the folder holds a run of other settings.
    """
    scoring = Scoring(metrics, variants, weights or {}, device, low_memory=low_memory, features=features)
    choose_columns(metrics)
    if isinstance(benchmark, str | Path):
        data = load_benchmark(benchmark, split, limit)
    else:
        data = as_benchmark(benchmark, split if isinstance(split, str) else ",".join(split), limit)
    spec = parse_spec(inpainter) if isinstance(inpainter, str) else inpainter
    if not isinstance(spec, Spec):
        spec = Spec(type(inpainter).__name__, {})
    config = configure(
        spec, data, name=name, seed=seed, repeats=repeats, batch_size=batch_size, negative_prompt=negative_prompt,
        device=device, dtype=dtype, tf32=tf32,
    )  # fmt: skip
    method = None if isinstance(inpainter, str | Spec) else inpainter
    if overwrite is None:
        overwrite = method is not None and source_file(type(method)) is None
    session = Session(Shard.parse(shard) if shard else Shard(), retry_failed, max_failed, overwrite)
    return carry_out(config, data, scoring, method=method, out=out, session=session, notify=notify)


def configure(spec: Spec, benchmark: Benchmark, *, name: str | None = None, **settings: Any) -> RunConfig:
    """Return the settings of a run of a method on a loaded benchmark.

    Args:
        spec: of the method.
        benchmark: with the splits and the limit wanted.
        name: label in tables; that of the spec by default.
        **settings: further fields of :class:`RunConfig`; another name is refused.

    Raises:
        UsageError: invalid settings.
    """
    return make_config(
        name=spec.label if name is None else name, model=spec.name, options=dict(spec.options),
        benchmark=benchmark.name, splits=tuple(dict.fromkeys(s for _, s in benchmark.keys)), limit=benchmark.limit,
        **settings,
    )  # fmt: skip


def carry_out(
    config: RunConfig,
    benchmark: Benchmark,
    scoring: Scoring,
    *,
    method: Inpainter | None = None,
    out: str | Path | None = None,
    session: Session | None = None,
    notify: Callable[[str], None] = say,
) -> Run:
    """Generate and score what a run's settings ask for.

    Args:
        config: the settings.
        benchmark: loaded, the one of ``config``.
        scoring: what to compute.
        method: an object in place of the one that ``config`` names.
        out: the run's folder; ``runs/BENCHMARK/NAME`` by default.
        session: how much of it is done now.
        notify: called with sentences for a person.

    Raises:
        ConfigMismatchError: the folder holds a run of other settings.
    """
    spec = Spec(config.model, config.options)
    if scoring.low_memory and scoring.features is not None:
        scoring.features.drop_models()  # of the method before
        free_memory()
    allow_tf32(config.tf32)
    contents = contents_of(spec)  # first: what is no file would hang whoever opens it
    source = Method(load_inpainter(spec, config.device, config.dtype) if method is None else method)
    if source.capabilities.text:
        benchmark = benchmark.with_captions()
    takes_device = method is None and "device" in registry.option_names(registry.resolve("model", spec.name))
    header = make_header(
        source, benchmark, config, code=code_of(type(source.inpainter)), contents=contents,
        device=choose_device(config.device).type if takes_device else "",
    )  # fmt: skip
    session = session or Session()
    folder = _make(source, benchmark, header, scoring, out, session, notify)
    if method is None:  # nobody else has it: its memory is the metrics'
        del source
        if scoring.low_memory or header.device == "cuda":
            free_memory()
    return _scored(folder, benchmark, scoring, session, notify)


def score_images(
    images: str | Path,
    benchmark: Benchmark,
    *,
    name: str,
    out: str | Path | None = None,
    scoring: Scoring | None = None,
    overwrite: bool = False,
    shard: str | None = None,
    notify: Callable[[str], None] = say,
) -> Run:
    """Score pictures that were made elsewhere; a picture that is not there counts as missing.

    Args:
        images: ``DIR/SPLIT/ID.png``, or ``DIR/ID.png`` for a benchmark loaded with one split.
        benchmark: what they answer.
        name: label in tables.
        out: the run's folder; ``runs/BENCHMARK/NAME`` by default.
        scoring: what to compute.
        overwrite: remove the run that ``out`` holds, such as one of another folder of images.
        shard: ``i/n``: this process scores part i of n; the last one to finish merges.
        notify: called with sentences for a person.

    Raises:
        DataError: no such folder, no picture of the benchmark in it, or pictures that do not say of which split they
            are.
        ConfigMismatchError: ``out`` holds a run of another folder of images, or of other settings.
    """
    splits = tuple(dict.fromkeys(s for _, s in benchmark.keys))
    source = ImageFolder(images, splits)
    if not any(source.find(sample, split) for sample, split in benchmark.keys):
        raise DataError(
            f"{images} holds no picture of {benchmark.name!r}. Name the pictures after its samples, the first "
            f"{source.path_of(*benchmark.keys[0])}, or score on another benchmark with --bench."
        )
    header = make_header(source, benchmark, configure(Spec("images", {}), benchmark, name=name))
    part = Shard.parse(shard) if shard else Shard()
    scoring, session = scoring or Scoring(), Session(part, rescan=True, overwrite=overwrite, announce=shard is None)
    folder = _make(source, benchmark, header, scoring, out, session, notify)
    return _scored(folder, benchmark, scoring, session, notify)


def rescore(
    path: str | Path,
    *,
    benchmark: str | Path | Benchmark | None = None,
    data: str | Path | None = None,
    scoring: Scoring | None = None,
    shard: str | Shard | None = None,
    redo: bool = True,
    notify: Callable[[str], None] = say,
) -> Run:
    """Add or redo columns of a run whose images are generated; every other column stays as it is.

    Args:
        path: the run's folder.
        benchmark: the one it was made on, where it is not built in: ``file.py:Class``, ``module:Class`` or an object.
            Code is never run because a record names it.
        data: the benchmark's folder, where it is neither embedded nor still where the run found it.
        scoring: what to compute.
        shard: as in :func:`score_images`.
        redo: compute columns again that are already there.
        notify: called with sentences for a person.

    Raises:
        RunError: the run is not finished, or was made on other data.
        UsageError: the run's benchmark is not built in, and ``benchmark`` does not name it.
    """
    scoring = scoring or Scoring()
    choose_columns(scoring.metrics)
    run = Run.open(path)
    part = Shard.parse(shard) if isinstance(shard, str) else shard
    _tell(score(RunFolder(path), benchmark_of(run, benchmark, data), scoring, part, redo), notify)
    return Run.open(path)


def benchmark_of(
    run: Run, benchmark: str | Path | Benchmark | None = None, data: str | Path | None = None
) -> Benchmark:
    """Load the benchmark of a run again, with its splits and its limit; only a built-in one by what the record says.

    Args:
        run: whose benchmark.
        benchmark: the one it was made on, where it is not built in.
        data: its folder, where it is neither embedded nor still where the run found it.

    Raises:
        UsageError: the run's benchmark is not built in, and ``benchmark`` does not name it.
        RunError: it holds other data now.
    """
    loaded = _load_again(run, benchmark, data)
    if run.config.model != "images" and run.header.capabilities.text:
        loaded = loaded.with_captions()
    other = loaded.manifest.get("sha256") != run.header.benchmark.sha256
    if other and not mended_records(RunFolder(run.path), loaded):
        raise RunError(
            f"{run.path} was made on other data than {loaded.name!r} holds now. Name the right folder with --data, or "
            "another benchmark with --bench."
        )
    return loaded


def _load_again(run: Run, benchmark: str | Path | Benchmark | None, data: str | Path | None) -> Benchmark:
    if benchmark is not None and not isinstance(benchmark, str | Path):
        lists = isinstance(benchmark, list | tuple)
        return as_benchmark(benchmark, *((",".join(run.config.splits), run.config.limit) if lists else ()))
    root = {"root": str(data)} if data else {}
    if benchmark is not None:
        spec = parse_spec(str(benchmark))
        if ":" in spec.name and not Path(benchmark).expanduser().exists():
            return _load_class(run, spec, root)
        return load_benchmark(benchmark, run.config.splits, run.config.limit, **root)
    name, options = run.header.bench.name, {**run.header.bench.options, **root}
    if name not in registry.BUILTIN["benchmark"]:
        raise UsageError(
            f"{run.path} was made on {printable(repr(name or run.config.benchmark))}, which is not built in, and code "
            "is never run because a run names it. Name the benchmark yourself with --bench file.py:Class."
        )
    if "root" in options and not Path(options["root"]).expanduser().exists():
        raise DataError(
            f"{run.path} was made on the data in {printable(options['root'])}, which are not there. Name their folder "
            "with --data."
        )
    found: Benchmark = registry.build(
        "benchmark", Spec(name, options), {"split": ",".join(run.config.splits), "limit": run.config.limit}
    )
    return found


def _load_class(run: Run, spec: Spec, root: Mapping[str, str]) -> Benchmark:
    """Load a benchmark class that was named for a run: with the options of its record, where no others are given."""
    known = registry.option_names(registry.resolve("benchmark", spec.name))
    split = run.config.splits if "split" in known else "all"
    limit = run.config.limit if "limit" in known else None
    return load_benchmark(Spec(spec.name, {**run.header.bench.options, **spec.options, **root}), split, limit)


def inpaint_one(
    image: str | Path,
    mask: str | Path,
    prompt: str,
    *,
    model: str | Spec,
    masks: str = "white",
    blend_mode: str = "blur",
    seed: int = 1234,
    negative_prompt: str = "",
    device: str = "auto",
    dtype: str = "auto",
    tf32: bool = False,
) -> Picture:
    """Repaint one picture.

    Args:
        image: file of the picture.
        mask: file of the same size.
        prompt: what the finished picture shows.
        model: a method's spec.
        masks: what marks the hole in ``mask``: ``white``, ``black`` or ``alpha`` (transparent).
        blend_mode: how the result is joined with the original, see :func:`brushnet.blend`; ``none`` leaves it raw.
        seed: of the run; the picture's own follows from it.
        negative_prompt: what it must not show.
        device: ``auto`` takes CUDA where there is one.
        dtype: of the method's weights.
        tf32: let the method's float32 round to TF32 on CUDA.

    Raises:
        DataError: a file is missing or damaged, or the two differ in size.
        UsageError: an unknown way of blending, or a method that needs the answer.
        UnusableError: a hole of nothing or of the whole picture.
        BrushbenchError: the method failed.
    """
    from brushbench.benchmarks.folder import READINGS as MASKS
    from brushbench.benchmarks.holes import MaskFile
    from brushbench.pictures import read_picture
    from brushnet.blending import BlendMode, blend

    if blend_mode not in get_args(BlendMode):  # before the method works for minutes
        raise UnknownNameError("way of blending", blend_mode, get_args(BlendMode))
    if masks not in MASKS:
        raise UnknownNameError("reading of masks", masks, MASKS)
    picture = read_picture(image)
    marked = MaskFile(Path(mask), masks)
    marked.check(*picture.shape[:2])
    hole = marked.draw(*picture.shape[:2])
    sample = Sample(Path(image).stem, picture, hole, prompt, "inside")
    allow_tf32(tf32)
    method = Method(load_inpainter(model, device, dtype))
    if method.capabilities.needs_reference:
        raise UsageError(f"{str(model)!r} is a reference line, which returns the answer. Name a method that makes one.")
    answer = method.answers([sample], [sample_seed(seed, sample.id)], negative_prompt)[0]
    if isinstance(answer, NoPicture):
        raise BrushbenchError(f"{model} made no picture: {answer.reason}.")
    return blend(picture, answer, hole, mode=blend_mode)  # type: ignore[arg-type]


def _make(
    source: Source,
    benchmark: Benchmark,
    header: RunHeader,
    scoring: Scoring,
    out: str | Path | None,
    session: Session,
    notify: Callable[[str], None],
) -> RunFolder:
    """Generate what a run lacks."""
    choose_variants(scoring.variants, source.capabilities)  # an unknown name fails before any picture is made
    config = header.config
    folder = RunFolder(Path(out).expanduser() if out else Path("runs") / config.benchmark / config.name)
    if session.overwrite and folder.exists:
        folder.overwrite()
    mended = mended_records(folder, benchmark) if folder.exists else set()
    for note in folder.begin(header, lambda earlier: bool(mended) or _begins_with(benchmark, earlier)):
        notify(f"{config.name}: {note}")
    remake(folder, mended)
    remember(folder, benchmark)
    there = Made.count(folder)
    generate(
        folder, source, benchmark, config, session.shard, session.retry_failed, session.max_failed, session.rescan,
        session.retry_before,
    )  # fmt: skip
    if session.announce:
        notify(f"{config.name}: {there.since(folder)}")
    return folder


def _scored(
    folder: RunFolder, benchmark: Benchmark, scoring: Scoring, session: Session, notify: Callable[[str], None]
) -> Run:
    """Score what a run has."""
    _tell(score(folder, benchmark, scoring, session.shard), notify)
    return Run(folder)


def _begins_with(benchmark: Benchmark, earlier: RunHeader) -> bool:
    """Whether the data of an earlier, smaller run are the beginning of a benchmark's."""
    if (earlier.benchmark.name, earlier.benchmark.sha256) == (benchmark.name, benchmark.manifest.get("sha256")):
        return True
    if not benchmark.spec:  # made in Python: it cannot be loaded again with an earlier limit
        return False
    spec = Spec(benchmark.spec, benchmark.loaded_with)
    part = registry.build("benchmark", spec, {"split": ",".join(earlier.config.splits), "limit": earlier.config.limit})
    if earlier.capabilities.text and earlier.config.model != "images":
        part = part.with_captions()
    return bool(part.manifest["sha256"] == earlier.benchmark.sha256)


@dataclass(frozen=True)
class Made:
    """How many images of a run were there at a moment, and of when the newest is."""

    pictures: frozenset[tuple[PictureKey, str]]
    newest: float

    @classmethod
    def count(cls, folder: RunFolder) -> Made:
        """Count the images of a run."""
        rows = folder.picture_rows().items()
        return cls(frozenset((key, row.sha256) for key, row in rows if row.sha256), folder.newest_batch())

    def since(self, folder: RunFolder) -> str:
        """Return what has been made since then and what is reused, in words."""
        now = Made.count(folder).pictures
        reused = len(self.pictures & now)
        when = f" (from {datetime.fromtimestamp(self.newest).astimezone():%Y-%m-%d %H:%M})" if reused else ""
        return f"made {len(now) - reused}, reused {reused}{when}"


def _tell(unavailable: Mapping[str, str], notify: Callable[[str], None]) -> None:
    for column, reason in unavailable.items():
        notify(f"{column} is unavailable: {reason}")
