"""``brushbench train tiny``: one command per model of the embedded family. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from brushbench.training.settings import FitConfig, fit_options, say_result

__all__ = ["app"]

app = typer.Typer(help="Train the embedded models on rendered scenes.", no_args_is_help=True)

# Of the embedded BrushNets: 3,200 steps of 32 samples.
INPAINTER: dict[str, Any] = {
    "max_steps": 3200, "batch_size": 32, "learning_rate": 5e-4, "warmup": 30, "ema_decay": 0.99, "save_every": 50,
    "picture_every": 400,
}  # fmt: skip
Cache = Annotated[int, typer.Option(min=0, help="Repeat the first so many scenes; 0 = never repeat.")]


@app.command()
@fit_options(
    out=Path("runs/train/vae"), max_steps=7000, learning_rate=1.5e-3, weight_decay=1e-4, ema_decay=0.998,
    save_every=200, picture_every=200,
)  # fmt: skip
def vae(*, fit: FitConfig) -> None:
    """Train the autoencoder: 64x64 pictures to 16x16x4 latents."""
    from brushbench.tiny.vae import train_vae

    say_result(fit, train_vae(fit))


@app.command()
@fit_options(
    out=Path("runs/train/text_to_image"), max_steps=4500, batch_size=64, warmup=200, save_every=100, picture_every=200,
)  # fmt: skip
def text_to_image(
    vae: Annotated[Path | None, typer.Option(help="Folder of the trained autoencoder, for a fresh start.")] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Saved pipeline to continue from, with a fresh optimizer.")
    ] = None,
    cache_latents: Cache = 0,
    *,
    fit: FitConfig,
) -> None:
    """Train the base: text encoder and U-Net together, on the frozen autoencoder's latents.

    With --init-from the steps are counted on from the pipeline's training.json, so the scenes are new ones.
    """
    from brushbench.tiny.text_to_image import train_text_to_image
    from brushbench.training.loop import steps_of

    fit = replace(fit, first_step=steps_of(init_from) if init_from else 0)
    say_result(fit, train_text_to_image(fit, vae=vae, init_from=init_from, cache_scenes=cache_latents))


@app.command()
@fit_options(
    out=Path("runs/train/attributes"), max_steps=1500, batch_size=64, learning_rate=2e-3, warmup=50, ema_decay=0.995,
    log_every=50, picture_every=0,
)  # fmt: skip
def attributes(
    vae: Annotated[Path | None, typer.Option(help="Trained autoencoder for round trips; none: clean renders.")] = None,
    cache_scenes: Cache = 6144,
    *,
    fit: FitConfig,
) -> None:
    """Train the classifier behind the metric attribute_accuracy."""
    from brushbench.tiny.attributes import train_attributes

    say_result(fit, train_attributes(fit, vae=vae, cache_scenes=cache_scenes))


InitFrom = Annotated[
    Path | None, typer.Option(help="Saved weights to continue from: steps are counted on, the optimizer begins anew.")
]
BaseModel = Annotated[Path | None, typer.Option(help="Folder of the base model; none: the embedded one.")]


def _inpainter(method: str, base: Path | None, init_from: Path | None, fit: FitConfig, share: bool = False) -> None:
    from brushbench.tiny.inpainters import InpainterRecipe, train_inpainter
    from brushbench.training.loop import steps_of

    fit = replace(fit, first_step=steps_of(init_from) if init_from else 0)
    say_result(fit, train_inpainter(fit, InpainterRecipe(method, base=base, init_from=init_from, share=share)))


@app.command()
@fit_options(out=Path("runs/train/sd_inpainting"), **INPAINTER)
def sd_inpainting(base: BaseModel = None, init_from: InitFrom = None, *, fit: FitConfig) -> None:
    """Train SD Inpainting: the base's U-Net with five more input channels, hole and masked picture."""
    _inpainter("sd-inpainting", base, init_from, fit)


@app.command()
@fit_options(out=Path("runs/train/controlnet"), **INPAINTER)
def controlnet(base: BaseModel = None, init_from: InitFrom = None, *, fit: FitConfig) -> None:
    """Train a ControlNet for inpainting beside the frozen base."""
    _inpainter("controlnet", base, init_from, fit)


@app.command()
@fit_options(out=Path("runs/train/powerpaint"), **INPAINTER)
def powerpaint(
    base: BaseModel = None,
    init_from: InitFrom = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Train and save attention blocks and task words alone; the rest is --init-from's U-Net."
        ),
    ] = False,
    *,
    fit: FitConfig,
) -> None:
    """Train PowerPaint v1: SD Inpainting and learned task words. --init-from may be an SD Inpainting."""
    _inpainter("powerpaint", base, init_from, fit, share)


@app.command()
@fit_options(without=("warmup", "ema_decay"), save_every=200, picture_every=0)
def judges(
    which: Annotated[
        str, typer.Option(help="clip, aesthetic, hps, image_reward, lpips, or all in this order.")
    ] = "all",
    out: Annotated[Path, typer.Option(help="Holds one folder per model; weights end in its model/.")] = Path(
        "runs/train/metrics"
    ),
    clip: Annotated[
        Path | None, typer.Option(help="Trained CLIP that aesthetic and hps start from; default OUT/clip/model.")
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Trained hps or image_reward to continue from: steps are counted on, optimizer and rate begin anew."
        ),
    ] = None,
    cache_scenes: Cache = 20480,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; none: each model's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Scenes per step; none: each model's own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Peak; none: each model's own.")] = None,
    *,
    fit: FitConfig,
) -> None:
    """Train the small models behind clip_score, aesthetic, hps, image_reward and lpips."""
    from brushbench.tiny.judges import ORDER, recipe_of, train_judge
    from brushbench.training.loop import steps_of

    for name in ORDER if which == "all" else (which,):
        recipe = recipe_of(name)
        settings = replace(
            fit,
            out=out / name,
            max_steps=max_steps or recipe.max_steps,
            batch_size=batch_size or recipe.batch_size,
            learning_rate=recipe.learning_rate if learning_rate is None else learning_rate,
            warmup=recipe.warmup,
            weight_decay=recipe.weight_decay,
            ema_decay=recipe.ema_decay,
            first_step=steps_of(init_from) if init_from else 0,
        )
        result = train_judge(
            name, settings, clip=clip or out / "clip" / "model", init_from=init_from, cache_scenes=cache_scenes
        )
        say_result(settings, result)


@app.command()
def collect(
    runs: Annotated[Path, typer.Argument(help="Folder of the trainings: vae, text_to_image, brushnet_random, …")],
    into: Annotated[Path, typer.Option(help="The embedded family.")] = Path("data/tiny"),
) -> None:
    """Copy trained models into the embedded family, and write its manifest anew."""
    from brushbench.tiny.family import collect as copy_models

    for folder in copy_models(runs, into):
        typer.echo(f"Copied: {folder}")
