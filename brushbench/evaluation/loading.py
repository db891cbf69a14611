"""Names to benchmarks, methods and metrics."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brushbench import registry
from brushbench.benchmarks import layout_of
from brushbench.benchmarks.memory import as_benchmark
from brushbench.errors import DataError, UnknownNameError, UsageError
from brushbench.metrics.plugins import load_metric
from brushbench.registry import Spec, parse_spec
from brushbench.types import Benchmark, Inpainter

__all__ = ["load_benchmark", "load_inpainter", "load_metric"]


def load_benchmark(
    name_or_path: str | Path | Spec, split: str | Sequence[str] = "all", limit: int | None = None, **options: Any
) -> Benchmark:
    """Load a benchmark by name, or from a folder.

    Args:
        name_or_path: a registered name with its options (``editbench,prompt=full``), ``module:Class``,
            ``file.py:Class``, the same as a :class:`Spec`, or a folder, whose layout is recognised.
        split: ``all``, one name, or several.
        limit: how many pictures, in manifest order, for every split.
        **options: the loader's own, by name; an unknown one is refused.

    Raises:
        UnknownNameError: no such benchmark, split or option.
        DataError: no such folder.
        UsageError: a benchmark that is not embedded, without its folder.
        BadRecordError: a record cannot be used.
    """
    spec = name_or_path if isinstance(name_or_path, Spec) else Spec(str(name_or_path), {})
    if spec is not name_or_path and not Path(spec.name).expanduser().exists():
        spec = parse_spec(spec.name)
    name = spec.name
    if name not in registry.names("benchmark"):
        if Path(name).expanduser().is_dir():
            options["root"] = str(Path(name).expanduser())
            name = layout_of(Path(options["root"]))
        elif Path(name).exists() or (os.sep in name and ":" not in name):
            raise DataError(f"No folder {name}. Give the folder of a benchmark, or a name of `list benchmarks`.")
    context = {"split": split if isinstance(split, str) else ",".join(split), "limit": limit, **options}
    cls = registry.resolve("benchmark", name)
    known = registry.option_names(cls)
    defaults = {"split": "all", "limit": None}
    for key, value in context.items():
        if key not in known and (key not in defaults or value != defaults[key]):
            raise UnknownNameError(f"option of benchmark {name!r}", key, known)
    needs_root = inspect.signature(cls).parameters.get("root")
    if needs_root and needs_root.default is inspect.Parameter.empty and "root" not in {**spec.options, **options}:
        raise UsageError(f"The benchmark {name!r} is not embedded. Name its folder with --data (in Python root=).")
    benchmark = as_benchmark(registry.build("benchmark", Spec(name, spec.options), context))
    loaded_with = {**spec.options, **{key: str(value) for key, value in options.items()}}
    if "root" in loaded_with:  # the run may be scored again from elsewhere
        loaded_with["root"] = str(Path(loaded_with["root"]).expanduser().resolve())
    benchmark.spec, benchmark.loaded_with = name, loaded_with
    if benchmark.limit is None:  # of a class that does not say so itself
        benchmark.limit = limit
    return benchmark


def load_inpainter(spec: str | Spec, device: str = "auto", dtype: str = "auto") -> Inpainter:
    """Load a method: ``"brushnet,checkpoint=DIR,scale=0.8"``, as text or as a :class:`Spec`.

    Raises:
        UnknownNameError: no such method or option.
        MissingWeightsError: its weights are not here; says how to get them.
    """
    inpainter: Inpainter = registry.build(
        "model", parse_spec(spec) if isinstance(spec, str) else spec, {"device": device, "dtype": dtype}
    )
    return inpainter
