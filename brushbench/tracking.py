"""One hook for experiment trackers: a run's means go where a lab looks at its trainings, by Accelerate's adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from brushbench.errors import BrushbenchError, UnknownNameError

if TYPE_CHECKING:
    from brushbench.runs import Run

__all__ = ["TRACKERS", "check_tracker", "scalars", "track_run"]

TRACKERS: Mapping[str, str] = {  # --track: the package it needs
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed, before any work.

    Raises:
        UnknownNameError: no such tracker.
        BrushbenchError: its package is not installed.
    """
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise UnknownNameError("tracker", name, TRACKERS)
    if find_spec(TRACKERS[name]) is None:
        raise BrushbenchError(f"--track {name} needs the package {TRACKERS[name]}: pip install 'brushbench[{name}]'.")


def scalars(run: Run) -> dict[str, float]:
    """Return a run's means by name: ``inside/raw/psnr@standard``; means that are infinite or missing are left out."""
    summary = run.summary()
    rows = summary[["split", "variant", "metric", "protocol", "mean"]].itertuples(index=False)
    return {f"{s}/{v}/{m}@{p}": float(mean) for s, v, m, p, mean in rows if math.isfinite(mean)}


def track_run(run: Run, tracker: str, folder: Path) -> None:
    """Log a run's means and settings.

    Args:
        run: scored.
        tracker: a key of :data:`TRACKERS`.
        folder: where trackers that write files put them.

    Raises:
        UnknownNameError: no such tracker.
        BrushbenchError: its package is not installed.
    """
    check_tracker(tracker)
    from accelerate.state import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the adapters ask it whether this process is the one that logs
    kind = LOGGER_TYPE_TO_CLASS[tracker]
    places = {"logging_dir": folder} if kind.requires_logging_directory else {}
    log = kind(run.config.name, **places)
    log.start()
    log.log(scalars(run), step=0)
    log.finish()
