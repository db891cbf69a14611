"""What articles printed, digit for digit, with source, scale and errata. Data: ``reports/published.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache

from pydantic import BaseModel, ConfigDict, ValidationError

from brushbench import assets
from brushbench.errors import DataError

__all__ = ["ARTICLE", "COLUMNS", "PublishedRow", "article_rows", "digits", "listing", "published_rows"]

ARTICLE = "arXiv 2403.06976"
# The metrics of `published.json` under this toolkit's names, with the factor of the article's headings.
COLUMNS: Mapping[str, tuple[str, str, float]] = {
    "image_reward": ("image_reward", "x10", 1e1),
    "hps": ("hps_v2.1", "x10²", 1e2),
    "aesthetic": ("aesthetic", "", 1.0),
    "psnr": ("psnr", "", 1.0),
    "mse": ("mse", "x10³", 1e3),
    "lpips": ("lpips", "x10³", 1e3),
    "clip": ("clip_score", "", 1.0),
}
_SPLITS = {"all (random-brush masks)": "brush"}


class PublishedRow(BaseModel):
    """One row of a published table.

    Attributes:
        benchmark, split, method, base_model: as published; ``split`` may be a remark where none was stated.
        metrics: the digits as they stand in the article's own scale, by the article's metric; ``None`` where none is.
        units: scale of each metric.
        extra_metrics: metrics that this toolkit's tables do not have.
        source_url, table, evidence: where the digits were read.
        note: errata and doubts.
        as_printed: the digits under the headings that were printed, where columns were swapped.
        blended: whether the method's images were blended with the original before they were scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    benchmark: str
    split: str
    method: str
    base_model: str
    metrics: dict[str, str | None]
    units: dict[str, str]
    source_url: str
    table: str
    evidence: str
    note: str
    extra_metrics: dict[str, str | None] = {}
    as_printed: dict[str, str] = {}
    blended: bool = False

    @property
    def is_article_table(self) -> bool:
        """Whether the row stands in the two main tables of the BrushNet article."""
        return self.table.startswith(f"{ARTICLE} Table")

    @property
    def place(self) -> tuple[str, str]:
        """Benchmark and split under this toolkit's names."""
        return self.benchmark.lower(), _SPLITS.get(self.split, self.split)

    def footnote(self) -> str:
        """Return source, base model, and what is known to be wrong in print."""
        swapped = "MSE and LPIPS stand corrected here; " if self.as_printed else ""
        return f"published: {self.table}, {self.base_model}, {self.source_url}; {swapped}{self.note.rstrip('.')}"


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Return every published row, in the order of the file; numbers keep their digits.

    Raises:
        DataError: the file of this installation is damaged.
    """
    file = assets.path("reports/published.json")
    try:
        records = json.loads(file.read_text("utf-8"), parse_float=str, parse_int=str)
        return tuple(PublishedRow.model_validate(record) for record in records)
    except (ValueError, TypeError, ValidationError) as error:
        raise DataError(f"{file} is damaged ({error}). Reinstall brushbench, or restore the file.") from None


def article_rows(benchmark: str, split: str) -> list[PublishedRow]:
    """Return the rows of the BrushNet article on a benchmark (``brushbench``, ``editbench``) and split."""
    return [row for row in published_rows() if row.is_article_table and row.place == (benchmark, split)]


def digits(number: str) -> str:
    """Return printed digits with at least two decimals, as the tables show every mean; none is rounded away."""
    whole, point, decimals = number.partition(".")
    return f"{whole}.{decimals.ljust(2, '0')}" if point or "e" not in number else number


def listing() -> tuple[list[str], list[list[str]]]:
    """Return a header and one line per published row, for ``list published``."""
    header = ["benchmark", "split", "method", "base model", "metrics, in the source's own scale", "source"]
    return header, list(_lines())


def _lines() -> Iterator[list[str]]:
    for row in published_rows():
        figures = {**row.metrics, **row.extra_metrics}
        shown = ", ".join(f"{name} {value}" for name, value in figures.items() if value is not None)
        yield [row.benchmark, row.split, row.method, row.base_model, shown, f"{row.table}; {row.source_url}"]
