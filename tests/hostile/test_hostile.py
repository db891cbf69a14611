"""The hostile corpus: every input ends in its sentence and its exit code, in bounded time, and never in a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile import captions, manifests, pictures, runs, weights
from tests.hostile.corpus import Hostile, command_line

INPUTS: list[Hostile] = [*pictures.INPUTS, *captions.INPUTS, *manifests.INPUTS, *runs.INPUTS, *weights.INPUTS]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("hostile", INPUTS, ids=lambda hostile: hostile.name)
def test_every_hostile_input_is_one_sentence(hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "300", **hostile.environment}.items():
        monkeypatch.setenv(name, value)
    outcome = command_line(hostile.make(tmp_path), monkeypatch)
    assert "Traceback" not in outcome.output, outcome.output
    assert outcome.exit == hostile.exit, outcome.output
    assert re.search(hostile.says, outcome.output, re.DOTALL), outcome.output
    assert outcome.seconds < hostile.seconds


def test_the_corpus_is_large_and_says_what_is_in_it() -> None:
    names = [hostile.name for hostile in INPUTS]
    assert len(names) == len(set(names))
    assert len(names) >= 200
