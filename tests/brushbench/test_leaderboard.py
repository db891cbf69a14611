from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from brushbench.errors import RunError, UsageError
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.store import COLUMNS, RunFolder, ScoreRow


def write_run(
    folder: Path,
    name: str,
    scores: dict[str, list[float | None]],
    *,
    data: str = "a",
    reference: bool = False,
    weights: dict[str, object] | None = None,
) -> None:
    """Write a run's folder by hand: one split, one variant, one row a score."""
    run = RunFolder(folder)
    capabilities = {"needs_reference": reference, "background": "free"}
    config = {"name": name, "model": name, "benchmark": "toy"}
    plan = {"batches": 1, "pictures": 3, "keys_sha256": "k"}
    run.begin({"schema": 1, "config": config, "benchmark": {"name": "toy", "sha256": data}, "plan": plan,
               "capabilities": capabilities})  # fmt: skip
    for metric, values in scores.items():
        rows = [
            ScoreRow(str(i), "inside", "caption", 0, "raw", metric, "standard", v, "" if v is not None else "failed: x")
            for i, v in enumerate(values)
        ]
        run.commit_scores(f"{metric}@standard-x", 0, rows)
        header = {"higher_is_better": metric == "psnr"} | ({"weights": weights} if weights else {})
        run.merge(f"{metric}@standard-x", f"{metric}@standard", lambda _, header=header: header)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, None], "mse": [0.01, 0.02, None]})
    write_run(tmp_path / "b", "b", {"psnr": [30.0, math.inf, 26.0], "mse": [0.03, 0.0, 0.03]})
    write_run(tmp_path / "truth", "truth", {"psnr": [math.inf] * 3, "mse": [0.0] * 3}, reference=True)
    return tmp_path


def test_cells_are_means_of_what_there_is_with_what_there_is_not(runs: Path) -> None:
    (table,) = make_tables(open_runs([runs]))
    cells = {row.method: row.cells["psnr"] for row in table.rows}
    assert (cells["a"].mean, cells["a"].n, cells["a"].missing) == (21.0, 2, 1)
    assert (cells["b"].mean, cells["b"].n, cells["b"].infinite) == (28.0, 3, 1)
    assert math.isinf(cells["truth"].mean)


def test_reference_lines_come_last_and_are_never_ranked(runs: Path) -> None:
    (table,) = make_tables(open_runs([runs]))
    assert [row.method for row in table.rows] == ["a", "b", "truth"]
    assert table.best("psnr") == 28.0
    assert table.best("mse") == pytest.approx(0.015)
    text = render([table], "markdown")
    assert "**28.00 (1x∞)**" in text
    assert "**15.00**" in text  # MSE x10³, and lower is better
    assert "| _truth_ | ∞ | 0.00 |" in text


def test_the_heading_says_scale_and_direction(runs: Path) -> None:
    text = render(make_tables(open_runs([runs])), "markdown")
    assert "| method | psnr ↑ | mse x10³ ↓ | n | missing |" in text
    assert "toy, inside (standard)" in text


def test_runs_on_other_data_get_a_table_of_their_own(runs: Path) -> None:
    write_run(runs / "c", "c", {"psnr": [1.0, 2.0, 3.0]}, data="b")
    tables = make_tables(open_runs([runs]))
    assert [[row.method for row in table.rows] for table in tables] == [["a", "b", "truth"], ["c"]]


def test_two_runs_of_one_name_are_refused(runs: Path) -> None:
    write_run(runs / "again", "a", {"psnr": [1.0, 2.0, 3.0]})
    with pytest.raises(RunError, match="named 'a'"):
        make_tables(open_runs([runs]))


def test_json_and_csv_carry_unscaled_values_and_counts(runs: Path) -> None:
    tables = make_tables(open_runs([runs]))
    cell = json.loads(render(tables, "json"))[0]["rows"][0]["cells"]["mse"]
    assert cell["mean"] == pytest.approx(0.015)
    assert cell["missing"] == 1
    lines = render(tables, "csv").splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].startswith("benchmark,split,prompt_variant,protocol,method,variant,reference,metric")


def test_json_holds_nothing_that_only_python_reads(runs: Path) -> None:
    """PSNR of an identical picture is infinite, and three scores carry no interval: both were bare words."""

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    rows = json.loads(render(make_tables(open_runs([runs])), "json"), parse_constant=refuse)[0]["rows"]
    truth = rows[2]["cells"]["psnr"]
    assert (truth["mean"], truth["low"], truth["n"], truth["infinite"]) == (None, None, 3, 3)


def test_names_are_shown_to_the_letter(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lama[red]|x", {"psnr": [20.0, 22.0, 21.0]})
    tables = make_tables(open_runs([tmp_path]))
    assert "lama[red]|x" in render(tables, "table")
    assert "| lama[red]\\|x | **21.00** | 3 | 0 |" in render(tables, "markdown")


def test_intervals_are_shown_where_eight_scores_carry_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [float(i) for i in range(10)]})
    assert "4.50 [" in render(make_tables(open_runs([tmp_path])), "markdown", intervals=True)


def test_a_stranger_s_folder_and_a_wrong_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        open_runs([tmp_path])
    with pytest.raises(UsageError, match="No format"):
        render([], "html")


def test_an_unscored_run_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).scores().columns) == list(COLUMNS)


def test_a_column_is_described_before_its_scores_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards may end at once: who shows the table meanwhile must not find scores that nothing describes."""
    seen = []
    write = RunFolder._write_scores
    monkeypatch.setattr(RunFolder, "_write_scores", lambda f, t: (seen.append(f.metric_headers()), write(f, t)))
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, 21.0]})
    assert seen == [{"psnr@standard": {"higher_is_better": True}}]


def test_one_column_holds_scores_of_the_same_weights_only(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"lpips": [0.1, 0.2, 0.3]}, weights={"sha256": "1", "tiny": True})
    write_run(tmp_path / "b", "b", {"lpips": [0.1, 0.2, 0.3]}, weights={"sha256": "2", "tiny": False})
    with pytest.raises(RunError, match="different weights of lpips"):
        make_tables(open_runs([tmp_path]))


def test_columns_of_small_models_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"lpips": [0.1, 0.2, 0.3]}, weights={"sha256": "1", "tiny": True})
    tables = make_tables(open_runs([tmp_path]))
    for form in ("table", "markdown"):
        assert "lpips† x10³ ↓" in render(tables, form)
        assert "†: small models of this repository" in render(tables, form)
    assert json.loads(render(tables, "json"))[0]["tiny"] == ["lpips"]


def test_a_score_that_one_metric_does_not_give_is_no_missing_picture(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, None], "mse": [0.01, None, None], "ssim": [None, None, None]})
    text = render(make_tables(open_runs([tmp_path])), "markdown")
    assert "| a | **21.00** | **10.00 (n 1)** | – | 2 | 1 |" in text
