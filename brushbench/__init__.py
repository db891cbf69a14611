"""Measure text-guided image inpainting.

>>> import brushbench
>>> run = brushbench.evaluate("telea", "photos", limit=2)  # doctest: +SKIP
>>> run.summary()  # doctest: +SKIP

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import brushnet  # noqa: F401 - sets MKL_CBWR, which has to happen before torch computes anything

if TYPE_CHECKING:
    from brushbench.comparison import compare
    from brushbench.evaluation import evaluate, load_benchmark, load_inpainter, load_metric
    from brushbench.gating import gate
    from brushbench.metrics.plugins import metric
    from brushbench.runs import Run
    from brushbench.types import Capabilities, InpaintRequest, Sample, Unscored

__all__ = [
    "Capabilities",
    "InpaintRequest",
    "Run",
    "Sample",
    "Unscored",
    "compare",
    "evaluate",
    "gate",
    "load_benchmark",
    "load_inpainter",
    "load_metric",
    "metric",
]
__version__ = "0.1.0"

_HOMES = {
    "Run": "brushbench.runs",
    "compare": "brushbench.comparison",
    "gate": "brushbench.gating",
    "metric": "brushbench.metrics.plugins",
    **dict.fromkeys(("Capabilities", "InpaintRequest", "Sample", "Unscored"), "brushbench.types"),
    **dict.fromkeys(("evaluate", "load_benchmark", "load_inpainter", "load_metric"), "brushbench.evaluation"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'brushbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
