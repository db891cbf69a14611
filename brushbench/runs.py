"""A finished or growing run, opened for reading."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from brushbench.config import RunConfig, RunHeader
from brushbench.errors import UsageError
from brushbench.outcome import FAULT, Outcome
from brushbench.records import PictureRow
from brushbench.score_table import ScoreTable
from brushbench.stats import are_shares, summarise_all
from brushbench.store import RunFolder
from brushbench.types import JSON, PROTOCOLS, Picture

if TYPE_CHECKING:
    import pandas

__all__ = ["CELL", "Run", "SetValue", "check_protocol", "image_sets", "per_sample", "set_digest"]

STALE = "it was scored before its image was generated again; score the run again"
CELL = ["split", "prompt_variant", "variant", "metric", "protocol"]


@dataclass(frozen=True)
class SetValue:
    """One number for a set of images, such as FID, as a run stores it.

    Attributes:
        column: ``name@protocol``.
        split, prompt_variant, variant: which images.
        n: of them.
        value, low, high: NaN where there are too few.
    """

    column: str
    split: str
    prompt_variant: str
    variant: str
    n: int
    value: float
    low: float
    high: float


def set_digest(rows: Sequence[PictureRow]) -> str:
    """Return one SHA-256 for a set of images: another image, or one more, gives another."""
    content = sorted(f"{row.sample} {row.repeat} {row.sha256}" for row in rows)
    return hashlib.sha256("\n".join(content).encode("utf-8", "backslashreplace")).hexdigest()


def image_sets(rows: Iterable[PictureRow]) -> dict[tuple[str, str], list[PictureRow]]:
    """Return the rows of the images that metrics of whole sets look at, by split and prompt variant.

    Further repeats show the same scenes again and are left out.
    """
    found: dict[tuple[str, str], list[PictureRow]] = {}
    for row in rows:
        if row.state == "ok" and row.repeat == 0:
            found.setdefault((row.split, row.prompt_variant), []).append(row)
    return found


class Run:
    """One method on one benchmark: its settings and its scores.

    Attributes:
        path: the run's folder.
        header: ``run.json``: settings, hashes, versions, device; see :class:`brushbench.config.RunHeader`.
        config: the settings alone.
        label: what tables call the run; its name, unless the caller sets another.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path
        self._folder = folder
        self.header: RunHeader = folder.header()
        self.config: RunConfig = self.header.config
        self.label: str = self.config.name
        self._kept: ScoreTable | None = None

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in self.pictures().items() if n)
        columns = ", ".join(sorted({column.partition("@")[0] for column in self.metrics})) or "none"
        benchmark = self.header.benchmark.name
        return f"<Run {self.config.name!r} on {benchmark!r}: {counts}; metrics: {columns}; in {str(self.path)!r}>"

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
        return self.header.capabilities.needs_reference

    @property
    def metrics(self) -> dict[str, Any]:
        """What each column, ``name@protocol``, was computed with, or why it is unavailable."""
        return self._folder.metric_headers()

    @property
    def scores(self) -> pandas.DataFrame:
        """Every score in long form: the key columns, ``value`` (NaN where there is none) and ``reason``.

        A score of another picture than the run holds now, because that was generated again, counts as none.
        """
        return self.score_table().frame()

    def score_table(self) -> ScoreTable:
        """Return :attr:`scores` with every text once, which is quicker to compare and to group."""
        if self._kept is not None:
            return self._kept
        table = self._folder.scores()
        current = table.is_current(self._folder.picture_rows())
        return table if current.all() else table.without(~current, STALE)

    def snapshot(self) -> Run:
        """Return the run with its scores as they are now: they are read once, however often they are asked for."""
        kept = copy.copy(self)
        kept._kept = self.score_table()
        return kept

    def set_scores(self) -> list[SetValue]:
        """Return the scores of whole sets that were computed from the images that are there now."""
        headers = {column: header for column, header in self.metrics.items() if header.get("sets")}
        if not headers:
            return []
        digests = {key: set_digest(rows) for key, rows in image_sets(self.picture_rows()).items()}
        return [
            SetValue(column, one["split"], one["prompt_variant"], one["variant"], one["n"], *_numbers(one))
            for column, header in headers.items()
            for one in header["sets"]
            if digests.get((one["split"], one["prompt_variant"])) == one["images_sha256"]
        ]

    def pictures(self) -> dict[str, int]:
        """Return how many pictures are in each state: ok, black, missing, failed, and ``planned`` in all."""
        counts = {"planned": self.header.plan.pictures, "ok": 0, "black": 0, "missing": 0, "failed": 0}
        for row in self.picture_rows():
            counts[row.state] += 1
        return counts

    def protocols(self) -> set[str]:
        """Return the protocols under which there are scores."""
        return self._folder.texts("protocol") | {one.column.partition("@")[2] for one in self.set_scores()}

    def metadata(self) -> dict[tuple[str, str], Mapping[str, str]]:
        """Return what the benchmark carries of each sample (category, style, …), by sample id and split."""
        return {(row.sample, row.split): row.meta for row in self.picture_rows()}

    def outcome(self) -> Outcome:
        """Return what became of the pictures: how many failed, why, and which."""
        return Outcome(self.header.plan.pictures, self.picture_rows())

    def faults(self) -> dict[str, list[str]]:
        """Return why metrics failed on images that are there: one reason per image, by column."""
        if not any(reason.startswith(FAULT) for reason in self._folder.texts("reason")):
            return {}
        scores = self.scores
        failed = scores[scores["value"].isna() & scores["reason"].str.startswith(FAULT, na=False)]
        failed = failed.drop_duplicates(["metric", "protocol", "sample", "split", "repeat"])  # whatever the variant
        columns = failed["metric"] + "@" + failed["protocol"]
        return {str(column): list(rows["reason"]) for column, rows in failed.groupby(columns, sort=False)}

    def tracebacks(self) -> list[Path]:
        """Return the files that hold the tracebacks of failed images, one per batch."""
        return sorted((self.path / "tracebacks").glob("*.txt"))

    def picture_rows(self) -> list[PictureRow]:
        """Return what became of every picture, in the order of the plan."""
        return list(self._folder.picture_rows().values())

    def picture_path(self, sample: str, split: str, repeat: int = 0) -> Path:
        """Return where a picture lies, whether or not it is there."""
        return self._folder.picture_path(sample, split, repeat)

    def picture(self, row: PictureRow) -> Picture:
        """Read a picture back, uint8 (H, W, 3) RGB.

        Raises:
            RunError: it is gone, or its pixels are not those that were committed.
        """
        return self._folder.picture(row)

    def timing(self) -> list[dict[str, JSON]]:
        """Return seconds and peak memory of each batch that recorded them; empty where nothing was kept."""
        return self._folder.timing()

    def summary(self, protocol: str | None = None) -> pandas.DataFrame:
        """Return one row per cell: mean with its 95 % interval, median, n, infinite and missing.

        Repeats are averaged inside a sample first, so that n counts samples.

        Args:
            protocol: ``"standard"`` or ``"brushnet-paper"``; ``None`` shows both.

        Raises:
            UsageError: no such protocol.
        """
        import pandas as pd

        check_protocol(protocol)
        scores = self.scores
        if protocol is not None:
            scores = scores[scores["protocol"] == protocol]
        samples, headers = per_sample(scores), self.metrics
        shares = {
            column: are_shares(
                part["value"].to_numpy(), (headers["@".join(map(str, column))].get("display") or [""])[0]
            )
            for column, part in samples.groupby(CELL[3:], sort=False)
        }
        cells = {key: part.to_numpy() for key, part in samples.groupby(CELL, sort=False)["value"]}
        summaries = summarise_all(list(cells.values()), [shares[key[3:]] for key in cells])
        rows = [(*key, *vars(summary).values()) for key, summary in zip(cells, summaries, strict=True)]
        return pd.DataFrame(rows, columns=[*CELL, "mean", "low", "high", "median", "n", "infinite", "missing"])

    def plot(self, protocol: str = "standard") -> npt.NDArray[Any]:
        """Draw :meth:`summary`: a panel per metric, in it the mean with its 95 % interval per split and variant.

        Values are multiplied as in tables. Scores of whole sets, such as FID, are in tables alone.

        Args:
            protocol: ``"standard"`` or ``"brushnet-paper"``.

        Returns:
            Matplotlib's Axes, one per metric, of a figure of pyplot, which a notebook shows:
            ``run.plot()[0].figure.savefig("run.png")``.

        Raises:
            UsageError: no such protocol, or no scores under it.
        """
        from brushbench.run_plot import draw_summary

        summary = self.summary(protocol)
        if summary.empty:
            raise UsageError(
                f"{self.path} has no scores under the protocol {protocol}. Score it: brushbench score {self.path}"
            )
        return draw_summary(summary, self.metrics, f"{self.label}, {self.header.benchmark.name}")


def per_sample(scores: pandas.DataFrame) -> pandas.DataFrame:
    """Return scores with the repeats of a sample averaged; NaN only where no repeat has a score."""
    if scores["repeat"].nunique() < 2:  # nothing to average, and most runs have one
        return scores
    return scores.groupby([*CELL, "sample"], sort=False)["value"].mean().reset_index()


def check_protocol(protocol: str | None) -> None:
    """Refuse a protocol that there is not; ``None`` stands for all.

    Raises:
        UsageError: no such protocol.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(f"No protocol {protocol!r}. Known: {', '.join(PROTOCOLS)}.")


def _numbers(stored: Mapping[str, Any]) -> list[float]:
    return [math.nan if stored[key] is None else float(stored[key]) for key in ("value", "low", "high")]
