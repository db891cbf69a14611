"""`train brushnet`: ten steps, resume bit for bit, data of every kind, exact crops and holes, checkpoints that load."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from baselines.brushnet import BrushNet
from brushbench.errors import ConfigMismatchError, MissingWeightsError, UnknownNameError, UsageError
from brushbench.masks import encode_rle, opening
from brushbench.tiny.scenes import render, sample_scene
from brushbench.training import loop
from brushbench.training.brushdata import TrainingPicture
from brushbench.training.brushnet import BrushNetRecipe, start_task, train_brushnet
from brushbench.training.commands import app
from brushbench.training.holes import blob, draw_hole
from brushbench.training.loop import Draw
from brushbench.training.streams import open_pictures, to_square
from brushbench.weights import sha256_file
from brushnet import BrushNetModel
from tests.baselines.tiny_bases import make_request, save_base, save_xl_base
from tests.brushbench.trainings import assert_equal, config, interrupted, newest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def xl_base(tmp_path_factory):
    return str(save_xl_base(tmp_path_factory.mktemp("xl")))


def numbers(seed=0):
    return np.random.default_rng(seed)


# ----------------------------------------------------------------------------------------------------------- training


def test_ten_steps_and_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    recipe = BrushNetRecipe(base=base, blobs=0.3, sample_posterior=True, half=True)
    assert train_brushnet(config(whole), recipe).finished

    interrupted(monkeypatch, lambda: train_brushnet(config(parts), recipe))
    assert train_brushnet(config(parts, resume=True), recipe).step == 10
    assert_equal(newest(whole), newest(parts))
    assert set(newest(whole)["weights"]) == {
        f"brushnet.{name}" for name in saved(whole)
    }  # the base is in no checkpoint
    assert_equal(saved(whole), saved(parts))
    assert {tensor.dtype for tensor in saved(whole).values()} == {torch.float16}
    logs = [list(csv.DictReader((out / "log.csv").open())) for out in (whole, parts)]
    for name in ("loss", "loss_hole", "loss_keep"):
        assert [row[name] for row in logs[0]] == [row[name] for row in logs[1]]
    with pytest.raises(ConfigMismatchError, match="blobs"):
        train_brushnet(config(parts, resume=True), dataclasses.replace(recipe, blobs=0.0))


def saved(out):
    return load_file(out / "model" / "diffusion_pytorch_model.safetensors")


def test_checkpoint_loads_as_a_model_and_on_the_leaderboard_at_once(base, tmp_path):
    train_brushnet(config(tmp_path, max_steps=2, learning_rate=1e-2), BrushNetRecipe(base=base))
    branch = BrushNetModel.from_pretrained(tmp_path / "model")
    assert branch.brushnet_mid_block.weight.abs().max() > 0
    method = BrushNet(base=base, checkpoint=str(tmp_path / "model"), steps=2, device="cpu")
    assert method.inpaint([make_request()])[0].shape == (64, 64, 3)
    told = json.loads((tmp_path / "model" / "recipe.json").read_text())
    assert (told["masks"], told["injection"], told["mask_channel"], told["resolution"]) == (
        "segmentation", "full", True, 64,
    )  # fmt: skip
    assert json.loads((tmp_path / "model" / "training.json").read_text())["step"] == 2


def test_sdxl_is_recognised_and_trained(xl_base, tmp_path):
    recipe = BrushNetRecipe(base=xl_base, masks="random", gradient_checkpointing=True)
    task = start_task(config(tmp_path), recipe)
    assert task.side == 64  # eight latents of eight pixels
    before = {name: part.clone() for name, part in task.objective.base.unet.state_dict().items()}
    assert loop.fit(task, config(tmp_path, max_steps=2, picture_every=2)).finished
    assert_equal(before, dict(task.objective.base.unet.state_dict()))
    assert "add_embedding.linear_1.weight" in saved(tmp_path)
    assert Image.open(tmp_path / "pictures" / "step-0000002.png").size == (6 * 64, 4 * 64)


def test_sheet_shows_input_result_and_reference(base, tmp_path):
    task = start_task(config(tmp_path), BrushNetRecipe(base=base))
    before = task.objective.base.scheduler
    with torch.no_grad():
        sheet = task.pictures()
        again = task.pictures()
    assert np.array_equal(sheet, again)
    assert task.objective.base.scheduler is before
    cells = sheet.reshape(4, 64, 6, 64, 3).swapaxes(1, 2).reshape(8, 3, 64, 64, 3)
    for place, (shown, result, reference) in enumerate(cells):
        scene = render(sample_scene(1, place, domain="held-out"))
        assert np.array_equal(reference, scene.image)
        hole = (shown == 127).all(axis=2) & (reference != 127).any(axis=2)
        assert np.array_equal(shown[~hole], reference[~hole])
        assert hole.any()
        assert not np.array_equal(result, reference)


def test_weights_go_on_from_a_saved_branch(base, tmp_path):
    first = tmp_path / "first"
    train_brushnet(config(first, max_steps=2), BrushNetRecipe(base=base))
    go_on = BrushNetRecipe(base=base, init_from=str(first / "model"), masks="random")
    start = start_task(config(tmp_path), go_on).objective.brushnet.state_dict()
    assert_equal(dict(start), saved(first))
    result = train_brushnet(config(tmp_path / "second", max_steps=4, first_step=2), go_on)
    assert (result.step, result.finished) == (4, True)
    for record in ("recipe.json", "config.json"):
        assert str(tmp_path) not in (tmp_path / "second" / "model" / record).read_text()
    first_weights = first / "model" / "diffusion_pytorch_model.safetensors"
    recipe = json.loads((tmp_path / "second" / "model" / "recipe.json").read_text())
    assert recipe["init_from"] == {first_weights.name: sha256_file(first_weights)}


def test_ablations_are_in_the_weights_themselves(base, tmp_path):
    train_brushnet(config(tmp_path / "a", max_steps=3), BrushNetRecipe(base=base, mask_channel=False))
    assert saved(tmp_path / "a")["conv_in_condition.weight"][:, 8].eq(0).all()
    train_brushnet(config(tmp_path / "b", max_steps=3), BrushNetRecipe(base=base, injection="encoder"))
    weights = saved(tmp_path / "b")
    assert all(tensor.eq(0).all() for name, tensor in weights.items() if name.startswith("brushnet_up_blocks"))
    assert any(tensor.ne(0).any() for name, tensor in weights.items() if name.startswith("brushnet_down_blocks"))


def test_without_moving_average_the_weights_themselves_are_saved(base, tmp_path):
    train_brushnet(config(tmp_path, max_steps=3, ema_decay=0.0, learning_rate=1e-3), BrushNetRecipe(base=base))
    weights = newest(tmp_path)["weights"]
    for name, tensor in saved(tmp_path).items():
        assert torch.allclose(tensor, weights[f"brushnet.{name}"], atol=1e-7), name


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_on_the_cpu(base, tmp_path, fresh_accelerate):
    task = start_task(config(tmp_path, mixed_precision="bf16"), BrushNetRecipe(base=base))
    assert task.objective.base.unet.dtype == torch.bfloat16
    assert task.objective.brushnet.dtype == torch.float32
    assert loop.fit(task, config(tmp_path, max_steps=2, mixed_precision="bf16", picture_every=2)).finished
    assert {tensor.dtype for tensor in saved(tmp_path).values()} == {torch.float32}


def test_batches_made_ahead_are_the_same(base, tmp_path):
    recipe = BrushNetRecipe(base=base)
    draws = [Draw(0, place // 2, 2 * place, 2) for place in range(6)]  # two micro-batches a step
    task = start_task(config(tmp_path, accumulation=2), recipe)
    one_by_one = []
    for draw in draws:
        task._last = task._ahead = None
        one_by_one.append(task.batch(draw))
    task._last = task._ahead = None
    hits = []
    for draw, expected in zip(draws, one_by_one, strict=True):
        hits.append(task._ahead is not None and task._ahead[0] == draw)
        assert_equal(task.batch(draw), expected)
    assert hits == [False, False, True, True, True, True]


# --------------------------------------------------------------------------------------------------------------- data


def test_crop_never_squeezes():
    """A circle in a wide picture stays a circle; the published script swaps the sides and squeezes it."""
    rows, columns = np.mgrid[0:60, 0:150]
    disc = np.hypot(rows - 30, columns - 75) < 20
    image = np.where(disc[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    for turned in (False, True):
        picture = TrainingPicture(image, disc[None], "a circle")
        if turned:
            picture = TrainingPicture(image.swapaxes(0, 1), disc.T[None], "a circle")
        square = to_square(picture, 30)
        assert square.image.shape == (30, 30, 3)
        assert square.masks.shape == (1, 30, 30)
        seen = square.image[..., 0] > 127
        for found in (seen, square.masks[0]):
            height, width = np.ptp(np.nonzero(found)[0]) + 1, np.ptp(np.nonzero(found)[1]) + 1
            assert abs(height - width) <= 1
            assert abs(height - 20) <= 1
        assert (seen != square.masks[0]).mean() < 0.03  # picture and mask stay together
    assert to_square(picture, 60).image.shape == (60, 60, 3)


def test_sides_that_are_right_stay_bit_for_bit():
    image = numbers().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = TrainingPicture(image, np.ones((1, 64, 64), bool), "x")
    assert to_square(picture, 64) is picture


def test_recipe_of_the_holes():
    masks = np.zeros((2, 128, 128), dtype=bool)
    masks[0, 10:60, 20:70] = masks[0, 60:100, 40] = True  # a square with a hair that opening cuts off
    masks[1, 70:110, 80:120] = True
    picture = TrainingPicture(np.zeros((128, 128, 3), np.uint8), masks, "x")
    opened = opening(masks[0])
    assert not np.array_equal(opened, masks[0])
    kinds = {"first": masks[0], "opened": opened, "second": masks[1]}
    kinds |= {f"not {name}": ~mask for name, mask in list(kinds.items())}
    counts = dict.fromkeys(kinds, 0)
    draws = 1500
    generator = numbers(5)
    for _ in range(draws):
        hole = draw_hole(picture, "segmentation", 0.0, generator)
        # Opening moves even a square by a pixel, so a hole is counted under the nearest kind.
        counts[min(kinds, key=lambda name: (kinds[name] != hole).sum())] += 1
    share = {name: count / draws for name, count in counts.items()}
    assert sum(share[name] for name in share if name.startswith("not")) == pytest.approx(0.5, abs=0.05)
    assert share["opened"] + share["not opened"] == pytest.approx(0.15, abs=0.04)
    assert share["second"] + share["not second"] == pytest.approx(0.5, abs=0.05)


def test_blobs_cover_their_object_and_no_other():
    for index in range(40):
        drawn = render(sample_scene(0, index))
        for number, mask in enumerate(drawn.masks):
            hole = blob(mask, drawn.masks, numbers(index))
            others = np.delete(drawn.masks, number, axis=0)
            assert (hole & mask).sum() == mask.sum()
            assert not (hole & others.any(axis=0)).any()
            assert mask.sum() < hole.sum() < 0.9 * hole.size


def test_brush_holes_where_no_mask_is_left():
    picture = TrainingPicture(np.zeros((64, 64, 3), np.uint8), np.zeros((1, 64, 64), bool), "x")
    for masks in ("segmentation", "random"):
        hole = draw_hole(picture, masks, 0.0, numbers(1))
        assert 0.05 <= hole.mean() <= 0.6


def test_scenes_bring_exact_masks_and_all_objects_together():
    pictures = open_pictures("scenes", "segmentation").take(3, 10, 6)
    for place, picture in enumerate(pictures, start=10):
        drawn = render(sample_scene(3, place))
        assert np.array_equal(picture.image, drawn.image)
        assert np.array_equal(picture.masks[: len(drawn.masks)], drawn.masks)
        assert np.array_equal(picture.masks.any(axis=0), drawn.masks.any(axis=0))
        assert len(picture.masks) == len(drawn.masks) + (len(drawn.masks) > 1)


def test_a_benchmark_goes_round_shuffled_and_gives_every_picture_once_a_round():
    pictures = open_pictures("shapes,limit=7", "segmentation")
    rounds = [[p.caption for p in pictures.take(0, 7 * i, 7)] for i in range(3)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(p.caption for p in pictures.shown(7))
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]
    assert [p.caption for p in open_pictures("shapes,limit=7", "segmentation").take(0, 9, 2)] == rounds[1][2:4]
    assert all(len(p.masks) == 2 for p in pictures.shown(3))  # inside and outside, not brush
    assert pictures.identity()["data"] == "shapes"


def test_tars_are_trained_from_and_what_was_passed_over_is_told(base, tmp_path):
    height, width = 90, 70
    mask = np.zeros((height, width), dtype=bool)
    mask[30:70, 10:50] = True
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number in range(4):
            data = io.BytesIO()
            Image.fromarray(numbers(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "JPEG")
            columns = {
                "image": data.getvalue(),
                "segmentation": json.dumps({"mask": [encode_rle(mask, "brushdata")]}).encode(),
                "height": str(height).encode(),
                "width": str(width).encode(),
            }
            if number:
                columns["caption"] = b"a red circle"
            for name, content in columns.items():
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    recipe = BrushNetRecipe(base=base, data=str(tmp_path), resolution=32)
    assert train_brushnet(config(tmp_path / "out", max_steps=3, picture_every=3), recipe).finished
    told = json.loads((tmp_path / "out" / "model" / "recipe.json").read_text())
    assert told["skipped"] == {"caption is missing": told["skipped"]["caption is missing"]}
    assert told["resolution"] == 32


def write_pictures(folder, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        image = numbers(first + number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        hole = np.zeros((64, 64), np.uint8)
        hole[16:40, 16:40] = 255
        Image.fromarray(image).save(folder / f"{number}.png")
        Image.fromarray(hole).save(folder / f"{number}_mask.png")
        (folder / f"{number}.txt").write_text("a red circle")


def write_tars(folder, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((64, 64), dtype=bool)
    mask[16:40, 16:40] = True
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(first, first + 3):
            data = io.BytesIO()
            Image.fromarray(numbers(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(data, "PNG")
            stored = json.dumps({"mask": [encode_rle(mask, "brushdata")]}).encode()
            columns = {"image": data.getvalue(), "caption": b"a circle", "segmentation": stored}
            for name, content in (columns | {"height": b"64", "width": b"64"}).items():
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("write", [write_tars, write_pictures])
def test_moved_data_is_resumed_and_changed_data_at_the_same_path_is_not(base, tmp_path, write):
    write(tmp_path / "data")
    recipe = BrushNetRecipe(base=base, data=str(tmp_path / "data"), resolution=32)
    train_brushnet(config(tmp_path / "out", max_steps=1), recipe)
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = dataclasses.replace(recipe, data=str(tmp_path / "moved"))
    assert train_brushnet(config(tmp_path / "out", max_steps=2, resume=True), moved).step == 2
    write(tmp_path / "data", first=10)
    with pytest.raises(ConfigMismatchError, match="data_sha256 was") as refusal:
        train_brushnet(config(tmp_path / "out", max_steps=3, resume=True), recipe)
    assert str(tmp_path / "data") not in (tmp_path / "out" / "recipe.json").read_text()
    assert "another --out" in str(refusal.value)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.slow
def test_two_processes_train_on_an_own_folder_resume_bit_for_bit_and_tell_their_number(base, tmp_path):
    write_pictures(tmp_path / "data")

    def launched(out, steps, *more):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        command += ["-m", "brushbench", "train", "brushnet", "--base", base, "--data", str(tmp_path / "data"), "--cpu"]
        command += ["--out", str(tmp_path / out), "--max-steps", str(steps), "--batch-size", "1", "--resolution", "32"]
        command += ["--save-every", "1", "--log-every", "1", "--picture-every", "0", "--warmup", "1", *more]
        environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)

    whole = launched("whole", 3)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("Step 3 of 3") == 1
    parts = launched("parts", 3, "--max-minutes", "0")  # both processes end the stage at the same step
    assert "continue with --resume" in parts.stdout
    assert launched("parts", 3, "--resume").returncode == 0
    assert_equal(newest(tmp_path / "whole"), newest(tmp_path / "parts"))
    assert newest(tmp_path / "whole")["identity"]["processes"] == 2
    settings = {"max_steps": 4, "batch_size": 1, "warmup": 1, "learning_rate": 1e-4, "resume": True}
    recipe = BrushNetRecipe(base=base, data=str(tmp_path / "data"), resolution=32)
    with pytest.raises(ConfigMismatchError, match="processes was 2, now 1"):
        train_brushnet(config(tmp_path / "whole", **settings), recipe)


def test_what_cannot_be_trained_is_refused_in_one_sentence(base, xl_base, tmp_path, monkeypatch):
    def refused(error, match, recipe=None, **changes):
        with pytest.raises(error, match=match):
            train_brushnet(config(tmp_path, **changes), recipe or BrushNetRecipe(base=base))

    refused(UnknownNameError, "Did you mean 'scenes'", BrushNetRecipe(base=base, data="scene"))
    refused(UnknownNameError, "masks", BrushNetRecipe(base=base, masks="brush"))
    refused(UnknownNameError, "injection", BrushNetRecipe(base=base, injection="half"))
    refused(UnknownNameError, "mixed precision", mixed_precision="fp8")
    refused(UsageError, "multiple of 4", BrushNetRecipe(base=base, resolution=63))
    refused(UsageError, "blobs is 2", BrushNetRecipe(base=base, blobs=2))
    refused(MissingWeightsError, "--init-from", BrushNetRecipe(base=base, init_from=str(tmp_path / "none.safetensors")))
    refused(MissingWeightsError, "Pass --base FOLDER", BrushNetRecipe(base=str(tmp_path / "none")))
    refused(UnknownNameError, "base 'none'.*a folder of a stock pipeline.*tiny", BrushNetRecipe(base="none"))
    BrushNetModel.from_unet(
        start_task(config(tmp_path), BrushNetRecipe(base=xl_base)).objective.base.unet
    ).save_pretrained(tmp_path / "xl")
    refused(UsageError, "belong to different base models", BrushNetRecipe(base=base, init_from=str(tmp_path / "xl")))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    refused(UsageError, r"brushbench\[adam8bit\]", BrushNetRecipe(base=base, adam_8bit=True))


def test_command_trains_and_says_where_the_weights_are(base, tmp_path):
    options = ["brushnet", "--base", base, "--out", str(tmp_path), "--max-steps", "2", "--batch-size", "2", "--cpu"]
    options += ["--masks", "random", "--no-mask-channel", "--no-ema", "--log-every", "1", "--half", "--tensorboard"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2" in result.output
    assert (tmp_path / "model" / "config.json").exists()
    assert list((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "recipe.json").read_text())["mask_channel"] is False
