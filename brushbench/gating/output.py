"""A verdict as table, Markdown, JUnit and JSON. All of them read the same value."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from brushbench import text
from brushbench.leaderboard.grid import CellText, Grid, Heading
from brushbench.leaderboard.render import render_grid

if TYPE_CHECKING:
    from brushbench.gating.verdict import Check, Verdict

__all__ = ["junit", "sentence", "table", "to_json"]

HEADINGS = ("result", "change", "bounds", "margin", "n", "flags", "what was seen")


def sentence(verdict: Verdict) -> str:
    """Return the verdict in one sentence."""
    counted = ""
    if verdict.verdict == "inconclusive" and verdict.inconclusive != "report":
        counted = f", which this gate counts as {verdict.inconclusive}"
    bad = [check.name for check in verdict.checks if check.result == verdict.verdict and verdict.verdict != "pass"]
    where = f": {'; '.join(bad)}" if bad else ""
    return f"{verdict.verdict.upper()}{counted}: {verdict.run} against {verdict.accepted}{where}"


def table(verdict: Verdict, form: str, width: int | None = None) -> str:
    """Return the checks as a table, the verdict above it."""
    changed = [
        f"{check.name}: lost most: {', '.join(check.changed)}"
        for check in verdict.checks
        if check.changed and check.result in ("fail", "inconclusive")
    ]
    grid = Grid(
        title=sentence(verdict),
        headings=tuple(map(Heading, HEADINGS)),
        methods=tuple(f"{check.name} {check.suffix}".strip() for check in verdict.checks),
        references=(False,) * len(verdict.checks),
        published=(False,) * len(verdict.checks),
        cells=tuple(_cells(check, form) for check in verdict.checks),
        notes=(),
        remarks=("change: candidate minus accepted, positive is better, in the heading's scale", *changed),
        first="check",
    )
    return render_grid(grid, form, width)


def _cells(check: Check, form: str) -> tuple[CellText, ...]:
    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value * check.factor:+.3f}"

    bounds = f"[{number(check.low)}, {number(check.high)}]" if not math.isnan(check.low) else ""
    margin = f"{check.margin * check.factor:.3f} ({check.source})" if check.margin else ""
    detail = text.markdown(check.detail) if form == "markdown" else text.terminal(check.detail)
    words = [
        check.result.upper(),
        number(check.mean),
        bounds,
        margin,
        str(check.n or ""),
        " ".join(check.flags),
        detail,
    ]
    return tuple(map(CellText, words))


def junit(verdicts: Sequence[Verdict]) -> str:
    """Return JUnit XML, one suite per verdict; an inconclusive check is a failure unless the gate counts it as pass."""
    suites = ET.Element("testsuites")
    suites.extend(map(_suite, verdicts))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _suite(verdict: Verdict) -> ET.Element:
    checks = verdict.checks
    errors = sum(check.result == "not comparable" for check in checks)
    passes = ("pass", "inconclusive") if verdict.inconclusive == "pass" else ("pass",)
    failures = len(checks) - errors - sum(check.result in passes for check in checks)
    suite = ET.Element(
        "testsuite",
        name=text.terminal(f"brushbench gate: {verdict.run}"),
        tests=str(len(checks)),
        failures=str(failures),
        errors=str(errors),
    )
    for check in checks:
        case = ET.SubElement(suite, "testcase", classname="brushbench.gate", name=text.terminal(check.name))
        words = text.terminal(f"{check.result.upper()}: {check.detail}")
        if check.result == "not comparable":
            ET.SubElement(case, "error", message=words)
        elif check.result not in passes:
            ET.SubElement(case, "failure", message=words, type=check.result)
        else:
            ET.SubElement(case, "system-out").text = words
    return suite


def to_json(verdict: Verdict) -> str:
    """Return verdict, exit code and checks as JSON."""
    record = {**asdict(verdict), "exit_code": verdict.exit_code, "sentence": sentence(verdict)}
    return json.dumps(_plain(record), indent=1, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
