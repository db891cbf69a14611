"""run.json: typed and versioned, the same run only where everything that decides an image is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import brushbench
from brushbench import assets
from brushbench.config import RunHeader, read_header
from brushbench.errors import ConfigMismatchError, RunError, UsageError
from brushbench.evaluation import Scoring, rescore
from brushbench.evaluation.provenance import code_of, software
from brushbench.pictures import read_picture
from brushbench.records import pixel_sha256
from tests.brushbench import toys

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).with_name("old_run")  # written by commit 41bba29, schema 1


def command(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "brushbench", *map(str, args)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench", pictures=2)


def evaluate(data: object, out: Path, method: object = None, **settings: object) -> brushbench.Run:
    settings = {"metrics": "psnr@standard", "variants": "raw", **settings}
    return brushbench.evaluate(method or toys.Noise(), data, out=out, **settings)


# An old run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A run of schema 1, as if it had been made with the libraries that are installed here."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    for file in folder.glob("*/run.json"):
        header = json.loads(file.read_text())
        header["software"] = software()
        file.write_text(json.dumps(header))
    return folder


def test_an_old_run_shows_the_table_that_it_showed(old: Path) -> None:
    done = command("leaderboard", old, "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert "shapes,inside,caption,standard,brushnet,raw,False,attribute_accuracy" in done.stdout
    assert brushbench.Run.open(old / "telea").pictures()["ok"] == 6


def pixels(runs: Path) -> dict[Path, str]:
    """SHA-256 of every image's pixels: how a PNG is compressed has changed since."""
    return {file: pixel_sha256(read_picture(file)) for file in runs.glob("*/pictures/*/*/*.png")}


def test_an_old_run_resumes_and_is_left_as_it_is(old: Path) -> None:
    before = (old / "telea" / "scores.parquet").read_bytes()
    pictures = pixels(old)
    shutil.rmtree(old / "telea" / "pictures" / "brush")
    (old / "telea" / "batches" / "000002.json").unlink()
    more = ("--bench", "shapes", "--limit", "2", "--metrics", "psnr", "--out", old)
    done = command("eval", "-m", "brushnet", "-m", "telea", *more)
    assert done.returncode == 0, done.stderr
    assert pixels(old) == pictures
    assert (old / "telea" / "scores.parquet").read_bytes() == before


def test_an_old_run_is_scored_again_and_gets_the_same_scores(old: Path) -> None:
    before = brushbench.Run.open(old / "telea").scores
    run = rescore(old / "telea", scoring=Scoring("psnr"))
    columns = [*brushbench.records.KEY, "value"]
    assert run.scores[columns].equals(before[columns])


# Identity -------------------------------------------------------------------------------------------------------------


def test_each_repeat_has_its_own_seed_so_that_repeats_are_not_copies(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r", repeats=2)
    batches = [json.loads(file.read_text()) for file in sorted((run.path / "batches").glob("*.json"))]
    rows = [row for batch in batches for row in batch]
    seeds = {(row["sample"], row["repeat"]): row["seed"] for row in rows}
    assert len(set(seeds.values())) == 4
    pictures = {(row["sample"], row["split"], row["repeat"]): row["sha256"] for row in rows}
    for (sample, split, repeat), sha256 in pictures.items():
        assert sha256 != pictures[sample, split, 1 - repeat]


def test_changed_data_of_the_same_names_is_another_run(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    other = tmp_path / "BrushBench"
    shutil.copytree(data, other)
    picture = next((other / "images").glob("*.png"))
    from PIL import Image

    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)
    with pytest.raises(ConfigMismatchError, match=r"benchmark\.sha256: "):
        evaluate(other, tmp_path / "r")


def test_the_same_data_in_another_folder_is_the_same_run(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    shutil.copytree(data, tmp_path / "elsewhere" / "BrushBench")
    evaluate(tmp_path / "elsewhere" / "BrushBench", tmp_path / "r")


def test_a_method_that_describes_itself_otherwise_is_another_run(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    with pytest.raises(ConfigMismatchError, match=r'method\.black: "" -> "000000001"'):
        evaluate(data, tmp_path / "r", toys.Noise(black="000000001"))


def test_a_method_with_other_capabilities_is_another_run(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    method = toys.Noise()
    method.capabilities = replace(method.capabilities, multiple=32)
    with pytest.raises(ConfigMismatchError, match=r"capabilities\.multiple: 1 -> 32"):
        evaluate(data, tmp_path / "r", method)


def test_differences_are_shown_in_at_most_five_lines(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    file = tmp_path / "r" / "run.json"
    header = json.loads(file.read_text())
    header["software"] = {f"library-{i}": "1" for i in range(40)}
    header["method"]["text"] = "x" * 10_000
    file.write_text(json.dumps(header))
    with pytest.raises(ConfigMismatchError) as caught:
        evaluate(data, tmp_path / "r")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert "more" in lines[5]
    assert max(map(len, lines)) < 400


def test_python_s_patch_version_credits_and_the_asked_device_do_not_refuse(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    file = tmp_path / "r" / "run.json"
    header = json.loads(file.read_text())
    header["software"]["python"] = "3.11.99" if sys.version_info[:2] == (3, 11) else header["software"]["python"]
    header["benchmark"]["licence"] = "another line of credit"
    file.write_text(json.dumps(header))
    evaluate(data, tmp_path / "r", device="cpu")
    header["software"]["python"] = "2.7.18"
    file.write_text(json.dumps(header))
    with pytest.raises(ConfigMismatchError, match=r'software\.python: "2\.7" -> '):
        evaluate(data, tmp_path / "r")


def test_a_number_that_is_nan_in_a_description_is_the_same_number_again(data: Path, tmp_path: Path) -> None:
    method = toys.Noise()
    method.describe = lambda: {"method": "noise", "scale": float("nan")}
    evaluate(data, tmp_path / "r", method)
    evaluate(data, tmp_path / "r", method)


# Plug-in code ---------------------------------------------------------------------------------------------------------

PLUGIN = """
from brushbench.types import Capabilities

class Mine:
    capabilities = Capabilities(text=False, batch=4)

    def __init__(self, weights: str = "") -> None:
        self.weights = weights

    def describe(self):
        return {"method": "mine"}

    def inpaint(self, requests):
        import helper_of_mine
        return [helper_of_mine.paint(r) for r in requests]
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "helper_of_mine.py").write_text("import deeper_of_mine\n\ndef paint(r):\n    return r.image\n")
    (folder / "deeper_of_mine.py").write_text("x = 1\n")
    (folder / "unrelated.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("helper_of_mine", "deeper_of_mine"):
        sys.modules.pop(name, None)
    return folder


@pytest.mark.parametrize("file", ["mine.py", "helper_of_mine.py", "deeper_of_mine.py"])
def test_changed_plug_in_code_is_not_shown_the_old_scores(data: Path, tmp_path: Path, plugin: Path, file: str) -> None:
    model = f"{plugin / 'mine.py'}:Mine"
    evaluate(data, tmp_path / "r", model, name="mine")
    evaluate(data, tmp_path / "r", model, name="mine")
    (plugin / "unrelated.py").write_text("x = 2\n")
    evaluate(data, tmp_path / "r", model, name="mine")
    with (plugin / file).open("a") as written:
        written.write("# mended\n")
    with pytest.raises(ConfigMismatchError, match=rf'code\.{file}: "'):
        evaluate(data, tmp_path / "r", model, name="mine")


def test_other_weights_at_the_path_of_an_option_are_another_run(data: Path, tmp_path: Path, plugin: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_bytes(b"1")
    model = f"{plugin / 'mine.py'}:Mine,weights={tmp_path / 'weights'}"
    evaluate(data, tmp_path / "r", model, name="mine")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "a.bin").write_bytes(b"1")
    moved = f"{plugin / 'mine.py'}:Mine,weights={tmp_path / 'moved'}"
    evaluate(data, tmp_path / "r", moved, name="mine")
    (tmp_path / "weights" / "a.bin").write_bytes(b"2")
    with pytest.raises(ConfigMismatchError, match=r"config\.options\.weights: "):
        evaluate(data, tmp_path / "r", model, name="mine")


def test_a_plug_in_in_another_folder_is_the_same_run(data: Path, tmp_path: Path, plugin: Path) -> None:
    evaluate(data, tmp_path / "r", f"{plugin / 'mine.py'}:Mine", name="mine")
    shutil.copytree(plugin, tmp_path / "copy")
    evaluate(data, tmp_path / "r", f"{tmp_path / 'copy' / 'mine.py'}:Mine", name="mine")


def test_code_of_this_package_is_named_by_its_version_and_not_by_its_files() -> None:
    from baselines.telea import Telea

    assert code_of(Telea) == {}


def test_a_special_file_as_an_option_is_refused_and_does_not_hang(data: Path, tmp_path: Path, plugin: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="a named pipe"):
        evaluate(data, tmp_path / "r", f"{plugin / 'mine.py'}:Mine,weights={tmp_path / 'pipe'}", name="mine")


# What a record names is data ------------------------------------------------------------------------------------------

BENCHMARK = """
import numpy as np
from pathlib import Path
from brushbench.benchmarks.base import LazyBenchmark, Record
from brushbench.benchmarks.folder import Folder

Path("code-was-run").touch()

class Mine(Folder):
    '''A benchmark of one's own.'''
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "own"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "captions.txt").write_text("a\tone\nb\ttwo\nc\tthree\n")
    (tmp_path / "mybench.py").write_text(BENCHMARK)
    return tmp_path


def test_a_plug_in_benchmark_is_shared_between_jobs_and_scored_again(own: Path) -> None:
    bench = ("--bench", "mybench.py:Mine", "--data", "own")
    made = command(
        "eval", "-m", "telea", *bench, "--metrics", "psnr", "--variants", "raw", "--jobs", "2", "--out", "runs", cwd=own
    )
    assert made.returncode == 0, made.stderr
    (own / "code-was-run").unlink()
    alone = command("score", "runs/telea", "--metrics", "mse", cwd=own)
    assert alone.returncode == 2
    assert "--bench file.py:Class" in alone.stderr
    assert not (own / "code-was-run").exists()
    named = command("score", "runs/telea", *bench, "--metrics", "mse", cwd=own)  # the remedy
    assert named.returncode == 0, named.stderr
    assert set(brushbench.Run.open(own / "runs" / "telea").scores["metric"]) == {"psnr", "mse"}


def test_a_plug_inbenchmark_of_other_data_is_refused(own: Path) -> None:
    bench = ("--bench", "mybench.py:Mine", "--data", "own")
    assert command("generate", "-m", "telea", *bench, "--out", "runs", cwd=own).returncode == 0
    (own / "own" / "captions.txt").write_text("a\tone\nb\ttwo\nc\tfour\n")
    done = command("score", "runs/telea", *bench, "--metrics", "mse", cwd=own)
    assert done.returncode == 3
    assert "made on other data" in done.stderr


@pytest.mark.parametrize("name", ["subprocess:Popen", "evil.py:X", "evil:X", "os:system", "", "shapes.evil"])
def test_a_run_of_someone_else_runs_no_code(
    data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass X: pass\n")
    run = evaluate(data, tmp_path / "r")
    header = json.loads((run.path / "run.json").read_text())
    header["bench"] = {"name": name, "options": {"args": "touch ran", "shell": "true"}}
    header["config"]["benchmark"] = header["benchmark"]["name"] = name or "evil"
    header["config"]["model"] = "evil.py:X"
    (run.path / "run.json").write_text(json.dumps(header))
    with pytest.raises(UsageError, match=r"--bench file\.py:Class"):
        rescore(run.path, scoring=Scoring("mse@standard"))
    brushbench.Run.open(run.path).summary()
    assert not (tmp_path / "ran").exists()


# The record -----------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_the_one_that_is_checked() -> None:
    published = json.loads(assets.path("data/schemas/run.json").read_text())
    assert published == RunHeader.model_json_schema(by_alias=True)


def test_a_record_reads_back_as_it_was_written(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    content = json.loads((run.path / "run.json").read_text())
    assert content["schema"] == 2
    assert read_header(content, "run.json") == run.header
    assert run.header.to_json() == content


def test_unknown_keys_of_a_newer_release_are_said_to_be_that(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    content = json.loads((run.path / "run.json").read_text())
    with pytest.raises(RunError, match=r"does not know \(weather\): a newer one wrote it\. Upgrade"):
        read_header({**content, "weather": "fine"}, "run.json")
    with pytest.raises(RunError, match="schema 3; this release reads up to 2"):
        read_header({**content, "schema": 3}, "run.json")


def test_no_wrong_type_in_a_record_is_a_traceback(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    content = json.loads((run.path / "run.json").read_text())
    wrong = [None, [], {}, "x", -1, 1.5, True, 10**12, 10**30, float("nan"), [[[]]], {"a": {}}, "\ud800", "x" * 10_000]
    tried, sentences = 0, []

    def damaged(value: object) -> list[object]:
        """Every copy of a record in which one entry is of another type."""
        if isinstance(value, dict):
            return [{**value, key: bad} for key, old in value.items() for bad in [*damaged(old), *wrong]]
        return []

    for bad in damaged(content):
        tried += 1
        try:
            header = read_header(bad, "run.json")
        except RunError as error:
            sentences.append(str(error))
        else:
            header.differences(run.header)
    assert tried > 500
    assert len(sentences) > 300
    assert max(map(len, sentences)) < 1000
