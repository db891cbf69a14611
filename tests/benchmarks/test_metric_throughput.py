"""``metric_throughput`` in small: both orders of work run on the metrics as they are, and give the same scores."""

from __future__ import annotations

import sys

import pytest

from tests.benchmarks import metric_throughput


def test_both_orders_of_work_give_the_same_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["metric_throughput.py", "--tiny", "--images", "2", "--batch-size", "2"])
    assert metric_throughput.main() == 0
    told = capsys.readouterr().out
    assert "pictures per CPU second" in told
    assert all(part in told for part in metric_throughput.SAVINGS)
