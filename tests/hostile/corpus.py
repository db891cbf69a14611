"""What a hostile input is: how it is made, the command that meets it, and what has to come of it.

A room adds a module with a list ``INPUTS`` and names it in ``test_hostile.py``::

    INPUTS = [Hostile("a run that names another benchmark", make_run, exit=3, says="is no benchmark")]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

__all__ = ["Hostile", "Outcome", "command_line", "good_folder", "save"]


@dataclass(frozen=True)
class Hostile:
    """One input.

    Attributes:
        name: what it is.
        make: makes it in an empty folder and returns the arguments of `brushbench`.
        exit: the exit code that is right.
        says: regular expression that the output holds; dots match newlines.
        seconds: CPU time that it may take.
        environment: variables that are set for it.
    """

    name: str
    make: Callable[[Path], list[str]]
    exit: int
    says: str
    seconds: float = 5.0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    exit: int
    output: str
    seconds: float


def command_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Run the command line in this process: what it prints on both streams, its exit code and its CPU time."""
    from brushbench.cli import main

    output = StringIO()
    monkeypatch.setattr(sys, "argv", ["brushbench", *arguments])
    start = time.process_time()
    code = 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Outcome(code, output.getvalue(), time.process_time() - start)


def save(path: Path, pixels: np.ndarray) -> None:
    """Write an array as a picture, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def good_folder(root: Path, masks: bool = True) -> Path:
    """Write a benchmark in which nothing is wrong: two pictures, their captions, and masks for them."""
    rng = np.random.default_rng(1)
    hole = np.zeros((24, 32), dtype=np.uint8)
    hole[6:18, 8:24] = 255
    for name in ("bad", "good"):
        save(root / "images" / f"{name}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        if masks:
            save(root / "masks" / f"{name}.png", hole)
    (root / "captions.json").write_text('{"bad": "a bad thing", "good": "a good thing"}')
    return root
