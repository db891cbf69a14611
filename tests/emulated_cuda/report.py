"""Checks with one line each: ok, note, DEFECT (what happens is not what is wanted) or FAILED (an exception)."""

from __future__ import annotations

import collections
import time
import traceback
import warnings
from collections.abc import Callable

import torch

from tests.emulated_cuda.device import place_of

__all__ = ["MOST", "ONLY", "RESULTS", "DefectError", "check", "demand", "distance", "short"]

RESULTS: collections.Counter[str] = collections.Counter()
ONLY: list[str] = []  # words, one of which a check's title must hold
MOST = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # relative error against float32


class DefectError(Exception):
    """What happens is not what is wanted."""


def check(title: str, run: Callable[[], str | None]) -> None:
    """Run one check and print its line."""
    if ONLY and not any(word in title for word in ONLY):
        return
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told, verdict = run() or "", "ok"
        if told.startswith("note:"):
            told, verdict = told[5:].strip(), "note"
    except DefectError as defect:
        told, verdict = str(defect), "DEFECT"
    except Exception as error:
        frames = [place_of(f) for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__][-3:]
        told, verdict = f"{type(error).__name__}: {str(error)[:300]} @ {' < '.join(reversed(frames))}", "FAILED"
    RESULTS[verdict] += 1
    told = told.replace("\n", " ")
    print(f"{verdict:6}  {title}{': ' if told else ''}{told}  [{time.monotonic() - start:.1f} s]", flush=True)


def distance(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference over the largest value."""
    plain = ours.cpu()
    return float((plain.float() - reference.float()).abs().max() / reference.float().abs().max())


def demand(value: float, most: float, what: str = "relative error") -> str:
    if not value <= most:
        raise DefectError(f"{what} {value:.1e}, at most {most:.0e} was expected")
    return f"{what} {value:.1e}"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
