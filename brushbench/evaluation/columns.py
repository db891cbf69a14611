"""Columns of a run: which metrics are asked for, what each is computed with, and which of it is already there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from brushbench import registry
from brushbench.errors import UsageError, WeightsError, reason_of
from brushbench.evaluation.loading import load_metric
from brushbench.evaluation.provenance import code_of
from brushbench.features import Features
from brushbench.metrics.base import CAPTION_CUT
from brushbench.metrics.plugins import metric_class
from brushbench.records import ScoreRow
from brushbench.types import JSON, Benchmark, Metric

if TYPE_CHECKING:
    import pandas

    from brushbench.evaluation.scoring import Scoring
    from brushbench.records import PictureKey
    from brushbench.store import RunFolder
    from brushbench.weights import Needs

__all__ = ["Column", "check_plugins", "choose_columns", "for_cli", "load_columns", "stored_rows", "weights_of"]


@dataclass(frozen=True, eq=False)
class Column:
    """One metric under one protocol, ready to compute."""

    metric: Metric

    @property
    def name(self) -> str:
        """``metric@protocol``."""
        return f"{self.metric.name}@{self.metric.protocol}"

    @functools.cached_property
    def description(self) -> dict[str, JSON]:
        """What the scores depend on: settings, the hashes of weights and, of a plug-in, of its code."""
        described: dict[str, JSON] = {}
        try:
            for key, value in dict(self.metric.describe()).items():
                described[str(key)] = json.loads(json.dumps(value, sort_keys=True, default=_plain))
        except Exception as error:  # a class of one's own may raise anything
            raise UsageError(
                f"describe() of metric {self.metric.name!r} is no dict of texts and numbers: {reason_of(error)}."
            ) from error
        cls = type(self.metric)
        written = (
            cls.__bases__[0] if cls.__bases__[1:] == (Metric,) else cls
        )  # without what `metric_class` puts behind it
        if code := code_of(written):  # of one's own: its source is part of what it computes
            described["code"] = dict(code)
        return described

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the description."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()

    def part(self, variants: Sequence[str]) -> str:
        """Name of the folder in which this column's scores wait: it changes with the settings and the weights."""
        text = json.dumps([self.description, list(variants)], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def header(self, variants: Sequence[str], scores: pandas.DataFrame) -> dict[str, JSON]:
        """Return what is stored with the column's scores: description, identity, and what a table shows of it."""
        return {
            **self.shown_header(),
            "shown": self.metric.shown,
            "variants": list(variants),
            "captions_cut": int(scores[scores["reason"] == CAPTION_CUT]["sample"].nunique()),
        }

    def shown_header(self) -> dict[str, JSON]:
        """Return the part of the header that scores per image and scores of whole sets have in common."""
        return {
            **self.description,
            "identity": self.identity,
            "unit": self.metric.unit,
            "higher_is_better": self.metric.higher_is_better,
            "region": self.metric.region,
            "display": list(self.metric.display),
            "caveat": self.metric.caveats.get(self.metric.protocol, ""),
        }

    def matches(self, header: Mapping[str, JSON]) -> bool:
        """Whether stored scores were computed as this column would compute them: same settings, same weights.

        Headers of earlier releases have no identity; what they tell is compared.
        """
        if "unavailable" in header:
            return False
        if "identity" in header:
            return header["identity"] == self.identity
        return all(header[key] == value for key, value in self.description.items() if key in header)

    def missing_variants(
        self, folder: RunFolder, stored: Sequence[ScoreRow], variants: Sequence[str], planned: Sequence[PictureKey]
    ) -> list[str]:
        """Return the variants to compute so that every one of ``variants`` is there under this column's settings.

        Scores of other settings or weights cannot stay in the column, so their variants are computed again too.

        Args:
            folder: the run.
            stored: its scores of this column that count.
            variants: those that are asked for.
            planned: sample, split and repeat of every image.
        """
        header = folder.metric_headers().get(self.name, {})
        if not self.matches(header):
            held = [] if "unavailable" in header else header.get("variants", [])
            return list(dict.fromkeys([*held, *variants]))
        there = {(row.sample, row.split, row.repeat, row.variant) for row in stored}
        return [v for v in variants if not all((*key, v) in there for key in planned)]


def stored_rows(folder: RunFolder, columns: Sequence[Column]) -> list[list[ScoreRow]]:
    """Return each column's merged scores that count: under its settings, of the pictures that are there now."""
    headers = folder.metric_headers()
    count = [column.name in headers and column.matches(headers[column.name]) for column in columns]
    if not any(count):
        return [[] for _ in columns]
    scores = folder.scores()
    table = scores.take(scores.is_current(folder.picture_rows())).frame()
    found: list[list[ScoreRow]] = []
    for column, counts in zip(columns, count, strict=True):
        mine = table[(table["metric"] == column.metric.name) & (table["protocol"] == column.metric.protocol)]
        plain = mine.astype(object).where(mine.notna(), None).to_dict("records") if counts else []
        found.append([ScoreRow(**{str(key): value for key, value in row.items()}) for row in plain])
    return found


def load_columns(scoring: Scoring, benchmark: Benchmark) -> tuple[list[Column], dict[str, str]]:
    """Return the columns that can be computed, and why others cannot, with the way to get them.

    Raises:
        UnknownNameError: no such metric.
        MissingWeightsError: weights that were named are not there.
    """
    pairs = [pair for pair in choose_columns(scoring.metrics) if not metric_class(pair[0]).of_set]
    if scoring.metrics == "auto":
        pairs = [pair for pair in pairs if _suits(pair[0], benchmark)]
    features = scoring.features or Features()
    columns: dict[str, Column] = {}
    unavailable: dict[str, str] = {}
    for name, protocol in pairs:
        weights = weights_of(name, scoring, benchmark)
        try:
            column = features.once(
                ("column", metric_class(name), protocol, weights, scoring.device, scoring.dtype),
                functools.partial(_load_column, name, protocol, weights, scoring),
            )
        except WeightsError as error:
            if name in scoring.weights:  # asked for by name: not to be passed over
                raise type(error)(for_cli(error, name)) from None
            same_model = [other for other, _ in pairs if _model(other) == _model(name)]
            unavailable[f"{name}@{protocol}"] = for_cli(error, same_model[0])  # one sentence for all of one model
            continue
        if column.name in columns:
            raise UsageError(f"Two metrics fill the column {column.name!r}. Change the `name` of one, or leave it out.")
        columns[column.name] = column
    return list(columns.values()), unavailable


def check_plugins(scoring: Scoring) -> None:
    """Load metrics of one's own, and let go of them: what is wrong with one is said before any image is made.

    Raises:
        UsageError: a name, a unit or a description that no column can have.
    """
    for name, protocol in choose_columns(scoring.metrics) if scoring.metrics != "auto" else ():
        if name not in registry.BUILTIN["metric"]:
            with contextlib.suppress(WeightsError):  # unavailable, which is no mistake in it
                _ = _load_column(name, protocol, scoring.weights.get(name), scoring).description


def _load_column(name: str, protocol: str, weights: str | None, scoring: Scoring) -> Column:
    return Column(load_metric(name, protocol, weights, scoring.device, scoring.dtype))


def weights_of(name: str, scoring: Scoring, benchmark: Benchmark) -> str | None:
    """Return the weights that a metric is loaded with: those that were named, or the benchmark's own small ones."""
    return _named_weights(name, scoring.weights) or _own_weights(name, benchmark)


def for_cli(error: WeightsError, name: str) -> str:
    """Return what is wrong with a metric's weights, the remedy in words of the command line."""
    return str(error).replace("weights=", f"--weights {name}=")


def _model(name: str) -> Needs | str:
    """Return the file of a metric's model; metrics of one model have the same."""
    needs = metric_class(name).needs
    return needs[0] if needs else name


def _named_weights(name: str, weights: Mapping[str, str]) -> str | None:
    """Return the weights given for a metric, or for others of the same model: named once, they serve all of them."""
    if name in weights or not metric_class(name).needs:
        return weights.get(name)
    shared = {place for other, place in weights.items() if _model(other) == _model(name)}
    return shared.pop() if len(shared) == 1 else None


def _plain(value: object) -> JSON:
    """Return a path or a NumPy value of a description as JSON."""
    if isinstance(value, np.generic | np.ndarray):
        plain: JSON = value.tolist()
        return plain
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def choose_columns(metrics: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return (metric, protocol) pairs for ``"auto"``, ``"psnr,lpips@standard"`` or a list of such names.

    ``auto`` takes every registered metric under the protocols it computes unasked; a bare name likewise.

    Raises:
        UnknownNameError: no such metric.
        UsageError: a protocol that the metric does not have, or no metric at all.
    """
    if metrics == "none":
        return []
    if metrics == "auto":
        asked = registry.names("metric")
    else:
        asked = [part.strip() for part in (metrics.split(",") if isinstance(metrics, str) else metrics) if part.strip()]
    if not asked:
        raise UsageError("No metric was named. Write --metrics auto, or names such as psnr,lpips@brushnet-paper.")
    pairs: list[tuple[str, str]] = []
    for text in asked:
        name, at, protocol = text.partition("@")
        cls = metric_class(name)
        if at and protocol not in cls.protocols:
            raise UsageError(f"Metric {name!r} has no protocol {protocol!r}. It has {', '.join(cls.protocols)}.")
        unasked = cls.protocols if cls.auto_protocols is None else cls.auto_protocols
        if metrics != "auto" and not unasked:  # never in auto, but named here
            unasked = cls.protocols[:1]
        pairs += [(name, p) for p in ([protocol] if at else unasked)]
    return list(dict.fromkeys(pairs))


def _own_weights(name: str, benchmark: Benchmark) -> str | None:
    """Return ``"tiny"`` where the benchmark is judged by this repository's own small models, on every machine alike."""
    has_tiny = any(need.tiny for need in metric_class(name).needs)
    return benchmark.metric_weights if has_tiny else None


def _suits(name: str, benchmark: Benchmark) -> bool:
    """Whether a metric means something on a benchmark: it may name what a sample's ``meta`` must carry."""
    needed = metric_class(name).required_meta
    return not needed or all(key in benchmark[0].meta for key in needed)
