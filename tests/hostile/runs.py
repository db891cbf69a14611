"""Run folders that are damaged, or that somebody made who means no good."""

from __future__ import annotations

import atexit
import copy
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from tests.hostile.captions import DEEP, MAKERS
from tests.hostile.corpus import Hostile, good_folder
from tests.hostile.pictures import FILES as PICTURES

Damage = Callable[[Path], object]
HUGE, DIGITS = 10**12, "9" * 5000
BATCH = "batches/brush-0-000000.json"


@functools.cache
def template() -> Path:
    """Return a folder with a run in which nothing is wrong, and its benchmark; made once."""
    from brushbench.evaluation import evaluate

    root = Path(tempfile.mkdtemp(prefix="hostile-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    evaluate("copy", good_folder(root / "d"), out=root / "run", metrics="psnr@standard", notify=len)
    return root


def damaged(root: Path, damage: Damage, command: tuple[str, ...] = ("leaderboard",)) -> list[str]:
    """Copy the run, damage it, and return the command that meets it."""
    shutil.copytree(template() / "run", root / "run")
    damage(root / "run")
    return [command[0], str(root / "run"), *command[1:]]


def holding(file: str, content: bytes) -> Damage:
    return lambda run: (run / file).write_bytes(content)


def having(file: str, *steps: str | int, value: Any) -> Damage:
    """Put a value where ``steps`` lead in a JSON file; ``...`` removes what is there."""

    def change(run: Path) -> None:
        content = json.loads((run / file).read_text())
        inner = content
        for step in steps[:-1]:
            inner = inner[step]
        if value is ...:
            del inner[steps[-1]]
        else:
            inner[steps[-1]] = value
        (run / file).write_text(json.dumps(content))

    return change


def being(file: str, make: Callable[[Path], object]) -> Damage:
    """Put something that is no regular file in a record's place."""

    def change(run: Path) -> None:
        (run / file).unlink()
        make(run / file)

    return change


RUBBISH = {
    "nothing": b"", "cut": b'{"schema": 2, "con', "text": b"<html>", "null": b"null", "a number": DIGITS.encode(),
    "a JSON bomb": b"[" * DEEP, "an object bomb": b'{"a":' * DEEP, "no UTF-8": b"\xff\xfe\x00", "infinity": b"1e999",
}  # fmt: skip
# what is wrong: where in run.json, the value, and what is said of it
RECORD: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a schema of the future": (("schema",), 99, r"schema 99; this release reads up to 2\. Upgrade brushbench"),
    "a schema as text": (("schema",), "two", "schema"),
    "no schema": (("schema",), ..., "schema"),
    "a key of a newer release": (("colour",), 1, "keys that this release does not know .colour.*Upgrade brushbench"),
    "no settings": (("config",), ..., "says nothing of config"),
    "settings that are a list": (("config",), [], "config: "),
    "no plan": (("plan",), ..., "says nothing of plan"),
    "10^12 repeats": (("config", "repeats"), HUGE, "config.repeats: .*less than or equal to 10000"),
    "repeats of a half": (("config", "repeats"), 0.5, "config.repeats"),
    "batches of 0": (("config", "batch_size"), 0, "config.batch_size"),
    "batches of 10^30": (("config", "batch_size"), 10**30, "config.batch_size"),
    "a negative limit": (("config", "limit"), -1, "config.limit"),
    "a name that climbs": (("config", "name"), "../../x", "config.name"),
    "a name of 0 letters": (("config", "name"), "", "config.name"),
    "splits as a number": (("config", "splits"), 7, "config.splits"),
    "an unknown setting": (("config", "steps"), 7, "keys that this release does not know .config.steps"),
    "options that are a list": (("config", "options"), ["a"], "config.options"),
    "a plan of -1 images": (("plan", "pictures"), -1, "plan.pictures"),
    "a plan of many images": (("plan", "pictures"), "many", "plan.pictures"),
    "a benchmark without a name": (("benchmark", "name"), ..., "benchmark.name"),
    "a benchmark's hash as a list": (("benchmark", "sha256"), ["0"], "benchmark.sha256"),
    "capabilities of nothing": (("capabilities", "batch"), 0, "batch"),
    "capabilities that are text": (("capabilities",), "all", "capabilities"),
    "code that is no hash": (("code",), {"mine.py": "x" * 64}, "code.mine.py"),
    "versions that are a list": (("software",), ["torch"], "software"),
    "a description that is text": (("method",), "x", "method"),
}
COLUMN = "psnr@standard"
HEADERS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a column that is a number": ((COLUMN,), 7, "psnr@standard"),
    "a column without a direction": ((COLUMN, "higher_is_better"), ..., "higher_is_better is missing"),
    "a direction as text": ((COLUMN, "higher_is_better"), "up", "higher_is_better"),
    "an identity that is no hash": ((COLUMN, "identity"), "../x", "identity"),
    "a scale that is NaN": ((COLUMN, "display"), ["x", float("nan")], "display"),
    "a scale of three": ((COLUMN, "display"), ["x", 1, 2], "display"),
    "variants as an object": ((COLUMN, "variants"), {}, "variants"),
    "-1 captions cut": ((COLUMN, "captions_cut"), -1, "captions_cut"),
    "a reason that is a number": ((COLUMN, "unavailable"), 7, "unavailable"),
}
ROWS: dict[str, tuple[tuple[int | str, ...], Any, str]] = {
    "a row that is text": ((0,), "ok", "0: "),
    "a row without its sample": ((0, "sample"), ..., "0.sample"),
    "a sample that is a number": ((0, "sample"), 7, "0.sample"),
    "an unknown state": ((0, "state"), "fine", "0.state"),
    "a repeat of a half": ((0, "repeat"), 0.5, "0.repeat"),
    "a seed as text": ((0, "seed"), "x", "0.seed"),
    "metadata that is a list": ((0, "meta"), [], "0.meta"),
    "metadata of numbers": ((0, "meta"), {"style": 1}, "0.meta.style"),
    "an unknown field": ((0, "colour"), 1, "keys that this release does not know .0.colour"),
}


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    def damage(run: Path) -> None:
        found = pd.read_parquet(run / "scores.parquet")
        buffer = io.BytesIO()
        change(found).to_parquet(buffer)
        (run / "scores.parquet").write_bytes(buffer.getvalue())

    return damage


SCORES: dict[str, tuple[Damage, str]] = {
    "nothing": (holding("scores.parquet", b""), "cannot be read"),
    "text": (holding("scores.parquet", b"<html>"), "cannot be read"),
    "only its marks": (holding("scores.parquet", b"PAR1PAR1"), "cannot be read"),
    "cut": (lambda run: holding("scores.parquet", (run / "scores.parquet").read_bytes()[:-9])(run), "cannot be read"),
    "other columns": (table(lambda found: found.rename(columns={"metric": "x"})), "has no column 'metric'"),
    "values as text": (table(lambda found: found.assign(value="1")), "has no column 'value' of its type"),
    "repeats as floats": (table(lambda found: found.assign(repeat=0.0)), "has no column 'repeat' of its type"),
    "samples as numbers": (table(lambda found: found.assign(sample=1)), "has no column 'sample' of its type"),
    "a score without a metric": (table(lambda found: found.assign(metric=None)), "a score without 'metric'"),
    "each score twice": (table(lambda found: pd.concat([found, found])), "holds a score twice"),
}


def renamed_benchmark(name: str, options: dict[str, Any]) -> Damage:
    return having("run.json", "bench", value={"name": name, "options": options})


def second_batch(run: Path) -> None:
    shutil.copy(run / BATCH, run / "batches" / "brush-0-000009.json")


def foreign_files(run: Path) -> None:
    for name in ("._brush-0-000000.json", "notes.json", "brush-0-000000 (1).json", ".DS_Store"):
        (run / "batches" / name).write_text("{")


def without_pictures(run: Path) -> None:
    shutil.rmtree(run / "pictures")


def picture(make: Callable[[Path], object]) -> Damage:
    def change(run: Path) -> None:
        file = next(run.glob("pictures/*/*/bad.png"))
        file.unlink()
        make(file)

    return change


SCORE = ("score", "--metrics", "mse")
FOREIGN = r"is not built in, and code is never run because a run names it\. .*--bench file\.py:Class"


def inputs() -> Iterator[Hostile]:
    for name, content in RUBBISH.items():
        for file in ("run.json", "metrics.json", BATCH):
            yield Hostile(f"{Path(file).name} of {name}", partial(damaged, damage=holding(file, content)), 3, "error: ")
    for file, wrong in (("run.json", RECORD), ("metrics.json", HEADERS), (BATCH, ROWS)):
        for name, (steps, value, says) in wrong.items():
            damage = having(file, *steps, value=copy.deepcopy(value))
            yield Hostile(f"{Path(file).name}: {name}", partial(damaged, damage=damage), 3, f"error: .*{file}.*{says}")
    for name, (damage, says) in SCORES.items():
        yield Hostile(f"scores.parquet: {name}", partial(damaged, damage=damage), 3, f"scores.parquet.* {says}")
    for file in ("run.json", "metrics.json", "scores.parquet", BATCH):
        for what, (make, says) in MAKERS.items():
            name = f"{Path(file).name} that is {what}"
            yield Hostile(name, partial(damaged, damage=being(file, make)), 3, f"error: .*{says}")


INPUTS = [
    *inputs(),
    *(
        Hostile(
            f"score RUN: an image that is {name}",
            partial(damaged, damage=picture(PICTURES[name][0]), command=SCORE),
            3,
            r"error: .*bad\.png cannot be read .*Delete .*batches and run the same command again",
        )
        for name in ("text", "EPS under another name", "a named pipe", "/dev/zero", "a link to nothing", "a folder")
    ),
    *(
        Hostile(
            f"score RUN: a benchmark that is {name}",
            partial(damaged, damage=renamed_benchmark(name, {"args": "touch hacked"}), command=SCORE),
            2,
            FOREIGN,
        )
        for name in ("subprocess:Popen", "evil.py:X", "os:system", "../evil.py:X", "brushbench.cli:main", "")
    ),
    Hostile(
        "score RUN: an option of the benchmark that it has not",
        partial(damaged, damage=renamed_benchmark("folder", {"shell": "x"}), command=SCORE), 2, "Unknown option",
    ),
    Hostile(
        "score RUN: a folder of the benchmark that is a device",
        partial(damaged, damage=renamed_benchmark("folder", {"root": "/dev/zero"}), command=SCORE), 5, "error: ",
    ),
    Hostile("an image that stands in two batches", partial(damaged, damage=second_batch), 3, "another batch holds too"),
    Hostile("files of others beside the batches", partial(damaged, damage=foreign_files), 0, "copy"),
    Hostile("score RUN: no pictures", partial(damaged, damage=without_pictures, command=SCORE), 3, "cannot be read"),
    Hostile("no run.json", partial(damaged, damage=lambda run: (run / "run.json").unlink()), 3, "holds no run"),
]  # fmt: skip
