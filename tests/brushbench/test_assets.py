"""Assets are found in a checkout and in a wheel, and a wrong name says what to write."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brushbench import assets
from brushbench.errors import BrushbenchError, UsageError

PACKAGE = Path(assets.__file__).parent


def test_a_checkout_keeps_its_assets_beside_the_package() -> None:
    assert assets.path("data") == PACKAGE.parent / "data"
    assert assets.path("reports").is_dir()


def test_a_wheel_carries_them_inside_the_package(tmp_path: Path) -> None:
    installed = tmp_path / "site" / "brushbench"
    (installed / "data" / "shapes").mkdir(parents=True)
    (installed / "__init__.py").touch()
    for name in ("assets.py", "errors.py"):
        shutil.copy(PACKAGE / name, installed)
    code = "from brushbench import assets; print(assets.path('data/shapes'))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert Path(ran.stdout.strip()) == (installed / "data" / "shapes").resolve()


@pytest.mark.parametrize("name", ["shapes", "", "/data/shapes", "data/../pyproject.toml", "../data"])
def test_another_style_is_told_the_right_one(name: str) -> None:
    with pytest.raises(UsageError, match="write its room first, data/ or reports/"):
        assets.path(name)
    if name == "shapes":
        with pytest.raises(UsageError, match="for example 'data/shapes'"):
            assets.path(name)


def test_a_missing_asset_is_named_with_the_places_searched() -> None:
    with pytest.raises(BrushbenchError, match=r"'data/no-such-thing' is missing \(looked for .* and .*Reinstall"):
        assets.path("data/no-such-thing")


def test_a_wheel_holds_of_the_embedded_world_what_installed_code_needs() -> None:
    from hatchling.builders.wheel import WheelBuilder

    files = {file.relative_path for file in WheelBuilder(str(PACKAGE.parent)).recurse_included_files()}
    assert {file for file in files if file.startswith("brushbench/tiny/")} == {
        "brushbench/tiny/__init__.py",
        "brushbench/tiny/scenes.py",
    }
    assert {"brushbench/benchmarks/shapes.py", "brushbench/training/loop.py"} <= files


def test_installed_code_reads_shapes_and_trains_brushnet_without_the_rest_of_the_embedded_world(tmp_path: Path) -> None:
    room = tmp_path / "site" / "brushbench"
    shutil.copytree(PACKAGE, room, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (room / "tiny").iterdir():
        if path.name not in ("__init__.py", "scenes.py"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("brushnet", "baselines"):
        (room.parent / name).symlink_to(PACKAGE.parent / name)
    code = """
import brushbench.benchmarks.shapes, brushbench.metrics.attribute_accuracy, brushbench.training.brushnet
from typer.testing import CliRunner
from brushbench.cli import app
told = CliRunner().invoke(app, ["train", "--help"]).output
assert "brushnet" in told and "tiny" not in told.replace("tiny one", ""), told
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=room.parent, capture_output=True, text=True, env={})
    assert ran.returncode == 0, ran.stderr
