"""From two score sets to one verdict, of which words and exit code both come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from brushbench.errors import UsageError
from brushbench.gating import output
from brushbench.gating.accepted import load_accepted, short
from brushbench.gating.policy import MetricPolicy, Policy, load_policy
from brushbench.runs import Run
from brushbench.scoresets import ColumnKey, Pair, ScoreSet, from_run, pair, unlike
from brushbench.stats import holm, mean_interval, non_inferiority, regression_p, wilson

__all__ = ["SMALLEST_GATE", "Check", "Result", "Verdict", "gate"]

Result: TypeAlias = Literal["pass", "fail", "inconclusive", "not comparable"]
EXIT_CODES: Mapping[str, int] = {"pass": 0, "fail": 1, "not comparable": 3, "inconclusive": 4}
SMALLEST_GATE = 64  # samples: below this a long tail of losses passes far more often than the level says
SAMPLING = ("steps", "guidance", "scheduler", "scale", "guess_mode", "start", "end")  # settings, in no way weights
_GRAVE: tuple[Result, ...] = ("pass", "inconclusive", "fail", "not comparable")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: column or count in words.
        result: of this check alone.
        detail: what was seen, in one sentence.
        n: samples; 0 for counts.
        margin: tolerated loss in the metric's own unit; 0 for counts. ``source`` says where it comes from.
        mean, low, high: mean change, positive where better, with its one-sided bounds; NaN where none was computed.
        needed: samples that would decide an inconclusive check, if any number does.
        flags: ``WARN``: a real drop within the margin. ``DRIFT``: a change where none was declared.
        changed: ids of the samples that lost most, the most first.
        factor, suffix: what shown values are multiplied by, and what the heading then says.
    """

    name: str
    result: Result
    detail: str
    n: int = 0
    margin: float = 0.0
    source: str = ""
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    needed: int | None = None
    flags: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    factor: float = 1.0
    suffix: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a gate says.

    Attributes:
        verdict: ``pass``, ``fail``, ``inconclusive`` or ``not comparable``: the gravest of the checks.
        checks: what it follows from.
        run, accepted: labels of the two.
        inconclusive: what an inconclusive verdict counts as, for those who cannot have more samples.
    """

    verdict: Result
    checks: tuple[Check, ...]
    run: str
    accepted: str
    inconclusive: Literal["report", "pass", "fail"] = "report"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 not comparable or incomplete, 4 inconclusive."""
        counts = self.verdict == "inconclusive" and self.inconclusive != "report"
        return EXIT_CODES[self.inconclusive if counts else self.verdict]

    @property
    def sentence(self) -> str:
        """Return the verdict in words."""
        return output.sentence(self)

    def to_text(self, width: int | None = None) -> str:
        """Return the table for a terminal."""
        return output.table(self, "table", width)

    def to_markdown(self) -> str:
        """Return the table for a pull request's comment."""
        return output.table(self, "markdown")

    def to_junit(self) -> str:
        """Return JUnit XML: one test case per check."""
        return output.junit([self])

    def to_json(self) -> str:
        """Return verdict and checks as JSON; ``null`` stands for a number that there is none of."""
        return output.to_json(self)


def gate(
    run: Run | Path | str,
    accepted: Run | Path | str,
    policy: Policy | Path | str | None = None,
    *,
    inconclusive: Literal["report", "pass", "fail"] = "report",
) -> Verdict:
    """Say whether a run is worse than what was accepted.

    Samples are paired, repeats averaged first. A column passes if the lower bound of its mean change is above minus
    its margin, and fails if the upper bound is below it, by Holm's step-down over all columns. All must pass.

    Args:
        run: the candidate, or its folder.
        accepted: a run, its folder, an accepted file, or a name in ``reports/accepted``.
        policy: margins and budgets, or a TOML file; ``None``: noise floor of the accepted file, else defaults.
        inconclusive: what an inconclusive verdict counts as in :attr:`Verdict.exit_code`.

    Raises:
        UsageError: an invalid policy, or an unknown name in it.
        RunError: a folder or file that cannot be read.
    """
    if inconclusive not in ("report", "pass", "fail"):
        raise UsageError(f"--inconclusive {inconclusive!r} is unknown. Known: report, pass, fail.")
    rules = policy if isinstance(policy, Policy) else load_policy(policy) if policy is not None else Policy()
    candidate = _rounded(from_run(run if isinstance(run, Run) else Run.open(run)))
    reference = _rounded(load_accepted(accepted))
    reasons = unlike(reference, candidate) + (_settings(reference, candidate) if rules.same_settings else [])
    if reasons:
        checks = [Check("same questions", "not comparable", reason) for reason in reasons]
    else:
        checks = [*_counts(candidate, reference, rules), *_columns(candidate, reference, rules)]
    gravest = max((check.result for check in checks), key=_GRAVE.index)
    return Verdict(gravest, tuple(checks), candidate.label, reference.label, inconclusive)


def _rounded(scores: ScoreSet) -> ScoreSet:
    """Return scores with the digits of an accepted file, so that the same run differs by nothing."""
    columns = {key: {i: short(value) for i, value in column.items()} for key, column in scores.columns.items()}
    return replace(scores, columns=columns)


def _settings(accepted: ScoreSet, candidate: ScoreSet) -> list[str]:
    """Return how the candidate was sampled otherwise."""
    found = []
    for part, names in (("method", SAMPLING), ("config", ("negative_prompt",))):
        old, new = (scores.record.get(part) or {} for scores in (accepted, candidate))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [
                f"{name}: {old[name]} -> {new[name]} (allow it with same_settings = false in the policy)"
                for name in names
                if name in old and name in new and old[name] != new[name]
            ]
    return found


def _counts(candidate: ScoreSet, accepted: ScoreSet, rules: Policy) -> list[Check]:
    """Check images without a score against their budgets, apart from quality."""
    planned, made = candidate.states["planned"], sum(n for s, n in candidate.states.items() if s != "planned")
    checks = []
    if made < planned:
        checks.append(
            Check("images", "not comparable", f"{planned - made} of {planned} images are still to be generated")
        )
    states: tuple[tuple[str, int, Result], ...] = (
        ("failed", rules.budget.failed, "not comparable"),
        ("missing", rules.budget.missing, "not comparable"),
        ("black", rules.budget.black, "fail"),  # the method's own work
    )
    for state, budget, result in states:
        counts = [scores.states.get(state, 0) for scores in (candidate, accepted)]
        detail = f"{counts[0]} {state} images, accepted {counts[1]}, budget {budget}"
        checks.append(Check(f"{state} images", result if counts[0] - counts[1] > budget else "pass", detail))
    return checks


def _columns(candidate: ScoreSet, accepted: ScoreSet, rules: Policy) -> list[Check]:
    gated = rules.gated(accepted)
    few = {key: count for key in gated if (count := _scored(accepted, key)) < SMALLEST_GATE}
    gated = {key: own for key, own in gated.items() if key not in few or key.split in (own.splits or ())}
    if few and not gated:
        listed = "; ".join(f"{key.name}: {count} accepted scores" for key, count in few.items())
        return [Check("columns", "not comparable", f"{listed}; a gate needs at least {SMALLEST_GATE}")]
    if not gated:
        return [
            Check(
                "columns", "not comparable", f"{accepted.label} has no column that is gated by default: write a policy"
            )
        ]
    pairs = list(pair(accepted, candidate, list(gated)))
    checks, chances = [], []
    for item in pairs:
        if not isinstance(item, Pair):
            checks.append(Check(item[0].name, "not comparable", item[1]))
            continue
        margin, source = rules.margin(item.key, gated[item.key], accepted)
        check = _column(item, gated[item.key], margin, source, rules, accepted.noise.get(item.key))
        if check.n >= SMALLEST_GATE:
            chances.append((len(checks), regression_p(item.gains, margin)))
        checks.append(check)
    for (place, _), adjusted in zip(chances, holm([p for _, p in chances]), strict=True):
        if checks[place].result == "fail" and adjusted > 1 - rules.level and "tail" not in checks[place].detail:
            sentence = f"{checks[place].detail}; alone it would fail, among {len(chances)} columns it may be chance"
            checks[place] = replace(checks[place], result="inconclusive", detail=sentence)
    return checks


def _scored(scores: ScoreSet, key: ColumnKey) -> int:
    return sum(not math.isnan(value) for value in scores.columns[key].values())


def _column(item: Pair, own: MetricPolicy, margin: float, source: str, rules: Policy, noise: float | None) -> Check:
    gains, ids = item.gains, item.paired_ids
    lost = int((~np.isnan(item.first) & np.isnan(item.second)).sum())
    shown = {
        "n": gains.size,
        "margin": margin,
        "source": source,
        "factor": item.shown.factor,
        "suffix": item.shown.suffix,
    }
    spared = rules.budget.failed + rules.budget.missing + rules.budget.black
    if lost > spared:
        sentence = f"{lost} accepted samples have no score now, tolerated {spared} (the policy's budget)"
        return Check(item.key.name, "not comparable", sentence, **shown)  # type: ignore[arg-type]
    if gains.size < SMALLEST_GATE:
        sentence = f"{gains.size} samples have both scores; a gate needs at least {SMALLEST_GATE}"
        return Check(item.key.name, "not comparable", sentence, **shown)  # type: ignore[arg-type]
    bounds = non_inferiority(gains, margin, rules.level)
    result: Result = bounds.verdict
    words = {
        "pass": "not worse by more than the margin", "fail": "worse by more than the margin",
        "inconclusive": "the margin lies inside the bounds",
    }  # fmt: skip
    detail = words[bounds.verdict] + (f"; {lost} samples lost their score" if lost else "")
    if bounds.verdict == "inconclusive":
        detail += f"; {bounds.needed} samples would decide" if bounds.needed else "; no number of samples would decide"
    tail, tail_detail = _tail(gains, own)
    if _GRAVE.index(tail) >= _GRAVE.index(result) and tail_detail:
        result, detail = tail, f"{detail}; {tail_detail}" if tail != "pass" else detail
    order = np.argsort(gains, kind="stable")
    changed = tuple(ids[i] for i in order[:10] if gains[i] < 0)
    flags = _flags(gains, bounds.low, bounds.high, margin, rules, noise)
    return Check(
        item.key.name, result, detail, mean=float(gains.mean()), low=bounds.low, high=bounds.high, needed=bounds.needed,
        flags=flags, changed=changed, **shown,  # type: ignore[arg-type]
    )  # fmt: skip


def _tail(gains: np.ndarray, own: MetricPolicy) -> tuple[Result, str]:
    if own.worst is None:
        return "pass", ""
    count = int((gains < -own.worst.limit).sum())
    low, _ = wilson(count, gains.size, level=0.90)  # one-sided 95 %
    words = f"tail: {count} of {gains.size} samples lost more than {own.worst.limit:g}, tolerated {own.worst.share:.1%}"
    if low > own.worst.share:
        return "fail", words
    return ("inconclusive" if count / gains.size > own.worst.share else "pass"), words


def _flags(
    gains: np.ndarray, low: float, high: float, margin: float, rules: Policy, noise: float | None
) -> tuple[str, ...]:
    flags = []
    if high < 0 and low > -margin:
        flags.append("WARN")
    if rules.no_op:
        interval = mean_interval(gains, proportion=False)
        beyond = abs(float(gains.mean())) > 3 * (noise or 0.0)
        if beyond and not interval.low <= 0 <= interval.high:
            flags.append("DRIFT")
    return tuple(flags)
