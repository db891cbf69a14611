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
    max_steps: Steps = 1700,
    batch_size: Batch = 8,
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
    max_steps: Steps = 6000,
    batch_size: Batch = 32,
    accumulation: Accumulation = 1,
    learning_rate: Rate = 1e-3,
    warmup: Warmup = 100,
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


def _report(config: FitConfig, result: FitResult) -> None:
    """Say where the weights are, and how to go on if steps are left."""
    typer.echo(
        f"Step {result.step} of {config.max_steps} after {result.seconds / 60:.1f} minutes: {config.out / 'model'}"
    )
    if not result.finished:
        typer.echo("The stage is over before the training is: go on with --resume.")
