from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import brushbench
from brushbench import assets
from brushbench.errors import BrushbenchError, RunError, UnknownNameError, UsageError
from brushbench.export import export, pull, push
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.records import COLUMNS

from .reports import hostile_benchmark, tiny_runs


def leaderboard(runs: list[brushbench.Run]) -> str:
    return render(make_tables(sorted(runs, key=lambda run: run.config.name)), "json")


def test_a_pushed_and_pulled_copy_gives_the_same_leaderboard(tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    push(runs, str(tmp_path / "hub"))
    found = pull(str(tmp_path / "hub"), tmp_path / "copy")
    assert leaderboard(open_runs(found)) == leaderboard(runs)
    first = brushbench.Run.open(found[0])
    assert first.pictures() == runs[0].pictures()
    assert (found[0] / "pictures").is_dir()


def test_a_copy_without_pictures_still_opens(tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    out = export(runs, "dir", tmp_path / "copy", pictures=False)
    copies = open_runs([out])
    assert leaderboard(copies) == leaderboard(runs)
    assert not list(out.rglob("*.png"))


def test_the_hub_card_names_its_data_file_and_shows_the_tables(tmp_path: Path) -> None:
    from huggingface_hub import DatasetCard

    _, runs = tiny_runs(tmp_path)
    out = export(runs, "hub", tmp_path / "repository")
    card = DatasetCard.load(out / "README.md")
    assert card.data.configs == [{"config_name": "scores", "data_files": "scores.parquet"}]
    assert "noise" in card.text
    assert len(pd.read_parquet(out / "scores.parquet")) == sum(len(run.scores) for run in runs)


def test_datasets_reads_the_repository(tmp_path: Path) -> None:
    import datasets

    _, runs = tiny_runs(tmp_path)
    out = export(runs, "hub", tmp_path / "repository", pictures=False)
    table = datasets.load_dataset(
        "parquet", data_files=str(out / "scores.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert set(table["run"]) == {"noise", "telea", "oracle"}


def test_parquet_and_csv_hold_every_score(tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    parquet = pd.read_parquet(export(runs, "parquet", tmp_path / "scores.parquet"))
    written = pd.read_csv(export(runs, "csv", tmp_path / "scores.csv"), dtype={"sample": str})
    assert len(parquet) == len(written) == sum(len(run.scores) for run in runs)
    pd.testing.assert_series_equal(parquet["value"], written["value"])


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    _, runs = hostile_benchmark(tmp_path)
    text = export(runs, "csv", tmp_path / "scores.csv").read_text("utf-8")
    cells = pd.read_csv(tmp_path / "scores.csv", dtype=str).fillna("").to_numpy().ravel()
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert "\x1b" not in text


def test_what_is_taken_or_unknown_is_refused(tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(UsageError, match=r"not empty\. Name a new folder"):
        export(runs, "dir", tmp_path / "full")
    with pytest.raises(UnknownNameError, match="parquet"):
        export(runs, "parket", tmp_path / "x")
    with pytest.raises(RunError, match="holds no runs"):
        pull(str(tmp_path / "full"), tmp_path / "y")
    with pytest.raises(RunError, match="Two runs are named 'noise'"):
        export([runs[0], runs[0]], "dir", tmp_path / "z")


def test_a_link_in_a_pulled_folder_is_not_followed(tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    hub = export(runs, "hub", tmp_path / "hub", pictures=False)
    (tmp_path / "secret.json").write_text('{"secret": 1}')
    (hub / "runs" / "000" / "link.json").symlink_to(tmp_path / "secret.json")
    pull(str(hub), tmp_path / "copy")
    assert not (tmp_path / "copy" / "runs" / "000" / "link.json").exists()


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(BrushbenchError, match=r"owner/name could not be downloaded \(OSError: no route to host\)"):
        pull("owner/name", tmp_path / "copy")
    _, runs = tiny_runs(tmp_path)
    with pytest.raises(BrushbenchError, match="could not be written"):
        push(runs, "owner/name")


def test_the_published_schema_of_scores_names_every_column_and_fits_every_row(tmp_path: Path) -> None:
    schema = json.loads(assets.path("data/schemas/scores.json").read_text("utf-8"))
    assert tuple(schema["properties"]) == COLUMNS == tuple(schema["required"])
    _, runs = tiny_runs(tmp_path, 1)
    kinds = {"string": str, "integer": int, "number": float, "null": type(None)}
    for row in runs[0].scores.to_dict("records"):
        for name, value in row.items():
            wanted = schema["properties"][name]["type"]
            allowed = tuple(kinds[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted))
            assert isinstance(value, allowed), (name, value)
