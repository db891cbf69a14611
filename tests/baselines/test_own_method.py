"""A person adds a method: the adapter that CONTRIBUTING.md prints, run as printed, from a file and from a package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def printed():
    """The code and the entry point of CONTRIBUTING.md."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a baseline")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (entry,) = re.findall(r"```toml\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) <= 30
    return code, entry


def brushbench(folder, *arguments, path=()):
    """Run the command line in a process of its own, in ``folder``."""
    places = os.pathsep.join([*map(str, path), str(ROOT)])
    command = [sys.executable, "-W", "ignore", "-m", "brushbench", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False
    )  # fmt: skip


SMALL = ("--bench", "shapes", "--split", "inside", "--limit", "2", "--metrics", "psnr,mse", "--device", "cpu")


def header_of(folder):
    (file,) = folder.rglob("run.json")
    return json.loads(file.read_text())


def test_the_printed_adapter_runs_from_a_file(printed, tmp_path):
    (tmp_path / "mine.py").write_text(printed[0])
    done = brushbench(tmp_path, "eval", "--model", "mine.py:MeanColour,factor=0.5", "--out", "runs", *SMALL)
    assert done.returncode == 0, done.stderr
    told = header_of(tmp_path / "runs")
    assert told["method"]["factor"] == 0.5
    assert list(told["code"]) == ["mine.py"]
    wrong = brushbench(tmp_path, "eval", "--model", "mine.py:MeanColour,facto=1", "--out", "runs", *SMALL)
    assert wrong.returncode == 2
    assert "Did you mean 'factor'" in " ".join(wrong.stderr.split())


def test_the_printed_adapter_runs_from_an_installed_package(printed, tmp_path):
    code, entry = printed
    source = tmp_path / "source"
    source.mkdir()
    (source / "mine.py").write_text(code)
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n'
        f'[project]\nname = "mean-colour"\nversion = "1.0"\n\n{entry}\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["mine.py"]\n'
    )
    site = tmp_path / "site"
    install(source, site)
    listed = brushbench(tmp_path, "eval", "--model", "mean-colour", "--out", "runs", *SMALL, path=[site])
    assert listed.returncode == 0, listed.stderr
    assert header_of(tmp_path / "runs")["config"]["model"] == "mean-colour"


def install(source, site):
    """Install a package into a folder as pip does, without the network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
