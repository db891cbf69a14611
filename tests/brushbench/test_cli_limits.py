"""What the command line refuses before any work, and how it ends: names, numbers, signals, consoles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import brushbench
from tests.brushbench import toys
from tests.brushbench.test_run_resume import command, contents, environment
from tests.brushbench.test_run_resume import run as run_command

ROOT = Path(__file__).parents[2]
EVAL = ("eval", "-m", "telea", "--bench", "photos", "--limit", "1", "--metrics", "none")


def invoke(*args: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1", **more}
    line = [sys.executable, "-m", "brushbench", *args]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--repeats", "1000000000000"), "is not a whole number of at least 1, at most 10000"),
        (("--jobs", "1000000000000"), "is not a whole number of at least 1, at most 256"),
        (("--limit", "٣"), "is not a whole number of at least 1"),
        (("--limit", "9" * 5000), "is not a whole number of at least 1"),
        (("--seed", "-1"), "is not a whole number of at least 0"),
        (("--batch-size", "1.5"), "is not a whole number"),
        (("--shard", "1/" + "9" * 5000), "is not i/n with 1 <= i <= n"),
        (("--shard", "١/٢"), "is not i/n with 1 <= i <= n"),
        (("--protocol", "standart"), "Known: standard, brushnet-paper"),
        (("--device", "mps"), "Write auto, cpu, cuda or cuda:1"),
    ],
)
def test_a_value_out_of_range_is_one_sentence_and_no_work(args: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = invoke(*EVAL, *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sentence in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_file_without_its_class_is_named_with_the_classes_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("print('run')\nclass Mine: pass\nclass Other: pass\n")
    done = invoke("eval", "-m", "mine.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "'mine.py' names a file and no class. Write mine.py:Class; it holds Mine, Other." in done.stderr
    assert "run" not in done.stdout


def test_a_picture_is_written_as_png_or_refused_before_the_work(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 10, 30, 30))
    mask.save(tmp_path / "m.png")
    line = ("inpaint", "p.png", "m.png", "--model", "telea")
    done = invoke(*line, "-o", "out.jpg", cwd=tmp_path)
    assert done.returncode == 2
    assert "Name it out.png." in done.stderr
    assert invoke(*line, "-o", "out.png", cwd=tmp_path).returncode == 0  # the remedy
    assert Image.open(tmp_path / "out.png").format == "PNG"


def test_a_console_without_arrows_gets_its_table(tmp_path: Path) -> None:
    done = invoke(*EVAL[:-1], "psnr", "--split", "inside", cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0, done.stderr
    assert "psnr" in done.stdout


def test_generating_needs_no_module_that_windows_lacks() -> None:
    code = (
        "import sys; sys.modules['resource'] = None; import brushbench.evaluation.generation as g; "
        "g._peak_memory('cpu')"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0


def test_a_path_with_a_comma_is_quoted_and_a_label_holds_no_dots_or_slashes(tmp_path: Path) -> None:
    folder = tmp_path / "my models,v2"
    folder.mkdir()
    (folder / "mine.py").write_text(
        "from brushbench.types import Capabilities\n"
        "class Mine:\n"
        "    capabilities = Capabilities(text=False)\n"
        "    def describe(self): return {}\n"
        "    def inpaint(self, requests): return [r.image for r in requests]\n"
    )
    plain = invoke(*EVAL, "-m", "my models,v2/mine.py:Mine", cwd=tmp_path)
    assert plain.returncode == 2
    assert 'a name or a value with a comma in it is quoted: "a,b.py:Mine",key="c,d"' in plain.stderr
    cut = invoke(*EVAL, "-m", "brushnet,masks=segmentation,checkpoint=run,lr=1e-4", cwd=tmp_path)
    assert "Unknown option of model 'brushnet' 'lr'" in cut.stderr
    assert "is quoted" in cut.stderr
    done = invoke(*EVAL, "-m", '"my models,v2/mine.py:Mine"', "--out", "runs", cwd=tmp_path)  # the remedy
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["my models,v2_mine.py:Mine", "telea"]


def test_images_of_a_relative_folder_get_a_visible_label(tmp_path: Path) -> None:
    data = toys.write_benchmark(tmp_path / "BrushBench", pictures=2)
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "out").mkdir()
    for sample in brushbench.load_benchmark(data, split="inside"):
        for folder in (work, tmp_path / "out"):
            Image.fromarray(sample.image).save(folder / f"{sample.id}.png")
    line = ("score", "--bench", "brushbench", "--data", str(data), "--split", "inside", "--metrics", "mse@standard")
    for images, label in ((".", "work"), ("../out", "out")):
        done = invoke(*line, "--images", images, "--out", str(tmp_path / "runs"), cwd=work)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "runs" / label / "run.json").is_file()


def test_images_of_another_folder_do_not_replace_those_of_the_first(tmp_path: Path) -> None:
    """Two folders called `out` had one run: the second one's images and scores took the place of the first one's."""
    data = toys.write_benchmark(tmp_path / "BrushBench", pictures=2)
    for place, change in (("a", 0), ("b", 255)):
        (tmp_path / place / "out").mkdir(parents=True)
        for sample in brushbench.load_benchmark(data, split="inside"):
            Image.fromarray(sample.image ^ np.uint8(change)).save(tmp_path / place / "out" / f"{sample.id}.png")
    line = ("score", "--bench", str(data), "--split", "inside", "--metrics", "mse@standard")
    for place, more, code in (
        ("a", (), 0),
        ("b", (), 3),
        ("b", ("--name", "other"), 0),
        ("b", ("--out", "elsewhere"), 0),
        ("b", ("--overwrite",), 0),
    ):
        done = invoke(*line, "--images", f"{place}/out", *more, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        if code:
            assert "images: " in done.stderr
            assert "Name another folder with --out or --name, or replace that run with --overwrite." in done.stderr
    (tmp_path / "b").rename(tmp_path / "moved")
    assert invoke(*line, "--images", "moved/out", cwd=tmp_path).returncode == 0  # the same images


def test_images_that_have_changed_are_looked_at_again(tmp_path: Path) -> None:
    """The same command showed the old scores, or refused the mended folder."""
    from brushbench.evaluation import Scoring, score_images

    benchmark = brushbench.load_benchmark(toys.write_benchmark(tmp_path / "BrushBench", pictures=3), split="inside")
    (tmp_path / "images").mkdir()
    for sample in list(benchmark)[:2]:
        Image.fromarray(255 - sample.image).save(tmp_path / "images" / f"{sample.id}.png")
    found = []
    for _ in range(2):
        scoring = Scoring("mse@standard", variants="raw")
        run = score_images(tmp_path / "images", benchmark, name="m", out=tmp_path / "r", scoring=scoring)
        found.append(run.scores.set_index("sample")["value"])
        for sample in (benchmark[1], benchmark[2]):
            Image.fromarray(sample.image).save(tmp_path / "images" / f"{sample.id}.png")
    assert found[0].isna().sum() == 1
    assert found[1].notna().all()
    assert found[1].iloc[0] == found[0].iloc[0]
    assert found[1].iloc[1] != found[0].iloc[1]


# Signals --------------------------------------------------------------------------------------------------------------


def children_of(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_no_process_goes_on_after_the_one_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    """It went on for up to 18 seconds, beside the same command started again."""
    data = toys.write_benchmark(tmp_path / "BrushBench")
    line = [
        "env",
        "--default-signal",
        *command(data, tmp_path / "out", "--jobs", "2"),
    ]  # nohup ignores SIGHUP, and we obey
    process = subprocess.Popen(line, env=environment(0.4), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 400
    while len(list(tmp_path.glob("out/noise/batches/*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    deadline = time.monotonic() + 3
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, children))
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "of 15 images are made and kept in" in stderr
        assert f"Stopped by {number.name}. What was finished is kept; the same command continues." in stderr
    run_command(data, tmp_path / "out", "--jobs", "2")  # the remedy
    run_command(data, tmp_path / "whole")
    assert contents(tmp_path / "out" / "noise") == contents(tmp_path / "whole" / "noise")
