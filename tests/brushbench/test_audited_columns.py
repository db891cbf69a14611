"""What the committed audits found stands at the columns of tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from brushbench.leaderboard import audited, make_tables, open_runs, render
from brushbench.report import audits as audits_of_page
from tests.brushbench.written_runs import write_run

REPORTS = Path(__file__).parents[2] / "reports"
ONE, OTHER = ({"weights": {"sha256": digit, "tiny": True}} for digit in "12")


@pytest.fixture
def audits(tmp_path, monkeypatch):
    """One committed audit: of ``clip_score`` with weights 1, of the split inside."""
    described = {"metric": "clip_score", "protocol": "standard", "weights": {"sha256": "1", "file": "x", "tiny": True}}

    def commit(**verdicts):
        findings = [
            {"metric": "clip_score@standard", "damage": name.replace("_", " "), "verdict": verdict, "asked": asked}
            for name, (verdict, asked) in verdicts.items()
        ]
        audit = {
            "benchmark": "toy", "splits": ["inside"], "images": 24, "findings": findings,
            "columns": {"clip_score@standard": {"description": described}},
        }  # fmt: skip
        folder = tmp_path / "reports" / "audits"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "toy.json").write_text(json.dumps(audit))
        monkeypatch.setattr(audited.assets, "path", lambda name: tmp_path / name)
        audited._committed.cache_clear()

    yield commit
    audited._committed.cache_clear()


def tables(folder, weights=ONE, **options):
    scores = {"clip_score": [50.0, 51.0, 52.0], "psnr": [1.0, 2.0, 3.0]}
    write_run(folder / str(len(list(folder.iterdir()))), "a", scores, headers={"clip_score": weights}, **options)
    return open_runs([folder])


def test_a_small_judge_that_inverted_an_order_is_not_in_the_default_table(tmp_path, audits):
    """Tiny ``clip_score``, ``clip_score_crop`` and ``aesthetic`` stood there with damaged images above whole ones."""
    audits(blur_1=("inverted", True), grey_hole=("detects", True))
    (tmp_path / "runs").mkdir()
    runs = tables(tmp_path / "runs")
    [table] = make_tables(runs)
    assert table.metrics == ("psnr",)
    text = render([table], "markdown")
    assert "Not shown: clip score: in the audit of toy" in text
    assert "--metrics clip_score" in text
    [named] = make_tables(runs, metrics=["clip_score", "psnr"])  # what the sentence says to do
    assert named.metrics == ("clip_score", "psnr")
    assert "audit of toy (inside, 24 damaged images): inverted to blur 1" in render([named], "markdown")
    [sorted_by] = make_tables(runs, sort="clip_score")
    assert "clip_score" in sorted_by.metrics


def test_what_a_metric_is_not_there_to_see_is_no_fault(tmp_path, audits):
    audits(black_image=("inverted", False), hole_moved=("blind", False))
    (tmp_path / "runs").mkdir()
    [table] = make_tables(tables(tmp_path / "runs"))
    assert table.metrics == ("psnr", "clip_score")
    assert "audit of" not in render([table], "markdown")


def test_a_blind_column_is_marked_and_a_long_list_is_cut(tmp_path, audits):
    audits(**{f"blur_{i}": ("blind", True) for i in range(6)})
    (tmp_path / "runs").mkdir()
    [table] = make_tables(tables(tmp_path / "runs"))
    assert table.metrics == ("psnr", "clip_score")
    assert "blind to blur 0, blur 1, blur 2, blur 3 and 2 more" in render([table], "table", width=200)


def test_other_weights_another_split_and_another_benchmark_are_not_judged(tmp_path, audits):
    audits(blur_1=("inverted", True))
    for number, options in enumerate(({"weights": OTHER}, {"benchmark": "photos"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        [table] = make_tables(tables(folder, **options))
        assert "clip_score" in table.metrics
        assert "audit of" not in render([table], "markdown")
    folder = tmp_path / "outside"
    folder.mkdir()
    [table] = make_tables(tables(folder, split="outside"), metrics=["clip_score"])
    assert "audit of" not in render([table], "markdown")  # the footnote speaks of its own split


def test_a_table_of_nothing_but_such_a_column_shows_it(tmp_path, audits):
    audits(blur_1=("inverted", True))
    write_run(tmp_path / "r", "a", {"clip_score": [1.0, 2.0]}, headers={"clip_score": ONE})
    [table] = make_tables(open_runs([tmp_path / "r"]))
    assert table.metrics == ("clip_score",)


def test_the_three_known_faults_are_in_the_committed_audits():
    def verdicts(file, metric):
        audit = json.loads((REPORTS / "audits" / file).read_text("utf-8"))
        return {f["damage"]: f["verdict"] for f in audit["findings"] if f["metric"] == f"{metric}@standard"}

    assert "inverted" in verdicts("shapes-inside.json", "clip_score_crop").values()
    grey = "grey hole, against blended content"
    assert verdicts("shapes-outside.json", "aesthetic")[grey] == "inverted"
    smeared = "smeared hole, against blended content"
    for split in ("outside", "brush"):
        assert verdicts(f"photos-{split}.json", "boundary")[smeared] == "blind"
        assert verdicts(f"photos-{split}.json", "seam_difference")[smeared] == "detects"


def test_committed_audits_are_read_without_torch():
    code = (
        "import sys; from brushbench.leaderboard.audited import _committed; found = _committed();"
        "assert ('shapes', 'clip_score@standard') in found; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_shows_the_columns_that_were_computed_as_audited_and_colours_them(tmp_path, monkeypatch):
    described = {"metric": "clip_score", "protocol": "standard", "weights": {"sha256": "1", "file": "x", "tiny": True}}
    findings = [
        {"metric": "clip_score@standard", "damage": f"blur {i}", "n": 8, "worse": worse, "better": better,
         "verdict": verdict, "asked": asked}
        for i, (worse, better, verdict, asked) in enumerate(
            [(8, 0, "detects", True), (4, 4, "blind", True), (0, 8, "inverted", True), (0, 8, "inverted", False)]
        )
    ]  # fmt: skip
    audit = {
        "benchmark": "toy", "splits": ["inside"], "images": 8, "findings": findings,
        "columns": {"clip_score@standard": {"description": described}, "psnr@standard": {"description": {"other": 1}}},
    }  # fmt: skip
    monkeypatch.setattr(audits_of_page, "committed_audits", lambda: [audit])
    for folder, weights in (("as audited", ONE), ("another model", OTHER)):
        (tmp_path / folder).mkdir()
        shown = audits_of_page.heat_maps(tables(tmp_path / folder, weights), {"inside"})
        assert len(shown) == (weights is ONE)
        if shown:
            assert shown[0].columns == ("clip score",)
            cells = [cells[0] for _, cells in shown[0].rows]
            assert [cell.text for cell in cells] == ["8/8", "4/8 blind", "0/8 inverted", "(0/8 inverted)"]
            assert [cell.colour for cell in cells] == ["#7db8e0", "#f7f7f7", "#f5a25d", "#dddddd"]
            assert not audits_of_page.heat_maps(tables(tmp_path / folder, weights), {"outside"})
