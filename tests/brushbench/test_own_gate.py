"""Our own images gate themselves: 64 fixed samples of the embedded BrushNet against what was accepted.

The accepted file and the policy's margins were made with

    brushbench eval -m brushnet --name tiny-brushnet --bench shapes --split inside --limit 64 --batch-size 16 \\
        --variants raw --metrics psnr,lpips,clip_score,attribute_accuracy --seed 1234 --out runs/1234   # and --seed 2
    brushbench accept runs/1234/tiny-brushnet --name tiny-brushnet --reason "…" --noise runs/2/tiny-brushnet

so a margin is 3 standard deviations of what another seed alone changes. Another processor changes less than that: it
starts from the same noise. A change that is meant is accepted with the same commands and --overwrite, and reviewed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import brushbench
from brushbench.gating.accepted import load_accepted
from brushbench.scoresets import from_run

METRICS = ("psnr", "lpips", "clip_score", "attribute_accuracy")


@pytest.mark.timeout(1800)
def test_the_embedded_brushnet_is_as_good_as_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    run = brushbench.evaluate(
        "brushnet", "shapes", out=tmp_path / "tiny-brushnet", name="tiny-brushnet", split="inside", limit=64,
        batch_size=16, variants="raw", metrics=METRICS, seed=1234,
    )  # fmt: skip
    verdict = brushbench.gate(run, "tiny-brushnet")
    print(verdict.to_text())
    assert verdict.verdict == "pass", verdict.to_markdown()
    assert {check.source for check in verdict.checks if check.n} == {"3 sd of the noise floor"}
    assert sum(check.n == 64 for check in verdict.checks) == len(METRICS)
    assert from_run(run).data == load_accepted("tiny-brushnet").data
