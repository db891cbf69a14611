"""What a metric answers, made safe: one bad sample or one strange answer costs its own score and no other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from brushbench.devices import free_memory, refuse_broken_device
from brushbench.errors import UsageError, WeightsError, reason_of
from brushbench.features import Features
from brushbench.isolation import world_of
from brushbench.metrics.answers import EXPECTED, as_score, in_words
from brushbench.types import Metric, Picture, Sample, Score, Unscored

__all__ = ["ask"]


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
        BrokenDeviceError: the GPU is of no use to this process any more.
    """
    if not pictures:
        return []
    try:
        with world_of(type(metric)):
            answers = _listed(metric(pictures, samples, features), len(pictures))
    except (UsageError, WeightsError):
        raise  # not the fault of one sample
    except (Exception, SystemExit) as error:
        refuse_broken_device(error)
        failure = Unscored(f"the metric failed: {reason_of(error)}")
    else:
        return [as_score(answer) for answer in answers]
    if len(pictures) == 1:
        return [failure]
    free_memory()  # behind the except: until there the exception holds all that the failed call had in memory
    return [ask(metric, [p], [s], features)[0] for p, s in zip(pictures, samples, strict=True)]


def _listed(answers: object, count: int) -> list[object]:
    if not isinstance(answers, Iterable) or isinstance(answers, str | bytes | Mapping):
        raise TypeError(f"it returned {in_words(answers)}, {EXPECTED}")
    found = list(itertools.islice(answers, count + 1))
    if len(found) != count:
        number = f"more than {count}" if len(found) > count else str(len(found))
        raise ValueError(f"it returned {number} scores for {count} {'picture' if count == 1 else 'pictures'}")
    return found
