"""Metrics by name: the built-in ones, and classes of your own with the defaults of the protocol."""

from __future__ import annotations

import types

from brushbench import registry
from brushbench.types import Metric

__all__ = ["metric_class"]


def metric_class(name: str) -> type[Metric]:
    """Return the class behind a metric's name; what a class of your own leaves out has the protocol's default.

    Args:
        name: a registered name, ``module:Class`` or ``file.py:Class``.

    Raises:
        UnknownNameError: no such metric.
        UsageError: the module, file or class of a path does not exist.
    """
    found = registry.resolve("metric", name)
    if Metric in found.__mro__:
        return found
    body = {"__doc__": found.__doc__, "__module__": found.__module__}
    return types.new_class(found.__name__, (found, Metric), exec_body=lambda space: space.update(body))
