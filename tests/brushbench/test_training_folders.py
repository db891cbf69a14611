"""Folders of trainings: what is there already, damaged checkpoints and logs, and what a resumed training must share."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from brushbench.errors import ConfigMismatchError, UsageError, WeightsError
from brushbench.training import loop
from brushbench.training.checkpoints import latest_checkpoint
from brushbench.training.loop import fit
from tests.brushbench.trainings import SlopeTask, config, newest, slope_after


def steps(out):
    return [int(row["step"]) for row in csv.DictReader((out / "log.csv").open())]


def names(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# ------------------------------------------------------------------------------------------------- folders in use


def test_a_second_training_does_not_overwrite_the_first(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=6, save_every=3))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"holds a training \(step-0000006\)\. Continue it with --resume") as refusal:
        fit(SlopeTask(scale=2.0), config(tmp_path, max_steps=6, save_every=1, max_minutes=0.0))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "another --out" in str(refusal.value)
    fit(SlopeTask(), config(tmp_path, max_steps=8, resume=True))  # both remedies
    fit(SlopeTask(scale=2.0), config(tmp_path / "other", max_steps=1))


@pytest.mark.parametrize("left", ["log.csv", "model/weight.txt", "checkpoints/step-0000001.pt"])
def test_any_trace_of_a_training_is_enough_to_refuse(tmp_path, left):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("step,loss\n1,2\n")
    with pytest.raises(UsageError, match="--resume"):
        fit(SlopeTask(), config(tmp_path, max_steps=1))


def test_a_file_in_the_folder_s_place_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        fit(SlopeTask(), config(tmp_path / "out", max_steps=1))


def test_resume_with_nothing_to_resume_begins(tmp_path):
    assert fit(SlopeTask(), config(tmp_path, max_steps=2, resume=True)).step == 2


# ---------------------------------------------------------------------------------------------- damaged checkpoints


class Opened:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def damage(kind, path, witness):
    whole = path.read_bytes()
    match kind:
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("<html>quota exceeded</html>")
        case "pickle":
            path.write_bytes(pickle.dumps(Opened(witness)))
        case "zipped pickle":
            torch.save({"step": Opened(witness)}, path)
        case "another mapping":
            torch.save({"state_dict": {}}, path)
        case "a list":
            torch.save([1, 2], path)
        case "wrong types":
            torch.save(torch.load(path, weights_only=True) | {"step": "six"}, path)
        case "a folder":
            path.unlink()
            path.mkdir()


DAMAGES = ["cut", "empty", "text", "pickle", "zipped pickle", "another mapping", "a list", "wrong types", "a folder"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_said_aloud_and_the_newest_good_one_goes_on(tmp_path, capsys, kind):
    whole = slope_after(tmp_path / "whole", SlopeTask(), max_steps=8, save_every=3)
    out = tmp_path / "out"
    slope_after(out, SlopeTask(), max_steps=6, save_every=3)
    damage(kind, latest_checkpoint(out), tmp_path / "witness")
    settings = {"max_steps": 8, "save_every": 3, "resume": True}
    with pytest.MonkeyPatch.context() as patch:  # the rate of the first six steps was that of a shorter training
        patch.setattr(loop.FitConfig, "rate", lambda self, step: 0.0)
        assert slope_after(out, SlopeTask(), **settings) != 0
    told = capsys.readouterr().err
    assert "step-0000006.pt" in told
    assert "continuing from step-0000003.pt" in told.replace("\n", " ")
    assert not (tmp_path / "witness").exists()
    assert names(out) == ["step-0000006.pt", "step-0000006.pt.damaged", "step-0000008.pt"]
    assert fit(SlopeTask(), config(out, ema_decay=0.0, **settings)).step == 8
    assert whole < 0


def test_a_damaged_checkpoint_does_not_push_out_the_good_ones(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=6, save_every=3))
    latest_checkpoint(tmp_path).write_bytes(b"")
    fit(SlopeTask(), config(tmp_path, max_steps=5, save_every=1, resume=True))
    assert names(tmp_path) == ["step-0000004.pt", "step-0000005.pt", "step-0000006.pt.damaged"]
    assert newest(tmp_path)["step"] == 5


def test_no_good_checkpoint_is_one_sentence_and_no_new_beginning(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=6, save_every=3))
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_text("x")
    with pytest.raises(WeightsError, match=r"No checkpoint in .* can be read: step-0000006.pt is damaged"):
        fit(SlopeTask(), config(tmp_path, max_steps=8, resume=True))
    fit(SlopeTask(), config(tmp_path / "another", max_steps=1))  # the remedy


def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=2))
    path = latest_checkpoint(tmp_path)
    torch.save(torch.load(path, weights_only=True) | {"weights": {"other": torch.zeros(3)}}, path)
    with pytest.raises(ConfigMismatchError, match="of another model"):
        fit(SlopeTask(), config(tmp_path, max_steps=3, resume=True))


@pytest.mark.parametrize("tail", ["\n", "7,0.5", "\x00\x00\n", "7,0.5,0.1\nabc,1,2,3\n"])
def test_a_log_cut_by_a_crash_does_not_stop_the_resumed_training(tmp_path, tail):
    fit(SlopeTask(), config(tmp_path, max_steps=6, log_every=2))
    with (tmp_path / "log.csv").open("a") as log:
        log.write(tail)
    fit(SlopeTask(), config(tmp_path, max_steps=8, log_every=2, resume=True))
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_a_log_without_a_whole_row_is_begun_anew(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=2, log_every=2))
    (tmp_path / "log.csv").write_text("")
    fit(SlopeTask(), config(tmp_path, max_steps=4, log_every=2, resume=True))
    assert steps(tmp_path) == [4]


# -------------------------------------------------------------------------------------------------------- identity


def test_another_precision_or_number_of_processes_is_not_resumed(tmp_path, monkeypatch):
    fit(SlopeTask(), config(tmp_path, max_steps=2))
    with pytest.raises(ConfigMismatchError, match="mixed_precision was 'no', now 'bf16'"):
        identity_after(tmp_path, monkeypatch, mixed_precision="bf16")
    with pytest.raises(ConfigMismatchError, match="processes was 1, now 2"):
        identity_after(tmp_path, monkeypatch, processes=2)
    fit(SlopeTask(), config(tmp_path, max_steps=3, resume=True))


def identity_after(out, monkeypatch, **changes):
    """Resume while the training's identity tells of other circumstances; accelerate keeps one precision per process."""
    real = loop._Run.identity
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "identity", lambda run: real(run) | changes)
        fit(SlopeTask(), config(out, max_steps=3, resume=True))


def test_precision_and_processes_are_in_what_identifies_a_training(tmp_path):
    fit(SlopeTask(), config(tmp_path, max_steps=1))
    told = newest(tmp_path)["identity"]
    assert (told["mixed_precision"], told["processes"], told["model"]) == ("no", 1, "slope")
    assert dataclasses.replace(config(tmp_path), mixed_precision="fp16").identity()["mixed_precision"] == "fp16"


def test_the_scale_of_the_loss_is_kept_for_fp16(tmp_path, monkeypatch):
    """Without it a resumed fp16 training begins at the first scale again, and differs from an uninterrupted one."""
    real = loop._Run.__init__

    def with_scaler(run, *arguments):
        real(run, *arguments)
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scalers.append(run.accelerator.scaler)

    scalers = []
    monkeypatch.setattr(loop._Run, "__init__", with_scaler)
    fit(SlopeTask(), config(tmp_path, max_steps=1))
    state = torch.load(latest_checkpoint(tmp_path), weights_only=True)
    assert state["scaler"]["scale"] == 4.0
    torch.save(state | {"scaler": state["scaler"] | {"scale": 32.0}}, latest_checkpoint(tmp_path))
    fit(SlopeTask(), config(tmp_path, max_steps=2, resume=True))
    assert scalers[-1].get_scale() == 32.0
    assert newest(tmp_path)["scaler"]["scale"] == 32.0


# -------------------------------------------------------------------------------------------------------- messages


def test_advice_about_a_loss_that_is_no_number_can_be_followed(tmp_path):
    """It used to say "lower the learning rate and resume", which is refused: the rate is part of the training."""
    with pytest.raises(WeightsError, match="another --out with a lower --learning-rate"):
        fit(SlopeTask(scale=float("nan")), config(tmp_path, max_steps=2))
    fit(SlopeTask(), config(tmp_path / "other", max_steps=2, learning_rate=1e-5))


def test_help_says_what_each_trainer_is_for():
    from brushbench.cli import app

    told = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert "Train the BrushNet branch beside a frozen base" in told
    told = CliRunner().invoke(app, ["train", "tiny", "--help"], env={"COLUMNS": "200"}).output
    for word in ("autoencoder", "attribute_accuracy", "clip_score", "ControlNet", "PowerPaint", "SD Inpainting"):
        assert word in told, word


def test_commands_load_no_torch():
    code = "import sys, brushbench.training.commands, brushbench.tiny.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
