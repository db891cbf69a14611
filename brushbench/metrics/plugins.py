"""Metrics by name: the built-in ones, and classes of your own with the defaults of the protocol."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from brushbench import registry
from brushbench.errors import BrushbenchError, UsageError, reason_of
from brushbench.isolation import world_of
from brushbench.types import Metric, Region

__all__ = ["load_metric", "metric_class"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")  # names a column, and a folder of the run


def metric_class(name: str) -> type[Metric]:
    """Return the class behind a metric's name; what a class of your own leaves out has the protocol's default.

    Args:
        name: a registered name, ``module:Class`` or ``file.py:Class``.

    Raises:
        UnknownNameError: no such metric.
        UsageError: the module, file or class of a path does not exist, cannot be imported, or is no metric.
    """
    with _failing(name, "imported"):
        found = registry.resolve("metric", name)
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
        metric = cls(**{key: value for key, value in given.items() if key in known})
    if f"{cls.__module__}:{cls.__qualname__}" not in registry.BUILTIN["metric"].values():
        _check(metric, name, protocol)
    return metric


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
