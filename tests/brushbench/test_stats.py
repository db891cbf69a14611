from __future__ import annotations

import math

import numpy as np
import pytest

from brushbench.stats import bootstrap_t, paired_difference, summarise


def test_missing_and_infinite_scores_do_not_enter_the_mean_and_are_counted() -> None:
    summary = summarise([1.0, None, 3.0, math.nan, math.inf])
    assert (summary.mean, summary.n, summary.infinite, summary.missing) == (2.0, 3, 1, 2)
    assert summary.median == 3.0


def test_all_infinite_is_infinite_and_nothing_is_nan() -> None:
    assert math.isinf(summarise([math.inf, math.inf]).mean)
    assert math.isnan(summarise([None]).mean)
    assert summarise([]).n == 0


def test_the_interval_is_reproducible_and_holds_the_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, 64)
    low, high = bootstrap_t(values)
    assert (low, high) == bootstrap_t(values)
    assert low < values.mean() < high


def test_few_values_have_no_interval_and_equal_ones_none_to_speak_of() -> None:
    assert all(map(math.isnan, bootstrap_t(np.arange(7.0))))
    assert bootstrap_t(np.full(20, 3.0)) == (3.0, 3.0)


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_t(rng.normal(0, 1, 32))
        hits += low <= 0 <= high
    assert 180 <= hits <= 199  # nominal 190, standard deviation 3


def test_a_long_tail_widens_the_interval_on_its_own_side() -> None:
    values = np.concatenate([np.zeros(60), np.full(4, 50.0)]) + np.random.default_rng(2).normal(0, 0.1, 64)
    low, high = bootstrap_t(values)
    assert high - values.mean() > values.mean() - low


def test_paired_differences_pair_one_to_one() -> None:
    a, b = np.array([1.0, 2.0, math.nan]), np.array([0.5, 1.0, 1.0])
    assert paired_difference(a, b).mean == pytest.approx(0.75)
    assert paired_difference(a, b).missing == 1
    with pytest.raises(ValueError, match="equally long"):
        paired_difference(a, b[:2])
