from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import pytest
from PIL import Image
from typer.main import get_group

from brushbench import cli

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "diffusers", "transformers")


def brushbench(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "brushbench", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def imported_by(*args: str) -> set[str]:
    """Modules that a command has imported when it ends."""
    code = (
        "import sys, json\nfrom brushbench import cli\nsys.argv = ['brushbench', *json.loads(sys.argv[1])]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(args)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    done = brushbench(
        *("eval", "-m", "telea", "-m", "jpeg", "--bench", "photos", "--limit", "1", "--split", "inside"),
        *("--metrics", "psnr,ssim", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert "photos, inside (standard)" in done.stdout
    assert "telea: 1 planned, 1 ok" in done.stderr
    return out


def test_help_is_quick_and_imports_no_torch() -> None:
    """Must show: `brushbench --help` at most 0.5 s, no torch imported.

    Seconds of the processor, so that a busy machine does not fail it; on an idle one they are the seconds one waits.
    """
    assert not imported_by("--help") & {*HEAVY, "pandas"}
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = brushbench("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert "leaderboard" in done.stdout
    print(f"brushbench --help: {min(seconds):.2f} s, best of {len(seconds)}")
    assert min(seconds) <= 0.5


def test_help_imports_no_command_and_a_command_no_other() -> None:
    """The modules of all commands, and their parameters, took a sixth of the time of `--help`."""
    own = ["brushbench.cli", "brushbench.cli.console"]
    assert sorted(name for name in imported_by("--help") if name.startswith("brushbench.cli")) == own
    listed = sorted(name for name in imported_by("list", "published") if name.startswith("brushbench.cli"))
    assert listed == [*own, "brushbench.cli.options", "brushbench.cli.show"]


def test_every_command_is_listed_with_the_first_sentences_of_its_help() -> None:
    for name, listed in cli.COMMANDS.items():
        command = cli.load_command(name)
        assert " ".join(command.help.split("\n\n")[0].split()) == listed.text, name
    for module in iter_modules(cli.__path__):
        found = getattr(import_module(f"brushbench.cli.{module.name}"), "app", None)
        here = {name for name, listed in cli.COMMANDS.items() if listed.module == module.name}
        if found is not None and not here & set(cli.GROUPS):
            assert set(get_group(found).commands) == here, module.name


def test_list_metrics_imports_no_torch_and_no_client_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took 2.2 s; torch was two thirds of it, and what asks the hub's cache a tenth."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert not imported_by("list", "metrics") & {*HEAVY, "huggingface_hub.file_download", "pandas", "scipy"}


def test_leaderboard_imports_no_torch(run: Path) -> None:
    """Must show: `leaderboard` likewise without torch; scipy, a sixth of its start, is for intervals alone."""
    assert not imported_by("leaderboard", str(run)) & {*HEAVY, "scipy"}


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_leaderboard_in_every_format(form: str, run: Path) -> None:
    done = brushbench("leaderboard", str(run), "--format", form)
    assert done.returncode == 0, done.stderr
    assert "telea" in done.stdout
    if form == "json":
        table = json.loads(done.stdout)[0]
        assert [row["method"] for row in table["rows"]] == ["telea", "jpeg"]  # reference lines come last
        assert table["rows"][1]["reference"]


def test_protocols_never_share_a_table(run: Path) -> None:
    done = brushbench("leaderboard", str(run), "--format", "json", "--protocol", "brushnet-paper")
    tables = json.loads(done.stdout)
    assert {t["protocol"] for t in tables} == {"brushnet-paper"}
    assert {m for t in tables for m in t["metrics"]} == {"psnr"}


@pytest.mark.parametrize("what", ["models", "metrics", "benchmarks"])
def test_list(what: str) -> None:
    done = brushbench("list", what)
    assert done.returncode == 0, done.stderr
    assert {"models": "telea", "metrics": "psnr", "benchmarks": "photos"}[what] in done.stdout


def test_doctor_finds_this_installation_healthy() -> None:
    done = brushbench("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmark photos" in done.stdout
    assert "BROKEN" not in done.stdout


def test_inpaint_repaints_the_hole_and_nothing_else(tmp_path: Path) -> None:
    picture = np.full((40, 60, 3), 200, dtype=np.uint8)
    picture[10:20, 10:30] = 0
    hole = np.zeros((40, 60), dtype=np.uint8)
    hole[8:22, 8:32] = 255
    Image.fromarray(picture).save(tmp_path / "p.png")
    Image.fromarray(hole).save(tmp_path / "m.png")
    done = brushbench("inpaint", "p.png", "m.png", "a wall", "-o", "o.png", "--model", "telea", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = np.asarray(Image.open(tmp_path / "o.png"))
    assert np.abs(result.astype(int) - 200).max() <= 5  # the dark patch in the hole is gone
    assert (result[:, 43:] == picture[:, 43:]).all()  # beyond the reach of the blurred border


def test_inpaint_with_nothing_else_is_the_embedded_brushnet_and_says_so(tmp_path: Path) -> None:
    picture = np.full((64, 64, 3), 120, dtype=np.uint8)
    hole = np.zeros((64, 64), dtype=np.uint8)
    hole[20:44, 20:44] = 255
    Image.fromarray(picture).save(tmp_path / "p.png")
    Image.fromarray(hole).save(tmp_path / "m.png")
    done = brushbench("inpaint", "p.png", "m.png", "a large red circle on plain grey", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--model brushnet --preset sd15" in done.stdout + done.stderr
    result = np.asarray(Image.open(tmp_path / "inpainted.png")).astype(int)
    assert result.shape == picture.shape
    assert np.abs(result[22:42, 22:42] - 120).max() > 40  # something was painted
    assert np.abs(result[:8] - 120).max() <= 2  # and the picture's edge kept


def test_data_preview_draws_a_row_a_picture(tmp_path: Path) -> None:
    done = brushbench("data", "preview", "photos", "--limit", "2", "-o", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "sheet.png").size == (3 * 192, 2 * 192)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["eval", "-m", "telae"], "Did you mean 'telea'?"),
        (["eval", "-m", "telea,radios=3"], "Did you mean 'radius'?"),
        (["eval", "-m", "telea,radius=wide"], "radius='wide'"),
        (["eval", "-m", "telea", "-m", "telea"], "Tell them apart with --name"),
        (["eval", "-m", "telea", "--bench", "fotos"], "Did you mean 'photos'?"),
        (["eval", "-m", "telea", "--metrics", "psrn"], "Did you mean 'psnr'?"),
        (["eval", "-m", "telea", "--shard", "3/2"], "The first of two shards is 1/2"),
        (["eval", "-m", "telea", "--weights", "lpips"], "METRIC=PATH"),
        (["eval", "-m", "telea", "--name", "a", "--name", "b"], "2 --name for 1 --model"),
        (["eval", "-m", "telea", "--mdoel", "x"], "No such option"),
        (["leaderboard", ".", "--format", "htm"], "No format 'htm'"),
        (["leaderboard", ".", "--protocol", "paper"], "No protocol 'paper'"),
        (["list", "model"], "Did you mean 'models'?"),
        (["eval", "-m", "telea", "--name", ""], "--name '' cannot name a folder"),
        (["eval", "-m", "telea", "--name", ".."], "--name '..' cannot name a folder"),
        (["eval", "-m", "telea", "--name", "../evil"], "Give it a letter or a digit, and no slash or backslash"),
        (["eval", "-m", "telea", "--weights", "lpisp=x.pth"], "Did you mean 'lpips'?"),
        (
            ["eval", "-m", "telea", "--weights", "lpips=x.pth"],
            "--weights lpips='x.pth' is neither a file",
        ),
        (["eval", "-m", "telea", "--weights", "psnr=x.pth"], "'psnr' needs no weights. Leave --weights psnr= out"),
        (["eval", "-m", "telea", "--bench", "photos", "--data", "."], "'photos' is embedded. Leave --data out"),
        (["eval", "-m", "telea", "--bench", ".", "--data", "."], "Leave one of them out"),
        (["eval", "-m", "telea", "--bench", "brushbench"], "Name its folder with --data"),
        (["eval", "-m", "telea", "--device", "gpu", "--metrics", "psnr"], "Unknown device 'gpu'"),
        (["score", "telea", "--split", "inside"], "--split: a run's folder says that itself"),
        (["inpaint", "p.png", "m.png", "--blend", "blurr"], "Did you mean 'blur'?"),
        (["inpaint", "p.png", "m.png", "-o", "no/o.png"], "there is no folder no. Make it"),
        (["data", "preview", "photos", "-o", "."], "--output . is a folder"),
        (["score"], "Name either a run's folder or --images DIR"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(args: list[str], sentence: str, run: Path) -> None:
    done = brushbench(*args, cwd=run)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("white", "sentence"), [(0, "the hole is empty"), (255, "the hole is the whole picture")])
def test_inpaint_refuses_a_hole_of_nothing_or_everything(white: int, sentence: str, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "p.png")
    Image.new("L", (20, 20), white).save(tmp_path / "m.png")
    done = brushbench("inpaint", "p.png", "m.png", cwd=tmp_path)
    assert done.returncode == 5
    assert sentence.lower() in done.stderr.lower()
    assert not (tmp_path / "inpainted.png").exists()


def test_a_benchmark_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    done = brushbench("eval", "-m", "telea", "--bench", "./nope", cwd=tmp_path)
    assert done.returncode == 5
    assert "No folder ./nope. Give the folder of a benchmark" in done.stderr


def test_skipped_records_are_counted_where_one_sees_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (32, 32), "grey").save(tmp_path / f"{name}.png")
    whole = (tmp_path / "c.png").read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    done = brushbench("eval", "-m", "telea", "--bench", ".", "--skip-bad", "--metrics", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Bad records left out: 1 (c: " in done.stderr


def test_a_name_that_the_disk_refuses_is_one_sentence(tmp_path: Path) -> None:
    done = brushbench("eval", "-m", "telea", "--name", "n" * 300, "--limit", "1", "--metrics", "none", cwd=tmp_path)
    assert done.returncode in (3, 5)
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_scores_is_named_and_not_an_empty_line(tmp_path: Path) -> None:
    done = brushbench("generate", "-m", "telea", "--limit", "1", "--split", "inside", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    done = brushbench("leaderboard", str(tmp_path))
    assert done.returncode == 3
    assert done.stdout == ""
    assert "telea has no scores under the protocol standard" in done.stderr


def test_a_folder_without_a_run_is_exit_code_3(tmp_path: Path) -> None:
    done = brushbench("leaderboard", str(tmp_path))
    assert done.returncode == 3
    assert "holds no run" in done.stderr
