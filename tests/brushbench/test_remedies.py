"""What a message advises works: the advice is carried out as it stands there, and the command then succeeds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from brushbench.cli import app, load_command
from tests.brushbench import toys
from tests.brushbench.conftest import Command
from tests.hostile.corpus import good_folder

ROOT = Path(__file__).parents[2]


def write_method(file: Path, text: bool = False) -> None:
    file.write_text(
        f"from brushbench import Capabilities\nclass Mine:\n    capabilities = Capabilities(text={text})\n"
        "    def describe(self): return {}\n    def inpaint(self, requests): return [r.image for r in requests]\n"
    )


EVAL = "eval -m copy --bench d --metrics psnr --variants raw"
SCORE = "score --bench d --metrics psnr --variants raw"
# the command that is refused, what the message advises, and the commands that follow the advice
ADVICE = {
    "a folder and --data": (f"{EVAL} --data d", "Leave one of them out", EVAL),
    "--data of an embedded benchmark": ("data check shapes --data d", "Leave --data out", "data check shapes"),
    "weights of a metric without": (f"{EVAL} --weights psnr=x", "Leave --weights psnr= out", EVAL),
    "no metric": (
        f"{EVAL} --metrics ,",
        "Write --metrics auto, or names such as psnr,lpips@brushnet-paper.",
        f"{EVAL} --metrics psnr,mse@standard",
    ),
    "a name of nothing": (f"{EVAL} --name ''", "Give it a letter or a digit", f"{EVAL} --name a1"),
    "a name with a slash": (f"{EVAL} --name a/b", "no slash or backslash", f"{EVAL} --name a_b"),
    "a shard that is none": (f"{EVAL} --shard 3/2", "The first of two shards is 1/2", f"{EVAL} --shard 1/2"),
    "--shard and --overwrite": (
        f"{EVAL} --shard 1/1 --overwrite",
        "Leave it out, or delete the folder first.",
        f"{EVAL} --shard 1/1",
    ),
    "--shard and --jobs": (
        f"{EVAL} --shard 1/1 --jobs 2",
        "Leave --shard out, or start each shard alone",
        f"{EVAL} --shard 1/1",
    ),
    "two runs of one name": (f"{EVAL} -m copy", "Tell them apart with --name", f"{EVAL} -m copy --name a --name b"),
    "CUDA without a GPU": (f"{EVAL} --device cuda", "Write auto or cpu", f"{EVAL} --device cpu"),
    "an unknown device": (f"{EVAL} --device mps", "Write auto, cpu, cuda or cuda:1", f"{EVAL} --device auto"),
    "two ways to show an interval": (
        f"{EVAL} --intervals --plus-minus",
        "Leave one of them out",
        f"{EVAL} --plus-minus",
    ),
    "a label for several runs": (
        "leaderboard runs/folder=x",
        "Name their folders one by one",
        "leaderboard runs/folder/a=x runs/folder/b",
    ),
    "a folder without runs": (
        "leaderboard d",
        "Name the folder that `brushbench eval` wrote, or its parent",
        "leaderboard runs",
    ),
    "no folder": (
        "eval -m copy --bench x/y",
        "Give the folder of a benchmark, or a name of `list benchmarks`.",
        "list benchmarks",
    ),
    "settings of an image folder for a run": (
        "score runs/folder/a --limit 1",
        "Leave it out, or score --images DIR.",
        "score runs/folder/a --metrics psnr",
    ),
    "a run and images": (
        f"{SCORE} runs/folder/a --images d/images",
        "Name either a run's folder or --images DIR, not both and not neither.",
        "score runs/folder/a --metrics psnr",
    ),
    "--overwrite and --jobs": (
        f"{SCORE} --images d/images --overwrite --jobs 2",
        "Delete the run first, or leave --jobs out.",
        f"{SCORE} --images d/images --overwrite",
    ),
    "images in a file": (
        f"{SCORE} --images d/captions.json",
        "Name the folder that holds your pictures.",
        f"{SCORE} --images d/images",
    ),
    "a pipe for a file": ("leaderboard runs -o pipe", "Write elsewhere.", "leaderboard runs -o t.txt"),
    "an option of no value": ("data check folder,x", "Write x=VALUE", "data check d,resize_masks=true"),
    "a format of no table": ("leaderboard runs -f htm", "html", "leaderboard runs -f html"),
    "a JPEG": (
        "inpaint d/images/bad.png d/masks/bad.png -m copy -o o.jpg",
        "Name it o.png",
        "inpaint d/images/bad.png d/masks/bad.png -m copy -o o.png",
    ),
    "a folder for a file": ("leaderboard runs -o d", "Name a file in it", "leaderboard runs -o d/t.txt"),
    "a file in no folder": ("leaderboard runs -o no/t.txt", "Make it, or write elsewhere", "leaderboard runs -o t.txt"),
    "a reference line for a user": (
        "inpaint d/images/bad.png d/masks/bad.png -m oracle",
        "Name a method that makes one",
        "inpaint d/images/bad.png d/masks/bad.png -m telea",
    ),
    "an audit of one": (
        "audit --bench d --limit 1 --metrics psnr",
        "2",
        "audit --bench d --split brush --limit 2 --metrics psnr",
    ),
    "a sheet of no run": (
        "sheet runs/folder/a --sort psnr --worst psnr -o s.png",
        "Leave one out",
        "sheet runs/folder/a --sort psnr -o s.png",
    ),
    "an export into a full folder": (
        "export runs/folder/a --to dir --output d",
        "Name a new folder",
        "export runs/folder/a --to dir --output new",
    ),
}


@pytest.fixture
def two_runs(brushbench: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    brushbench(f"{EVAL} -m copy --name a --name b")


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_of_a_refusal_works(case: str, brushbench: Command, request: pytest.FixtureRequest) -> None:
    refused, advice, instead = ADVICE[case]
    if "runs" in refused + instead:
        request.getfixturevalue("two_runs")
    code = 3 if "leaderboard d" in refused else 5 if "x/y" in refused or "captions.json" in refused else 2
    assert advice in brushbench(refused, code)
    brushbench(instead)


def test_a_run_of_other_settings_goes_elsewhere_or_is_replaced(brushbench: Command, tmp_path: Path) -> None:
    brushbench(EVAL)
    for more in ("--out other", "--name other", "--overwrite"):
        told = brushbench(f"{EVAL} --seed 2", 3)
        assert more.split()[0] in told
        brushbench(f"{EVAL} --seed 2 {more}")
    assert "limit" in brushbench(f"{EVAL} --seed 2 --limit 1", 3)  # a run does not shrink
    brushbench(f"{EVAL} --seed 2 --limit 1 --out small")
    (tmp_path / "full" / "copy").mkdir(parents=True)
    (tmp_path / "full" / "copy" / "notes.txt").touch()
    assert "Name an empty or a new folder with --out" in brushbench(f"{EVAL} --out full", 3)
    brushbench(f"{EVAL} --out empty")


def test_a_benchmark_that_is_not_embedded_is_found_by_data(brushbench: Command, tmp_path: Path) -> None:
    toys.write_benchmark(tmp_path / "BrushBench", pictures=2)
    told = brushbench("eval -m copy --bench brushbench --metrics psnr", 2)
    assert "Name its folder with --data" in told
    brushbench("eval -m copy --bench brushbench --metrics psnr --data BrushBench")


def test_data_that_moved_are_named_again(brushbench: Command, tmp_path: Path) -> None:
    brushbench(EVAL)
    (tmp_path / "d").rename(tmp_path / "moved")
    told = brushbench("score runs/folder/copy --metrics mse", 5)
    assert "which are not there. Name their folder with --data." in told
    brushbench("score runs/folder/copy --metrics mse --data moved")
    for file in (tmp_path / "moved" / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    assert "Name the right folder with --data" in brushbench("score runs/folder/copy --metrics mse --data moved", 3)
    good_folder(tmp_path / "right")
    brushbench("score runs/folder/copy --metrics mse --data right")


def test_a_run_that_is_not_finished_or_not_scored_gets_so(brushbench: Command, tmp_path: Path) -> None:
    generated = EVAL.replace("eval", "generate").partition(" --metrics")[0]
    brushbench(generated)
    told = brushbench("leaderboard runs", 3)
    accept = "accept runs/folder/copy --name mine --reason new"
    assert "Score it: brushbench score /" in brushbench(accept, 3)
    brushbench(told.partition("or score it: brushbench ")[2] + " --metrics psnr")
    brushbench("leaderboard runs")
    brushbench(accept)
    next((tmp_path / "runs").glob("*/*/batches/*.json")).unlink()
    told = brushbench("score runs/folder/copy --metrics mse", 3)
    assert "Finish it with the `brushbench eval` command that began it, then score." in told
    brushbench(EVAL)
    brushbench("score runs/folder/copy --metrics mse")


@pytest.mark.parametrize("file", ["metrics.json", "scores.parquet", "batches/brush-0-000000.json", "run.json"])
def test_a_damaged_record_is_deleted_and_made_again(file: str, brushbench: Command, tmp_path: Path) -> None:
    brushbench(EVAL)
    damaged = tmp_path / "runs" / "folder" / "copy" / file
    damaged.write_bytes(b"{")
    told = brushbench("leaderboard runs", 3)
    if "Delete it, and score the run again." in told:
        damaged.unlink()
        brushbench("score runs/folder/copy --metrics psnr")
    elif "Delete it, and run the command again that began the run." in told:
        damaged.unlink()
        assert "made 2" in brushbench(EVAL)
    else:
        assert "or start again in another folder." in told
        brushbench(f"{EVAL} --out runs/new")
        shutil.rmtree(tmp_path / "runs" / "folder")
    assert "copy" in brushbench("leaderboard runs")


def test_an_image_that_is_gone_is_made_again(brushbench: Command, tmp_path: Path) -> None:
    brushbench(EVAL)
    next((tmp_path / "runs").glob("*/*/pictures/*/*/bad.png")).unlink()
    told = brushbench("score runs/folder/copy --metrics psnr", 3)
    (batches,) = re.findall(r"Delete (\S+batches) and run the same command again", told)
    shutil.rmtree(batches)
    assert "made 2" in brushbench(EVAL)
    brushbench("score runs/folder/copy --metrics psnr")


def test_images_made_elsewhere_are_named_as_the_message_says(brushbench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    told = brushbench(f"{SCORE} --images mine", 5)
    (wanted,) = re.findall(r"Name the pictures after its samples, the first (\S+\.png)", told)
    shutil.copy(tmp_path / "d" / "images" / "bad.png", wanted)
    assert "1 ok, 1 missing" in brushbench(f"{SCORE} --images mine --max-failed 1")
    flat = toys.write_benchmark(tmp_path / "BrushBench", pictures=1)
    told = brushbench("score --images BrushBench/images --bench BrushBench --metrics psnr", 5)
    assert "Put each split's pictures in a folder of its name, or score one split with --split." in told
    brushbench("score --images BrushBench/images --bench BrushBench --split inside --metrics psnr")
    (tmp_path / "by").mkdir()
    for split in ("inside", "outside", "brush"):  # "Put each split's pictures in a folder of its name"
        shutil.copytree(flat / "images", tmp_path / "by" / split)
    brushbench("score --images by --bench BrushBench --metrics psnr")


def test_bad_records_are_listed_left_out_or_repaired(brushbench: Command, tmp_path: Path) -> None:
    bad = tmp_path / "d" / "images" / "bad.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    told = brushbench(EVAL, 3)
    assert (
        "repair them (`brushbench data check` lists them all) and run the same command again, or leave them out with "
        "--skip-bad in a new run, with another --out or --name."
    ) in told
    assert "bad: bad: the picture" in brushbench("data check d", 5)
    assert "1 ok" in brushbench(f"{EVAL} --skip-bad --out other")
    assert "1 ok" in brushbench(f"{EVAL} --skip-bad --name other")
    bad.write_bytes(whole)
    assert "2 ok" in brushbench(EVAL)


def test_a_folder_of_masks_is_mended_as_the_message_says(brushbench: Command, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "d" / "masks")
    (tmp_path / "d" / "masks").mkdir()
    told = brushbench(EVAL, 5)
    assert "or remove it to use seeded brush holes" in told
    (tmp_path / "d" / "masks").rmdir()
    brushbench(EVAL)
    (tmp_path / "d" / "masks").touch()
    assert "or move it away to use seeded brush holes" in brushbench(EVAL, 5)
    (tmp_path / "d" / "masks").rename(tmp_path / "masks")
    brushbench(EVAL)


def test_a_missing_caption_is_written_or_another_method_is_used(brushbench: Command, tmp_path: Path) -> None:
    (tmp_path / "d" / "captions.json").write_text('{"good": "a good thing"}')
    write_method(tmp_path / "mine.py", text=True)
    told = brushbench("eval -m mine.py:Mine --name mine --bench d --metrics psnr", 5)
    assert "Write one, use a method that reads none (such as telea), or pass --skip-bad" in told
    brushbench("eval -m telea --bench d --metrics psnr")
    brushbench("eval -m mine.py:Mine --name rest --bench d --metrics psnr --skip-bad")
    (tmp_path / "d" / "captions.json").write_text('{"good": "a good thing", "bad": "a bad one"}')
    brushbench("eval -m mine.py:Mine --name mine --bench d --metrics psnr")


def test_a_file_without_its_class_is_completed(brushbench: Command, tmp_path: Path) -> None:
    write_method(tmp_path / "mine.py")
    told = brushbench("eval -m mine.py --bench d --metrics psnr --name mine", 2)
    assert "Write mine.py:Class; it holds Mine." in told
    brushbench("eval -m mine.py:Mine --bench d --metrics psnr --name mine")


FOREIGN = """
import hashlib
from pathlib import Path
import numpy as np
from brushbench.types import Sample

class Mine:
    def __init__(self, root: str, count: int = 3):
        rng, hole = np.random.default_rng(int(Path(root, "seed.txt").read_text())), np.eye(24, dtype=bool)
        pictures = [rng.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(count)]
        self.samples = [Sample(f"s{i}", picture, hole, "x", "inside") for i, picture in enumerate(pictures)]
        self.name, self.keys = "mine", [(sample.id, sample.split) for sample in self.samples]
        self.manifest = {"name": "mine", "sha256": hashlib.sha256(np.stack(pictures).tobytes()).hexdigest()}
    def __len__(self): return len(self.samples)
    def __getitem__(self, index): return self.samples[index]

class Bare:
    def __len__(self): return 1
"""


def test_a_benchmark_class_of_ones_own_is_named_again_with_the_options_of_its_run(
    brushbench: Command, tmp_path: Path
) -> None:
    """Only a class with all attributes of `Benchmark`, `split` and `limit` could be used; `data check` took none."""
    (tmp_path / "mybench.py").write_text(FOREIGN)
    (tmp_path / "d" / "seed.txt").write_text("1")
    brushbench("eval -m telea --bench mybench.py:Mine,count=2 --data d --metrics psnr")
    told = brushbench("score runs/mine/telea --metrics mse", 2)
    assert "Name the benchmark yourself with --bench file.py:Class." in told
    brushbench("score runs/mine/telea --metrics mse --bench mybench.py:Mine")
    told = brushbench("score runs/mine/telea --metrics mse --bench mybench.py:Mine,count=3", 3)
    assert "with --data, or another benchmark with --bench" in told
    (tmp_path / "d").rename(tmp_path / "moved")
    brushbench("score runs/mine/telea --metrics mse --bench mybench.py:Mine --data moved")
    assert "bad records: 0" in brushbench("data check mybench.py:Mine --data moved")
    assert "derives from brushbench.benchmarks.base.LazyBenchmark, or has name" in brushbench(
        "data check mybench.py:Bare", 2
    )


# Every message --------------------------------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text of the packages that is no docstring, with its file."""
    for package in ("brushbench", "baselines", "brushnet"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text())
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body and isinstance(node.body[0], ast.Expr)
            }  # fmt: skip
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield str(file.relative_to(ROOT)), node.value


def commands(command: Any = None, above: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield every command and its options."""
    group = command or typer.main.get_command(app)
    for name in group.list_commands(None):
        inner = group.get_command(None, name) if command else load_command(name)
        options = {option for p in inner.params for option in (*p.opts, *p.secondary_opts) if option[:2] == "--"}
        yield f"{above}{name}", options
        if isinstance(inner, typer.core.TyperGroup):
            yield from commands(inner, f"{above}{name} ")


OF_OTHERS = {"--no-optional-locks", "--porcelain", "--untracked-files", "--dirty", "--help", "--version", "--head"}


def test_messages_name_only_options_commands_and_extras_that_there_are() -> None:
    known = dict(commands())
    options = set().union(*known.values()) | OF_OTHERS
    firsts = {name.split()[0] for name in known}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wrong = []
    for file, text in texts():
        wrong += [(file, o) for o in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text) if o not in options]
        wrong += [(file, c) for c in re.findall(r"(?:`|: )brushbench ([a-z]+)", text) if c not in firsts]
        wrong += [(file, e) for e in re.findall(r"pip install 'brushbench\[([a-z0-9]+)\]", text) if e not in extras]
    assert not wrong
