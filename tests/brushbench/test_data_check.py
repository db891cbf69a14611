"""``data check``: everything a benchmark holds, every bad record with its reason, and what is left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from brushbench import load_benchmark
from brushbench.benchmarks.survey import survey
from tests.brushbench.toys import write_benchmark
from tests.hostile.corpus import command_line, good_folder, save


def test_every_bad_record_is_listed_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = good_folder(tmp_path / "d")
    for i in range(12):
        save(root / "images" / f"b{i:02d}.png", np.zeros((24, 32, 3), dtype=np.uint8))
    (root / "masks" / "bad.png").write_bytes(b"no picture")
    outcome = command_line(["data", "check", str(root)], monkeypatch)
    assert outcome.exit == 5
    listed = [line for line in outcome.output.splitlines() if line.startswith("bad: ")]
    assert [line.split(":")[1].strip() for line in listed] == [*(f"b{i:02d}" for i in range(12)), "bad"]
    assert "bad: b03: the mask " in outcome.output
    assert listed[-1].endswith("masks/bad.png cannot be decoded (it is of no such format)")
    assert "bad records: 13" in outcome.output


def test_every_bad_record_is_listed_though_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = good_folder(tmp_path / "d")
    for name in ("bad", "good"):
        (root / "images" / f"{name}.png").write_bytes(b"")
    outcome = command_line(["data", "check", str(root)], monkeypatch)
    assert outcome.exit == 5
    assert outcome.output.count("\nbad: ") + outcome.output.startswith("bad: ") == 2
    assert "error: Benchmark 'folder' has no usable record (2 skipped: bad: the picture " in outcome.output


def test_sizes_shares_of_holes_and_missing_captions_are_said(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "d", pictures=3)
    mapping = json.loads((root / "mapping_file.json").read_text())
    mapping["000000001"]["caption"] = ""
    (root / "mapping_file.json").write_text(json.dumps(mapping))
    lines, bad = survey(load_benchmark(root, "inside,outside"))
    assert bad == 0
    assert "size (height x width): 48 x 40 (3)" in lines
    shares = [(20 + i) * 20 / (48 * 40) for i in range(3)]
    assert f"hole, inside: {shares[1]:.1%} of the image on average, {shares[0]:.1%} to {shares[2]:.1%}" in lines
    assert "no caption: 1 (000000001); only methods and metrics that read none can use them" in lines
    assert any("the published BrushBench is 512 x 512" in line for line in lines)


def test_photographs_of_packages_that_are_not_installed_are_no_bad_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("sklearn", "matplotlib"):
        monkeypatch.setitem(sys.modules, package, None)
    outcome = command_line(["data", "check", "photos"], monkeypatch)
    assert outcome.exit == 0
    assert "images: 8\n" in outcome.output
    assert outcome.output.count("pip install 'brushbench[photos]'") == 1
    assert "bad records: 0" in outcome.output
    assert "Warning" not in outcome.output
