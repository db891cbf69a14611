"""Must show: workers of Ray and of Slurm, whole or killed in the middle, give the bytes of the local engine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

import brushbench
from baselines.telea import Telea
from brushbench.devices import check_device
from brushbench.engines import workers
from brushbench.engines.shard import Shard
from brushbench.engines.workers import Report, run_workers
from brushbench.errors import BrushbenchError
from brushbench.evaluation import Scoring, rescore, score_images
from brushbench.records import write_atomically
from brushbench.store import RunFolder
from tests.brushbench import toys
from tests.brushbench.test_cli_limits import is_running
from tests.brushbench.test_run_resume import command, contents, environment, run

OPTIONS = {
    "ray": ("--engine", "ray"),
    "slurm": ("--engine", "slurm", "--engine-address", "local"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    run(data, out)
    return contents(out / "noise")


CLUSTER = """
import ray, sys
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def need(engine: str) -> None:
    if not find_spec({"ray": "ray", "slurm": "submitit"}[engine]):
        pytest.skip(f"not installed: pip install 'brushbench[{engine}]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster of two CPUs that is there already: what a command is told of it."""
    need("ray")
    told = {**environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=told, text=True, **pipes) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        assert address
        yield {**told, "RAY_ADDRESS": address}
        process.communicate()


def begin(data: Path, tmp_path: Path, engine: str) -> tuple[subprocess.Popen[str], set[int]]:
    """Start a command with two workers; return it and their process ids when both are at work and a batch is made."""
    need(engine)
    pids = tmp_path / "pids"
    pids.mkdir()
    told = {**environment(0.3), "TOY_PIDS": str(pids)}
    line = ["env", "--default-signal", *command(data, tmp_path, *OPTIONS[engine], "--jobs", "2")]
    process = subprocess.Popen(line, env=told, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 300
    while len(list(pids.iterdir())) < 2 or not list(tmp_path.glob("noise/batches/*.json")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process, {int(file.name) for file in pids.iterdir()}


@pytest.mark.parametrize(
    ("engine", "number"),
    [("ray", signal.SIGKILL), pytest.param("slurm", signal.SIGUSR2, marks=pytest.mark.slow)],
)
def test_a_worker_that_is_killed_or_preempted_changes_nothing(
    engine: str, number: signal.Signals, data: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    process, pids = begin(data, tmp_path, engine)
    os.kill(pids.pop(), number)
    stderr = process.communicate(timeout=300)[1]
    assert process.returncode == 0, stderr
    assert f"2 workers on {engine} share the work." in stderr
    assert "noise: batches generated: 9/9" in stderr
    assert "noise: made 15, reused 0" in stderr
    assert contents(tmp_path / "noise") == whole
    assert {path.name for path in tmp_path.iterdir()} == {"noise", "pids"}  # submitit's files are gone


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_too_and_the_same_command_continues(
    data: Path, whole: dict[str, str], tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    process, pids = begin(data, tmp_path, "ray")
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert "of 15 images are made and kept in" in stderr
    assert "Stopped by SIGINT" in stderr
    deadline = time.monotonic() + 5
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
    again = command(data, tmp_path, "--engine", "ray", "--jobs", "3")  # more workers than the cluster has room for
    done = subprocess.run(again, env=dict(cluster), capture_output=True, text=True, check=True)
    assert ", reused " in done.stderr
    assert ", reused 0" not in done.stderr
    assert contents(tmp_path / "noise") == whole


@pytest.mark.slow
def test_a_run_and_images_scored_by_workers_equal_those_scored_here(
    data: Path, tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    def score(*more: str) -> str:
        asked = [sys.executable, "-m", "brushbench", "score", *more, "--metrics", "psnr,mse", "--data", str(data)]
        engine = ["--engine", "ray", "--engine-address", cluster["RAY_ADDRESS"], "--jobs", "2"]
        told = {**cluster, "RAY_ADDRESS": ""}
        return subprocess.run([*asked, *engine], env=told, capture_output=True, text=True).stderr

    scoring, one, two = Scoring("psnr,mse"), tmp_path / "1", tmp_path / "2"
    made = brushbench.evaluate(Telea(), data, out=one / "run", limit=3, batch_size=1, metrics="none")
    shutil.copytree(one / "run", two / "run")
    rescore(one / "run", data=data, scoring=scoring)
    assert "2 workers on ray share the work" in score(str(two / "run"))
    images, benchmark = tmp_path / "images", brushbench.load_benchmark(data, limit=3)
    for split in ("inside", "outside"):
        shutil.copytree(made.path / "pictures" / split / "0", images / split)
    score_images(images, benchmark, name="images", out=one / "images", scoring=scoring)
    score("--images", str(images), "--bench", "brushbench", "--limit", "3", "--out", str(two))
    for name in ("run", "images"):
        assert contents(one / name) == contents(two / name)


def test_one_worker_gives_the_bytes_of_the_local_engine(
    data: Path, whole: dict[str, str], tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    line = command(data, tmp_path, "--engine", "ray", "--jobs", "1")
    done = subprocess.run(line, env=dict(cluster), capture_output=True, text=True, check=True)
    assert "1 worker on ray does the work." in done.stderr
    assert contents(tmp_path / "noise") == whole
    rows = RunFolder(tmp_path / "noise").picture_rows().values()
    assert len({row.sha256 for row in rows if row.sha256}) == 15  # and so whole is not empty either


@pytest.mark.slow
def test_an_error_of_every_worker_is_one_sentence_with_its_exit_code(
    data: Path, tmp_path: Path, cluster: Mapping[str, str]
) -> None:
    line = command(data, tmp_path, "--engine", "ray", "--jobs", "2")
    line[line.index("--model") + 1] = f"{toys.__file__}:Noise,fail=all"
    failed = subprocess.run(line, env=dict(cluster), capture_output=True, text=True)
    assert failed.returncode == 3
    assert failed.stderr.count("error: ") == 1
    assert "error: All 2 workers stopped. " in failed.stderr
    assert "out of paint" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "noise").exists()


# Without an engine ----------------------------------------------------------------------------------------------------


class Crew:
    """Workers that end as they are told to, one at every look."""

    threads = 1

    def __init__(self, *reports: Report | None) -> None:
        self.reports, self.looks, self.stopped = reports, 0, False

    def start(self, packed: bytes, count: int) -> None:
        assert count == len(self.reports)

    def ended(self) -> dict[int, Report]:
        self.looks += 1
        return {i: report for i, report in enumerate(self.reports[: self.looks], start=1) if report}

    def stop(self) -> None:
        self.stopped = True


def carry_out(crew: Crew) -> None:
    run_workers(crew, list, len(crew.reports), lambda is_running: None)


def test_one_worker_that_fails_leaves_its_part_to_the_others_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    crew = Crew(Report("the GPU is broken.", 3), Report())
    carry_out(crew)
    assert crew.stopped
    assert capsys.readouterr().err == "Worker 1 of 2 stopped: the GPU is broken. The others did its part.\n"


def test_workers_that_are_still_waiting_for_a_machine_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.3)
    crew = Crew(Report(), None)
    carry_out(crew)
    assert crew.stopped


def test_what_workers_have_to_say_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A worker prints nothing, so a run that grew, or had been begun with other threads, was continued in silence."""
    carry_out(Crew(Report(notes=("The run grows.",)), Report(notes=("The run grows.", "Two threads."))))
    assert capsys.readouterr().err == "The run grows.\nTwo threads.\n"


def test_the_shared_folder_is_looked_at_once_a_second_and_not_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, running = [], iter([True] * 30 + [False] * 9)
    monkeypatch.setattr(workers, "_generated", lambda _: looks.append(1) or (9 if len(looks) > 1 else 0))
    monkeypatch.setattr(workers, "POLL", 0.001)
    workers.follow({"run": RunFolder("nowhere")}, 9, False, lambda: next(running))
    assert len(looks) == 2  # the first, and the one after the end


def test_workers_that_all_fail_end_the_command_with_the_first_one_s_code() -> None:
    crew = Crew(Report("no caption.", 2, "Traceback of it"), Report("lost.", 3))
    with pytest.raises(BrushbenchError, match=r"All 2 workers stopped\. no caption\.") as caught:
        carry_out(crew)
    assert caught.value.exit_code == 2
    assert caught.value.__notes__ == ["Traceback of it"]
    assert crew.stopped


@pytest.mark.parametrize(
    ("call", "report"),
    [
        (list, ("", 0)),
        (partial(check_device, "gpu"), ("Unknown device 'gpu'", 2)),
        (partial(int, "x"), ("ValueError: invalid literal", 5)),
    ],
)
def test_a_worker_reports_how_it_ended(
    call: Callable[[], list[str]], report: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brushbench.progress.show_progress", True)  # put back after the worker switched it off
    found = workers.work(workers._pack(call, 1))
    assert found.error.startswith(report[0])
    assert (bool(found.error), found.exit_code) == (bool(report[0]), report[1])
    assert ("Traceback" in found.details) == bool(report[1])


def test_a_batch_that_another_process_scores_is_passed_over_until_the_end(data: Path, tmp_path: Path) -> None:
    """It was waited for, so that several workers over one plan scored one batch after the other, in a convoy."""
    run = brushbench.evaluate(Telea(), data, out=tmp_path / "run", limit=3, batch_size=1, metrics="none")
    folder = RunFolder(run.path)
    first = folder.finished_batches()[0]
    scoring = Scoring("psnr@standard", variants="raw")
    with folder.lock(first):
        thread = threading.Thread(target=rescore, args=(run.path,), kwargs={"data": data, "scoring": scoring})
        thread.start()
        deadline = time.monotonic() + 60
        while len(list(run.path.glob("parts/*/*.json"))) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not list(run.path.glob(f"parts/*/{first}.json"))
    thread.join()
    assert len(brushbench.Run.open(run.path).scores) == 9


def test_a_batch_that_another_process_has_scored_and_merged_meanwhile_leaves_nothing_behind(
    data: Path, tmp_path: Path
) -> None:
    run = brushbench.evaluate(Telea(), data, out=tmp_path / "run", limit=2, batch_size=1, metrics="none")
    folder, scoring = RunFolder(run.path), Scoring("psnr@standard", variants="raw")
    last = folder.finished_batches()[-1]
    score = partial(rescore, run.path, data=data, scoring=scoring, redo=False)
    with folder.lock(last):
        threads = [threading.Thread(target=score) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(list(run.path.glob("parts/*/*.json"))) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)  # both wait for it now
    for thread in threads:
        thread.join()
    assert len(brushbench.Run.open(run.path).scores) == 6
    assert not list(run.path.glob("parts/*"))


def test_what_others_have_made_meanwhile_is_neither_locked_nor_read_batch_by_batch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 64 workers each locked and read every batch of the plan: 64 times the load on the shared folder."""
    told = {"benchmark": data, "split": "inside", "batch_size": 1, "metrics": "none"}
    made = brushbench.evaluate(toys.Noise(), out=tmp_path / "made", **told).path
    locked, lock = [], RunFolder.lock
    monkeypatch.setattr(RunFolder, "lock", lambda self, name, wait=True: locked.append(name) or lock(self, name, wait))

    class Beaten(toys.Noise):
        def inpaint(self, requests):
            for part in ("pictures", "batches"):
                shutil.copytree(made / part, tmp_path / "beaten" / part, dirs_exist_ok=True)
            return super().inpaint(requests)

    beaten = brushbench.evaluate(Beaten(), out=tmp_path / "beaten", **told).path
    assert [name for name in locked if name.startswith("inside")] == ["inside-0-000000", "inside-0-000001"]  # of five
    assert RunFolder(beaten).picture_rows() == RunFolder(made).picture_rows()


def test_a_worker_killed_within_a_commit_leaves_the_batch_to_the_others(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"benchmark": data, "split": "inside", "batch_size": 2, "metrics": "psnr", "variants": "raw"}
    whole = brushbench.evaluate(toys.Noise(), out=tmp_path / "whole", **told).path

    def write(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        if path.name != "run.json" and path.parent.name != "cut":
            os.kill(os.getpid(), signal.SIGKILL)  # behind the first file of the first batch

    if not (child := os.fork()):
        try:
            monkeypatch.setattr("brushbench.store.write_atomically", write)
            brushbench.evaluate(toys.Noise(), out=tmp_path / "cut", **told)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.glob("cut/pictures/*/*/*.png"))) == 1
    cut = brushbench.evaluate(toys.Noise(), out=tmp_path / "cut", **told).path
    assert contents(cut) == contents(whole)


IMPORTER = """
import sys, threading
import brushbench
from tests.brushbench import toys

class Watch:
    def find_spec(self, name, *_):
        if name == "cv2":
            print("by", threading.current_thread().name)

sys.meta_path.insert(0, Watch())
brushbench.evaluate(toys.Noise(), sys.argv[1], out=sys.argv[2], limit=1, split="inside", metrics="none")
"""


def test_opencv_is_imported_before_images_are_written_behind_the_work(data: Path, tmp_path: Path) -> None:
    """Importing it in the thread that commits failed, or crashed, where a plug-in's sys.path was set meanwhile."""
    line = [sys.executable, "-c", IMPORTER, str(data), str(tmp_path / "run")]
    told = subprocess.run(line, env=environment(), capture_output=True, text=True, check=True).stdout
    assert set(told.splitlines()) == {"by MainThread"}


def test_workers_that_steal_begin_at_places_of_their_own_and_leave_nothing_out() -> None:
    orders = [Shard(stolen=True).take(range(100)) for _ in range(20)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({order[0] for order in orders}) > 5
    assert Shard(stolen=True).take([]) == []
    assert Shard().take(range(3)) == [0, 1, 2]


def test_failed_images_are_tried_again_by_one_worker_only(data: Path, tmp_path: Path) -> None:
    """A worker that came to a batch after another one had tried it again would have tried it once more."""
    from brushbench.evaluation import Session, carry_out, configure
    from brushbench.registry import Spec

    benchmark = brushbench.load_benchmark(data, "inside", 2)
    tried = []

    class Flaky(toys.Noise):
        def inpaint(self, requests):
            tried.extend(request.id for request in requests if request.id == self.fail)
            return super().inpaint(requests)

    def once(before: float = 0, retry: bool = True) -> None:
        config = configure(Spec("mine", {}), benchmark, name="mine", batch_size=1)
        session = Session(retry_failed=retry, retry_before=before, max_failed=9)
        scoring = Scoring("none")
        carry_out(config, benchmark, scoring, method=Flaky("000000001"), out=tmp_path / "run", session=session)

    once(retry=False)
    before = RunFolder(tmp_path / "run").newest_batch()
    assert len(tried) > 0
    for expected in (1, 0):
        tried.clear()
        time.sleep(0.05)
        once(before)
        assert bool(tried) == bool(expected)
