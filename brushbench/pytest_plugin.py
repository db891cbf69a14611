"""A pytest plug-in: the fixture ``brushbench_gate`` fails a test where a run is worse than what was accepted.

::

    def test_quality(brushbench_gate):
        brushbench_gate("runs/shapes/candidate", "tiny-brushnet", policy="gate.toml")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pytest

if TYPE_CHECKING:
    from brushbench.gating import Policy, Verdict
    from brushbench.runs import Run

__all__ = ["Gate", "brushbench_gate"]


class Gate(Protocol):
    """What the fixture returns."""

    def __call__(
        self,
        run: Run | Path | str,
        accepted: Run | Path | str,
        policy: Policy | Path | str | None = None,
        *,
        inconclusive: Literal["fail", "pass", "skip"] = "fail",
    ) -> Verdict:
        """Return the verdict of :func:`brushbench.gate`, or fail the test with its table.

        Args:
            run: the candidate.
            accepted: what it is compared with.
            policy: margins and budgets.
            inconclusive: what too few samples do to the test.
        """
        ...


@pytest.fixture
def brushbench_gate() -> Gate:
    """Return a function that gates a run and fails the test where the verdict is not ``pass``."""

    def check(
        run: Run | Path | str,
        accepted: Run | Path | str,
        policy: Policy | Path | str | None = None,
        *,
        inconclusive: Literal["fail", "pass", "skip"] = "fail",
    ) -> Verdict:
        from brushbench.gating import gate

        verdict = gate(run, accepted, policy)
        if verdict.verdict == "inconclusive" and inconclusive == "skip":
            pytest.skip(verdict.sentence)
        if verdict.verdict == "pass" or (verdict.verdict == "inconclusive" and inconclusive == "pass"):
            return verdict
        pytest.fail(verdict.to_markdown(), pytrace=False)

    return check
