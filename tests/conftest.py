"""What every test shares: the golden folder, and the markers that are off by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import brushnet  # noqa: F401 - sets MKL_CBWR, which has to happen before torch computes anything

# Before torch is imported anywhere: the models of the tests are too small for more threads to help.
os.environ["OMP_NUM_THREADS"] = "1"

OFF_BY_DEFAULT = ("slow", "gpu", "network")
GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=GOLDEN,
        metavar="DIR",
        help="folder of parity cases (default: tests/golden, a subset)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is off by default, unless ``-m`` names it."""
    chosen = config.getoption("-m") or ""
    for item in items:
        for mark in OFF_BY_DEFAULT:
            if item.get_closest_marker(mark) and mark not in chosen:
                item.add_marker(pytest.mark.skip(reason=f"{mark}: off by default, run with -m {mark}"))


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    """Folder of parity cases: ``brushnet/`` and ``metrics/`` below it."""
    folder: Path = pytestconfig.getoption("--golden")
    if not folder.is_dir():
        pytest.exit(f"--golden {folder}: no such folder", returncode=4)
    return folder
