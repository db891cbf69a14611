"""Trainers: ten steps of each, resume equal to uninterrupted bit for bit, logs, layout, refusals."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brushbench.errors import ConfigMismatchError, MissingWeightsError, UsageError
from brushbench.metrics.attribute_classifier import AttributeClassifier
from brushbench.tiny import attributes, judges, text_to_image, vae
from brushbench.tiny.judges import ORDER
from brushbench.tiny.scenes import words
from brushbench.training import loop
from brushbench.training.checkpoints import latest_checkpoint
from brushbench.training.loop import Draw, fit
from tests.brushbench.trainings import SlopeTask, assert_equal, config, interrupted, newest, slope_after


def small_vae():
    return vae.build_vae((8, 8, 16))


def vae_task():
    torch.manual_seed(0)
    return vae.VaeTask(small_vae())


def base_task(cache=0):
    torch.manual_seed(0)
    tokenizer = text_to_image.build_tokenizer()
    text_encoder = text_to_image.build_text_encoder(tokenizer, hidden=32, layers=1)
    return text_to_image.TextToImageTask(
        small_vae(), tokenizer, text_encoder, text_to_image.build_unet((32, 32, 32), 32), cache
    )


def attribute_task():
    torch.manual_seed(0)
    return attributes.AttributeTask(AttributeClassifier(width=4), cache_scenes=8)


TASKS = {"vae": vae_task, "text_to_image": base_task, "attributes": attribute_task}
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "text_to_image": "unet/diffusion_pytorch_model.safetensors",
    "attributes": "model.safetensors",
    **dict.fromkeys(ORDER, "weights.safetensors"),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """What makes each task anew; two of the metric models start from the first of them."""
    folder = tmp_path_factory.mktemp("clip")
    fit(judges.make_task("clip"), config(folder, max_steps=1))

    def metric_task(name):
        return lambda: judges.make_task(name, clip=folder / "model", cache_scenes=8)

    return {**TASKS, **{name: metric_task(name) for name in ORDER}}


@pytest.mark.parametrize("name", [*TASKS, *ORDER])
def test_ten_steps_and_a_resumed_run_equals_an_uninterrupted_one(tasks, name, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(tasks[name](), config(whole)).finished

    interrupted(monkeypatch, lambda: fit(tasks[name](), config(parts)))
    result = fit(tasks[name](), config(parts, resume=True))
    assert result.step == 10
    assert_equal(newest(whole), newest(parts))
    saved = [load_file(out / "model" / WEIGHTS[name]) for out in (whole, parts)]
    assert_equal(*saved)
    assert {tensor.dtype for tensor in saved[0].values()} == {torch.float16}
    logs = [[row["loss"] for row in csv.DictReader((out / "log.csv").open())] for out in (whole, parts)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 5


def test_loss_falls_and_the_saved_weights_are_the_averaged_ones(tmp_path):
    task = vae_task()
    fit(task, config(tmp_path, max_steps=30, batch_size=4, learning_rate=3e-3, ema_decay=0.9))
    losses = [float(row["loss"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert np.mean(losses[-4:]) < 0.9 * losses[0]
    state = newest(tmp_path)
    saved = load_file(tmp_path / "model" / WEIGHTS["vae"])
    named = [name for name, _ in task.vae.named_parameters()]
    for name, average in zip(named, state["ema"]["shadow_params"], strict=True):
        assert torch.equal(saved[name], average.half()), name
    assert any(not torch.equal(saved[name], state["weights"][f"vae.{name}"].half()) for name in named)


def test_time_limit_ends_a_stage_with_a_checkpoint(tmp_path):
    result = fit(attribute_task(), config(tmp_path, max_minutes=0.0))
    assert (result.step, result.finished) == (1, False)
    assert latest_checkpoint(tmp_path).name == "step-0000001.pt"
    assert json.loads((tmp_path / "model" / "training.json").read_text())["step"] == 1


def test_other_settings_are_not_resumed(tmp_path):
    fit(attribute_task(), config(tmp_path, max_steps=2))
    with pytest.raises(ConfigMismatchError, match="batch_size"):
        fit(attribute_task(), config(tmp_path, max_steps=4, batch_size=4, resume=True))


def test_two_accumulated_micro_batches_move_the_weight_as_one_large_batch_does(tmp_path):
    """Fails if the loss is not divided by the micro-batches: AdamW hides that, plain descent does not."""
    settings = {"max_steps": 1, "warmup": 1, "learning_rate": 1.0}
    large = slope_after(tmp_path / "large", SlopeTask(), batch_size=4, **settings)
    small = slope_after(tmp_path / "small", SlopeTask(), batch_size=2, accumulation=2, **settings)
    assert large == pytest.approx(-0.025, rel=1e-12)  # mean of 0.01, 0.02, 0.03, 0.04
    assert small == pytest.approx(large, rel=1e-12)


def test_each_step_is_made_at_the_learning_rate_of_that_step(tmp_path):
    """Fails if the rate is one step early or late: the rise, the peak and the end are known numbers."""
    settings = {"batch_size": 1, "warmup": 2, "learning_rate": 1.0, "log_every": 1}
    made = slope_after(tmp_path / "four", SlopeTask(), max_steps=4, **settings)
    falls = [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]  # half a cosine, a quarter of it per step
    expected = [0.5 * falls[0], falls[1], falls[2], falls[3]]  # the first of two steps of rise is half of it
    assert made == pytest.approx(-sum(0.01 * (i + 1) * rate for i, rate in enumerate(expected)), rel=1e-12)
    logged = [float(row["learning_rate"]) for row in csv.DictReader((tmp_path / "four" / "log.csv").open())]
    assert logged == pytest.approx(expected, rel=1e-5)


def test_a_large_gradient_is_clipped_to_norm_one(tmp_path):
    settings = {"max_steps": 1, "warmup": 1, "learning_rate": 1.0, "batch_size": 1}
    assert slope_after(tmp_path / "large", SlopeTask(scale=50.0), **settings) == pytest.approx(-1.0, rel=1e-6)
    assert slope_after(tmp_path / "small", SlopeTask(scale=0.5), **settings) == pytest.approx(-0.5, rel=1e-12)


def test_draws_depend_on_seed_step_place_and_purpose():
    draws = [Draw(0, 0, 0, 2), Draw(1, 0, 0, 2), Draw(0, 1, 0, 2), Draw(0, 0, 2, 2)]
    seeds = [draw.generator().initial_seed() for draw in draws] + [draws[0].generator(1).initial_seed()]
    assert len(set(seeds)) == 5
    assert draws[0].generator().initial_seed() == seeds[0]


def test_learning_rate_rises_then_falls_to_zero(tmp_path):
    plan = config(tmp_path, max_steps=100, warmup=10, learning_rate=1.0)
    rates = [plan.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[9:12]) <= 1.0
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


# ------------------------------------------------------------------------------------------------------ tiny base


def test_every_caption_word_is_one_token_and_any_text_can_be_read():
    tokenizer = text_to_image.build_tokenizer()
    assert tokenizer.model_max_length == 32
    for word in words():
        assert tokenizer.tokenize(word) == [word + "</w>"], word
    assert len(set(tokenizer(" ".join(words())).input_ids)) >= len(words())
    ids = tokenizer("a dragon, 7 feet tall").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_longest_caption_fits():
    text = "a painting of a medium purple triangle right of a medium yellow triangle and a small orange square"
    text += " on a slate gradient"
    assert len(text_to_image.build_tokenizer()(text).input_ids) <= 26


def test_text_encoder_pools_at_the_end_token():
    tokenizer = text_to_image.build_tokenizer()
    encoder = text_to_image.build_text_encoder(tokenizer).eval()
    ids = tokenizer(["a red star"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        output = encoder(ids)
    assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 4])  # start, a, red, star, end


def test_unet_is_stock_small_and_attends_at_three_sizes():
    unet = text_to_image.build_unet()
    assert type(unet).__name__ == "UNet2DConditionModel"
    assert sum(p.numel() for p in unet.parameters()) <= 5_000_000
    sizes = set()
    for name, module in unet.named_modules():
        if type(module).__name__ == "Transformer2DModel":
            module.register_forward_hook(lambda m, args, out: sizes.add(tuple(args[0].shape[-2:])))
            assert module.attention_head_dim == 32, name
    with torch.no_grad():
        unet(torch.zeros(1, 4, 16, 16), 0, torch.zeros(1, 32, 128))
    assert sizes == {(16, 16), (8, 8), (4, 4)}


def test_saved_base_is_a_stock_pipeline_in_float32_with_the_schedule_of_sd15(tmp_path):
    from diffusers import StableDiffusionPipeline

    task = base_task()
    task.save(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert {part.dtype for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder)} == {torch.float32}
    scheduler = pipeline.scheduler
    assert type(scheduler).__name__ == "PNDMScheduler"
    assert (scheduler.config.beta_start, scheduler.config.beta_end) == (0.00085, 0.012)
    assert (scheduler.config.beta_schedule, scheduler.config.steps_offset) == ("scaled_linear", 1)
    assert (scheduler.config.set_alpha_to_one, scheduler.config.skip_prk_steps) == (False, True)
    picture = pipeline("a large red circle on plain grey", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    again = text_to_image.load_text_to_image(tmp_path)
    assert_equal(again.unet.state_dict(), {k: v.half().float() for k, v in task.unet.state_dict().items()})


def test_going_on_from_saved_weights_counts_the_steps_on(tmp_path):
    first = tmp_path / "first"
    fit(base_task(), config(first, max_steps=3))
    assert loop.steps_of(first / "model") == 3
    result = text_to_image.train_text_to_image(
        config(tmp_path / "second", max_steps=5, first_step=3), init_from=first / "model"
    )
    assert (result.step, result.finished) == (5, True)
    assert loop.steps_of(tmp_path / "second" / "model") == 5


def test_what_goes_on_from_saved_weights_has_a_rate_and_an_average_of_its_own(tmp_path):
    plan = config(tmp_path, max_steps=1040, first_step=1000, warmup=1, learning_rate=1e-2, ema_decay=0.999)
    rates = [plan.rate(step) for step in range(1000, 1041)]
    assert rates[0] == pytest.approx(plan.learning_rate)
    assert rates[20] == pytest.approx(plan.learning_rate / 2)
    assert rates[40] == 0.0

    start = base_task().unet.conv_in.bias.detach().clone()
    fit(base_task(), plan)
    end = newest(tmp_path)["weights"]["unet.conv_in.bias"]
    averaged = load_file(tmp_path / "model" / WEIGHTS["text_to_image"])["conv_in.bias"].float()
    assert (averaged - end).norm() < 0.5 * (averaged - start).norm()  # the start weighs little after forty steps


def test_captions_are_dropped_and_noise_and_timesteps_differ_by_step():
    task = base_task()
    empty = task.tokens([""])[0]
    batches = [task.batch(Draw(0, step, 8 * step, 8)) for step in range(12)]
    dropped = sum(int((ids == empty).all()) for batch in batches for ids in batch["input_ids"])
    assert 2 <= dropped <= 22  # of 96 at one in ten
    assert not torch.equal(batches[0]["noise"], batches[1]["noise"])
    assert not torch.equal(batches[0]["timesteps"], batches[1]["timesteps"])


def test_cached_latents_come_round_with_other_noise():
    task = base_task(cache=4)
    first, again = task.batch(Draw(0, 0, 0, 2)), task.batch(Draw(0, 2, 4, 2))
    assert torch.equal(first["latents"], again["latents"])
    assert not torch.equal(first["noise"], again["noise"])
    with pytest.raises(UsageError, match="multiple"):
        base_task(cache=3).batch(Draw(0, 0, 0, 2))


def test_scaling_factor_brings_latents_to_unit_deviation(tmp_path):
    from diffusers import AutoencoderKL

    task = vae_task()
    task.save(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    latents = vae.encode_unscaled(loaded, vae.held_out_pictures(64)[0]) * loaded.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)


def test_generated_pictures_do_not_depend_on_the_batch():
    task = base_task()
    parts = {"vae": task.vae, "tokenizer": task.tokenizer, "text_encoder": task.text_encoder, "unet": task.unet}
    prompts = ["a red star", "a blue circle", "a green cross"]
    together = text_to_image.generate(parts, prompts, steps=2)
    pairs = text_to_image.generate(parts, prompts, steps=2, batch_size=2)
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(together.astype(int) - pairs.astype(int)).max() <= 1


def test_missing_or_contradicting_starts_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--vae"):
        text_to_image.train_text_to_image(config(tmp_path))
    with pytest.raises(MissingWeightsError, match="train tiny vae"):
        text_to_image.train_text_to_image(config(tmp_path), vae=tmp_path / "none")
    with pytest.raises(MissingWeightsError, match="train tiny text-to-image"):
        text_to_image.train_text_to_image(config(tmp_path), init_from=tmp_path / "none")
    with pytest.raises(UsageError, match="1 or more"):
        fit(attribute_task(), config(tmp_path, batch_size=0))


def test_command_trains_and_says_where_the_weights_are(tmp_path):
    from typer.testing import CliRunner

    from brushbench.tiny.commands import app

    options = [
        "attributes",
        "--out",
        str(tmp_path),
        "--max-steps",
        "2",
        "--batch-size",
        "4",
        "--cache-scenes",
        "8",
        "--cpu",
    ]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert "Step 2 of 2" in result.output
    assert (tmp_path / "model" / "model.safetensors").exists()
