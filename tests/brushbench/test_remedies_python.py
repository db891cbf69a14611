"""What messages to people who write Python advise works: classes of one's own, samples, tables, statistics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import brushbench as bb
from brushbench import stats
from brushbench.benchmarks import layout_of
from brushbench.benchmarks.base import LazyBenchmark
from brushbench.benchmarks.memory import as_benchmark
from brushbench.errors import BrushbenchError, UnusableError
from brushbench.types import Sample
from tests.brushbench.conftest import Command

Try = Callable[[], object]

METHOD = """
import os, shutil
from brushbench import Capabilities
class Mine:
    capabilities = Capabilities(text=False)
    def describe(self): return {}
    def inpaint(self, requests):
        if os.path.exists("remove"): shutil.rmtree("runs")
        return [request.image for request in requests]
"""
METRIC = """
class Shade:
    name, protocol, unit, higher_is_better, region = "shade", "standard", "", True, "whole"
    def __init__(self, protocol="standard"): pass
    def describe(self): return {}
    def __call__(self, pictures, samples, features=None): return [1.0] * len(pictures)
def tone(picture, sample): return float(picture.mean())
"""
EVAL = "eval --bench d --metrics psnr --variants raw --name n"
WITH = "eval -m copy --bench d --variants raw --metrics"
# files that are written, the command that is refused, the advice, and what follows it: changes of files, and a command
CODE: dict[str, tuple[dict[str, str], str, str, list[tuple[dict[str, str], str]]]] = {
    "no module": (
        {}, f"{EVAL} -m nothing:Mine", "Install it, or write file.py:Class.",
        [({}, f"{EVAL} -m mine.py:Mine"), ({"nothing.py": METHOD}, f"{EVAL} -m nothing:Mine")],
    ),
    "no file": (
        {}, f"{EVAL} -m none.py:Mine", "Write file.py:Class with a file that exists.",
        [({}, f"{EVAL} -m mine.py:Mine")],
    ),
    "no class of that name": (
        {}, f"{EVAL} -m mine.py:Yours", "Write module:Class or file.py:Class.",
        [({}, f"{EVAL} -m mine.py:Mine"), ({}, f"{EVAL} -m mine:Mine")],
    ),
    "no class": (
        {}, f"{EVAL} -m mine.py:", "Write module:Class or file.py:Class.", [({}, f"{EVAL} -m mine.py:Mine")],
    ),
    "code that fails": (
        {"mine.py": "1 / 0"}, f"{EVAL} -m mine.py:Mine", "Correct its code; --debug shows more.",
        [({"mine.py": METHOD}, f"{EVAL} -m mine.py:Mine")],
    ),
    "an option twice": (
        {}, f"{EVAL} -m telea,radius=4,radius=5", "Keep one.", [({}, f"{EVAL} -m telea,radius=4")],
    ),
    "options of nothing": (
        {}, f"{EVAL} -m ,radius=4", "Write NAME or NAME,option=value,option=value.",
        [({}, f"{EVAL} -m telea,radius=4")],
    ),
    "half a quote": (
        {}, f"""{EVAL} -m 'telea,radius="4'""", 'Quote what holds a comma: key="a,b".',
        [({}, f"""{EVAL} -m 'telea,radius="4"'""")],
    ),
    "no metric of that name": (
        {}, f"{WITH} metric.py:nothing", "Write file.py:NAME or module:NAME.",
        [({}, f"{WITH} metric.py:tone"), ({}, f"{WITH} metric:Shade")],
    ),
    "a class that is no metric": (
        {}, f"{WITH} mine.py:Mine", "See `brushbench.types.Metric`.", [({}, f"{WITH} metric.py:Shade")],
    ),
    "a function of other parameters": (
        {"metric.py": METRIC.replace("(picture, sample)", "(image)")}, f"{WITH} metric.py:tone",
        "Write def tone(picture, sample).", [({"metric.py": METRIC}, f"{WITH} metric.py:tone")],
    ),
    "a name that is a path": (
        {"metric.py": METRIC.replace('"shade"', '"../x"')}, f"{WITH} metric.py:Shade",
        "and begins with a letter or a digit. Change its `name`.", [({"metric.py": METRIC}, f"{WITH} metric.py:Shade")],
    ),
    "the name of a built-in metric": (
        {"metric.py": METRIC.replace('"shade"', '"psnr"')}, f"{WITH} metric.py:Shade",
        "has the name of the built-in metric 'psnr'. Change its `name`.",
        [({"metric.py": METRIC}, f"{WITH} metric.py:Shade")],
    ),
    "a metric that cannot be built": (
        {"metric.py": METRIC.replace(": pass", ": 1 / 0")}, f"{WITH} metric.py:Shade", "Correct its code.",
        [({"metric.py": METRIC}, f"{WITH} metric.py:Shade")],
    ),
    "two metrics of one name": (
        {"other.py": METRIC}, f"{WITH} metric.py:Shade,other.py:Shade", "Change the `name` of one, or leave it out.",
        [({"other.py": METRIC.replace('"shade"', '"hue"')}, f"{WITH} metric.py:Shade,other.py:Shade"),
         ({}, f"{WITH} metric.py:Shade")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CODE)
def test_the_remedy_for_code_of_ones_own_works(case: str, brushbench: Command, tmp_path: Path) -> None:
    files, refused, advice, remedies = CODE[case]
    for name, text in {"mine.py": METHOD, "metric.py": METRIC, **files}.items():
        (tmp_path / name).write_text(text)
    told = brushbench(refused, 2)
    assert advice in told
    for changes, command in remedies:
        for name, text in changes.items():
            (tmp_path / name).write_text(text)
        brushbench(f"{command} --out out --overwrite")


def test_a_run_that_was_removed_meanwhile_is_made_by_the_same_command(brushbench: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "remove").touch()
    told = brushbench(f"{EVAL} -m mine.py:Mine", 3)
    assert "run.json is gone. Run the same command again." in told
    (tmp_path / "remove").unlink()
    brushbench(f"{EVAL} -m mine.py:Mine")


# Samples, tables, statistics ------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
HOLE = np.zeros((24, 24), dtype=bool)
HOLE[4:12, 4:12] = True
MASK = Image.fromarray(HOLE)
SCORES = np.random.default_rng(1).normal(size=20)


def sample(image: Any = PIXELS, hole: Any = HOLE, name: Any = "a", prompt: Any = "a cat") -> Sample:
    return Sample(name, image, hole, prompt, "brush")


def rows(*changes: dict[str, Any]) -> object:
    made = [{"id": f"r{i}", "image": PIXELS, "mask": HOLE, **change} for i, change in enumerate(changes)]
    return list(as_benchmark(pd.DataFrame(made)))


def transparent() -> Image.Image:
    mask = MASK.convert("RGBA")
    mask.putalpha(MASK.convert("L"))
    return mask


def cut() -> Image.Image:
    import io

    data = io.BytesIO()
    Image.fromarray(PIXELS).save(data, "PNG")
    return Image.open(io.BytesIO(data.getvalue()[:200]))


def dataset_dict() -> Any:
    from datasets import Dataset, DatasetDict
    from datasets import Image as ImageFeature

    data = Dataset.from_dict({"image": [Image.fromarray(PIXELS)], "text": ["a"]})
    return DatasetDict(train=data.cast_column("image", ImageFeature()))


class Bare:
    """A benchmark of one's own, whose manifest has no hash."""

    name, keys, manifest = "bare", [("a", "brush")], {"name": "bare"}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return [sample()][index]


def record(split: str) -> Any:
    from brushbench.benchmarks.base import Record
    from brushbench.benchmarks.memory import _hole, _image

    return Record("a", "a cat", _image(PIXELS, "image"), {split: _hole(HOLE)})


def derived(split: str = "brush") -> object:
    return as_benchmark(LazyBenchmark("mine", [record(split)], splits=("brush",)))


LOADED = as_benchmark([sample()])
FLAT = np.array([[1.0, np.nan]] * 8)
# what is refused, what the message advises, and what follows the advice
PYTHON: dict[str, tuple[Try, str, list[Try]]] = {
    "a picture of floats": (
        lambda: sample(PIXELS / 255), "Convert it", [lambda: sample((PIXELS / 255 * 255).round().astype(np.uint8))],
    ),
    "a picture of Pillow": (
        lambda: sample(Image.fromarray(PIXELS)), "Convert it", [lambda: sample(np.asarray(Image.fromarray(PIXELS)))],
    ),
    "a hole of Pillow": (lambda: sample(hole=MASK), "Convert it", [lambda: sample(hole=np.asarray(MASK))]),
    "a hole of another size": (
        lambda: sample(hole=HOLE[:12]), "Convert it", [lambda: sample(hole=np.pad(HOLE[:12], ((0, 12), (0, 0))))],
    ),
    "a hole of levels": (
        lambda: sample(hole=HOLE * np.uint8(200)), "Say which values are the hole, such as `mask >= 128`",
        [lambda: sample(hole=HOLE * np.uint8(200) >= 128)],
    ),
    "no text": (lambda: sample(prompt=None), "Convert it", [lambda: sample(prompt="")]),
    "a list of nothing": (lambda: as_benchmark([]), "Give at least one.", [lambda: as_benchmark([sample()])]),
    "a table of nothing": (lambda: rows(), "Give at least one.", [lambda: rows({})]),
    "one id for two samples": (
        lambda: as_benchmark([sample(), sample()]), "Give every sample its own id",
        [lambda: as_benchmark([sample(), sample(name="b")])],
    ),
    "no caption": (
        lambda: as_benchmark([sample(prompt="")]).with_captions(), "Write one as its prompt",
        [lambda: as_benchmark([sample(prompt="a")]).with_captions()],
    ),
    "a row without a caption": (
        lambda: as_benchmark(pd.DataFrame([{"image": PIXELS}])).with_captions(),
        "Write one, use a method that reads none (such as telea).",
        [lambda: as_benchmark(pd.DataFrame([{"image": PIXELS, "caption": "a"}])).with_captions()],
    ),
    "a loaded benchmark": (
        lambda: as_benchmark(LOADED, "inside"), "Give split and limit to load_benchmark, not here.",
        [lambda: as_benchmark(LOADED), lambda: bb.load_benchmark("shapes", "inside", 1)],
    ),
    "a DatasetDict": (
        lambda: as_benchmark(dataset_dict()), "Choose a split, or load it whole.",
        [lambda: as_benchmark(dataset_dict()["train"])],
    ),
    "a row without a mask": (
        lambda: rows({}, {"mask": None}), "Give it one, or no row one to use seeded brush holes",
        [lambda: rows({}, {}), lambda: rows({"mask": None}, {"mask": None})],
    ),
    "an image that is a number": (lambda: rows({"image": 3}), "Convert it", [lambda: rows({"image": PIXELS})]),
    "a mask that is a number": (lambda: rows({"mask": 3}), "Convert it", [lambda: rows({"mask": MASK})]),
    "a mask of another size": (
        lambda: rows({"mask": HOLE[:12]}), "Bring the hole to the picture's size",
        [lambda: rows({"mask": np.pad(HOLE[:12], ((0, 12), (0, 0)))})],
    ),
    "no folder": (
        lambda: layout_of(Path("nothing")), "Give the folder of a benchmark.",
        [lambda: layout_of(Path(__file__).parent)],
    ),
    "a transparent mask": (
        lambda: rows({"mask": transparent()}), "Save it without transparency, white = hole",
        [lambda: rows({"mask": transparent().convert("RGB")})],
    ),
    "a picture that is cut": (lambda: rows({"image": cut()}), "Replace it", [lambda: rows({})]),
    "no hole for a split": (lambda: derived("inside"), "Add one", [derived]),
    "a manifest without its hash": (
        lambda: as_benchmark(Bare()),
        "Derive the class from brushbench.benchmarks.base.LazyBenchmark, which makes one.", [derived],
    ),
    "weights of a metric without": (
        lambda: bb.load_metric("psnr", weights="x"), "Leave weights= out.", [lambda: bb.load_metric("psnr")],
    ),
    "a proportion of other numbers": (
        lambda: stats.mean_interval(SCORES, proportion=True), "Leave proportion out, or pass False.",
        [lambda: stats.mean_interval(SCORES), lambda: stats.mean_interval(SCORES, proportion=False)],
    ),
    "scores that are none": (
        lambda: stats.mean_interval([*SCORES, np.nan]), "Leave those samples out and count them.",
        [lambda: stats.mean_interval(SCORES)],
    ),
    "draws without a score": (
        lambda: stats.noise_floor([*np.ones((8, 2)), *FLAT]),
        "Leave out the samples that have no score in some draw.", [lambda: stats.noise_floor(np.ones((8, 2)))],
    ),
    "one draw": (
        lambda: stats.noise_floor(np.ones((8, 1))),
        "at least two draws: --repeats 2, or a second run with another seed",
        [lambda: stats.noise_floor(np.ones((8, 2)))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PYTHON)
def test_the_remedy_in_python_works(case: str) -> None:
    wrong, advice, remedies = PYTHON[case]
    with pytest.raises((BrushbenchError, UnusableError, ValueError)) as refused:
        wrong()
    assert advice in " ".join(str(refused.value).split())
    assert ("--skip-bad" in str(refused.value)) == (case == "no hole for a split")  # lists and tables have none
    for right in remedies:
        right()


# Runs and their files -------------------------------------------------------------------------------------------------


def test_a_stranger_in_a_run_is_moved_away_or_the_run_goes_elsewhere(brushbench: Command, tmp_path: Path) -> None:
    brushbench(f"{EVAL} -m copy")
    run = tmp_path / "runs" / "folder" / "n"
    (run / "notes.txt").touch()
    told = brushbench(f"{EVAL} -m copy --overwrite", 3)
    assert "Move it away, or name another folder with --out." in told
    brushbench(f"{EVAL} -m copy --overwrite --out other")
    (run / "notes.txt").rename(tmp_path / "notes.txt")
    brushbench(f"{EVAL} -m copy --overwrite")


def test_a_run_in_use_is_waited_for(brushbench: Command, tmp_path: Path) -> None:
    import filelock

    brushbench(f"{EVAL} -m copy")
    with filelock.FileLock(tmp_path / "runs" / "folder" / "n" / "locks" / "brush-0-000000.lock"):
        assert "Wait for it, or end it." in brushbench(f"{EVAL} -m copy --overwrite", 3)
    brushbench(f"{EVAL} -m copy --overwrite")


def test_an_image_that_was_changed_is_restored_or_the_run_begins_elsewhere(brushbench: Command, tmp_path: Path) -> None:
    brushbench(f"{EVAL} -m copy")
    image = next((tmp_path / "runs").glob("*/n/pictures/*/*/good.png"))
    shutil.copy(image, tmp_path / "kept.png")
    Image.fromarray(PIXELS).save(image)
    told = brushbench("score runs/folder/n --metrics mse", 3)
    assert "was changed after it was committed. Restore it, or start again in another folder." in told
    brushbench(f"{EVAL} -m copy --out other")
    shutil.copy(tmp_path / "kept.png", image)
    brushbench("score runs/folder/n --metrics mse")
