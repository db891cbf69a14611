"""A finished or growing run, opened for reading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushbench.config import RunConfig, make_config
from brushbench.errors import RunError
from brushbench.stats import summarise
from brushbench.store import RunFolder

if TYPE_CHECKING:
    import pandas

__all__ = ["Run"]

NEEDED = ("config", "capabilities", "benchmark", "plan")
CELL = ["split", "prompt_variant", "variant", "metric", "protocol"]


class Run:
    """One method on one benchmark: its settings and its scores.

    Attributes:
        path: the run's folder.
        header: ``run.json``: settings, hashes, versions, device.
        config: the settings alone.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path
        self._folder = folder
        self.header: dict[str, Any] = folder.header()
        absent = [key for key in NEEDED if key not in self.header]
        if absent:
            raise RunError(
                f"{folder.path / 'run.json'} says nothing of {', '.join(absent)}. Restore it, or start again in "
                "another folder."
            )
        self.config: RunConfig = make_config(**self.header["config"])

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open a run's folder.

        Raises:
            RunError: the folder holds no run, or one of a newer schema.
        """
        return cls(RunFolder(path))

    @property
    def is_reference(self) -> bool:
        """Whether this is a reference line, which sees the answer and is never ranked."""
        return bool(self.header["capabilities"]["needs_reference"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What each column, ``name@protocol``, was computed with, or why it is unavailable."""
        return self._folder.metric_headers()

    @property
    def scores(self) -> pandas.DataFrame:
        """Every score in long form: the key columns, ``value`` (NaN where there is none) and ``reason``."""
        return self._folder.scores()

    def pictures(self) -> dict[str, int]:
        """Return how many pictures are in each state: ok, black, missing, failed, and ``planned`` in all."""
        counts = {"planned": int(self.header["plan"]["pictures"]), "ok": 0, "black": 0, "missing": 0, "failed": 0}
        for file in sorted((self.path / "batches").glob("*.json")):
            for row in self._folder.rows(int(file.stem)):
                counts[row.state] += 1
        return counts

    def summary(self) -> pandas.DataFrame:
        """Return one row a cell: mean with its 95 % interval, median, n, infinite and missing.

        Repeats are averaged inside a sample first, so that n counts samples.
        """
        import pandas as pd

        cells = []
        for key, group in self.scores.groupby(CELL, sort=False):
            per_sample = group.groupby("sample", sort=False)["value"].mean()  # NaN only where no repeat has a score
            cells.append(dict(zip(CELL, key, strict=True)) | vars(summarise(per_sample.tolist())))
        return pd.DataFrame(cells, columns=[*CELL, "mean", "low", "high", "median", "n", "infinite", "missing"])
