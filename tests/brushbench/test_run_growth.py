"""A run grows, is replaced, is shared by two writers, and survives what a disk does: no wrong score is left over."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench import records
from brushbench.errors import ConfigMismatchError, RunError, UsageError
from brushbench.evaluation import Scoring, rescore
from brushbench.evaluation.mended import remember
from brushbench.records import PictureRow, read_rows
from brushbench.score_table import ScoreTable, table_bytes
from brushbench.store import RunFolder
from tests.brushbench import toys
from tests.brushbench.test_run_resume import contents

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench", pictures=5)


def evaluate(data: object, out: Path, method: object = None, **settings: object) -> brushbench.Run:
    settings = {"metrics": "psnr@standard,mse@standard", "variants": "raw", "batch_size": 2, **settings}
    return brushbench.evaluate(method or toys.Noise(), data, out=out, **settings)


def psnr_of_stored_pictures(run: brushbench.Run, data: Path) -> list[float]:
    samples = {(s.id, s.split): s for s in brushbench.load_benchmark(data)}
    metric = brushbench.load_metric("psnr")
    scores = run.scores[run.scores.metric == "psnr"]
    stored = []
    for row in scores.to_dict("records"):
        file = RunFolder(run.path).picture_path(row["sample"], row["split"], row["repeat"])
        stored.append(metric([np.asarray(Image.open(file))], [samples[row["sample"], row["split"]]])[0])
    return stored


class Counting(toys.Noise):
    """Noise that counts what it is asked for."""

    asked: ClassVar[list[str]] = []

    def inpaint(self, requests):
        self.asked.extend(request.id for request in requests)
        return super().inpaint(requests)


# Growth ---------------------------------------------------------------------------------------------------------------


def test_a_run_grows_by_images_splits_and_repeats_and_equals_a_whole_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(data, tmp_path / "whole", Counting(), repeats=2)
    monkeypatch.setattr(Counting, "asked", [])
    evaluate(data, tmp_path / "r", Counting(), limit=3, split="inside")
    assert len(Counting.asked) == 3
    evaluate(data, tmp_path / "r", Counting(), limit=4, split="inside,brush")
    assert len(Counting.asked) == 3 + 2 + 4  # the last batch of the split `inside` held one of two, and is made whole
    grown = evaluate(data, tmp_path / "r", Counting(), repeats=2)
    assert grown.pictures() == whole.pictures()
    assert contents(grown.path) == contents(whole.path)


def test_a_run_does_not_shrink(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    with pytest.raises(ConfigMismatchError, match=r"config\.limit: null -> 2"):
        evaluate(data, tmp_path / "r", limit=2)


def test_a_run_does_not_grow_onto_other_data(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r", limit=2)
    other = tmp_path / "BrushBench"
    shutil.copytree(data, other)
    file = other / "images" / "000000001.png"
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(ConfigMismatchError, match=r"benchmark\.sha256: "):
        evaluate(other, tmp_path / "r")


def test_only_the_new_images_of_a_grown_run_are_scored(data: Path, tmp_path: Path, monkeypatch) -> None:
    from brushbench.metrics.mse import MSE

    evaluate(data, tmp_path / "r", limit=2, batch_size=1)
    scored = []
    own = MSE.__call__
    monkeypatch.setattr(MSE, "__call__", lambda m, p, s, f=None: (scored.extend(s), own(m, p, s, f))[1])
    evaluate(data, tmp_path / "r", limit=3, batch_size=1)
    assert {sample.id for sample in scored} == {"000000002"}


# Reuse ----------------------------------------------------------------------------------------------------------------


def test_what_was_made_and_what_is_reused_is_always_said(data: Path, tmp_path: Path, capsys) -> None:
    evaluate(data, tmp_path / "r", limit=2)
    assert "Noise: made 6, reused 0\n" in capsys.readouterr().err
    evaluate(data, tmp_path / "r", limit=2)
    assert "Noise: made 0, reused 6 (from 20" in capsys.readouterr().err
    evaluate(data, tmp_path / "r", limit=4)
    said = capsys.readouterr().err
    assert "The run grows from 6 to 12 images." in said
    assert "Noise: made 6, reused 6 (from 20" in said


def test_overwrite_replaces_a_run_of_other_settings_and_no_file_of_others(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r", limit=2)
    with pytest.raises(ConfigMismatchError, match="--overwrite"):
        evaluate(data, tmp_path / "r", seed=5)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds 'notes\.txt', which is no part of a run\. Move it away"):
        evaluate(data, tmp_path / "r", seed=5, overwrite=True)
    assert brushbench.Run.open(tmp_path / "r").config.seed == 1234
    (tmp_path / "r" / "notes.txt").unlink()  # the remedy
    assert evaluate(data, tmp_path / "r", seed=5, overwrite=True).config.seed == 5


NOTEBOOK = """
import numpy as np
from brushbench.types import Capabilities

class Mine:
    capabilities = Capabilities(text=False, batch=8)
    def describe(self):
        return {"method": "mine"}
    def inpaint(self, requests):
        return [np.full_like(r.image, LEVEL) for r in requests]
"""


def test_a_class_from_a_notebook_is_never_shown_the_scores_of_its_former_self(data: Path, tmp_path: Path) -> None:
    found = []
    for level in (100, 130):
        cell: dict[str, object] = {"__name__": "__main__"}
        exec(NOTEBOOK.replace("LEVEL", str(level)), cell)  # noqa: S102 - what a notebook does
        run = evaluate(data, tmp_path / "r", cell["Mine"](), limit=2)
        found.append(run.scores["value"].tolist())
    assert found[0] != found[1]


def test_a_class_from_a_file_is_reused_where_its_file_is_the_same(data: Path, tmp_path: Path, capsys) -> None:
    evaluate(data, tmp_path / "r", limit=2)
    evaluate(data, tmp_path / "r", limit=2)
    assert "reused 6" in capsys.readouterr().err


# Scores belong to pictures --------------------------------------------------------------------------------------------


def test_deleting_the_batches_as_the_message_says_leaves_no_score_of_an_old_picture(data: Path, tmp_path: Path) -> None:
    class Drifting(toys.Noise):
        level = 40

        def _one(self, request):
            return np.full_like(request.image, Drifting.level)

    run = evaluate(data, tmp_path / "r", Drifting(), limit=2)
    file = next(run.path.glob("pictures/*/*/*.png"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RunError, match=r"Delete .*batches and run the same command again"):
        rescore(run.path, data=data, scoring=Scoring("ssim"))
    shutil.rmtree(run.path / "batches")  # the remedy
    Drifting.level = 90
    run = evaluate(data, tmp_path / "r", Drifting(), limit=2)
    scores = run.scores[run.scores.metric == "psnr"]
    assert scores["value"].tolist() == pytest.approx(psnr_of_stored_pictures(run, data))


def test_a_score_of_a_picture_that_was_made_again_is_shown_as_missing(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    folder = RunFolder(run.path)
    rows = folder.rows("inside-0-000000")
    changed = [PictureRow(**{**vars(row), "sha256": "0" * 64}) for row in rows]
    folder.commit("inside-0-000000", changed, [None, None])
    stale = run.scores[run.scores.split == "inside"]
    assert stale["value"].isna().all()
    assert stale["reason"].str.contains("score the run again").all()
    assert run.scores[run.scores.split == "brush"]["value"].notna().all()


def test_a_record_beside_the_former_scores_of_its_column_counts_for_nothing(data: Path, tmp_path: Path) -> None:
    """A kill between the two files left new hashes over old scores."""
    run = evaluate(data, tmp_path / "r", limit=2)
    before = (run.path / "scores.parquet").read_bytes()
    headers = json.loads((run.path / "metrics.json").read_text())
    headers["psnr@standard"]["scores_sha256"] = "1" * 64
    (run.path / "metrics.json").write_text(json.dumps(headers))
    assert set(run.scores["metric"]) == {"mse"}
    again = evaluate(data, tmp_path / "r", limit=2)
    assert set(again.scores["metric"]) == {"mse", "psnr"}
    assert (run.path / "scores.parquet").read_bytes() == before


def test_scores_whose_record_has_the_hash_of_earlier_commits_still_count(data: Path, tmp_path: Path) -> None:
    """A faster hash would have hidden every column that was scored before it."""
    run = evaluate(data, tmp_path / "r", limit=2)
    headers = json.loads((run.path / "metrics.json").read_text())
    table = run.scores[run.scores.metric == "psnr"]
    rows = [[None if value != value else value for value in row] for row in table.to_numpy(dtype=object).tolist()]
    earlier = hashlib.sha256(json.dumps(sorted(map(repr, rows))).encode()).hexdigest()
    headers["psnr@standard"]["scores_sha256"] = earlier
    (run.path / "metrics.json").write_text(json.dumps(headers))
    assert set(run.scores["metric"]) == {"mse", "psnr"}


def test_the_hash_of_a_column_sees_every_change_but_not_the_order(data: Path, tmp_path: Path) -> None:
    table = evaluate(data, tmp_path / "r", limit=2).scores
    table = table[table.metric == "psnr"].reset_index(drop=True)
    before = ScoreTable.of(table).sha256()
    assert ScoreTable.of(table[::-1]).sha256() == before
    for name, other in (("value", 1.0), ("value", float("nan")), ("reason", "x"), ("sample", "y"), ("repeat", 7)):
        changed = table.copy()
        changed.loc[1, name] = other
        assert ScoreTable.of(changed).sha256() != before


@pytest.mark.parametrize("killed_at", ["_write_headers", "_write_scores", "clear_parts"])
def test_a_merge_that_is_cut_off_is_finished_by_the_next_command(
    data: Path, tmp_path: Path, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(evaluate(data, tmp_path / "whole", limit=2).path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(data, tmp_path / "r", limit=2)
    assert (tmp_path / "r" / "parts").is_dir()
    run = evaluate(data, tmp_path / "r", limit=2)
    assert contents(run.path) == whole


# Two writers ----------------------------------------------------------------------------------------------------------


class Restless(toys.Noise):
    """Another picture for each call, as of a method that is not deterministic."""

    def _one(self, request):
        return np.random.default_rng().integers(0, 256, request.image.shape, dtype=np.uint8)


@pytest.mark.parametrize("shards", [(None, None), ("1/2", "1/3"), (None, "2/2")])
def test_two_writers_leave_no_score_that_is_not_of_the_stored_picture(data: Path, tmp_path: Path, shards) -> None:
    failures = []

    def work(shard: str | None) -> None:
        try:
            evaluate(data, tmp_path / "r", Restless(), shard=shard, batch_size=1, repeats=2)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(shard,)) for shard in shards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    run = evaluate(data, tmp_path / "r", Restless(), batch_size=1, repeats=2)
    scores = run.scores[run.scores.metric == "psnr"]
    assert len(scores) == 30
    assert scores["value"].tolist() == pytest.approx(psnr_of_stored_pictures(run, data))


def test_several_that_begin_at_once_write_down_what_the_records_are(data: Path, tmp_path: Path) -> None:
    """Each wrote the file without a lock, by one temporary name: the second found its own gone."""
    evaluate(data, tmp_path / "r", toys.Noise())
    folder, benchmark = RunFolder(tmp_path / "r"), brushbench.load_benchmark(data)
    written = folder.records_file.read_bytes()
    for _ in range(20):
        folder.records_file.unlink()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: remember(RunFolder(folder.path), benchmark), range(8)))
        assert folder.records_file.read_bytes() == written


# Disks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "file"),
    [
        (errno.ENOSPC, "run.json"),
        (errno.EIO, ".png"),
        (errno.ESTALE, "inside-0-000001.json"),
        (errno.EDQUOT, "metrics.json"),
        (errno.EROFS, "scores.parquet"),
    ],
)
def test_a_disk_that_fails_is_one_sentence_and_the_same_command_continues(
    data: Path, tmp_path: Path, number: int, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    failed = []

    def fsync(descriptor: int) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name.endswith(f"{file}.tmp") and len(failed) < 1:
            failed.append(name)
            raise OSError(number, os.strerror(number), name)
        real(descriptor)

    monkeypatch.setattr(records.os, "fsync", fsync)
    with pytest.raises(RunError, match=rf"could not be written \({os.strerror(number)}\).*the same command then"):
        evaluate(data, tmp_path / "r", limit=3, split="inside")
    assert failed
    run = evaluate(data, tmp_path / "r", limit=3, split="inside")  # the remedy
    assert run.pictures()["ok"] == 3
    assert not list(run.path.rglob("*.tmp"))


def test_a_run_can_begin_where_a_killed_process_left_half_a_run_json(data: Path, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".run.json.tmp").write_text('{"sche')
    (tmp_path / "r" / ".DS_Store").write_text("")
    assert evaluate(data, tmp_path / "r", limit=2).pictures()["ok"] == 6
    assert not (tmp_path / "r" / ".run.json.tmp").exists()


def test_a_run_folder_that_is_removed_under_a_running_eval_is_no_success(data: Path, tmp_path: Path) -> None:
    class Removing(toys.Noise):
        def _one(self, request):
            if request.id == "000000002":
                shutil.rmtree(tmp_path / "r", ignore_errors=True)
            return super()._one(request)

    with pytest.raises(RunError, match="was removed or moved while a process worked on it"):
        evaluate(data, tmp_path / "r", Removing(), batch_size=5)
    assert not (tmp_path / "r" / "pictures").exists()


# Damaged records ------------------------------------------------------------------------------------------------------


def read_everything(path: Path) -> None:
    run = brushbench.Run.open(path)
    run.metrics  # noqa: B018
    run.summary()
    run.pictures()
    run.outcome()


@pytest.mark.parametrize("file", ["run.json", "metrics.json", "batches/inside-0-000000.json"])
def test_no_wrong_type_in_a_record_of_a_run_is_a_traceback(data: Path, tmp_path: Path, file: str) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    content = json.loads((run.path / file).read_text())
    wrong = [None, [], {}, "x", -1, 1.5, True, 10**12, 10**400, [[[]]], {"a": {}}, "x" * 5000]

    def damaged(value: object) -> list[object]:
        found = []
        if isinstance(value, dict):
            for key, old in value.items():
                found += [{**value, key: bad} for bad in [*damaged(old), *wrong]]
                found.append({k: v for k, v in value.items() if k != key})
        if isinstance(value, list):
            for place, old in enumerate(value):
                found += [[*value[:place], bad, *value[place + 1 :]] for bad in [*damaged(old), *wrong]]
                found.append([*value[:place], *value[place + 1 :]])
        return found

    sentences = set()
    copies = damaged(content)
    for copy in copies[:: max(1, len(copies) // 150)]:
        (run.path / file).write_text(json.dumps(copy))
        try:
            read_everything(run.path)
        except RunError as error:
            sentences.add(str(error))
        except UsageError as error:
            sentences.add(str(error))
    assert len(sentences) > 20
    assert all(len(sentence) < 1500 for sentence in sentences)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null", b"1e999", b"9" * 5000]
)
@pytest.mark.parametrize("file", ["run.json", "metrics.json", "batches/inside-0-000000.json", "scores.parquet"])
def test_bombs_and_rubbish_in_a_record_are_one_sentence(data: Path, tmp_path: Path, file: str, content: bytes) -> None:
    run = evaluate(data, tmp_path / "r", limit=2, split="inside")
    (run.path / file).write_bytes(content)
    with pytest.raises(RunError, match=Path(file).name):
        read_everything(run.path)


def test_foreign_files_beside_ours_are_left_alone(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    for name in ("._inside-0-000000.json", "notes.json", "inside-0-000000 (1).json", "000000 (1).json", ".DS_Store"):
        (run.path / "batches" / name).write_text("{")
    assert run.pictures()["ok"] == 6
    assert evaluate(data, tmp_path / "r", limit=2).scores["value"].notna().all()


@pytest.mark.parametrize("file", ["run.json", "metrics.json", "scores.parquet", "batches/inside-0-000000.json"])
def test_a_pipe_in_place_of_a_record_is_refused_and_does_not_hang(data: Path, tmp_path: Path, file: str) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    (run.path / file).unlink()
    os.mkfifo(run.path / file)
    with pytest.raises(RunError, match="named pipe"):
        read_everything(run.path)


def test_a_picture_that_stands_in_two_batches_is_refused(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    batches = run.path / "batches"
    shutil.copy(batches / "inside-0-000000.json", batches / "inside-0-000009.json")
    with pytest.raises(RunError, match=r"inside-0-000009\.json holds .* which another batch holds too\. Delete it"):
        run.pictures()
    (batches / "inside-0-000009.json").unlink()  # the remedy
    assert run.pictures()["ok"] == 6


def test_a_score_that_stands_twice_is_refused(data: Path, tmp_path: Path) -> None:
    import pandas as pd

    run = evaluate(data, tmp_path / "r", limit=2)
    table = pd.concat([run.scores, run.scores])
    (run.path / "scores.parquet").write_bytes(table_bytes(table))
    with pytest.raises(RunError, match="holds a score twice"):
        run.summary()


def test_reading_the_git_revision_writes_nothing(tmp_path: Path) -> None:
    from brushbench.evaluation import provenance

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "brushbench" / "evaluation"
    package.mkdir(parents=True)
    shutil.copy(provenance.__file__, package / "provenance.py")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    file = package / "provenance.py"
    os.utime(file, (1, 1))  # the index no longer knows the file's time, and `describe --dirty` would write it down
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / ".git").rglob("*")}
    code = f"from brushbench.evaluation import provenance as p; p.__file__ = {str(file)!r}; print(p.git_revision())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 40
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / ".git").rglob("*")} == before
    file.write_text(file.read_text() + "# changed\n")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("-dirty")


def test_rows_of_a_run_read_back_as_they_were_written(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r", limit=2)
    rows = read_rows(run.path / "batches" / "inside-0-000000.json", PictureRow)
    assert [(row.sample, row.split, row.repeat, row.state) for row in rows] == [
        ("000000000", "inside", 0, "ok"),
        ("000000001", "inside", 0, "ok"),
    ]
