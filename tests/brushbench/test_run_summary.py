from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import brushbench
from brushbench.errors import UsageError
from brushbench.leaderboard import make_tables
from brushbench.runs import Run
from tests.brushbench.written_runs import write_run

ROOT = Path(__file__).parents[2]


def test_repeats_are_averaged_inside_a_sample_first(tmp_path: Path) -> None:
    """Otherwise n counts images, and the interval is that of twice as many samples."""
    low, high = [float(i) for i in range(10)], [float(i) + 1 for i in range(10)]
    repeated = Run.open(write_run(tmp_path / "two", "two", {"psnr": [low, high]})).summary().iloc[0]
    averaged = Run.open(write_run(tmp_path / "one", "one", {"psnr": [i + 0.5 for i in low]})).summary().iloc[0]
    assert repeated["n"] == 10
    assert (repeated["mean"], repeated["low"], repeated["high"]) == (
        averaged["mean"],
        averaged["low"],
        averaged["high"],
    )


def test_a_repeat_without_a_score_leaves_the_sample_its_other_one(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "r", "r", {"psnr": [[1.0, None, None], [3.0, 5.0, None]]}))
    summary = run.summary().iloc[0]
    assert (summary["mean"], summary["n"], summary["missing"]) == (3.5, 2, 1)


def test_a_measured_quantity_of_zeros_or_ones_is_no_share(tmp_path: Path) -> None:
    """`telea` keeps the background exact: its SSIM of 100.00 had the interval [67.56, 100.00], LPIPS 0 to 325."""
    scores = {"ssim": [1.0] * 8, "lpips": [0.0] * 8, "attribute_accuracy": [1.0] * 8, "mine": [0.0] + [1.0] * 7}
    share = {"attribute_accuracy": {"display": ["%", 100.0]}}
    run = Run.open(write_run(tmp_path / "r", "r", scores, headers=share))
    summary = run.summary().set_index("metric")
    assert list(summary.loc["ssim", ["low", "high"]]) == [1.0, 1.0]
    assert list(summary.loc["lpips", ["low", "high"]]) == [0.0, 0.0]
    assert summary.loc["attribute_accuracy", "low"] == pytest.approx(0.676, abs=1e-3)  # Wilson's, 8 of 8
    assert summary.loc["mine", "low"] == pytest.approx(0.529, abs=1e-3)  # 7 of 8
    (table,) = make_tables([run])
    for metric, cell in table.rows[0].cells.items():
        assert [cell.low, cell.high] == list(summary.loc[metric, ["low", "high"]]), metric


def test_a_summary_of_one_protocol(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", {"psnr": [1.0, 2.0]})
    run = Run.open(folder)
    assert len(run.summary(protocol="standard")) == 1
    assert len(run.summary(protocol="brushnet-paper")) == 0
    with pytest.raises(UsageError, match="brushnet-paper"):
        run.summary(protocol="standrad")


def test_a_run_says_what_it_is(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "r", "mine", {"psnr": [1.0, 2.0], "mse": [0.1, 0.2]}))
    assert repr(run) == f"<Run 'mine' on 'toy': 2 planned, 2 ok; metrics: mse, psnr; in {str(tmp_path / 'r')!r}>"


def test_the_package_shows_public_names_only() -> None:
    assert dir(brushbench) == sorted([*brushbench.__all__, "__version__"])
    assert all(hasattr(brushbench, name) for name in dir(brushbench))


@pytest.fixture
def pyplot() -> Iterator[Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def points(axes: Any) -> dict[str, list[float]]:
    """Return what a panel shows, by the label of its row: the ends of its line, then its point."""
    names = [label.get_text() for label in axes.get_yticklabels()]
    shown: dict[str, list[float]] = {name: [] for name in names}
    for line in axes.lines:
        shown[names[int(line.get_ydata()[0])]] += list(map(float, line.get_xdata()))
    return shown


def test_a_plot_shows_the_means_and_intervals_of_the_summary_in_the_tables_scale(tmp_path: Path, pyplot: Any) -> None:
    folder = write_run(
        tmp_path / "r", "$r$\n", {"psnr": [float(i) for i in range(10)], "lpips": [0.1 * i for i in range(10)]},
        headers={"lpips": {"display": ["x10³", 1e3]}},
    )  # fmt: skip
    run = Run.open(folder)
    axes = run.plot()
    rows = {row["metric"]: row for row in run.summary().to_dict("records")}
    panels = {panel.get_title(): panel for panel in axes}
    for title, metric, factor in (("psnr ↑", "psnr", 1), ("lpips x10³ ↓", "lpips", 1e3)):
        row = rows[metric]
        expected = [row[key] * factor for key in ("low", "high", "mean")]
        assert points(panels[title])["inside, raw (n 10)"] == pytest.approx(expected)
    assert pyplot.get_fignums()  # which a notebook shows
    axes[0].figure.savefig(tmp_path / "run.png")  # `$r$` is no mathematics
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_a_plot_says_what_is_infinite_or_has_no_score(tmp_path: Path, pyplot: Any) -> None:
    run = Run.open(write_run(tmp_path / "r", "r", {"psnr": [float("inf")] * 9, "mse": [None] * 9}))
    texts = {panel.get_title(): [text.get_text() for text in panel.texts] for panel in run.plot()}
    assert texts == {"psnr ↑": ["∞"], "mse ↓": ["no score"]}
    assert not any(panel.lines for panel in run.plot())
    assert pyplot.get_fignums()


def test_a_plot_of_no_scores_names_the_remedy(tmp_path: Path, pyplot: Any) -> None:
    run = Run.open(write_run(tmp_path / "r", "r", {"psnr": [1.0, 2.0]}))
    with pytest.raises(UsageError, match=r"no scores under the protocol brushnet-paper\. Score it: brushbench score"):
        run.plot("brushnet-paper")
    with pytest.raises(UsageError, match="standrad"):
        run.plot("standrad")
    assert not pyplot.get_fignums()
    write_run(tmp_path / "r2", "r", {"psnr": [1.0, 2.0]}, protocol="brushnet-paper")
    Run.open(tmp_path / "r2").plot("brushnet-paper")


def test_a_run_is_opened_and_summed_up_without_matplotlib(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", {"psnr": [1.0, 2.0]})
    code = f"import sys, brushbench; brushbench.Run.open({str(folder)!r}).summary()"
    code += "; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
