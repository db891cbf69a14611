"""Metrics by name: the built-in ones, and classes of your own with the defaults of the protocol."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from brushbench import registry
from brushbench.errors import BrushbenchError, UsageError, reason_of
from brushbench.isolation import world_of
from brushbench.metrics.base import BaseMetric
from brushbench.types import Metric, Picture, Region, Sample

__all__ = ["load_metric", "metric", "metric_class"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # names a column, and a folder of the run


def metric_class(name: str) -> type[Metric]:
    """Return the class behind a metric's name; what a class of your own leaves out has the protocol's default.

    Args:
        name: a registered name, or ``module:NAME`` or ``file.py:NAME`` of a class, or of a function of a picture and
            its sample (see :func:`metric`).

    Raises:
        UnknownNameError: no such metric.
        UsageError: the module, file or name of a path does not exist, cannot be imported, or is no metric.
    """
    with _failing(name, "imported"):
        found = registry.find("metric", name)
    if isinstance(found, types.FunctionType):
        return metric()(found)
    if not isinstance(found, type):
        module, _, attribute = name.rpartition(":")
        raise UsageError(
            f"metric {name!r}: {module} has no class and no function {attribute!r}. Write file.py:NAME or module:NAME."
        )
    if Metric in found.__mro__:
        return found
    missing = [method for method in ("describe", "__call__") if not callable(vars_of(found).get(method))]
    if missing:
        raise UsageError(
            f"{name!r} is no metric: {found.__name__} has no {' and no '.join(missing)}. See `brushbench.types.Metric`."
        )
    body = {"__doc__": found.__doc__, "__module__": found.__module__}
    with _failing(name, "used as a metric"):
        return types.new_class(found.__name__, (found, Metric), exec_body=lambda space: space.update(body))


def load_metric(
    name: str,
    protocol: str = "standard",
    weights: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> Metric:
    """Load a metric.

    Args:
        name: a registered name, ``module:Class`` or ``file.py:Class``.
        protocol: ``standard`` or another one that the metric has.
        weights: hub id, file or folder, for metrics that need weights; ``None`` looks in the usual places.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` …
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        UnknownNameError: no such metric.
        UsageError: the metric does not have that protocol, or a class of your own is no metric.
        MissingWeightsError: its weights are not here; says how to get them.
    """
    cls = metric_class(name)
    known = registry.option_names(cls)
    given = {"protocol": protocol, "weights": weights, "device": device, "dtype": dtype}
    if weights is not None and "weights" not in known:
        raise UsageError(f"Metric {name!r} needs no weights. Leave weights= out.")
    with _failing(name, "constructed"), world_of(cls):
        loaded = cls(**{key: value for key, value in given.items() if key in known})
    if f"{cls.__module__}:{cls.__qualname__}" not in registry.BUILTIN["metric"].values():
        _check(loaded, name, protocol)
    return loaded


def metric(
    *, higher_is_better: bool = True, unit: str = "", region: Region = "whole", display: tuple[str, float] = ("", 1.0)
) -> Callable[[Callable[[Picture, Sample], object]], type[BaseMetric]]:
    """Make a metric of a function of one picture and its sample; the column has the function's name.

    A plain function serves too, ``--metrics mine.py:redness``; this decorator says what differs from the defaults::

        @brushbench.metric(higher_is_better=False, region="hole")
        def redness(picture, sample):
            return picture[sample.hole, 0].mean()

    Args:
        higher_is_better: direction.
        unit: of a score.
        region: which pixels it judges.
        display: heading suffix and factor of tables.

    Raises:
        UsageError: the function is not of the form ``def NAME(picture, sample)``.
    """

    def wrap(function: Callable[[Picture, Sample], object]) -> type[BaseMetric]:
        named = list(inspect.signature(function).parameters.values())
        if [p.name for p in named[:2]] != ["picture", "sample"] or any(p.default is p.empty for p in named[2:]):
            raise UsageError(
                f"{function.__module__}:{function.__name__} is no metric: its parameters are "
                f"({', '.join(p.name for p in named)}). Write def {function.__name__}(picture, sample)."
            )

        def score(
            self: BaseMetric,  # noqa: ARG001
            pictures: Sequence[Picture],
            samples: Sequence[Sample],
            features: object,  # noqa: ARG001
        ) -> list[object]:
            return [function(picture, sample) for picture, sample in zip(pictures, samples, strict=True)]

        # Whoever looks for the metric's source finds the function's: its file is part of the column's identity.
        score.__wrapped__ = function  # type: ignore[attr-defined]
        facts = {"higher_is_better": higher_is_better, "unit": unit, "region": region, "display": display}
        body = {"__doc__": function.__doc__, "__module__": function.__module__, "_score": score, **facts}
        return type(function.__name__, (BaseMetric,), {"name": function.__name__, **body})

    return wrap


def vars_of(cls: type) -> dict[str, object]:
    """Return a class's own and inherited attributes, without those of ``object`` and ``type``."""
    found: dict[str, object] = {}
    for base in reversed(cls.__mro__[:-1]):
        found.update(vars(base))
    return found


@contextmanager
def _failing(name: str, what: str) -> Iterator[None]:
    """Turn what a plug-in raises, an early ``SystemExit`` too, into one sentence; the cause keeps its traceback."""
    try:
        yield
    except BrushbenchError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"Metric {name!r} cannot be {what}: {reason_of(error)}. Correct its code.") from error


def _check(metric: Metric, spec: str, protocol: str) -> None:
    """Refuse a metric of one's own whose facts cannot stand in a table or name a column."""
    with _failing(spec, "read"):
        label, own, unit, display = metric.name, metric.protocol, metric.unit, metric.display
        direction, region = metric.higher_is_better, metric.region
    if not isinstance(label, str) or not NAME.fullmatch(label):
        raise UsageError(
            f"Metric {spec!r} is named {str(label)[:80]!r}. A name is 1 to 64 letters, digits, '_', '-', '.' or '+', "
            "and begins with a letter or a digit. Change its `name`."
        )
    if label in registry.BUILTIN["metric"]:
        raise UsageError(f"Metric {spec!r} has the name of the built-in metric {label!r}. Change its `name`.")
    wrong = {
        "protocol": (own, own == protocol, repr(protocol)),
        "unit": (unit, isinstance(unit, str) and unit.isprintable(), "text"),
        "higher_is_better": (direction, isinstance(direction, bool), "True or False"),
        "region": (region, region in get_args(Region), f"one of {', '.join(get_args(Region))}"),
        "display": (display, _is_display(display), 'a heading suffix and a factor, such as ("x10³", 1e3)'),
    }
    for attribute, (value, good, expected) in wrong.items():
        if not good:
            raise UsageError(f"Metric {spec!r}: {attribute} is {str(value)[:80]!r}, expected {expected}.")


def _is_display(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    suffix, factor = value
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    return isinstance(suffix, str) and suffix.isprintable() and number and math.isfinite(factor) and factor > 0
