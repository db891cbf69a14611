"""What a run scored when a person accepted it: a small, reviewed file. It is data: nothing in it is imported."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brushbench import assets, text
from brushbench.errors import BrushbenchError, RunError, UsageError
from brushbench.outcome import common_reasons
from brushbench.records import write_atomically
from brushbench.runs import Run
from brushbench.scoresets import ColumnKey, ScoreSet, from_run, unlike
from brushbench.stats import SMALLEST, noise_floor

__all__ = [
    "FOLDER",
    "Accepted",
    "accept",
    "accepted_names",
    "load_accepted",
    "noise_of",
    "read_accepted",
    "short",
    "summary",
]

FOLDER = Path("reports") / "accepted"
LARGEST = 20_000_000  # bytes
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class AcceptedColumn(BaseModel):
    """One column: scores in the order of the split's samples, ``null`` where a sample has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    metric: str
    protocol: str
    split: str
    prompt_variant: str
    variant: str
    noise: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    scores: list[float | None]


class Accepted(BaseModel):
    """An accepted run.

    Attributes:
        name, reason, accepted: what a person said, and when.
        benchmark, data: name, and SHA-256 of the data.
        seed, states: of the run.
        record: method, versions and settings, for the reader; never built, never compared.
        headers: by ``metric@protocol``, what each column was computed with.
        samples: ids by split.
        columns: the scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(alias="schema", ge=1, le=1)
    name: str
    reason: str = Field(min_length=1)
    accepted: date
    benchmark: str
    data: str
    seed: int
    states: dict[str, int]
    record: dict[str, Any] = {}
    headers: dict[str, dict[str, Any]]
    samples: dict[str, list[str]]
    columns: list[AcceptedColumn]

    def scores(self) -> ScoreSet:
        """Return the scores, to be compared.

        Raises:
            RunError: columns that do not fit the samples, or have no header.
        """
        columns, noise = {}, {}
        for column in self.columns:
            key = ColumnKey(column.metric, column.protocol, column.split, column.prompt_variant, column.variant)
            ids = self.samples.get(column.split, [])
            if len(ids) != len(column.scores) or f"{column.metric}@{column.protocol}" not in self.headers:
                raise RunError(f"The accepted file {self.name!r} is damaged: {key.name} does not fit its samples.")
            columns[key] = {i: math.nan if v is None else v for i, v in zip(ids, column.scores, strict=True)}
            if column.noise is not None:
                noise[key] = column.noise
        return ScoreSet(
            self.name, self.benchmark, self.data, columns, self.headers, self.states, self.seed, noise, self.record
        )


def accept(
    run: Run, name: str, reason: str, *, noise: Run | None = None, folder: Path | None = None, overwrite: bool = False
) -> Path:
    """Write a small file that says what a run scored, to be reviewed and committed.

    Args:
        run: a complete run.
        name: of the file: letters, digits, ``.``, ``_`` and ``-``.
        reason: one sentence for the reviewer.
        noise: the same method with another seed: what differs is noise. Without it, the run's own repeats tell.
        folder: ``reports/accepted`` by default.
        overwrite: replace an accepted file of this name.

    Raises:
        UsageError: such a name, an empty reason, or a name that is taken.
        RunError: the run is incomplete, or ``noise`` is of other samples.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name!r} names no file. Use letters, digits, '.', '_' and '-', at most 100.")
    if not reason.strip():
        raise UsageError("--reason is empty. Say in one sentence why these scores are accepted.")
    file = (folder or FOLDER) / f"{name}.json"
    if file.exists() and not overwrite:
        raise UsageError(f"{file} is there already. Pass --overwrite to replace it, or choose another --name.")
    scores = from_run(run)
    lost = {s: n for s, n in scores.states.items() if s not in ("planned", "ok") and n}
    if lost or scores.states["ok"] != scores.states["planned"]:
        counts = ", ".join(f"{n} {state}" for state, n in scores.states.items())
        raise RunError(
            f"{run.path} is incomplete ({counts}). Finish it before it is accepted; `brushbench eval` with "
            "--retry-failed makes failed images again."
        )
    for column, reasons in run.faults().items():
        raise RunError(
            f"{run.path}: {column}: {len(reasons)} images have no score: {common_reasons(reasons)}. Correct the "
            "metric, and score the run again before it is accepted."
        )
    write_atomically(file, _dump(_record(scores, name, reason, noise_of(run, noise))))
    return file


def _record(scores: ScoreSet, name: str, reason: str, noise: Mapping[ColumnKey, float]) -> Accepted:
    samples = {
        split: sorted({i for k, c in scores.columns.items() if k.split == split for i in c}) for split in scores.splits
    }
    columns = [
        AcceptedColumn(
            metric=key.metric, protocol=key.protocol, split=key.split, prompt_variant=key.prompt_variant,
            variant=key.variant, noise=noise.get(key),
            scores=[_or_none(column.get(i, math.nan)) for i in samples[key.split]],
        )
        for key, column in scores.columns.items()
    ]  # fmt: skip
    return Accepted(
        schema=1, name=name, reason=reason, accepted=date.today(), benchmark=scores.benchmark, data=scores.data,
        seed=scores.seed, states=dict(scores.states), record=dict(scores.record),
        headers={k: dict(h) for k, h in scores.headers.items()}, samples=samples, columns=columns,
    )  # fmt: skip


def noise_of(run: Run, other: Run | None = None) -> dict[ColumnKey, float]:
    """Return, by column, the standard deviation of a mean difference that another seed alone makes.

    Args:
        run: with repeats, or compared with ``other``.
        other: the same method with another seed.

    Raises:
        RunError: the two runs are of other samples or have the same seed.
    """
    if other is None:
        if run.config.repeats < 2:
            return {}
        order = ["metric", "protocol", "split", "prompt_variant", "variant"]
        tables = {
            ColumnKey(*map(str, key)): part.pivot(index="sample", columns="repeat", values="value").to_numpy()
            for key, part in run.scores.groupby(order, sort=False)
        }
        return _floors(tables, draws=run.config.repeats)
    first, second = from_run(run), from_run(other)
    reasons = unlike(first, second)
    if reasons or first.seed == second.seed:
        why = "; ".join(reasons) or f"both have the seed {first.seed}"
        raise RunError(
            f"{run.path} and {other.path} tell nothing of noise: {why}. Run the same samples with another --seed."
        )
    both = [key for key in first.columns if key in second.columns]
    pairs = {k: np.array([[v, second.columns[k].get(i, math.nan)] for i, v in first.columns[k].items()]) for k in both}
    return _floors(pairs, draws=1)


def _floors(tables: Mapping[ColumnKey, np.ndarray], draws: int) -> dict[ColumnKey, float]:
    """Return the noise of a mean over ``draws`` repeats, for columns with enough finite scores."""
    found = {}
    for key, table in tables.items():
        finite = table[np.isfinite(table).all(axis=1)]
        if len(finite) >= SMALLEST:
            found[key] = noise_floor(finite).difference / math.sqrt(draws)
    return found


def short(value: float) -> float:
    """Return a score with the six digits of an accepted file, which no margin comes near."""
    return float(f"{value:.6g}")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else short(value)


def _dump(accepted: Accepted) -> bytes:
    """Return the file's bytes: one line per column, so that a review shows which one moved."""
    record = json.loads(accepted.model_dump_json(by_alias=True, exclude={"columns", "samples"}))
    lines = [f" {json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in record.items()]
    samples = ",\n".join(
        f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in accepted.samples.items()
    )
    columns = ",\n".join(f"  {json.dumps(c.model_dump(), separators=(',', ':'))}" for c in accepted.columns)
    body = ",\n".join([*lines, f' "samples": {{\n{samples}\n }}', f' "columns": [\n{columns}\n ]'])
    return f"{{\n{body}\n}}\n".encode()


def accepted_names() -> dict[str, Path]:
    """Return the accepted files by name: those of the current folder first, then those of this installation."""
    folders = [FOLDER]
    with contextlib.suppress(BrushbenchError):  # an installation without any
        folders.append(assets.path("reports/accepted"))
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.json")):
            found.setdefault(file.stem, file)
    return found


def load_accepted(ref: Path | str | Run) -> ScoreSet:
    """Return what was accepted: a run's folder, an accepted file, or a name in ``reports/accepted``.

    Raises:
        UsageError: nothing of that name.
        RunError: a damaged file.
    """
    if isinstance(ref, Run):
        return from_run(ref)
    path = Path(ref).expanduser()
    known = accepted_names()
    if path.is_dir() and (str(ref) not in known or (path / "run.json").exists()):
        return from_run(Run.open(path))
    file = path if path.is_file() else known.get(str(ref))
    if file is None:
        listed = ", ".join(known) or "none"
        raise UsageError(
            f"--accepted {str(ref)!r} is neither a run's folder, an accepted file, nor a name in {FOLDER}. Known: "
            f'{listed}. Write one: brushbench accept RUN --name NAME --reason "…"'
        )
    return read_accepted(file).scores()


def read_accepted(file: Path) -> Accepted:
    """Read one accepted file.

    Raises:
        RunError: it is too large or damaged.
    """
    try:
        if file.stat().st_size > LARGEST:
            raise RunError(f"{file} has {file.stat().st_size} bytes; an accepted file has at most {LARGEST}.")
        return Accepted.model_validate(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise RunError(
            f"{file} is no accepted file, or damaged ({why[:300]}). Restore it, or accept the run "
            "again with --overwrite."
        ) from None


def summary(ref: Path | str) -> str:
    """Return an accepted file in words: who accepted what and why, and the mean of every column.

    Raises:
        UsageError: nothing of that name.
        RunError: a damaged file.
    """
    path = Path(ref)
    file = path if path.is_file() else accepted_names().get(str(ref))
    if file is None:
        raise UsageError(f"--show {str(ref)!r} names no accepted file. Known: {', '.join(accepted_names()) or 'none'}.")
    record = read_accepted(file)
    scores = record.scores()
    lines = [f"{record.name}, accepted {record.accepted}: {record.reason}"]
    lines.append(
        f"{record.benchmark} (data {record.data[:12]}), seed {record.seed}, {record.states.get('ok', 0)} images"
    )
    for key, column in scores.columns.items():
        values = np.array([v for v in column.values() if math.isfinite(v)])
        mean = f"{values.mean():.6g}" if values.size else "none"
        floor = scores.noise.get(key)
        lines.append(f"{key.name}: mean {mean} over {values.size} samples" + (f", noise {floor:.3g}" if floor else ""))
    return "\n".join(map(text.terminal, lines))
