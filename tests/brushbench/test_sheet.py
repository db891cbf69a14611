from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brushbench.errors import UsageError
from brushbench.report.data import collect
from brushbench.report.sheet import Order, draw_sheet

from .reports import hostile_benchmark, tiny_runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    benchmark, runs = tiny_runs(tmp_path_factory.mktemp("sheet"))
    return benchmark, runs, collect(runs).gallery


def test_a_sheet_has_a_row_per_sample_and_a_column_per_method(made) -> None:
    benchmark, _, gallery = made
    sheet = draw_sheet(gallery, benchmark, Order(limit=3), side=80)
    assert sheet.size == (8 + 5 * 88, 24 + 3 * (80 + 34 + 8) + 8)
    # The last column is the reference: enlarged without smoothing, so its first pixel is the picture's own.
    reference = np.asarray(sheet)[24 : 24 + 80, 8 + 4 * 88 : 8 + 4 * 88 + 80]
    width = benchmark[0].image.shape[1]
    left = (80 - round(width * 80 / 48)) // 2
    assert np.array_equal(reference[0, left], benchmark[0].image[0, 0])


def test_worst_puts_the_worst_score_of_the_first_method_first(made) -> None:
    _, runs, gallery = made
    scores = runs[0].scores
    mine = scores[(scores["metric"] == "mse") & (scores["variant"] == "raw") & (scores["split"] == "inside")]
    worst = mine.sort_values("value", ascending=False)["sample"].iloc[0]
    from brushbench.report.sheet import _choose

    assert _choose(gallery, Order(metric="mse", worst=True, split="inside", limit=1), "raw")[0].sample == worst
    best = mine.sort_values("value")["sample"].iloc[0]
    assert _choose(gallery, Order(metric="mse", split="inside", limit=1), "raw")[0].sample == best


def test_compare_takes_the_most_changed_of_either_side_in_turns(made) -> None:
    _, _, gallery = made
    from brushbench.report.sheet import _choose

    rows = _choose(gallery, Order(metric="mse", compare=("noise", "telea"), split="inside", limit=2), "raw")
    assert len({row.sample for row in rows}) == 2


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Order(metric="nope"), "no column 'nope@standard'. They have: .*mse@standard"),
        (Order(metric="mse", compare=("noise", "x")), "No run is named 'x'. There are: noise, telea, oracle"),
        (Order(split="brush"), "the runs have inside, outside"),
    ],
)
def test_what_a_sheet_cannot_show_is_named_with_what_there_is(made, order: Order, words: str) -> None:
    benchmark, _, gallery = made
    with pytest.raises(UsageError, match=words):
        draw_sheet(gallery, benchmark, order)


def test_hostile_text_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    benchmark, runs = hostile_benchmark(tmp_path)
    draw_sheet(collect(runs).gallery, benchmark, Order(limit=20), side=64)
