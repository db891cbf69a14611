"""``brushbench train``: what a user trains. Importing this module imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from brushbench.training.settings import FitConfig, fit_options, say_result

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)


@app.callback()
def train() -> None:
    """Keep ``brushnet`` a command of its own, though it is the only one here."""


@app.command()
@fit_options(
    out=Path("runs/train/brushnet"), max_steps=4000, learning_rate=1e-4, save_every=500, picture_every=500,
)  # fmt: skip
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
    ema: Annotated[
        bool, typer.Option(help="Save the moving average of the weights, or the weights themselves.")
    ] = True,
    *,
    fit: FitConfig,
) -> None:
    """Train the BrushNet branch beside a frozen base: Stable Diffusion 1.x, 2.x or XL, or the embedded tiny one."""
    from brushbench.training.brushnet import BrushNetRecipe, train_brushnet
    from brushbench.training.loop import steps_of

    recipe = BrushNetRecipe(
        base=base, data=data, masks=masks, resolution=resolution, blobs=blobs, caption_dropout=caption_dropout,
        sample_posterior=sample_posterior, mask_channel=mask_channel, injection=injection,
        gradient_checkpointing=gradient_checkpointing, adam_8bit=adam_8bit, half=half, guidance=guidance,
        init_from=str(init_from) if init_from else None,
    )  # fmt: skip
    fit = replace(fit, ema_decay=fit.ema_decay if ema else 0.0, first_step=steps_of(init_from) if init_from else 0)
    say_result(fit, train_brushnet(fit, recipe))
