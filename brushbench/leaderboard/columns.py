"""Columns: one metric under one protocol, computed with one set of hashes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushbench.errors import RunError, UnknownNameError

__all__ = ["Column", "changes", "choose", "heading", "identity", "make_column", "ordered"]

SCALES: Mapping[str, tuple[str, float]] = {  # of runs whose columns do not say it themselves, older than `display`
    "image_reward": ("x10", 10.0),
    "hps_v2": ("x10²", 1e2),
    "hps_v2.1": ("x10²", 1e2),
    "lpips": ("x10³", 1e3),
    "mse": ("x10³", 1e3),
    "ssim": ("x10²", 1e2),
    "attribute_accuracy": ("%", 1e2),
    "boundary": ("x10³", 1e3),
}
ORDER = ("image_reward", "hps_v2", "hps_v2.1", "aesthetic", "psnr", "mse", "lpips", "ssim", "clip_score")
# What a column's record says besides its identity: how it is shown, and what was counted while it was computed.
_NOT_IDENTITY = {
    "variants",
    "captions_cut",
    "unit",
    "region",
    "higher_is_better",
    "display",
    "caveat",
    "shown",
    "identity",
    "scores_sha256",
    "sets",
}


@dataclass(frozen=True)
class Column:
    """One metric of a table.

    Attributes:
        metric: its name.
        suffix, factor: what the heading says and what values are multiplied by when shown; values are stored unscaled.
        higher_is_better: the direction of its arrow.
        region: what it looks at: whole, hole, keep or boundary.
        tiny: whether its model is this repository's own small one.
        caveats: sentences that belong under the table.
        same_as: other metrics that are this very column here: same model, same numbers.
    """

    metric: str
    suffix: str = ""
    factor: float = 1.0
    higher_is_better: bool = True
    region: str = "whole"
    tiny: bool = False
    caveats: tuple[str, ...] = ()
    same_as: tuple[str, ...] = ()


def identity(header: Mapping[str, Any], named: bool = True) -> str:
    """Return what a column was computed with, all of its description: equal for equal numbers.

    Args:
        header: the column's record in ``metrics.json``.
        named: include the metric's name; without it, two names of one computation are equal.
    """
    dropped = _NOT_IDENTITY if named else {*_NOT_IDENTITY, "metric"}
    kept = {key: value for key, value in header.items() if key not in dropped}
    if isinstance(weights := kept.get("weights"), Mapping):
        kept["weights"] = {key: value for key, value in weights.items() if key != "file"}  # a name, not the content
    return json.dumps(kept, sort_keys=True, default=str)


def changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the fields in which two columns were computed differently."""
    return sorted(key for key in {*one, *other} - _NOT_IDENTITY if one.get(key) != other.get(key))


def make_column(metric: str, protocol: str, headers: Sequence[tuple[Path | str, Mapping[str, Any]]]) -> Column:
    """Return a column from what each run computed it with: its folder, and the column's record.

    Raises:
        RunError: two runs computed it with different weights or settings.
    """
    (first, header), *others = headers
    for run, other in others:
        if identity(other) != identity(header):
            changed = changes(header, other)
            raise RunError(
                f"{first} and {run} were scored with different {', '.join(changed)} of {metric}: one column "
                f"cannot hold both. Score one again: brushbench score {run} --metrics {metric}@{protocol} "
                f"--weights {metric}=PATH, or leave the column out with --metrics."
            )
    suffix, factor = header.get("display") or SCALES.get(metric, ("", 1.0))
    caveats = list(dict.fromkeys(text for _, h in headers for text in _caveats(h)))
    tiny = bool((header.get("weights") or {}).get("tiny"))
    return Column(
        metric, str(suffix), float(factor), bool(header["higher_is_better"]), str(header.get("region", "whole")), tiny,
        tuple(caveats),
    )  # fmt: skip


def _caveats(header: Mapping[str, Any]) -> list[str]:
    found = [str(header["caveat"])] if header.get("caveat") else []
    if cut := int(header.get("captions_cut") or 0):
        found.append(f"captions longer than the model reads were cut: {cut} samples")
    return found


def heading(column: Column) -> str:
    """Return the words above a column, without its unit and arrow."""
    return ", ".join(name.replace("_", " ") for name in (column.metric, *column.same_as))


def ordered(metrics: Iterable[str]) -> list[str]:
    """Return metrics in the order of the article's tables, the others after them by name."""
    found = set(metrics)
    return [*(m for m in ORDER if m in found), *sorted(found - set(ORDER))]


def choose(metrics: Iterable[str], wanted: Sequence[str] | None, protocol: str) -> list[str]:
    """Return the metrics to show, in their order: all, or those asked for.

    Raises:
        UnknownNameError: a metric that no run has under the protocol.
    """
    found = ordered(metrics)
    if wanted is None:
        return found
    names = []
    for text in wanted:
        name, _, named = text.partition("@")
        if name not in found or named not in ("", protocol):
            raise UnknownNameError(f"column of the protocol {protocol}", text, found)
        names.append(name)
    return list(dict.fromkeys(names))
