"""What a metric answers, made safe: one bad sample or one strange answer costs its own score and no other."""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from brushbench.errors import UsageError, WeightsError, printable, reason_of
from brushbench.features import Features
from brushbench.isolation import world_of
from brushbench.types import Metric, Picture, Sample, Score, Scored, Unscored

__all__ = ["ask"]

EXPECTED = "expected one float, Scored or Unscored per picture"


def ask(metric: Metric, pictures: Sequence[Picture], samples: Sequence[Sample], features: Features) -> list[Score]:
    """Return one score, or the reason why there is none, per picture.

    What fails together is asked again one by one, so that only what fails is unscored.

    Args:
        metric: built in or of one's own.
        pictures: uint8 (H, W, 3) RGB.
        samples: one per picture, in the same order.
        features: shared with other metrics.

    Raises:
        UsageError: the metric refuses its settings.
        WeightsError: its weights are missing or damaged.
    """
    if not pictures:
        return []
    try:
        with world_of(type(metric)):
            answers = _listed(metric(pictures, samples, features), len(pictures))
    except (UsageError, WeightsError):
        raise  # not the fault of one sample
    except (Exception, SystemExit) as error:
        if len(pictures) == 1:
            return [Unscored(f"the metric failed: {reason_of(error)}")]
        return [ask(metric, [p], [s], features)[0] for p, s in zip(pictures, samples, strict=True)]
    return [as_score(answer) for answer in answers]


def _listed(answers: object, count: int) -> list[object]:
    if not isinstance(answers, Iterable) or isinstance(answers, str | bytes | Mapping):
        raise TypeError(f"it returned {_in_words(answers)}, {EXPECTED}")
    found = list(itertools.islice(answers, count + 1))
    if len(found) != count:
        number = f"more than {count}" if len(found) > count else str(len(found))
        raise ValueError(f"it returned {number} scores for {count} {'picture' if count == 1 else 'pictures'}")
    return found


def as_score(answer: object) -> Score:
    """Return an answer as a score: a real number that is not NaN (infinity is one), ``Scored`` or ``Unscored``."""
    if isinstance(answer, Unscored):
        return Unscored(printable(str(answer.reason)))
    number = isinstance(answer, numbers.Real | np.bool_) or _is_scalar(answer)
    if not number:
        return Unscored(f"the metric returned {_in_words(answer)}, {EXPECTED}")
    try:
        value = float(answer)  # type: ignore[arg-type]
    except OverflowError:
        return Unscored("the metric returned an integer too large for a float")
    except Exception as error:  # a class of one's own may raise anything
        return Unscored(f"the metric returned {_in_words(answer)}: {reason_of(error)}")
    if math.isnan(value):
        return Unscored("the metric returned NaN")
    return Scored(value, printable(str(answer.remark))) if isinstance(answer, Scored) else value


def _is_scalar(answer: object) -> bool:
    """Whether an answer is an array or tensor of no dimension that holds a real number."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(answer, torch.Tensor):
        return answer.ndim == 0 and not answer.is_complex()
    return isinstance(answer, np.ndarray) and answer.ndim == 0 and answer.dtype.kind in "buif"


def _in_words(answer: object) -> str:
    if answer is None:
        return "None"
    if isinstance(answer, np.ndarray):
        return f"an array {answer.dtype} {answer.shape}"
    return f"a {type(answer).__name__}"
