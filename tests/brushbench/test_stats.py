from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brushbench.errors import UsageError
from brushbench.resampling import hold_zero, intervals_of
from brushbench.stats import (
    Interval,
    holm,
    mean_interval,
    noise_floor,
    non_inferiority,
    paired_difference,
    power,
    regression_p,
    summarise,
    summarise_all,
    wilson,
)

rows = arrays(np.float64, st.integers(8, 60), elements=st.integers(-50, 50).map(float))


def normal(n: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def test_missing_and_infinite_scores_do_not_enter_the_mean_and_are_counted() -> None:
    summary = summarise([1.0, None, 3.0, math.nan, math.inf])
    assert (summary.mean, summary.n, summary.infinite, summary.missing) == (2.0, 3, 1, 2)
    assert summary.median == 3.0


def test_all_infinite_is_infinite_and_nothing_is_nan() -> None:
    assert math.isinf(summarise([math.inf, math.inf]).mean)
    assert math.isnan(summarise([None]).mean)
    assert summarise([]).n == 0


# Intervals of a mean --------------------------------------------------------------------------------------------------


def naive_bounds(values: np.ndarray, tail: float) -> tuple[float, float]:
    """The definition, one resample at a time, with SciPy's t and root finder: other resamples than the product's."""
    from scipy import optimize, stats

    rng, n, t, bent = np.random.default_rng(99), values.size, [], []
    mean, sd, skew = values.mean(), values.std(), stats.skew(values)

    def hall(w: float, skewness: float) -> float:
        return w + skewness * w**2 / 3 + skewness**2 * w**3 / 27 + skewness / (6 * n)

    for _ in range(6000):
        drawn = rng.choice(values, n)
        t.append((drawn.mean() - mean) / drawn.std())
        bent.append(hall(t[-1], float(((drawn - drawn.mean()) ** 3).mean() / drawn.std() ** 3)))
    outer = stats.t.ppf(1 - tail, n - 1) / math.sqrt(n - 1)
    back = [optimize.brentq(lambda w, q=q: hall(w, skew) - q, -50, 50) for q in np.quantile(bent, [1 - tail, tail])]
    up, down = max(np.quantile(t, 1 - tail), back[0], outer), min(np.quantile(t, tail), back[1], -outer)
    return mean - up * sd, mean - down * sd


@pytest.mark.parametrize("shape", ["normal", "losses", "gains"])
def test_the_interval_is_the_widest_of_bootstrap_t_hall_s_and_student_s(shape: str) -> None:
    values = normal(64)
    values = {"normal": values, "losses": -np.exp(values), "gains": np.exp(values)}[shape]
    low, high = mean_interval(values)
    expected_low, expected_high = naive_bounds(values, 0.025)
    width = expected_high - expected_low
    assert low == pytest.approx(expected_low, abs=0.08 * width)
    assert high == pytest.approx(expected_high, abs=0.08 * width)


def test_the_level_is_95_percent_and_not_92() -> None:
    """A level of 0.92 is short by a tenth: the bounds of a long normal row are those of the normal distribution."""
    values = normal(4096)
    error = values.std(ddof=1) / 64
    for low, high in (mean_interval(values), (summarise(values).low, summarise(values).high)):
        assert (high - low) / (2 * error) == pytest.approx(1.96, abs=0.11)
    bounds = non_inferiority(values, 1.0)
    assert (bounds.high - bounds.low) / (2 * error) == pytest.approx(1.645, abs=0.07)


def test_a_long_tail_widens_the_interval_on_its_own_side() -> None:
    values = np.concatenate([np.zeros(60), np.full(4, 50.0)]) + normal(64) / 10
    low, high = mean_interval(values)
    assert high - values.mean() > 1.5 * (values.mean() - low)


def test_the_interval_is_reproducible() -> None:
    assert mean_interval(normal(64)) == mean_interval(normal(64))


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(0.01, 100), st.floats(-1e3, 1e3))
def test_the_interval_moves_and_stretches_with_the_scores(values: np.ndarray, factor: float, shift: float) -> None:
    low, high = mean_interval(values, proportion=False)
    assert low <= values.mean() + 1e-9 * np.abs(values).max()
    assert high >= values.mean() - 1e-9 * np.abs(values).max()
    moved = mean_interval(factor * values + shift, proportion=False)
    tolerance = 1e-6 * (abs(factor) * (1 + np.abs(values).max()) + abs(shift))
    assert moved.low == pytest.approx(factor * low + shift, abs=tolerance)
    assert moved.high == pytest.approx(factor * high + shift, abs=tolerance)
    flipped = mean_interval(-values, proportion=False)  # other quantiles of the same resamples: exactly the mirror
    assert flipped.low == pytest.approx(-high, abs=1e-6 * (1 + np.abs(values).max()))


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.1] * 20) == Interval(*[np.float64(np.full(20, 0.1).mean())] * 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_is_scipy_s(n: int, data: st.DataObject) -> None:
    from scipy import stats

    k = data.draw(st.integers(0, n))
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_column_of_zeros_and_ones_stays_between_0_and_100_percent() -> None:
    """A column at 98.4 % printed [98.44, 100.84], and 0 of 64 printed [0, 0]."""
    assert mean_interval([1.0] * 63 + [0.0]) == pytest.approx((0.9167, 0.9972), abs=1e-4)
    low, high = mean_interval([0.0] * 64)
    assert (low, high) == (0.0, pytest.approx(0.0566, abs=1e-4))
    assert (summarise([0.0] * 64).low, summarise([0.0] * 64).high) == (low, high)


def test_a_measured_quantity_that_is_0_everywhere_is_no_proportion() -> None:
    assert mean_interval([0.0] * 64, proportion=False) == (0.0, 0.0)
    with pytest.raises(ValueError, match="0 and 1 only"):
        mean_interval([0.5] * 8, proportion=True)


def test_many_cells_at_once_are_each_what_they_are_alone() -> None:
    columns = [normal(64), -np.exp(normal(64, seed=1)), normal(30), np.r_[normal(63), np.nan], np.ones(9), [1.0, 2.0]]
    for column, summary in zip(columns, summarise_all(columns), strict=True):
        alone = summarise(column)
        assert summary.low == pytest.approx(alone.low, nan_ok=True)
        assert summary.high == pytest.approx(alone.high, nan_ok=True)
        assert summary.n == alone.n
    assert all(math.isnan(s.low) for s in summarise_all(columns, intervals=False))


def test_few_scores_have_no_interval_in_a_table() -> None:
    assert math.isnan(summarise(normal(7)).low)
    assert not math.isnan(summarise(normal(8)).low)


# Differences and decisions --------------------------------------------------------------------------------------------


def test_paired_differences_pair_one_to_one() -> None:
    a, b = [1.0, 2.0, math.nan, math.inf, math.inf], [0.5, 1.0, 1.0, math.inf, 3.0]
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(0.5)  # 0.5, 1 and the two identical pictures' 0
    assert (difference.n, difference.infinite, difference.missing) == (4, 1, 1)
    with pytest.raises(ValueError, match="equally long"):
        paired_difference(a, b[:2])


def test_verdicts_follow_from_the_bounds() -> None:
    better, worse, unsure = non_inferiority(normal(64), 1.0), non_inferiority(normal(64, -2.0), 1.0), None
    unsure = non_inferiority(normal(64, -1.0), 1.0)
    assert (better.verdict, worse.verdict, unsure.verdict) == ("pass", "fail", "inconclusive")
    assert better.low > -1.0
    assert worse.high < -1.0
    assert unsure.low <= -1.0 <= unsure.high
    assert better.needed is worse.needed is None
    assert non_inferiority([0.0] * 64, 0.001).verdict == "pass"


def test_an_inconclusive_verdict_names_a_number_that_decides() -> None:
    """The named number of samples decides about four times in five, as it says."""
    small = normal(64, -0.8, seed=3)
    unsure = non_inferiority(small, 1.0)
    assert unsure.verdict == "inconclusive"
    assert unsure.needed is not None
    assert unsure.needed > 64
    mean, sd = small.mean(), small.std(ddof=1)
    decided = [
        non_inferiority(mean + sd * normal(unsure.needed, seed=seed), 1.0).verdict == "pass" for seed in range(200)
    ]
    assert 0.70 <= np.mean(decided) <= 0.88


@settings(max_examples=40, deadline=None)
@given(rows, st.floats(1e-3, 1e6))
def test_p_value_and_verdict_agree(values: np.ndarray, margin: float) -> None:
    verdict, p = non_inferiority(values, margin).verdict, regression_p(values, margin)
    assert 0 <= p <= 1
    if verdict == "fail":
        assert p < 0.051
    if p < 0.049:
        assert verdict == "fail"


def test_holm_is_the_step_down_of_1979() -> None:
    """Against the published example's arithmetic: 0.01 x 4, 0.02 x 3 and so on, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]).size == 0


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, st.integers(1, 10), elements=st.floats(0, 1)))
def test_holm_lies_between_the_values_and_bonferroni(p: np.ndarray) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * p.size) + 1e-12).all()


@pytest.mark.parametrize(("n", "smallest"), [(16, 0.62), (32, 0.44), (64, 0.31), (128, 0.22), (240, 0.16), (600, 0.10)])
def test_power_is_the_table_of_regression_md(n: int, smallest: float) -> None:
    assert power(1.0, n).smallest == pytest.approx(smallest, abs=0.006)
    assert power(1.0, n, difference=power(1.0, n).smallest).needed in (n, n + 1)


def test_the_noise_floor_is_found_again() -> None:
    rng = np.random.default_rng(0)
    floor = noise_floor(rng.normal(0, 5, (400, 1)) + rng.normal(0, 0.3, (400, 2)))
    assert floor.score == pytest.approx(0.3, rel=0.1)
    assert floor.mean == pytest.approx(0.3 / 20, rel=0.1)
    assert floor.difference == pytest.approx(math.sqrt(2) * floor.mean)


GOOD = [float(i) for i in range(10)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mean_interval([*GOOD, math.nan]), "1 of 11 values that are NaN or infinite"),
        (lambda: non_inferiority([*GOOD, math.inf], 1.0), "NaN or infinite"),
        (lambda: mean_interval(GOOD[:7]), "at least 8"),
        (lambda: non_inferiority(GOOD[:7], 1.0), "at least 8"),
        (lambda: non_inferiority(GOOD, 0.0), "above 0"),
        (lambda: non_inferiority(GOOD, -1.0), "above 0"),
        (lambda: non_inferiority(GOOD, math.nan), "above 0"),
        (lambda: non_inferiority([GOOD, GOOD], 1.0), "shape"),  # type: ignore[list-item]
        (lambda: non_inferiority(GOOD, 1.0, level=95), "between 0.5 and 1"),
        (lambda: mean_interval(GOOD, level=0.0), "between 0 and 1"),
        (lambda: holm([0.5, 1.2]), "p-values"),
        (lambda: holm([math.nan]), "p-values"),
        (lambda: power(-1.0, 64), "sd >= 0"),
        (lambda: power(1.0, 1), "n >= 2"),
        (lambda: power(1.0, 64, difference=0.0), "above 0"),
        (lambda: noise_floor(GOOD), "two draws"),
        (lambda: noise_floor([[1.0, math.nan]] * 9), "NaN"),
        (lambda: noise_floor([[1.0, 2.0]] * 3), "at least 8"),
        (lambda: wilson(3, 0), "at least 1"),
    ],
)
def test_what_no_statistic_can_take_is_refused_in_one_sentence(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        call()  # type: ignore[operator]
    assert isinstance(caught.value, UsageError)  # the command line makes exit code 2 of it


@pytest.mark.parametrize("n", [8, 50, 600])
@pytest.mark.parametrize("tail", ["none", "long", "ruined"])
def test_whether_an_interval_holds_zero_is_decided_by_exact_bounds_however_near_zero_is(n: int, tail: str) -> None:
    """Single precision decides only what is clear; a few ruined images leave resamples next to no spread."""
    row = np.random.default_rng(n).normal(0, 1, n)
    row = {"none": row, "long": np.exp(2 * row), "ruined": np.where(np.arange(n) < 1, -1e6, 0.01 * row)}[tail]
    ((low, high),) = intervals_of([row], 0.025)
    steps = [side * step * (high - low) for step in (1e-9, 1e-7, 1e-4, 0.02, 0.5) for side in (-1, 1)]
    rows = [row - bound + step for bound in (low, high) for step in steps]
    expected = [bool(one.low <= 0 <= one.high) for one in intervals_of(rows, 0.025)]
    assert hold_zero(rows, 0.025) == expected
    assert set(expected) == {True, False}
