"""The trainers of the compared methods: a start that changes nothing, unseen holes, weights that the adapters read."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import brushbench
from brushbench.errors import ConfigMismatchError, UnknownNameError, UsageError, WeightsError
from brushbench.tiny.inpainters import METHODS, InpainterRecipe, start_inpainter, task_of
from brushbench.tiny.inpainters import train_inpainter as train
from brushbench.tiny.objectives import TASK_WORDS, VECTORS
from brushbench.training.brushdata import TrainingPicture
from brushbench.training.loop import Draw
from tests.baselines.tiny_bases import make_request, save_base
from tests.brushbench.trainings import assert_equal, config, interrupted, newest


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """One training of two steps per method."""
    out = tmp_path_factory.mktemp("trained")
    for method in METHODS:
        train(config(out / method, max_steps=2, learning_rate=1e-2, warmup=1), InpainterRecipe(method, base))
    return out


@pytest.mark.parametrize("method", METHODS)
def test_the_first_step_predicts_what_the_base_predicts(base, method):
    """New input channels and the ControlNet's outputs are zero, PowerPaint's words all say "a"."""
    task = start_inpainter(InpainterRecipe(method, base))
    batch = task.batch(Draw(0, 0, 0, 2))
    objective = task.objective
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1))
    pixels = batch["images"].float() / 127.5 - 1
    with torch.no_grad():
        made = objective.predict(latents, batch["timesteps"], text, pixels, batch["keep"])
        plain = objective.base.unet(latents, batch["timesteps"], text).sample
    assert torch.allclose(made, plain, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_in_the_hole_is_never_seen(base, trained, method):
    recipe = InpainterRecipe(method, base, init_from=trained / method / "model")
    task = start_inpainter(recipe)
    batch = task.batch(Draw(0, 0, 0, 2))
    pixels, keep = batch["images"].float() / 127.5 - 1, batch["keep"]
    other = pixels.where(keep, torch.rand(pixels.shape, generator=torch.Generator().manual_seed(2)))
    latents, text = torch.zeros(2, 4, 16, 16), torch.zeros(2, 32, 32)
    with torch.no_grad():
        made = [task.objective.predict(latents, batch["timesteps"], text, seen, keep) for seen in (pixels, other)]
        whole = task.objective.predict(latents, batch["timesteps"], text, -pixels, keep)
    assert torch.equal(*made)
    assert not torch.equal(made[0], whole)  # the kept part is seen


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(base, method, tmp_path, monkeypatch):
    recipe = InpainterRecipe(method, base)
    train(config(tmp_path / "whole"), recipe)
    interrupted(monkeypatch, lambda: train(config(tmp_path / "parts"), recipe))
    train(config(tmp_path / "parts", resume=True), recipe)
    assert_equal(newest(tmp_path / "whole"), newest(tmp_path / "parts"))


def test_frozen_parts_are_in_no_checkpoint(trained):
    prefixes = {method: {name.split(".")[0] for name in newest(trained / method)["weights"]} for method in METHODS}
    assert prefixes == {"sd-inpainting": {"unet"}, "controlnet": {"controlnet"}, "powerpaint": {"unet", "task_words"}}


@pytest.mark.parametrize("place", ["", "model"])
@pytest.mark.parametrize("method", METHODS)
def test_the_method_on_the_leaderboard_reads_what_was_trained(base, trained, method, place):
    spec = {"sd-inpainting": "sd-inpainting", "controlnet": "controlnet", "powerpaint": "powerpaint"}[method]
    settings = f"checkpoint={trained / method / place},base={base},steps=2,device=cpu"
    inpainter = brushbench.load_inpainter(f"{spec},{settings}")
    assert np.asarray(inpainter.inpaint([make_request()])[0]).shape == (64, 64, 3)


def test_powerpaint_trains_its_words_and_no_other_row(base, trained):
    saved = load_file(trained / "powerpaint" / "model" / "text_encoder" / "text_encoder.safetensors")
    table = "text_model.embeddings.token_embedding"
    before = load_file(base / "text_encoder" / "model.safetensors")
    kept = {name if name.startswith("text_model.") else f"text_model.{name}": value for name, value in before.items()}
    kept[f"{table}.wrapped.weight"] = kept.pop(f"{table}.weight")
    words = {
        f"{table}.trainable_embeddings.{word}": saved.pop(f"{table}.trainable_embeddings.{word}") for word in TASK_WORDS
    }
    assert_equal(saved, {name: value for name, value in kept.items() if value.is_floating_point()})
    assert {tuple(rows.shape) for rows in words.values()} == {(VECTORS, 32)}
    assert len({float(rows.sum()) for rows in words.values()}) == 3  # they began equal


def test_the_words_mean_the_same_in_training_and_on_the_leaderboard(base, trained):
    from baselines.powerpaint import add_task_tokens, mixed_embeds, task_vectors

    task = start_inpainter(InpainterRecipe("powerpaint", base, init_from=trained / "powerpaint" / "model"))
    parts = task.objective.base
    saved = load_file(trained / "powerpaint" / "model" / "text_encoder" / "text_encoder.safetensors")
    vectors = {word: rows.float() for word, rows in task_vectors(saved).items()}
    ours = [task._ids([("a red star", word)]) for word in ("P_shape", "P_ctxt")]
    with torch.no_grad():
        expected = task.objective.text(*ours, torch.tensor([0.25]))
    plain = start_inpainter(InpainterRecipe("sd-inpainting", base)).objective.base
    tokenizer, encoder = add_task_tokens(plain.tokenizer, plain.text_encoder, vectors)
    prompts = {"A": "a red star P_shape", "B": "a red star P_ctxt", "negative_A": "", "negative_B": ""}
    assert torch.allclose(mixed_embeds(tokenizer, encoder, prompts, 0.25)[0], expected, atol=1e-5)
    assert len(parts.tokenizer) + VECTORS * 3 == len(tokenizer)


def test_holes_stand_for_the_tasks():
    disc = np.zeros((64, 64), dtype=bool)
    disc[20:40, 20:40] = True
    loose = np.zeros((64, 64), dtype=bool)
    loose[10:50, 10:50] = True
    stroke = np.zeros((64, 64), dtype=bool)
    stroke[:6] = True
    picture = TrainingPicture(np.zeros((64, 64, 3), np.uint8), disc[None], "x")

    def told(hole):
        answers = [task_of(picture, hole, np.random.default_rng(i)) for i in range(300)]
        return {answer for answer in answers if answer[0]}

    assert told(~disc) == {("P_ctxt", "P_ctxt", 1.0)}
    assert told(disc) == {("P_obj", "P_obj", 1.0), ("P_shape", "P_ctxt", 1.0)}
    assert told(loose) == {("P_obj", "P_obj", 1.0), ("P_shape", "P_ctxt", 0.25)}
    assert told(stroke) == {("P_obj", "P_obj", 1.0), ("P_ctxt", "P_ctxt", 1.0)}
    dropped = sum(task_of(picture, disc, np.random.default_rng(i))[0] is None for i in range(1000))
    assert 30 <= dropped <= 75


def test_powerpaint_starts_from_sd_inpainting_as_published(base, trained):
    recipe = InpainterRecipe("powerpaint", base, init_from=trained / "sd-inpainting" / "model")
    state = start_inpainter(recipe).objective.unet.state_dict()
    saved = load_file(trained / "sd-inpainting" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_equal({name: value.half() for name, value in state.items()}, saved)


@pytest.fixture(scope="module")
def shared(base, trained, tmp_path_factory):
    """A PowerPaint of two steps that shares the U-Net of ``trained``."""
    out = tmp_path_factory.mktemp("shared")
    recipe = InpainterRecipe("powerpaint", base, init_from=trained / "sd-inpainting" / "model", share=True)
    train(config(out, max_steps=2, learning_rate=1e-2, warmup=1), recipe)
    return out / "model"


def test_a_shared_powerpaint_trains_and_keeps_its_attention_blocks_alone(trained, shared):
    under = load_file(trained / "sd-inpainting" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    own = load_file(shared / "unet" / "attentions.safetensors")
    assert own.keys() == {name for name in under if ".attentions." in name}
    assert sum(not torch.equal(own[name], under[name]) for name in own) > len(own) / 2
    weights = newest(shared.parent)["weights"]
    for name, value in weights.items():
        if name.startswith("unet.") and ".attentions." not in name:
            assert torch.equal(value.half(), under[name.removeprefix("unet.")]), name


def test_the_leaderboard_sets_shared_blocks_into_the_sd_inpainting_they_belong_to(
    base, trained, shared, tmp_path, monkeypatch
):
    from baselines import presets

    def place(folder):
        tiny = presets.PRESETS["tiny"]
        branches = {**tiny.branches, "sd-inpainting": (str(folder),)}
        monkeypatch.setitem(presets.PRESETS, "tiny", dataclasses.replace(tiny, branches=branches))

    asked = f"base={base},steps=2,device=cpu"
    place(trained / "sd-inpainting" / "model")
    inpainter = brushbench.load_inpainter(f"powerpaint,checkpoint={shared},{asked}")
    own = load_file(shared / "unet" / "attentions.safetensors")
    state = inpainter.pipe.unet.state_dict()
    under = load_file(trained / "sd-inpainting" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert_equal({name: value.half() for name, value in state.items()}, under | own)
    assert inpainter.describe()["branches"].keys() == {"powerpaint", "sd-inpainting"}

    other = trained / "powerpaint" / "model"
    place(other)
    with pytest.raises(WeightsError, match=r"was trained over a U-Net .* Train it over this one"):
        brushbench.load_inpainter(f"powerpaint,checkpoint={shared},{asked}")
    again = InpainterRecipe("powerpaint", base, init_from=other, share=True)
    train(config(tmp_path / "again", max_steps=1, warmup=1), again)
    brushbench.load_inpainter(f"powerpaint,checkpoint={tmp_path / 'again'},{asked}")

    place(trained / "sd-inpainting" / "model")
    torn = tmp_path / "torn"
    shutil.copytree(shared, torn)
    with safe_open(shared / "unet" / "attentions.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(dict(list(own.items())[1:]), torn / "unet" / "attentions.safetensors", metadata=metadata)
    with pytest.raises(WeightsError, match="1 of its weights are missing"):
        brushbench.load_inpainter(f"powerpaint,checkpoint={torn},{asked}")


def test_the_embedded_powerpaint_goes_with_the_embedded_sd_inpainting():
    inpainter = brushbench.load_inpainter("powerpaint,steps=2,device=cpu")
    told = inpainter.describe()["branches"]
    assert [len(told[name]) for name in ("powerpaint", "sd-inpainting")] == [2, 1]
    assert np.asarray(inpainter.inpaint([make_request()])[0]).shape == (64, 64, 3)


def test_sharing_needs_the_whole_u_net_of_an_sd_inpainting(base, trained, shared):
    whole = InpainterRecipe("powerpaint", base, init_from=trained / "sd-inpainting" / "model", share=True)
    with pytest.raises(UsageError, match=r"no U-Net to share\. Give an SD Inpainting's model/ by --init-from"):
        start_inpainter(InpainterRecipe("powerpaint", base, share=True))
    with pytest.raises(UsageError, match=r"holds attention blocks alone\. Go on with that training by --resume"):
        start_inpainter(InpainterRecipe("powerpaint", base, init_from=shared))
    start_inpainter(whole)
    train(config(shared.parent, max_steps=3, learning_rate=1e-2, warmup=1, resume=True), whole)
    assert newest(shared.parent)["step"] == 3


def test_other_methods_and_weights_are_refused_in_one_sentence(base, trained, tmp_path):
    with pytest.raises(UnknownNameError, match="method"):
        start_inpainter(InpainterRecipe("latent-copy", base))
    with pytest.raises(UsageError, match="holds no unet/"):
        start_inpainter(InpainterRecipe("sd-inpainting", base, init_from=trained / "controlnet" / "model"))
    with pytest.raises(UsageError, match="holds no ControlNet"):
        start_inpainter(InpainterRecipe("controlnet", base, init_from=trained / "sd-inpainting" / "model"))
    with pytest.raises(ConfigMismatchError, match=r"blobs was 0\.33, now 0\.0"):
        train(config(trained / "controlnet", max_steps=3, resume=True, learning_rate=1e-2, warmup=1),
              InpainterRecipe("controlnet", base, blobs=0.0))  # fmt: skip


def test_the_sheet_shows_input_result_and_reference(base, tmp_path):
    task = start_inpainter(InpainterRecipe("powerpaint", base))
    sheet = task.pictures()
    assert sheet.shape == (4 * 64, 12 * 64, 3)
    cells = sheet.reshape(4, 64, 12, 64, 3).swapaxes(1, 2).reshape(16, 3, 64, 64, 3)
    for shown, result, reference in cells:
        hole = (shown == 127).all(axis=2) & (reference != 127).any(axis=2)
        assert hole.any()
        assert np.array_equal(shown[~hole], reference[~hole])
        assert not np.array_equal(result, reference)
    task.save(tmp_path)
    assert json.loads((tmp_path / "recipe.json").read_text())["model"] == "powerpaint"
