"""Contact sheets: rows are samples, columns the hole, every method and the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from brushbench.errors import RunError, UsageError
from brushbench.report.data import Gallery, GalleryRow, MethodCard
from brushbench.report.images import hole_overlay
from brushbench.types import Benchmark
from brushbench.variants import make_variant

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Order", "draw_sheet"]

INK, DIM, GROUND = (27, 31, 36), (87, 96, 106), (255, 255, 255)
GAP = 8
NO_PICTURE = (225, 225, 225)


@dataclass(frozen=True)
class Order:
    """Which rows a sheet shows, and in which order.

    Attributes:
        metric: a column, ``lpips`` or ``lpips@brushnet-paper``; none keeps the benchmark's order.
        worst: the worst rows of the first method first, else the best.
        compare: labels of two methods: the rows that differ most between them first, in turns for either.
        split: one split only.
        limit: how many rows.
    """

    metric: str | None = None
    worst: bool = False
    compare: tuple[str, str] | None = None
    split: str | None = None
    limit: int = 12


def draw_sheet(gallery: Gallery, benchmark: Benchmark, order: Order, side: int = 160, variant: str = "raw") -> Image:
    """Draw a contact sheet.

    Args:
        gallery: from :func:`brushbench.report.data.collect`.
        benchmark: the one the runs were made on.
        order: which rows, and how they are sorted.
        side: width and height of a cell, pixels.
        variant: of the methods' pictures: ``raw``, ``blended`` …

    Returns:
        An RGB image.

    Raises:
        UsageError: no such metric, method or split.
        RunError: nothing to show.
    """
    from PIL import Image, ImageDraw

    rows = _choose(gallery, order, variant)
    places = {key: i for i, key in enumerate(benchmark.keys)}
    missing = [row for row in rows if (row.sample, row.split) not in places]
    if missing or not rows:
        raise RunError(
            f"The benchmark lacks the sample {missing[0].sample!r} ({missing[0].split}). Name its data with --data."
            if missing
            else "No sample to show. Choose another --split."
        )
    metric = _column(gallery, order.metric) if order.metric else None
    names = ["hole", *(method.label for method in gallery.methods), "reference"]
    font, small = _font(13), _font(11)
    head, foot = 24, 34
    sheet = Image.new("RGB", (GAP + len(names) * (side + GAP), head + len(rows) * (side + foot + GAP) + GAP), GROUND)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((GAP + column * (side + GAP), 5), _fit(draw, name, font, side), font=font, fill=INK)
    for line, row in enumerate(rows):
        sample = benchmark[places[row.sample, row.split]]
        top = head + line * (side + foot + GAP)
        cells: list[Any] = [hole_overlay(sample.image, sample.hole)]
        below = [""]
        for method in gallery.methods:
            picture = _picture(method, row)
            cells.append(picture if picture is None else make_variant(variant, picture, sample))
            below.append(_score_text(gallery, method, metric, variant, gallery.rows.index(row)))
        cells.append(sample.image)
        below.append("")
        for column, (cell, text) in enumerate(zip(cells, below, strict=True)):
            left = GAP + column * (side + GAP)
            sheet.paste(_tile(cell, side), (left, top))
            draw.text((left, top + side + 1), text, font=small, fill=DIM)
        caption = f"{row.sample} · {row.split} · {sample.prompt}"
        draw.text((GAP, top + side + 15), _fit(draw, caption, small, sheet.width - 2 * GAP), font=small, fill=INK)
    return sheet


def _choose(gallery: Gallery, order: Order, variant: str) -> list[GalleryRow]:
    """Return the rows of a sheet, in order."""
    splits = dict.fromkeys(row.split for row in gallery.rows)
    if order.split is not None and order.split not in splits:
        raise UsageError(f"--split {order.split!r}: the runs have {', '.join(splits)}.")
    numbers = [i for i, row in enumerate(gallery.rows) if order.split in (None, row.split)]
    if order.metric is None and order.compare is None:
        return [gallery.rows[i] for i in numbers[: order.limit]]
    if order.compare is None:
        first = next((m for m in gallery.methods if not m.reference), gallery.methods[0])
        metric = _column(gallery, order.metric or "")
        sign = 1.0 if metric["higher"] else -1.0
        values = {i: sign * _value(gallery, first, metric, variant, i) for i in numbers}
        chosen = sorted((i for i in numbers if not math.isnan(values[i])), key=lambda i: values[i])
        return [gallery.rows[i] for i in (chosen if order.worst else chosen[::-1])[: order.limit]]
    one, other = (_method(gallery, label) for label in order.compare)
    # Without a metric: the first in which the two can be compared at all.
    for metric in [_column(gallery, order.metric)] if order.metric else gallery.metrics:
        sign = 1.0 if metric["higher"] else -1.0
        gaps = {
            i: _value(gallery, one, metric, variant, i) - _value(gallery, other, metric, variant, i) for i in numbers
        }
        ranked = sorted((i for i in numbers if math.isfinite(gaps[i])), key=lambda i: sign * gaps[i])
        if ranked:
            in_turns = [i for pair in zip(ranked[::-1], ranked, strict=True) for i in pair]
            return [gallery.rows[i] for i in list(dict.fromkeys(in_turns))[: order.limit]]
    return []


def _column(gallery: Gallery, metric: str) -> dict[str, Any]:
    wanted = metric if "@" in metric else f"{metric}@standard"
    found = next((m for m in gallery.metrics if m["name"] == wanted), None)
    if found is None:
        known = ", ".join(m["name"] for m in gallery.metrics) or "none"
        raise UsageError(f"The runs have no column {wanted!r}. They have: {known}.")
    return found


def _method(gallery: Gallery, label: str) -> MethodCard:
    found = next((m for m in gallery.methods if m.label == label), None)
    if found is None:
        raise UsageError(f"No run is named {label!r}. There are: {', '.join(m.label for m in gallery.methods)}.")
    return found


def _value(gallery: Gallery, method: MethodCard, metric: dict[str, Any], variant: str, row: int) -> float:
    column = gallery.scores.get(f"{method.key}|{variant}|{metric['name']}")
    column = column or gallery.scores.get(f"{method.key}|raw|{metric['name']}")
    value = column[row] if column else None
    return math.inf if value == "inf" else math.nan if value is None else float(value)


def _score_text(gallery: Gallery, method: MethodCard, metric: dict[str, Any] | None, variant: str, row: int) -> str:
    if metric is None:
        return ""
    value = _value(gallery, method, metric, variant, row)
    number = "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value * metric['scale']:.2f}"
    return f"{metric['name'].removesuffix('@standard')} {number}"


def _picture(method: MethodCard, row: GalleryRow) -> Any:
    made = method.pictures.get((row.sample, row.split, row.repeat))
    if made is None or not made.sha256:
        return None
    try:
        return method.run.picture(made)
    except RunError:
        return None


def _tile(cell: Any, side: int) -> Any:
    from PIL import Image

    tile = Image.new("RGB", (side, side), NO_PICTURE if cell is None else GROUND)
    if cell is None:
        from PIL import ImageDraw

        ImageDraw.Draw(tile).text((8, side // 2 - 8), "no picture", font=_font(12), fill=DIM)
        return tile
    picture = Image.fromarray(np.ascontiguousarray(cell))
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # Small pictures are enlarged without smoothing: a pixel stays a pixel.
    picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    tile.paste(picture, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fit(draw: Any, text: str, font: Any, width: int) -> str:
    """Return text without control characters, cut to a width in pixels."""
    clean = "".join(c if c.isprintable() else " " for c in text[:400]).encode("utf-8", "replace").decode()
    if draw.textlength(clean, font=font) <= width:
        return clean
    while clean and draw.textlength(f"{clean}…", font=font) > width:
        clean = clean[:-1]
    return f"{clean}…"
