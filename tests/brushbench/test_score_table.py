"""Scores read from a run's file: what comes back, and what is noticed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brushbench import store
from brushbench.errors import RunError
from brushbench.records import KEY, PictureRow, ScoreRow
from brushbench.runs import STALE, Run
from brushbench.score_table import ScoreTable, _coded, read_scores, rows_to_table, table_bytes
from brushbench.store import RunFolder
from tests.brushbench.written_runs import write_run

ROWS = [
    ScoreRow("b", "inside", "caption", 1, "raw", "psnr", "standard", 20.5, "", "ab"),
    ScoreRow("a", "outside", "caption", 0, "blended", "psnr", "standard", None, "failed: ü", None),
    ScoreRow("a", "inside", "caption", 0, "raw", "psnr", "standard", math.inf, "", "cd"),
]
MORE = [ScoreRow("a", "inside", "caption", 0, "raw", "mse", "standard", 0.25, "", "cd")]


def written(tmp_path: Path, rows: list[ScoreRow]) -> Path:
    (tmp_path / "scores.parquet").write_bytes(table_bytes(rows_to_table(rows)))
    return tmp_path / "scores.parquet"


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    table = read_scores(written(tmp_path, [*ROWS, *MORE]))
    pd.testing.assert_frame_equal(table.frame(), rows_to_table([*ROWS, *MORE]))
    assert table.frame()["picture_sha256"].tolist() == ["ab", None, "cd", "cd"]
    assert len(read_scores(tmp_path / "nothing.parquet").frame()) == 0


def test_the_hash_of_a_column_is_the_one_that_runs_have_recorded(tmp_path: Path) -> None:
    """Another hash would hide every column that was scored before."""
    recorded = "308946f3992a74bf1886eb0f68830b01698e92c131a687e9a35d84092ee34dd7"
    table = read_scores(written(tmp_path, [ROWS[2], *MORE, ROWS[0], ROWS[1]]))
    assert table.sha256()["psnr", "standard"] == recorded
    assert set(table.sha256()) == {("psnr", "standard"), ("mse", "standard")}


@pytest.mark.parametrize("name", KEY)
def test_two_rows_are_one_score_only_where_every_key_is_equal(name: str, tmp_path: Path) -> None:
    other = {**vars(ROWS[0]), name: 7 if name == "repeat" else "x", "value": 3.0}
    assert len(read_scores(written(tmp_path, [ROWS[0], ScoreRow(**other)]))) == 2
    other[name] = vars(ROWS[0])[name]
    with pytest.raises(RunError, match="holds a score twice"):
        read_scores(written(tmp_path, [ROWS[0], ScoreRow(**other)]))


def test_a_dictionary_that_lists_a_text_twice_hides_no_double_score(tmp_path: Path) -> None:
    codes, distinct = _coded(pa.chunked_array([pa.DictionaryArray.from_arrays([0, 1, 2, None], ["x", "y", "x"])]))
    assert [distinct[code] for code in codes] == ["x", "y", "x", None]
    assert codes[0] == codes[2]
    buffer = io.BytesIO()  # texts in parts of their own, each with its dictionary
    pq.write_table(pa.Table.from_pandas(rows_to_table([*ROWS, *ROWS]), preserve_index=False), buffer, row_group_size=2)
    (tmp_path / "parts.parquet").write_bytes(buffer.getvalue())
    with pytest.raises(RunError, match="holds a score twice"):
        read_scores(tmp_path / "parts.parquet")


def test_parts_and_held_come_in_the_order_of_the_rows() -> None:
    table = ScoreTable.of(rows_to_table([*ROWS, *MORE]))
    assert table.held("sample") == ["b", "a"]
    parts = {names: rows.tolist() for names, rows in table.parts("split", "metric")}
    assert list(parts) == [("inside", "psnr"), ("outside", "psnr"), ("inside", "mse")]
    assert list(parts.values()) == [[0, 2], [1], [3]]
    assert list(table.take(table.is_in("metric", "lpips")).parts("split")) == []


def test_a_score_counts_where_it_is_of_the_picture_that_is_there() -> None:
    pictures = {
        ("b", "inside", 1): PictureRow("b", "inside", 1, 0, "ok", sha256="ab"),
        ("a", "inside", 0): PictureRow("a", "inside", 0, 0, "ok", sha256="other"),
        ("a", "outside", 0): PictureRow("a", "outside", 0, 0, "failed"),
    }
    table = ScoreTable.of(rows_to_table([*ROWS, *MORE]))
    assert table.is_current(pictures).tolist() == [True, True, False, False]
    del pictures["a", "outside", 0]
    assert table.is_current(pictures).tolist() == [True, False, False, False]


def test_a_batch_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    """What became of the pictures is kept between two calls, and scores count by it."""
    folder = RunFolder(write_run(tmp_path / "run", "run", {"psnr": [20.0, 21.0]}))
    run, file = Run.open(folder.path), folder.path / "batches" / "000000.json"
    assert run.scores["reason"].tolist() == ["", ""]
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{**rows[0], "sample": "x"}, rows[1]]))
    assert [row.sample for row in run.picture_rows()] == ["x", "1"]
    assert run.scores["reason"].tolist() == [STALE, ""]
    assert np.isnan(run.scores["value"]).tolist() == [True, False]
    file.unlink()
    assert run.picture_rows() == []


def test_a_batch_that_goes_while_it_is_read_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes a batch away to make it anew, between the listing and the reading."""
    folder = RunFolder(write_run(tmp_path / "run", "run", {"psnr": [20.0, 21.0]}))
    read = store.read_all_rows

    def late(files: list[str]) -> list[list[PictureRow]]:
        for file in files:
            Path(file).unlink()
        return read(files)

    monkeypatch.setattr(store, "read_all_rows", late)
    assert folder.picture_rows() == {}


def test_a_snapshot_keeps_its_scores(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "run", "run", {"psnr": [20.0, 21.0]}))
    kept = run.snapshot()
    (run.path / "scores.parquet").unlink()
    assert (len(run.scores), len(kept.scores)) == (0, 2)
    frame = kept.scores
    frame.loc[0, "value"] = 0.0  # it is the caller's own
    assert kept.scores["value"].tolist() == [20.0, 21.0]
