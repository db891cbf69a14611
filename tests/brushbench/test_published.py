from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from brushbench import published
from brushbench.errors import DataError
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.leaderboard.beside import with_published
from tests.brushbench.written_runs import write_run

RECORDS = json.loads((Path(__file__).parents[2] / "reports" / "published.json").read_text("utf-8"))
ORDER = ("image_reward", "hps", "aesthetic", "psnr", "mse", "lpips", "clip")  # the columns of the table, left to right


@pytest.mark.parametrize("form", ["markdown", "latex", "html", "csv", "table"])
def test_the_article_s_two_tables_are_printed_digit_for_digit(form: str) -> None:
    text = render(with_published([]), form, width=200)
    article = [r for r in RECORDS if r["table"].startswith("arXiv 2403.06976 Table")]
    assert len(article) == 24
    if form == "csv":
        assert len(text.splitlines()) == 1 + 24 * 7
        return
    lines = [re.sub(r"<[^>]+>", " ", line) for line in text.splitlines()]
    for record in article:
        digits = [f"{record['metrics'][name]:.2f}" for name in ORDER]
        found = [line for line in lines if re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.])", line) == digits]
        assert found, (record["method"], digits)


def test_swapped_columns_are_corrected_and_marked() -> None:
    text = render(with_published([]), "markdown")
    assert "MSE and LPIPS stand corrected here; LPIPS and MSE columns are swapped in this table" in text
    bld = next(r for r in RECORDS if r["method"].startswith("Blended Latent"))
    assert (bld["metrics"]["lpips"], bld["as_printed"]["mse_x1e3"]) == (49.26, 49.26)


def test_published_rows_stand_beside_own_ones_and_are_never_ranked(tmp_path: Path) -> None:
    scores = {"psnr": [20.0 + i for i in range(10)], "lpips": [0.9] * 10}
    write_run(tmp_path / "mine", "mine", scores, benchmark="brushbench", protocol="brushnet-paper")
    tables = with_published(make_tables(open_runs([tmp_path]), "brushnet-paper"))
    assert [(t.benchmark, t.split, len(t.rows)) for t in tables] == [
        ("brushbench", "inside", 9), ("brushbench", "outside", 8), ("editbench", "brush", 8),
    ]  # fmt: skip
    ranks = {row.method: row.cells["psnr"].rank for row in tables[0].rows}
    assert ranks.pop("mine") == "best"
    assert set(ranks.values()) == {""}
    text = render(tables, "markdown")
    assert "own ones over 10 samples" in text
    assert "SD v1.5" in text


def test_chosen_columns_are_chosen_of_published_rows_too() -> None:
    assert with_published([], ["psnr", "mse"])[0].metrics == ("psnr", "mse")
    assert [t.split for t in with_published([], split="outside,brush")] == ["outside", "brush"]


def test_every_row_is_listed() -> None:
    header, lines = published.listing()
    assert len(lines) == len(RECORDS) == 142
    assert all(len(line) == len(header) for line in lines)
    assert any("lpips 49.26" in line[4] for line in lines)


def test_a_damaged_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "published.json").write_text('[{"benchmark": "BrushBench"}]')
    monkeypatch.setattr(published.assets, "path", lambda name: tmp_path / "published.json")
    with pytest.raises(DataError, match="is damaged"):
        published.published_rows.__wrapped__()
