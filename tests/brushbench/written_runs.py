"""Run folders written by hand: no method, no image, scores as the test wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from brushbench.config import read_header
from brushbench.records import ColumnScores, ScoreRow
from brushbench.store import RunFolder

Scores = Sequence[float | None]


def write_run(
    folder: Path,
    name: str,
    scores: Mapping[str, Scores | Sequence[Scores]],
    *,
    data: str = "a",
    split: str = "inside",
    variant: str = "raw",
    protocol: str = "standard",
    keys: str = "k",
    seed: int = 1234,
    ids: Sequence[str] | None = None,
    meta: Sequence[Mapping[str, str]] | None = None,
    states: Sequence[str] | None = None,
    method: Mapping[str, object] | None = None,
    reference: bool = False,
    background: str = "free",
    benchmark: str = "toy",
    headers: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """Write a run: one split, one variant, one row per score.

    Args:
        scores: by metric, one number per sample; or several rows of them, one per repeat.
        headers: by metric, what its column was computed with, besides its direction.
    """
    run = RunFolder(folder)
    first = next(iter(scores.values()))
    repeats = len(first) if _nested(first) else 1
    count = len(first[0]) if _nested(first) else len(first)  # type: ignore[arg-type]
    config = {"name": name, "model": name, "benchmark": benchmark, "seed": seed, "repeats": repeats, "splits": [split]}
    record = {
        "schema": 1, "config": config, "method": {"method": name, "steps": 20, **(method or {})},
        "benchmark": {"name": benchmark, "sha256": data},
        "capabilities": {"needs_reference": reference, "background": background},
        "plan": {"batches": 1, "pictures": count * repeats, "keys_sha256": keys},
        "software": {"brushbench": "0"}, "where": {"loaded_with": {}},
    }  # fmt: skip
    run.begin(read_header(record, "run.json"))
    names = list(ids or [str(i) for i in range(count)])
    for metric, values in scores.items():
        rows = [
            ScoreRow(s, split, "caption", r, variant, metric, protocol, v, "" if v is not None else "failed: x")
            for r, row in enumerate(values if _nested(values) else [values])
            for s, v in zip(names, row, strict=True)  # type: ignore[call-overload]
        ]
        column = f"{metric}@{protocol}"
        header = {
            "metric": metric, "protocol": protocol, "unit": "", "region": "whole", "variants": [variant],
            "higher_is_better": metric not in ("mse", "lpips"), **(headers or {}).get(metric, {}),
        }  # fmt: skip
        run.merge([ColumnScores(column, rows, lambda _, header=header: header)])  # type: ignore[misc]
    batch = [
        {"sample": s, "split": split, "repeat": r, "seed": 0, "state": state, "reason": "", "sha256": "", "meta": m}
        for r in range(repeats)
        for s, m, state in zip(names, meta or [{}] * count, states or ["ok"] * count, strict=True)
    ]
    (folder / "batches").mkdir(exist_ok=True)
    (folder / "batches" / "000000.json").write_text(json.dumps(batch))
    return folder


def _nested(values: object) -> bool:
    return isinstance(values, list | tuple) and bool(values) and isinstance(values[0], list | tuple)
