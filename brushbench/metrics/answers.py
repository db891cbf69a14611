"""What a metric may answer for one image, and how it becomes a score."""

from __future__ import annotations

import math
import numbers
import sys

import numpy as np

from brushbench.errors import printable, reason_of
from brushbench.types import Score, Scored, Unscored

__all__ = ["EXPECTED", "as_score", "in_words"]

EXPECTED = "expected one float, Scored or Unscored per picture"


def as_score(answer: object) -> Score:
    """Return an answer as a score: a real number that is not NaN (infinity is one), ``Scored`` or ``Unscored``."""
    if isinstance(answer, Unscored):
        return Unscored(printable(str(answer.reason)))
    number = isinstance(answer, numbers.Real | np.bool_) or _is_scalar(answer)
    if not number:
        return Unscored(f"the metric returned {in_words(answer)}, {EXPECTED}")
    try:
        value = float(answer)  # type: ignore[arg-type]
    except OverflowError:
        return Unscored("the metric returned an integer too large for a float")
    except Exception as error:  # a class of one's own may raise anything
        return Unscored(f"the metric returned {in_words(answer)}: {reason_of(error)}")
    if math.isnan(value):
        return Unscored("the metric returned NaN")
    return Scored(value, printable(str(answer.remark))) if isinstance(answer, Scored) else value


def _is_scalar(answer: object) -> bool:
    """Whether an answer is an array or tensor of no dimension that holds a real number."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(answer, torch.Tensor):
        return answer.ndim == 0 and not answer.is_complex()
    return isinstance(answer, np.ndarray) and answer.ndim == 0 and answer.dtype.kind in "buif"


def in_words(answer: object) -> str:
    """Return what an answer is, for a message."""
    if answer is None:
        return "None"
    if isinstance(answer, np.ndarray):
        return f"an array {answer.dtype} {answer.shape}"
    return f"a {type(answer).__name__}"
