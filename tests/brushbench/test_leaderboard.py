from __future__ import annotations

import gc
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from brushbench.errors import RunError, UnknownNameError, UsageError
from brushbench.leaderboard import Table, make_tables, open_runs, render
from brushbench.records import COLUMNS
from brushbench.store import RunFolder
from tests.brushbench.written_runs import write_run

KEEP = {"psnr": {"region": "keep", "unit": "dB"}, "mse": {"region": "keep", "display": ["x10³", 1e3]}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, 24.0], "mse": [0.01, 0.02, 0.03]}, headers=KEEP)
    write_run(tmp_path / "b", "b", {"psnr": [30.0, math.inf, 26.0], "mse": [0.03, 0.0, 0.06]}, headers=KEEP)
    truth = {"psnr": [math.inf] * 3, "mse": [0.0] * 3}
    write_run(tmp_path / "truth", "truth", truth, reference=True, headers=KEEP)
    return tmp_path


def test_cells_are_means_of_what_there_is_with_what_there_is_not(runs: Path) -> None:
    write_run(runs / "c", "c", {"psnr": [20.0, 22.0, None]}, headers=KEEP)
    (table,) = make_tables(open_runs([runs]))
    cells = {row.method: row.cells["psnr"] for row in table.rows}
    assert (cells["c"].mean, cells["c"].n, cells["c"].missing) == (21.0, 2, 1)
    assert (cells["b"].mean, cells["b"].n, cells["b"].infinite) == (28.0, 3, 1)
    assert math.isinf(cells["truth"].mean)


def test_reference_lines_come_last_and_are_never_ranked(runs: Path) -> None:
    (table,) = make_tables(open_runs([runs]))
    assert [row.method for row in table.rows] == ["a", "b", "truth"]
    text = render([table], "markdown")
    assert "**28.00 (1x∞)**" in text
    assert "**20.00**" in text  # MSE x10³, and lower is better
    assert "| _truth_ | ∞ | 0.00 |" in text


def test_the_heading_says_scale_and_direction(runs: Path) -> None:
    text = render(make_tables(open_runs([runs])), "markdown")
    assert "| method | psnr ↑ | mse x10³ ↓ | n | missing |" in text
    assert "toy, inside (standard)" in text


def test_a_column_of_an_older_run_keeps_the_scale_it_had(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"mse": [0.01, 0.02, 0.03]})
    assert "| a | **20.00** |" in render(make_tables(open_runs([tmp_path])), "markdown")


# Which rows may be compared -------------------------------------------------------------------------------------------


def test_runs_on_other_data_get_a_table_of_their_own_and_are_told_why(runs: Path) -> None:
    write_run(runs / "c", "c", {"psnr": [1.0, 2.0, 3.0]}, data="b")
    tables = make_tables(open_runs([runs]))
    assert [[row.method for row in table.rows] for table in tables] == [["a", "b", "truth"], ["c"]]
    for form in ("table", "markdown", "latex", "html"):
        assert "Runs on different samples get separate tables: toy, inside: a, b, truth on 3 samples" in render(
            tables, form
        )


def test_runs_on_other_samples_of_the_same_data_get_a_table_of_their_own(runs: Path) -> None:
    """The table's key has the samples' hash: a run on the first two, or on others, is no row of the three."""
    write_run(runs / "two", "two", {"psnr": [50.0, 60.0]}, headers=KEEP)
    write_run(runs / "others", "others", {"psnr": [50.0, 60.0, 70.0]}, ids=["0", "1", "9"], headers=KEEP)
    tables = make_tables(open_runs([runs]))
    assert [[row.method for row in t.rows] for t in tables] == [["a", "b", "truth"], ["others"], ["two"]]
    assert len({table.questions for table in tables}) == 3


def test_a_run_of_one_split_stands_beside_runs_of_all(tmp_path: Path) -> None:
    """They answer the same questions there, whatever else a run holds."""
    write_run(tmp_path / "a", "a", {"psnr": [1.0, 2.0]}, keys="inside and outside")
    write_run(tmp_path / "b", "b", {"psnr": [1.0, 3.0]}, keys="inside")
    (table,) = make_tables(open_runs([tmp_path]))
    assert [row.method for row in table.rows] == ["a", "b"]


def test_a_method_that_died_on_the_hard_half_does_not_win(tmp_path: Path) -> None:
    easy, hard = [30.0 + i for i in range(10)], [10.0 + i for i in range(10)]
    write_run(tmp_path / "worse", "worse", {"psnr": [*(e - 1 for e in easy), *[None] * 10]})
    write_run(tmp_path / "whole", "whole", {"psnr": [*easy, *hard]})
    tables = make_tables(open_runs([tmp_path]))
    assert {cell.rank for row in tables[0].rows for cell in row.cells.values()} == {""}
    text = render(tables, "markdown")
    assert "**" not in text
    assert "not ranked: 10 of 20 samples have no image or no score" in text


def test_methods_that_died_on_different_samples_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [None, *[5.0] * 9]})
    write_run(tmp_path / "b", "b", {"psnr": [*[4.0] * 9, None]})
    (table,) = make_tables(open_runs([tmp_path]))
    assert {cell.rank for row in table.rows for cell in row.cells.values()} == {""}


def test_a_whole_method_is_ranked_beside_others_though_one_died(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(20, 1, 20)
    for name, gain in (("a", 0.0), ("b", 3.0)):
        write_run(tmp_path / name, name, {"psnr": list(base + gain + rng.normal(0, 0.1, 20))})
    write_run(tmp_path / "dead", "dead", {"psnr": [99.0, *[None] * 19]})
    (table,) = make_tables(open_runs([tmp_path]))
    assert {row.method: row.cells["psnr"].rank for row in table.rows} == {"a": "second", "b": "best", "dead": ""}


def test_rows_that_the_interval_cannot_tell_apart_tie(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(20, 5, 40)
    for name, gain in (("a", 0.0), ("same", 0.01), ("better", 2.0), ("best", 2.02)):
        write_run(tmp_path / name, name, {"psnr": list(base + gain + rng.normal(0, 0.3, 40))})
    (table,) = make_tables(open_runs([tmp_path]))
    ranks = {row.method: row.cells["psnr"].rank for row in table.rows}
    assert ranks == {"a": "second", "same": "second", "better": "best", "best": "best"}
    assert "cannot be told apart" in render([table], "markdown")


def test_an_exact_background_is_never_bold_over_others(tmp_path: Path) -> None:
    scores = {"psnr": [30.0, 31.0, 32.0], "mse": [0.01, 0.01, 0.01], "clip_score": [50.0, 51.0, 52.0]}
    exact = {"psnr": [math.inf] * 3, "mse": [0.0] * 3, "clip_score": [60.0, 61.0, 62.0]}
    write_run(tmp_path / "a", "a", scores, headers=KEEP)
    write_run(tmp_path / "telea", "telea", exact, headers=KEEP, background="exact")
    (table,) = make_tables(open_runs([tmp_path]))
    ranks = {row.method: {m: c.rank for m, c in row.cells.items()} for row in table.rows}
    assert ranks["a"] == {"psnr": "best", "mse": "best", "clip_score": "second"}
    assert ranks["telea"] == {"psnr": "", "mse": "", "clip_score": "best"}


def test_an_unfinished_run_is_shown_and_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [1.0, 2.0]})
    half = write_run(tmp_path / "half", "half", {"psnr": [1.0, 2.0]})
    (half / "scores.parquet").unlink()
    text = render(make_tables(open_runs([tmp_path])), "markdown")
    assert r"| half \[1\] | – | 0 | 2 |" in text
    assert "not ranked: no scores yet; 2 of 2 images generated" in text


# Names ----------------------------------------------------------------------------------------------------------------


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    """The same method with two seeds could not be shown together."""
    write_run(tmp_path / "seed1" / "telea", "telea", {"psnr": [1.0, 2.0]}, seed=1)
    write_run(tmp_path / "seed2" / "telea", "telea", {"psnr": [1.0, 3.0]}, seed=2)
    write_run(tmp_path / "seed2" / "moved", "telea", {"psnr": [1.0, 4.0]}, seed=3)
    (table,) = make_tables(open_runs([tmp_path / "seed1", tmp_path / "seed2"]))
    assert [row.method for row in table.rows] == ["telea (seed1)", "telea (seed2/moved)", "telea (seed2)"]


def test_a_label_names_a_run_in_tables(tmp_path: Path) -> None:
    write_run(tmp_path / "x=1", "a", {"psnr": [1.0, 2.0]})
    write_run(tmp_path / "y", "a", {"psnr": [1.0, 2.0]})
    (table,) = make_tables(open_runs([f"{tmp_path / 'x=1'}=first", f"{tmp_path / 'y'}", tmp_path / "x=1"]))
    assert [row.method for row in table.rows] == ["first", "a"]
    with pytest.raises(UsageError, match="holds 2 runs"):
        open_runs([f"{tmp_path}=both"])
    with pytest.raises(UsageError, match="PATH=LABEL"):
        open_runs([f"{tmp_path / 'y'}="])


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    """`[/x]` crashed the table and `[red]` coloured it; a newline or a bar forged a row of Markdown."""
    hostile = "lama[red]|x[/x]\x1b[2J\n| forged | 9 |<b>"
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, 21.0]}, split="inside\x1b[31m|", benchmark="=cmd|x\r\n")
    tables = make_tables(open_runs([f"{tmp_path / 'a'}={hostile}"]))
    shown = {form: render(tables, form) for form in ("table", "markdown", "csv", "json", "latex", "html")}
    assert all("\x1b" not in text and "\r" not in text for text in shown.values())
    assert r"lama[red]|x[/x]\x1b[2J | forged | 9 |<b>" in render(tables, "table", width=200)
    assert r"| lama\[red\]\|x\[/x\]\\x1b\[2J \| forged \| 9 \|&lt;b&gt; | **21.00** | 3 | 0 |" in shown["markdown"]
    assert all(line.startswith("'=cmd|x ,") for line in shown["csv"].splitlines()[1:])
    assert "<b>" not in shown["html"]
    assert r"lama{[}red{]}\textbar{}x" in shown["latex"]


# Columns --------------------------------------------------------------------------------------------------------------


def test_one_column_holds_scores_of_the_same_hashes_only(tmp_path: Path) -> None:
    """Two aesthetic heads on the same CLIP shared a column."""
    one, other = ({"aesthetic": {"weights": {"sha256": "1"}, "head_sha256": head}} for head in "ab")
    write_run(tmp_path / "a", "a", {"aesthetic": [0.1, 0.2, 0.3]}, headers=one)
    write_run(tmp_path / "b", "b", {"aesthetic": [0.1, 0.2, 0.3]}, headers=other)
    with pytest.raises(RunError, match="different head_sha256 of aesthetic"):
        make_tables(open_runs([tmp_path]))
    write_run(tmp_path / "b", "b", {"aesthetic": [0.1, 0.2, 0.3]}, headers=one)
    moved = {"aesthetic": {"weights": {"sha256": "1", "file": "elsewhere.bin"}, "head_sha256": "a"}}
    write_run(tmp_path / "c", "c", {"aesthetic": [0.1, 0.2, 0.3]}, headers=moved)
    assert len(make_tables(open_runs([tmp_path]))[0].rows) == 3


def test_two_columns_with_the_same_weights_are_one(tmp_path: Path) -> None:
    weights = {"weights": {"sha256": "1", "tiny": True}}
    scores = {"hps_v2": [0.1, 0.2, 0.3], "hps_v2.1": [0.1, 0.2, 0.3]}
    write_run(tmp_path / "a", "a", scores, headers=dict.fromkeys(scores, weights))
    (table,) = make_tables(open_runs([tmp_path]))
    assert table.metrics == ("hps_v2",)
    text = render([table], "markdown")
    assert r"hps v2, hps v2.1† \[1\] x10² ↑" in text
    assert "the same weights and scores" in text


def test_columns_of_small_models_are_marked(tmp_path: Path) -> None:
    weights = {"lpips": {"weights": {"sha256": "1", "tiny": True}}}
    write_run(tmp_path / "a", "a", {"lpips": [0.1, 0.2, 0.3]}, headers=weights)
    tables = make_tables(open_runs([tmp_path]))
    for form in ("table", "markdown"):
        assert "lpips† x10³ ↓" in render(tables, form)
        assert "†: small models of this repository" in render(tables, form)
    assert json.loads(render(tables, "json"))[0]["tiny"] == ["lpips"]


def test_caveats_are_footnotes(tmp_path: Path) -> None:
    header = {"clip_score": {"caveat": "reads 77 tokens", "captions_cut": 2}}
    write_run(tmp_path / "a", "a", {"clip_score": [0.1, 0.2, 0.3]}, headers=header)
    text = render(make_tables(open_runs([tmp_path])), "table")
    assert "clip score[1][2] ↑" in text
    assert "[1] reads 77 tokens" in text
    assert "[2] captions longer than the model reads were cut: 2 samples" in text


def test_a_score_that_one_metric_does_not_give_is_no_missing_image(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, None], "mse": [0.01, None, None], "x": [None, None, None]})
    text = render(make_tables(open_runs([tmp_path])), "markdown")
    assert "| 21.00 | 10.00 (n 1) | – | 2 | 1 |" in text


def test_columns_are_chosen_and_rows_are_sorted(runs: Path) -> None:
    (table,) = make_tables(open_runs([runs]), metrics=["mse", "psnr"], sort="psnr")
    assert table.metrics == ("mse", "psnr")
    assert [row.method for row in table.rows] == ["b", "a", "truth"]
    (table,) = make_tables(open_runs([runs]), metrics=["mse"], sort="mse")
    assert [row.method for row in table.rows] == ["a", "b", "truth"]
    with pytest.raises(UnknownNameError, match="Did you mean 'psnr'"):
        make_tables(open_runs([runs]), metrics=["psn"])
    with pytest.raises(UnknownNameError, match="Known: mse"):
        make_tables(open_runs([runs]), metrics=["mse"], sort="psnr")


def test_a_split_is_chosen(runs: Path) -> None:
    write_run(runs / "o", "o", {"psnr": [1.0, 2.0]}, split="outside")
    assert [table.split for table in make_tables(open_runs([runs]), split="outside")] == ["outside"]
    assert make_tables(open_runs([runs]), split="brush") == []
    with pytest.raises(UnknownNameError, match="split 'insid'"):
        make_tables(open_runs([runs]), split="insid")


def test_rows_are_grouped_by_what_samples_carry(tmp_path: Path) -> None:
    meta = [{"category": "animal"}, {"category": "indoor"}, {"category": "animal"}, {}]
    write_run(tmp_path / "a", "a", {"psnr": [1.0, 2.0, 3.0, 4.0]}, meta=meta)
    tables = make_tables(open_runs([tmp_path]), by="category")
    assert [(t.group, t.samples, t.rows[0].cells["psnr"].mean) for t in tables] == [
        ("category: animal", 2, 2.0),
        ("category: indoor", 1, 2.0),
    ]
    assert "toy, inside, category: animal (standard)" in render(tables, "markdown")
    with pytest.raises(UnknownNameError, match="Did you mean 'category'"):
        make_tables(open_runs([tmp_path]), by="catgory")


# Formats --------------------------------------------------------------------------------------------------------------


def test_json_and_csv_carry_unscaled_values_and_counts(runs: Path) -> None:
    tables = make_tables(open_runs([runs]))
    cell = json.loads(render(tables, "json"))[0]["rows"][0]["cells"]["mse"]
    assert cell["mean"] == pytest.approx(0.02)
    assert cell["missing"] == 0
    lines = render(tables, "csv").splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].startswith("benchmark,split,prompt_variant,protocol,method,variant,reference,metric")


def test_json_holds_nothing_that_only_python_reads(runs: Path) -> None:
    """PSNR of an identical image is infinite, and three scores carry no interval: both were bare words."""

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    rows = json.loads(render(make_tables(open_runs([runs])), "json"), parse_constant=refuse)[0]["rows"]
    truth = rows[2]["cells"]["psnr"]
    assert (truth["mean"], truth["low"], truth["n"], truth["infinite"]) == (None, None, 3, 3)


def test_intervals_are_shown_where_eight_scores_carry_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "a", {"psnr": [float(i) for i in range(10)]})
    tables = make_tables(open_runs([tmp_path]))
    assert "4.50 [" in render(tables, "markdown", intervals=True)
    cell = tables[0].rows[0].cells["psnr"]
    assert f"4.50 ± {(cell.high - cell.low) / 2:.2f}" in render(tables, "markdown", spread="plus-minus")
    assert math.isnan(make_tables(open_runs([tmp_path]), intervals=False)[0].rows[0].cells["psnr"].low)


def test_shares_have_intervals_between_0_and_100_percent_and_measured_zeros_none_to_speak_of(tmp_path: Path) -> None:
    accuracy = {"attribute_accuracy": {"display": ["%", 100.0]}, "lpips": {"region": "keep"}}
    for name, share in (("a", [1.0] * 63 + [0.0]), ("b", [0.0] * 64)):
        write_run(tmp_path / name, name, {"attribute_accuracy": share, "lpips": [0.0] * 64}, headers=accuracy)
    text = render(make_tables(open_runs([tmp_path])), "markdown", intervals=True)
    assert "98.44 [91.67, 99.72]" in text
    assert "0.00 [0.00, 5.66]" in text  # none of 64
    assert "0.00 [0.00, 0.00]" in text  # a distance of 0, measured 64 times


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> list[Table]:
    """Seven methods and nine columns, two of them reference lines, with long names."""
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(3)
    metrics = (
        "image_reward",
        "hps_v2.1",
        "aesthetic",
        "psnr",
        "mse",
        "lpips",
        "ssim",
        "clip_score",
        "attribute_accuracy",
    )
    methods = [
        "brushnet",
        "brushnet,checkpoint=a-long-training-of-ours-ck-1000,scale=0.8",
        "latent-copy",
        "telea",
        "naïve 基線",
    ]
    for i, name in enumerate([*methods, "vae", "oracle"]):
        scores = {m: list(rng.normal(20 + i, 2, 16) / (1 if m == "psnr" else 25)) for m in metrics}
        scores["attribute_accuracy"] = [float(v > 0.8) for v in scores["ssim"]]
        if name == "telea":
            scores["psnr"] = [math.inf] * 16
        headers = {"image_reward": {"weights": {"sha256": "1", "tiny": True}}, "lpips": {"caveat": "a caveat of LPIPS"}}
        write_run(folder / str(i), name, scores, headers=headers, reference=i > 4)
    return make_tables(open_runs([folder]))


@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("width", [80, 120, 200])
def test_terminal_tables_fit_and_nothing_is_cut(
    width: int, intervals: bool, big: list[Table], golden_dir: Path
) -> None:
    """At 80 columns each column was one character wide. Golden: write them anew with BRUSHBENCH_REGENERATE=1."""
    from rich.cells import cell_len

    text = render(big, "table", intervals, width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "brushnet,checkpoint=a-long-training-of-ours-ck-1000,scale=0.8" in text.replace("\n", "")
    for row in big[0].rows:
        for column in big[0].columns:
            mean = row.cells[column.metric].mean
            assert math.isinf(mean) or f"{mean * column.factor:.2f}" in text
    golden = golden_dir / "tables" / f"{width}{'-intervals' * intervals}.txt"
    if os.environ.get("BRUSHBENCH_REGENERATE"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_latex_is_booktabs_and_compiles_or_parses(runs: Path, tmp_path: Path) -> None:
    import shutil
    import subprocess

    write_run(runs / "h", "h_y{input}$%&#^~{}", {"psnr": [1.0, 2.0, 3.0]}, headers=KEEP)
    text = render(make_tables(open_runs([runs])), "latex", spread="plus-minus")
    assert r"\toprule" in text
    assert r"\textbf{28.00 (1x$\infty$)}" in text
    assert r"\underline{22.00}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {4}  # method, two metrics, n, missing
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.count("$") - text.count(r"\$") == 2 * ((text.count("$") - text.count(r"\$")) // 2)
    if pdflatex := shutil.which("pdflatex"):
        head = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp,booktabs}\begin{document}"
        (tmp_path / "t.tex").write_text(head + text + r"\end{document}", "utf-8")
        done = subprocess.run([pdflatex, "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


def test_html_is_well_formed(runs: Path) -> None:
    from xml.etree import ElementTree

    text = render(make_tables(open_runs([runs])), "html")
    root = ElementTree.fromstring(f"<body>{text}</body>")  # noqa: S314 our own
    assert len(root.findall(".//tbody/tr")) == 3
    assert root.find(".//tbody/tr/td/strong") is not None


@pytest.mark.parametrize("is_on", [True, False])
def test_the_search_for_cycles_is_as_it_was_after_reading_even_of_a_damaged_run(runs: Path, is_on: bool) -> None:
    was_on = gc.isenabled()
    try:
        gc.enable() if is_on else gc.disable()
        make_tables(open_runs([runs]))
        assert gc.isenabled() == is_on
        (runs / "a" / "scores.parquet").write_bytes(b"damaged")
        with pytest.raises(RunError):
            make_tables(open_runs([runs]))
        assert gc.isenabled() == is_on
    finally:
        gc.enable() if was_on else gc.disable()


# What cannot be shown -------------------------------------------------------------------------------------------------


def test_a_stranger_s_folder_and_a_wrong_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        open_runs([tmp_path])
    with pytest.raises(UsageError, match="No format"):
        render([], "htm")


def test_an_unscored_run_has_the_columns_and_no_rows(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).scores().frame().columns) == list(COLUMNS)


def test_a_column_is_described_before_its_scores_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards may end at once: who shows the table meanwhile must not find scores that nothing describes."""
    seen = []
    write = RunFolder._write_scores
    monkeypatch.setattr(RunFolder, "_write_scores", lambda f, t: (seen.append(list(f.metric_headers())), write(f, t)))
    write_run(tmp_path / "a", "a", {"psnr": [20.0, 22.0, 21.0]})
    assert seen == [["psnr@standard"]]
