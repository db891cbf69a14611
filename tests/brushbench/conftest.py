"""What several test files of the toolkit share."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.corpus import command_line, good_folder

Command = Callable[..., str]


@pytest.fixture
def brushbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in a folder with the benchmark `d`; return what it printed on one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    good_folder(tmp_path / "d")

    def run(line: str, code: int = 0) -> str:
        done = command_line(shlex.split(line), monkeypatch)
        assert done.exit == code, done.output
        assert "Traceback (most recent" not in done.output
        return " ".join(done.output.split())

    return run
