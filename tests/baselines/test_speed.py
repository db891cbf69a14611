"""The option ``speed`` of the methods, and the command that measures it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import brushbench
from brushbench import speedups
from brushbench.cli import app
from brushbench.errors import UsageError
from brushbench.evaluation.sources import Method
from brushbench.registry import parse_spec


@pytest.fixture(scope="module")
def samples() -> list[brushbench.Sample]:
    bench = brushbench.load_benchmark("shapes", "inside", 2)
    return [bench[0], bench[1]]


def pictures(spec: str, samples: list[brushbench.Sample]) -> list[np.ndarray]:
    return Method(brushbench.load_inpainter(spec)).answers(samples, [1, 2], "")


@pytest.mark.parametrize(
    "method", ["brushnet,speed=fast", "latent-copy,speed=guidance-2", "sd-inpainting,speed=deep-2"]
)
def test_every_diffusion_method_takes_a_speed_and_its_description_says_so(method: str, samples) -> None:
    quick = Method(brushbench.load_inpainter(f"{method},steps=4"))
    plain = Method(brushbench.load_inpainter(f"{method.partition(',')[0]},steps=4"))
    assert "speed" not in plain.describe()
    assert {**plain.describe(), "speed": quick.describe()["speed"]} == quick.describe()
    ours, theirs = quick.answers(samples, [1, 2], ""), plain.answers(samples, [1, 2], "")
    assert all(
        one.shape == other.shape and not np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("latent-copy,speed=branch-2", "LatentCopy has no branch that could rest. Leave branch-… out"),
        ("brushnet,guidance=1,speed=guidance-2", "with guidance=1.0 there is none"),
        ("brushnet,speed=quick", "got 'quick', expected each of these at most once"),
        ("brushnet,speed=bf16,dtype=float32", "computes in bfloat16, and dtype=float32. Leave one out"),
    ],
)
def test_what_does_nothing_on_a_method_is_refused_before_any_image(spec: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        brushbench.load_inpainter(spec)


def test_what_left_nothing_out_is_refused_after_the_first_images(samples) -> None:
    with pytest.raises(
        UsageError, match=r"branch, guidance left nothing out with steps=1\. Leave it out, or take more"
    ):
        pictures("brushnet,steps=1,speed=fast", samples)
    assert len(pictures("brushnet,steps=2,speed=fast", samples)) == 2  # the remedy


def test_bf16_is_the_dtype_of_the_networks() -> None:
    method = brushbench.load_inpainter("brushnet,speed=bf16")
    assert method.describe()["dtype"] == "bfloat16"


def test_the_command_names_what_is_refused_and_proves_nothing_with_two_images(tmp_path: Path) -> None:
    line = ["speed", "latent-copy,steps=2", "--limit", "2", "--split", "inside", "--speeds", "branch-2,guidance-2"]
    output = tmp_path / "speed.md"
    done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "runs"), "-o", str(output)])
    assert done.exit_code == 0, done.output
    rows = [line.split("|") for line in output.read_text().splitlines() if line.startswith("|")]
    findings = {row[1].strip(): row[4].strip() for row in rows[2:]}
    assert findings == {"published": "reference", "branch-2": "refused", "guidance-2": "not proven"}
    assert "branch-2 is refused: speed=branch-2: LatentCopy has no branch" in output.read_text()


def test_a_method_that_sets_its_speed_is_not_measured(tmp_path: Path) -> None:
    bench = brushbench.load_benchmark("shapes", "inside", 2)
    with pytest.raises(UsageError, match="sets speed, which this command tries out"):
        speedups.measure(parse_spec("brushnet,speed=fast"), bench, tmp_path, notify=print)


@pytest.mark.slow
def test_an_acceleration_is_proven_and_a_branch_that_is_never_updated_is_refuted(tmp_path: Path) -> None:
    bench = brushbench.load_benchmark("shapes", "inside")  # 64 samples are too few to prove one
    found = speedups.measure(
        parse_spec("brushnet"), bench, tmp_path, speeds=["fast", "branch-1000"], notify=lambda _: None
    )
    assert [speedup.finding for speedup in found] == ["reference", "proven", "refuted"]
    assert all(not math.isnan(speedup.seconds) and len(speedup.changed) == 3 for speedup in found[1:])
