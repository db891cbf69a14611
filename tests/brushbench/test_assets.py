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
