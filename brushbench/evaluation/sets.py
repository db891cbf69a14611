"""Scores of whole sets: one number per split and variant, beside the scores per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from brushbench.errors import DataError, WeightsError
from brushbench.evaluation.columns import Column, choose_columns, for_cli, weights_of
from brushbench.evaluation.loading import load_metric
from brushbench.metrics.plugins import metric_class
from brushbench.metrics.sets import LEAST, SetMetric
from brushbench.runs import image_sets, set_digest
from brushbench.types import JSON, Benchmark, Unscored
from brushbench.variants import make_variant

if TYPE_CHECKING:
    from brushbench.evaluation.scoring import Scoring
    from brushbench.features import Features
    from brushbench.metrics.sets import Vectors
    from brushbench.records import PictureRow
    from brushbench.store import RunFolder

__all__ = ["score_sets"]


def score_sets(
    folder: RunFolder,
    benchmark: Benchmark,
    scoring: Scoring,
    variants: Sequence[str],
    features: Features,
    redo: bool = False,
) -> dict[str, str]:
    """Compute the set metrics that are asked for, of a run whose images are all made; what is current stays.

    Args:
        folder: the run.
        benchmark: the one it was made on.
        scoring: which metrics, and with which weights.
        variants: of the images.
        features: shared with other runs: the references' are computed once for all of them.
        redo: compute again what is there.

    Returns:
        Columns that are unavailable, with the way to get them.
    """
    unavailable: dict[str, str] = {}
    for name, protocol in choose_columns(scoring.metrics):
        if not metric_class(name).of_set:
            continue
        weights = weights_of(name, scoring, benchmark)
        try:
            metric = cast("SetMetric", load_metric(name, protocol, weights, scoring.device, scoring.dtype))
        except WeightsError as error:
            if name in scoring.weights:
                raise
            unavailable[f"{name}@{protocol}"] = for_cli(error, name)
            continue
        with folder.lock("sets"):
            _score_set(folder, benchmark, metric, variants, features, redo)
    return unavailable


def _score_set(
    folder: RunFolder,
    benchmark: Benchmark,
    metric: SetMetric,
    variants: Sequence[str],
    features: Features,
    redo: bool,
) -> None:
    column = Column(metric)
    header = folder.metric_headers().get(column.name, {})
    held: list[dict[str, Any]] = list(header.get("sets", ())) if column.matches(header) and not redo else []
    rows, places = folder.picture_rows(), {(*key, 0): place for place, key in enumerate(benchmark.keys)}
    for (split, prompt_variant), images in image_sets(rows[key] for key in places if key in rows).items():
        digest = set_digest(images)
        for variant in variants:
            place: dict[str, JSON] = {"split": split, "prompt_variant": prompt_variant, "variant": variant}
            if any(place.items() <= one.items() and one["images_sha256"] == digest for one in held):
                continue
            held = [one for one in held if not place.items() <= one.items()]
            scored = _one(folder, benchmark, metric, variant, [(places[row.key], row) for row in images], features)
            held.append({**place, "images_sha256": digest, **scored})
    folder.record_metric(column.name, {**column.shown_header(), "sets": list(held)})


def _one(
    folder: RunFolder,
    benchmark: Benchmark,
    metric: SetMetric,
    variant: str,
    images: Sequence[tuple[int, PictureRow]],
    features: Features,
) -> Mapping[str, JSON]:
    """Return the score of one set as it is stored; without one, how many images there are and why.

    Images are read one at a time; only their features are held.
    """
    made: list[Vectors] = []
    real: list[Vectors] = []
    for index, row in images:
        picture = folder.picture(row)
        try:
            if not isinstance(picture, Unscored):
                sample = benchmark[index]
                made.append(metric.features_of([make_variant(variant, picture, sample)], features))
                real.append(metric.features_of([sample.image], features))
        except DataError:  # the record cannot be read: n is smaller, and says so
            continue
    if len(made) < LEAST:
        return {"n": len(made), "value": None, "low": None, "high": None}
    score = metric.of_features(np.concatenate(made), np.concatenate(real))
    return {"n": score.n, "value": score.value, "low": score.low, "high": score.high}
