"""Weights that several tests share: made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.baselines.tiny_bases import save_methods


@pytest.fixture(scope="session")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and what every method has beside it; read it, write nothing that another test may meet."""
    return save_methods(tmp_path_factory.mktemp("methods"))
