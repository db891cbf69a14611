"""What the tests of the trainers share: short settings, an interruption, exact comparison of checkpoints."""

from __future__ import annotations

import pytest
import torch

from brushbench.training import loop
from brushbench.training.checkpoints import latest_checkpoint
from brushbench.training.loop import fit
from brushbench.training.settings import FitConfig


def config(out, **changes):
    settings = {"max_steps": 10, "batch_size": 2, "warmup": 3, "save_every": 4, "log_every": 2, "picture_every": 0}
    return FitConfig(out=out, cpu=True, **{**settings, **changes})


def newest(out):
    return torch.load(latest_checkpoint(out), weights_only=True)


def interrupted(monkeypatch, train):
    """Break a training off in step 7: the newest checkpoint is of step 4, and steps 5 and 6 are to be made again."""
    step = loop._Run.step

    def break_off(run, number):
        if number == 6:
            raise KeyboardInterrupt
        return step(run, number)

    monkeypatch.setattr(loop._Run, "step", break_off)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.undo()
    torch.manual_seed(99)  # resume needs no state of the global generator


def assert_equal(a, b, path=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{path}/{i}")
    else:
        assert a == b, path


class Slope(torch.nn.Module):
    """One weight whose gradient is the mean of the batch: what a step did can be read off it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, values):
        return (self.weight * values).mean(), {}


class SlopeTask:
    """Sample i of the stream is i + 1, times a scale."""

    def __init__(self, scale=0.01):
        self.objective, self.scale = Slope(), scale

    def batch(self, draw):
        return {"values": self.scale * torch.arange(draw.first + 1, draw.first + draw.size + 1, dtype=torch.float64)}

    def identity(self):
        return {"model": "slope"}

    def pictures(self):
        raise NotImplementedError

    def save(self, folder):
        (folder / "weight.txt").write_text(str(float(self.objective.weight)))


def slope_after(out, task, **changes):
    fit(task, config(out, **{"ema_decay": 0.0, **changes}), lambda weights: torch.optim.SGD(weights, lr=1.0))
    return float(newest(out)["weights"]["weight"])
