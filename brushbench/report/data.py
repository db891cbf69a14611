"""What a report shows, as plain data: computed here, only laid out by the templates and drawn by the page's script."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from brushbench.errors import RunError
from brushbench.leaderboard import Column, Table, make_tables
from brushbench.leaderboard.columns import heading
from brushbench.records import PictureRow
from brushbench.report.audits import HeatMap, heat_maps
from brushbench.report.images import Drawing, GeneratedPicture
from brushbench.types import PROTOCOLS, Benchmark

if TYPE_CHECKING:
    from brushbench.runs import Run
    from brushbench.score_table import ScoreTable

__all__ = ["Gallery", "MethodCard", "Provenance", "Report", "collect"]


@dataclass(frozen=True)
class MethodCard:
    """One run in the report.

    Attributes:
        key: name of its files and columns in the page: ``m0``, ``m1`` …
        label: the run's name.
        reference: whether it is a reference line, never ranked.
        blended: whether its blended variant was scored.
        run: the run.
        pictures: state, reason and hash of each picture, by (sample, split, repeat).
    """

    key: str
    label: str
    reference: bool
    blended: bool
    run: Run
    pictures: Mapping[tuple[str, str, int], PictureRow]


@dataclass(frozen=True)
class GalleryRow:
    """One row of the gallery: a sample, its split, and which of its repeats."""

    sample: str
    split: str
    repeat: int


@dataclass
class Gallery:
    """Every sample that a run answered, with all scores; what the page's script reads."""

    methods: list[MethodCard]
    rows: list[GalleryRow]
    metrics: list[dict[str, Any]]
    scores: dict[str, list[float | str | None]]  # "m0|raw|psnr@standard" to one value per row
    prompts: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    problems: dict[str, dict[int, str]] = field(default_factory=dict)  # method key: row: why there is no picture
    drawn: bool = False

    def first(self, per_split: int) -> Gallery:
        """Return a gallery of the first rows of each split; the ids, scores and pictures of the others are left out."""
        kept, taken = [], Counter[str]()
        for number, row in enumerate(self.rows):
            taken[row.split] += 1
            if taken[row.split] <= per_split:
                kept.append(number)
        scores = {name: [column[number] for number in kept] for name, column in self.scores.items()}
        return Gallery(self.methods, [self.rows[number] for number in kept], self.metrics, scores)

    def drawings(self, benchmark: Benchmark) -> Iterator[Drawing]:
        """Yield what each row needs drawn, and note prompt and size of each on the way."""
        places = {key: i for i, key in enumerate(benchmark.keys)}
        for number, row in enumerate(self.rows):
            sample = benchmark[places[row.sample, row.split]]
            self.prompts.append(sample.prompt)
            self.sizes.append((int(sample.image.shape[1]), int(sample.image.shape[0])))
            pictures = []
            for method in self.methods:
                made = method.pictures.get((row.sample, row.split, row.repeat))
                if made is not None and made.sha256:
                    file = method.run.picture_path(row.sample, row.split, row.repeat)
                    pictures.append(GeneratedPicture(method.key, file, made.sha256, method.blended))
                else:
                    reason = f"{made.state}: {made.reason}" if made is not None else "not made in this run"
                    self.problems.setdefault(method.key, {})[number] = reason
            yield Drawing(number, sample.image, sample.hole, tuple(pictures))
        self.drawn = True

    def to_script(self) -> str:
        """Return the data file: one assignment that holds nothing but JSON, so that nothing in it can run."""
        known = sorted({(m["name"]) for m in self.metrics})
        content = {
            "methods": [
                {"key": m.key, "label": m.label, "reference": m.reference, "blended": m.blended} for m in self.methods
            ],
            "metrics": [m for m in self.metrics if m["name"] in known],
            "rows": [
                {
                    "id": row.sample,
                    "split": row.split,
                    "repeat": row.repeat,
                    "prompt": self.prompts[i] if self.drawn else "",
                    "meta": self._meta(row),
                    "size": self.sizes[i] if self.drawn else [0, 0],
                    "seed": self._seed(row),
                }
                for i, row in enumerate(self.rows)
            ],
            "problems": self.problems,
            "scores": self.scores,
            "pictures": self.drawn,
        }
        return (
            f"window.BRUSHBENCH = {json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(',', ':'))};\n"
        )

    def _meta(self, row: GalleryRow) -> dict[str, str]:
        """Return what the benchmark carries of a sample, as the first run that has it recorded it."""
        made = (m.pictures.get((row.sample, row.split, row.repeat)) for m in self.methods)
        return next((dict(picture.meta) for picture in made if picture is not None), {})

    def _seed(self, row: GalleryRow) -> str:
        """Return the seed as text: it has 63 bits, more than a number in JavaScript."""
        made = (m.pictures.get((row.sample, row.split, row.repeat)) for m in self.methods if not m.reference)
        return next((str(picture.seed) for picture in made if picture is not None), "")


@dataclass(frozen=True)
class Provenance:
    """The runs' records side by side.

    Attributes:
        labels: one per run.
        lines: (what, one value per run, whether the runs differ).
    """

    labels: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...], bool], ...]


@dataclass(frozen=True)
class Report:
    """Everything a page shows."""

    title: str
    tables: tuple[Table, ...]
    scored: Gallery  # every sample, for the plots
    gallery: Gallery  # the samples that are shown
    provenance: Provenance
    seconds: Mapping[str, float]  # per picture, by run; runs without timing are absent
    left_out: tuple[str, ...]  # sentences about what the page does not show, and why
    audits: tuple[HeatMap, ...] = ()  # of the benchmark, where committed audits say something of the page's columns


def collect(runs: Sequence[Run], title: str = "", per_split: int | None = None) -> Report:
    """Gather a report's data from runs; pictures come later, from :meth:`Gallery.drawings`.

    Args:
        runs: at least one. Runs on other data than the first are in the leaderboard, not in the gallery.
        title: of the page; the benchmark's name without one.
        per_split: samples per split in the gallery; ``None``: all. Tables and plots keep every sample.

    Raises:
        RunError: no run, or two of one name.
    """
    if not runs:
        raise RunError("A report needs at least one run. Name the folder that `brushbench eval` wrote.")
    runs = [run.snapshot() for run in runs]
    data = runs[0].header.benchmark.sha256
    shown = [run for run in runs if run.header.benchmark.sha256 == data]
    left_out = tuple(
        f"{run.label} is not in the gallery: it was made on other data than {runs[0].label}."
        for run in runs
        if run not in shown
    )
    tables = tuple(table for protocol in PROTOCOLS for table in make_tables(runs, protocol))
    scored = _gallery(shown, tables)
    gallery = scored if per_split is None else scored.first(per_split)
    if len(gallery.rows) < len(scored.rows):
        left_out += (f"The gallery shows the first {per_split} samples of each split; tables and plots have them all.",)
    name = title or f"{runs[0].config.benchmark}: {', '.join(run.label for run in runs)}"
    audits = tuple(heat_maps(shown, {row.split for row in gallery.rows}))
    return Report(name, tables, scored, gallery, _provenance(runs), _seconds(runs), left_out, audits)


def _gallery(runs: Sequence[Run], tables: Sequence[Table]) -> Gallery:
    methods, scores = [], [run.score_table() for run in runs]
    for number, (run, label) in enumerate(zip(runs, _labels(runs), strict=True)):
        made = {row.key: row for row in run.picture_rows()}
        blended = "blended" in scores[number].held("variant")
        methods.append(MethodCard(f"m{number}", label, run.is_reference, blended, run, made))
    keys = dict.fromkeys(key for method in methods for key in method.pictures)
    order = {split: i for i, split in enumerate(dict.fromkeys(split for _, split, _ in keys))}
    rows = [GalleryRow(*key) for key in sorted(keys, key=lambda key: order[key[1]])]  # stable: manifest order inside
    metrics = {
        f"{column.metric}@{table.protocol}": _metric(table, column) for table in tables for column in table.columns
    }
    return Gallery(methods, rows, list(metrics.values()), _scores(methods, scores, rows))


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the runs' labels; equal ones are told apart by their folders."""
    labels = [run.label for run in runs]
    return [
        label if labels.count(label) == 1 else f"{label} ({run.path.parent.name}/{run.path.name})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _metric(table: Table, column: Column) -> dict[str, Any]:
    arrow = "↑" if column.higher_is_better else "↓"
    name = heading(column).replace("_", " ") + ("†" if column.tiny else "")
    return {
        "name": f"{column.metric}@{table.protocol}",
        "label": " ".join(part for part in (name, column.suffix, arrow) if part),
        "higher": column.higher_is_better,
        "scale": column.factor,
    }


def _scores(
    methods: Sequence[MethodCard], scores: Sequence[ScoreTable], rows: Sequence[GalleryRow]
) -> dict[str, list[float | str | None]]:
    places = {(row.sample, row.split, row.repeat): i for i, row in enumerate(rows)}
    found: dict[str, list[float | str | None]] = {}
    for method, table in zip(methods, scores, strict=True):
        of = (table.distinct[name][table.codes[name]].tolist() for name in ("sample", "split", "repeat"))
        at = np.array([places.get(image, -1) for image in zip(*of, strict=True)], dtype=np.int64)
        for (variant, metric, protocol), mine in table.parts("variant", "metric", "protocol"):
            column: list[float | str | None] = [None] * len(rows)
            shown = mine[(at[mine] >= 0) & ~np.isnan(table.values[mine])]
            for place, value in zip(at[shown].tolist(), table.values[shown].tolist(), strict=True):
                column[place] = float(f"{value:.6g}") if math.isfinite(value) else "inf"
            found[f"{method.key}|{variant}|{metric}@{protocol}"] = column
    return found


def _provenance(runs: Sequence[Run]) -> Provenance:
    flat = [dict(_flatten(run.header.to_json())) for run in runs]
    names = list(dict.fromkeys(name for record in flat for name in record))
    lines = []
    for name in names:
        values = tuple(record.get(name, "") for record in flat)
        lines.append((name, values, len(set(values)) > 1))
    return Provenance(tuple(_labels(runs)), tuple(lines))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flatten(entry, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and len(value) > 8:
        yield prefix, f"{len(value)} entries"
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _seconds(runs: Sequence[Run]) -> dict[str, float]:
    """Return seconds per picture of each run that kept its timing."""
    found = {}
    for run in runs:
        lines = run.timing()
        pictures = sum(_number(line.get("pictures")) for line in lines)
        if pictures:
            found[run.label] = sum(_number(line.get("seconds")) for line in lines) / pictures
    return found


def _number(value: object) -> float:
    """Return a number from a record that someone else may have written; anything else counts as 0."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
