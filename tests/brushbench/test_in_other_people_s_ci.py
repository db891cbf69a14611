"""The gate where others use it: a pytest plug-in in a project of their own, and the steps of the GitHub Action."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.brushbench.written_runs import write_run

ROOT = Path(__file__).parents[2]
BASE = np.random.default_rng(0).normal(25, 3, 70)
pytest_plugins = ["pytester"]


def test_a_project_gates_with_the_pytest_plug_in(pytester: pytest.Pytester) -> None:
    noise = np.random.default_rng(1).normal(0, 0.4, 70)
    noise -= noise.mean()
    for name, gain in (("old", 0.0), ("worse", -2.0), ("unsure", -0.5)):
        write_run(pytester.path / name, name, {"psnr": list(BASE + gain + (noise if gain else 0))})
    pytester.makepyfile(
        """
        def test_same(brushbench_gate):
            assert brushbench_gate("old", "old").exit_code == 0

        def test_worse(brushbench_gate):
            brushbench_gate("worse", "old")

        def test_unsure(brushbench_gate):
            brushbench_gate("unsure", "old")

        def test_unsure_skips(brushbench_gate):
            brushbench_gate("unsure", "old", inconclusive="skip")

        def test_unsure_passes(brushbench_gate):
            assert brushbench_gate("unsure", "old", inconclusive="pass").verdict == "inconclusive"
        """
    )
    # No "-p brushbench…": the plug-in comes by the entry point of the installed package, as in a project of one's own.
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs")
    done.assert_outcomes(passed=2, failed=2, skipped=1)
    done.stdout.fnmatch_lines(["*FAIL: worse against old: psnr, inside*", "*INCONCLUSIVE: unsure against old*"])


def test_the_plug_in_is_registered() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"brushbench": "brushbench.pytest_plugin"}


@pytest.fixture
def steps() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["runs"]["steps"]
    return steps


def run_step(step: dict[str, Any], folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as the runner does, its environment filled from the inputs."""
    names = {f"${{{{ inputs.{name} }}}}": value for name, value in inputs.items()}
    own = {key: names.get(value, "") for key, value in step["env"].items()}
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "brushbench"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m brushbench "$@"\n')
    script.chmod(0o755)
    (folder / "bin" / "python").unlink(missing_ok=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    environment = {
        **os.environ, **own, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"), "GITHUB_OUTPUT": str(folder / "output.txt"),
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_action_s_steps_gate_and_write_the_summary(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    gate = next(step for step in steps if step.get("id") == "gate")
    write_run(tmp_path / "old", "old", {"psnr": list(BASE)})
    write_run(tmp_path / "worse one", "worse", {"psnr": list(BASE - 2)})
    (tmp_path / "gate.toml").write_text("[metrics.psnr]\nmargin = 0.5\n")
    done = run_step(gate, tmp_path, run="worse one", accepted="old", policy="gate.toml", inconclusive="report")
    assert done.returncode == 1, done.stderr
    assert "### FAIL" in (tmp_path / "summary.md").read_text()
    assert "verdict=fail" in (tmp_path / "output.txt").read_text()
    hostile = run_step(gate, tmp_path, run="$(touch pwned); x", accepted="old", inconclusive="report")
    assert hostile.returncode == 3
    assert not (tmp_path / "pwned").exists()


def test_no_input_of_the_action_becomes_part_of_a_script(steps: list[dict[str, Any]]) -> None:
    assert all("${{" not in step["run"] for step in steps)


def test_the_documented_workflow_uses_the_inputs_that_there_are() -> None:
    """The README's workflow of ten lines is YAML, and every input of its step is one of the action's."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = readme.split("```yaml\n")[1].split("```")[0]
    workflow = yaml.safe_load(block)
    known = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))["inputs"]
    (job,) = workflow["jobs"].values()
    (used,) = [step for step in job["steps"] if "brushbench" in step.get("uses", "")]
    assert set(used["with"]) <= set(known)
    assert {name for name, entry in known.items() if entry.get("required")} <= set(used["with"])
