"""``brushbench train``: one command a model. Importing this module imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from brushbench.training.loop import FitConfig, FitResult

__all__ = ["app"]

app = typer.Typer(help="Train the tiny models on rendered scenes.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of checkpoints, logs and pictures; the weights end in its model/.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first weights, the scenes, the noise and the timesteps.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps in all; the learning rate falls to zero there.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples a process and micro-batch.")]
Accumulation = Annotated[int, typer.Option(min=1, help="Micro-batches an optimizer step.")]
Rate = Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option(min=0, help="Steps over which the learning rate rises.")]
Decay = Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the moving average of the weights, which is saved.")]
Minutes = Annotated[float | None, typer.Option(min=0.0, help="End the stage after so many minutes, with a checkpoint.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out, if there is one.")]
Save = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Log = Annotated[int, typer.Option(min=1, help="Steps between rows of log.csv.")]
Pictures = Annotated[int, typer.Option(min=0, help="Steps between contact sheets; 0 = none.")]
Precision = Annotated[str, typer.Option(help="no, fp16 or bf16.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also write event files (needs the extra 'train').")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Stay on the CPU even where there is a GPU.")]
Cache = Annotated[int, typer.Option(min=0, help="Go round and round in the first so many scenes; 0 = never repeat.")]


@app.command()
def vae(
    out: Out = Path("runs/train/vae"),
    seed: Seed = 0,
    max_steps: Steps = 7000,
    batch_size: Batch = 16,
    accumulation: Accumulation = 1,
    learning_rate: Rate = 1.5e-3,
    warmup: Warmup = 100,
    ema_decay: Decay = 0.998,
    max_minutes: Minutes = None,
    resume: Resume = False,
    save_every: Save = 200,
    log_every: Log = 20,
    picture_every: Pictures = 200,
    mixed_precision: Precision = "no",
    tensorboard: Board = False,
    cpu: Cpu = False,
) -> None:
    """Train the autoencoder: 64x64 pictures to 16x16x4 latents."""
    from brushbench.training.loop import FitConfig
    from brushbench.training.vae import train_vae

    config = FitConfig(
        out, seed, max_steps, batch_size, accumulation, learning_rate, warmup, 1e-4, ema_decay,
        max_minutes=max_minutes, resume=resume, save_every=save_every, log_every=log_every,
        picture_every=picture_every, mixed_precision=mixed_precision, tensorboard=tensorboard, cpu=cpu,
    )  # fmt: skip
    _report(config, train_vae(config))


@app.command()
def base(
    vae: Annotated[Path | None, typer.Option(help="Folder of the trained autoencoder, for a fresh start.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Saved pipeline to go on from, with a fresh optimizer.")
    ] = None,
    cache_latents: Cache = 0,
    out: Out = Path("runs/train/base"),
    seed: Seed = 0,
    max_steps: Steps = 4500,
    batch_size: Batch = 64,
    accumulation: Accumulation = 1,
    learning_rate: Rate = 1e-3,
    warmup: Warmup = 200,
    ema_decay: Decay = 0.999,
    max_minutes: Minutes = None,
    resume: Resume = False,
    save_every: Save = 100,
    log_every: Log = 20,
    picture_every: Pictures = 200,
    mixed_precision: Precision = "no",
    tensorboard: Board = False,
    cpu: Cpu = False,
) -> None:
    """Train text encoder and U-Net together on the frozen autoencoder's latents.

    With --init-from the steps are counted on from the pipeline's training.json, so the scenes are new ones.
    """
    from brushbench.training.base import steps_of, train_base
    from brushbench.training.loop import FitConfig

    config = FitConfig(
        out, seed, max_steps, batch_size, accumulation, learning_rate, warmup, 1e-2, ema_decay,
        first_step=steps_of(init_from) if init_from else 0,
        max_minutes=max_minutes, resume=resume, save_every=save_every, log_every=log_every,
        picture_every=picture_every, mixed_precision=mixed_precision, tensorboard=tensorboard, cpu=cpu,
    )  # fmt: skip
    _report(config, train_base(config, vae=vae, init_from=init_from, cache_scenes=cache_latents))


@app.command()
def brushnet(
    base: Annotated[str, typer.Option(help="tiny, sd15, sdxl, a folder of a stock pipeline or a hub id.")] = "tiny",
    data: Annotated[
        str, typer.Option(help="scenes, BrushData's folder, tar or hub id, or a benchmark by name or folder.")
    ] = "scenes",
    masks: Annotated[str, typer.Option(help="segmentation or random.")] = "segmentation",
    resolution: Annotated[int | None, typer.Option(min=8, help="Side in pixels; the base's own unless given.")] = None,
    blobs: Annotated[float, typer.Option(help="Share of segmentation holes that do not follow the outline.")] = 0.0,
    caption_dropout: Annotated[float, typer.Option(help="Share of captions replaced by the empty one.")] = 0.1,
    sample_posterior: Annotated[
        bool, typer.Option("--sample-posterior", help="Draw from the autoencoder's posterior instead of its mode.")
    ] = False,
    mask_channel: Annotated[bool, typer.Option(help="Ablation: without it the branch does not see the mask.")] = True,
    injection: Annotated[str, typer.Option(help="full, or the ablation encoder: no residuals on the way up.")] = "full",
    init_from: Annotated[
        Path | None,
        typer.Option(help="Saved branch to go on from: steps are counted on, optimizer, rate and average begin anew."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Save memory at the price of time.")
    ] = False,
    adam_8bit: Annotated[bool, typer.Option("--adam-8bit", help="8-bit Adam (needs the extra 'adam8bit').")] = False,
    half: Annotated[bool, typer.Option("--half", help="Save the weights in float16.")] = False,
    guidance: Annotated[float | None, typer.Option(help="Guidance of the sheets; the preset's unless given.")] = None,
    out: Out = Path("runs/train/brushnet"),
    seed: Seed = 0,
    max_steps: Steps = 4000,
    batch_size: Batch = 16,
    accumulation: Accumulation = 1,
    learning_rate: Rate = 1e-4,
    warmup: Warmup = 100,
    ema: Annotated[
        bool, typer.Option(help="Save the moving average of the weights, or the weights themselves.")
    ] = True,
    ema_decay: Decay = 0.999,
    max_minutes: Minutes = None,
    resume: Resume = False,
    save_every: Save = 100,
    log_every: Log = 20,
    picture_every: Pictures = 500,
    mixed_precision: Precision = "no",
    tensorboard: Board = False,
    cpu: Cpu = False,
) -> None:
    """Train the BrushNet branch beside a frozen base: Stable Diffusion 1.x, 2.x or XL, or the embedded tiny one."""
    from brushbench.training.base import steps_of
    from brushbench.training.brushnet import BrushNetRecipe, train_brushnet
    from brushbench.training.loop import FitConfig

    recipe = BrushNetRecipe(
        base=base, data=data, masks=masks, resolution=resolution, blobs=blobs, caption_dropout=caption_dropout,
        sample_posterior=sample_posterior, mask_channel=mask_channel, injection=injection,
        gradient_checkpointing=gradient_checkpointing, adam_8bit=adam_8bit, half=half, guidance=guidance,
        init_from=str(init_from) if init_from else None,
    )  # fmt: skip
    config = FitConfig(
        out, seed, max_steps, batch_size, accumulation, learning_rate, warmup, 1e-2, ema_decay if ema else 0.0,
        first_step=steps_of(init_from) if init_from else 0,
        max_minutes=max_minutes, resume=resume, save_every=save_every, log_every=log_every,
        picture_every=picture_every, mixed_precision=mixed_precision, tensorboard=tensorboard, cpu=cpu,
    )  # fmt: skip
    _report(config, train_brushnet(config, recipe))


@app.command()
def attributes(
    vae: Annotated[Path | None, typer.Option(help="Trained autoencoder for round trips; none: clean renders.")] = None,
    cache_scenes: Cache = 6144,
    out: Out = Path("runs/train/attributes"),
    seed: Seed = 0,
    max_steps: Steps = 1500,
    batch_size: Batch = 64,
    learning_rate: Rate = 2e-3,
    warmup: Warmup = 50,
    ema_decay: Decay = 0.995,
    max_minutes: Minutes = None,
    resume: Resume = False,
    save_every: Save = 250,
    log_every: Log = 50,
    picture_every: Pictures = 0,
    tensorboard: Board = False,
    cpu: Cpu = False,
) -> None:
    """Train the classifier behind the metric attribute_accuracy."""
    from brushbench.training.attributes import train_attributes
    from brushbench.training.loop import FitConfig

    config = FitConfig(
        out, seed, max_steps, batch_size, 1, learning_rate, warmup, 1e-2, ema_decay,
        max_minutes=max_minutes, resume=resume, save_every=save_every, log_every=log_every,
        picture_every=picture_every, tensorboard=tensorboard, cpu=cpu,
    )  # fmt: skip
    _report(config, train_attributes(config, vae=vae, cache_scenes=cache_scenes))


@app.command()
def metrics(
    which: Annotated[
        str, typer.Option(help="clip, aesthetic, hps, image_reward, lpips, or all in this order.")
    ] = "all",
    out: Annotated[Path, typer.Option(help="Every model has a folder in it; weights end in its model/.")] = Path(
        "runs/train/metrics"
    ),
    clip: Annotated[
        Path | None, typer.Option(help="Trained CLIP that aesthetic and hps start from; default OUT/clip/model.")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Trained hps or image_reward to go on from: steps are counted on, optimizer and rate begin anew."
        ),
    ] = None,
    cache_scenes: Cache = 20480,
    seed: Seed = 0,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; none: each model's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Scenes a step; none: each model's own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Peak; none: each model's own.")] = None,
    max_minutes: Annotated[float | None, typer.Option(min=0.0, help="End each model's stage after so long.")] = None,
    resume: Resume = False,
    save_every: Save = 200,
    log_every: Log = 20,
    picture_every: Pictures = 0,
    mixed_precision: Precision = "no",
    tensorboard: Board = False,
    cpu: Cpu = False,
) -> None:
    """Train the small models behind clip_score, aesthetic, hps, image_reward and lpips."""
    from brushbench.training.base import steps_of
    from brushbench.training.loop import FitConfig
    from brushbench.training.metric_models import ORDER, recipe_of, train_metric_model

    for name in ORDER if which == "all" else (which,):
        recipe = recipe_of(name)
        config = FitConfig(
            out / name, seed, max_steps or recipe.max_steps, batch_size or recipe.batch_size, 1,
            recipe.learning_rate if learning_rate is None else learning_rate,
            recipe.warmup, recipe.weight_decay, recipe.ema_decay, first_step=steps_of(init_from) if init_from else 0,
            max_minutes=max_minutes, resume=resume, save_every=save_every, log_every=log_every,
            picture_every=picture_every, mixed_precision=mixed_precision, tensorboard=tensorboard, cpu=cpu,
        )  # fmt: skip
        result = train_metric_model(
            name, config, clip=clip or out / "clip" / "model", init_from=init_from, cache_scenes=cache_scenes
        )
        _report(config, result)


@app.command()
def collect(
    runs: Annotated[Path, typer.Argument(help="Folder of the trainings: vae, base, brushnet_random, metrics/clip …")],
    into: Annotated[Path, typer.Option(help="The embedded family.")] = Path("data/tiny"),
) -> None:
    """Copy trained models into the embedded family, and write its manifest anew."""
    from brushbench.training.family import collect as copy_models

    for folder in copy_models(runs, into):
        typer.echo(f"Copied: {folder}")


def _report(config: FitConfig, result: FitResult) -> None:
    """Say where the weights are, and how to go on if steps are left."""
    typer.echo(
        f"Step {result.step} of {config.max_steps} after {result.seconds / 60:.1f} minutes: {config.out / 'model'}"
    )
    if not result.finished:
        typer.echo("The stage is over before the training is: go on with --resume.")
