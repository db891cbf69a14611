"""What a run does when a GPU is short of memory or broken, and what it leaves in memory. No GPU is needed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import brushbench
from brushbench.config import RunConfig
from brushbench.devices import cuda_settings, refuse_broken_device
from brushbench.errors import BrokenDeviceError
from brushbench.evaluation import recipes
from brushbench.evaluation.answers import ask
from brushbench.evaluation.sources import Method
from brushbench.features import Features
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture, Sample
from brushnet import conditioning
from tests.brushbench.test_failures import brushbench as command
from tests.brushbench.toys import Brightness, write_benchmark

BROKEN = """
import torch
from brushbench import Capabilities

class Broken:
    capabilities = Capabilities(text=False, batch=2)
    calls = 0

    def describe(self):
        return {"method": "toy"}

    def inpaint(self, requests):
        Broken.calls += 1
        if Broken.calls > 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\\nCUDA kernel errors might be")
        return [request.image.copy() for request in requests]
"""


class Short:
    """Has memory for one image; remembers whether the failed batch's tensors were still there at the retry."""

    capabilities = Capabilities(text=False, batch=4)

    def __init__(self) -> None:
        self.held: weakref.ref[torch.Tensor] | None = None
        self.still_there: list[bool] = []

    def describe(self) -> dict[str, JSON]:
        return {}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        if len(requests) > 1:
            activations = torch.zeros(8)
            self.held = weakref.ref(activations)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.still_there.append(self.held is not None and self.held() is not None)
        return [request.image.copy() for request in requests]


def samples(count: int) -> list[Sample]:
    hole = np.zeros((8, 8), dtype=bool)
    hole[2:4, 2:4] = True
    return [Sample(str(i), np.full((8, 8, 3), 40 + i, np.uint8), hole, "a thing", "inside") for i in range(count)]


def test_a_batch_out_of_memory_is_asked_again_one_by_one_without_its_tensors() -> None:
    """The retry ran inside `except`, which held the failed batch's tensors: it needed more memory than the batch."""
    method = Short()
    answers = Method(method).answers(samples(4), [1, 2, 3, 4], "")
    assert all(isinstance(answer, np.ndarray) for answer in answers)
    assert method.still_there == [False] * 4


def test_a_metric_out_of_memory_is_asked_again_without_its_tensors() -> None:
    still_there: list[bool] = []

    class Tight(Brightness):
        held: weakref.ref[torch.Tensor] | None = None

        def __call__(self, pictures, samples, features=None):
            if len(pictures) > 1:
                activations = torch.zeros(8)
                Tight.held = weakref.ref(activations)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            still_there.append(Tight.held is not None and Tight.held() is not None)
            return super().__call__(pictures, samples, features)

    asked = samples(3)
    assert len(ask(Tight(), [sample.image for sample in asked], asked, Features())) == 3
    assert still_there == [False] * 3


def test_a_gpu_that_is_broken_for_good_ends_the_run_and_keeps_what_is_made(tmp_path: Path) -> None:
    """Every remaining image became `failed`, and the same command did not make them again."""
    write_benchmark(tmp_path / "bench")
    (tmp_path / "mine.py").write_text(BROKEN)
    line = [
        "generate", "--model", f"{tmp_path / 'mine.py'}:Broken", "--name", "m", "--bench", tmp_path / "bench",
        "--split", "inside", "--batch-size", 2, "--out", tmp_path / "runs",
    ]  # fmt: skip
    told = command(*line, code=3)
    assert "The GPU stopped working for this process: CUDA error: an illegal memory access was encountered. " in told
    assert "Traceback" not in told
    assert len(list((tmp_path / "runs" / "m" / "batches").glob("*.json"))) == 2
    assert "5 ok" in command(*line, code=0)  # the remedy: a new process


@pytest.mark.parametrize(
    "text",
    ["CUDA out of memory.", "CUDA error: out of memory", "CUDA error: invalid device ordinal", "misaligned address"],
)
def test_other_errors_cost_their_image_only(text: str) -> None:
    refuse_broken_device(RuntimeError(text))


def test_a_broken_gpu_ends_scoring_too() -> None:
    class Broken(Brightness):
        def __call__(self, pictures, samples, features=None):
            raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(BrokenDeviceError, match="device-side assert"):
        ask(Broken(), [s.image for s in samples(2)], samples(2), Features())


def test_the_method_is_gone_while_metrics_run_and_the_metric_models_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stayed loaded side by side, with --low-memory too."""
    methods: list[weakref.ref[object]] = []
    alive: list[bool] = []
    models: list[int] = []
    features = Features(low_memory=True)
    load, score, generate = recipes.load_inpainter, recipes.score, recipes.generate

    def loading(*args):
        made = load(*args)
        methods.append(weakref.ref(made))
        return made

    def scoring(*args, **named):
        alive.extend(ref() is not None for ref in methods)
        found = score(*args, **named)
        features.model("kept", object)
        return found

    def generating(*args, **named):
        models.append(len(features._models))
        return generate(*args, **named)

    for name, value in {"load_inpainter": loading, "score": scoring, "generate": generating}.items():
        monkeypatch.setattr(recipes, name, value)
    bench = brushbench.load_benchmark("shapes", "inside", 2)
    for out in ("a", "b"):
        brushbench.evaluate("telea", bench, out=tmp_path / out, metrics="psnr", features=features, low_memory=True)
    assert not any(alive)
    assert models == [0, 0]


def test_the_autoencoder_takes_no_more_pixels_at_once_than_it_has_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 it took the whole batch: 48 GiB for 16 pictures of 1024 x 1024."""
    rows = torch.arange(7.0)[:, None]
    seen: list[int] = []

    def run(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part + 1

    monkeypatch.setattr(conditioning, "PIXELS_AT_ONCE", 12)
    assert torch.equal(conditioning.in_parts(run, rows, 4), rows + 1)
    assert seen == [3, 3, 1]
    seen.clear()
    conditioning.in_parts(run, rows, 100)
    assert seen == [1] * 7


def test_float32_is_float32_unless_tf32_is_asked_for_and_a_run_says_which(tmp_path: Path) -> None:
    """Torch's default convolutions on CUDA are TF32: one LPIPS score moved by 1.5 %."""
    bench = brushbench.load_benchmark("shapes", "inside", 1)
    said = {}
    for tf32 in (True, False):
        recipes.allow_tf32(tf32)
        said[tf32] = {name: value for name, value in cuda_settings().items() if name.startswith("tf32")}
        assert set(said[tf32].values()) == {tf32}
    run = brushbench.evaluate("vae", bench, out=tmp_path / "run", metrics="none", tf32=True)
    assert torch.backends.cudnn.allow_tf32 is False  # scoring has begun since
    assert run.config.tf32
    assert run.header.identity() != run.header.model_copy(update={"config": _without_tf32(run.config)}).identity()


def _without_tf32(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"tf32": False})
