from __future__ import annotations

from pathlib import Path

import pytest

from brushbench.errors import BrushbenchError, UnknownNameError
from brushbench.tracking import check_tracker, scalars, track_run

from .reports import tiny_runs


def test_tensorboard_holds_the_means_of_the_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, runs = tiny_runs(tmp_path)
    track_run(runs[0], "tensorboard", tmp_path / "logs")
    (folder,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    expected = scalars(runs[0])
    assert set(events.Tags()["scalars"]) == set(expected)
    assert events.Scalars("inside/raw/psnr@standard")[0].value == pytest.approx(expected["inside/raw/psnr@standard"])


def test_an_unknown_or_missing_tracker_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="tensorboard"):
        check_tracker("tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BrushbenchError, match=r"pip install 'brushbench\[wandb\]'"):
        check_tracker("wandb")
