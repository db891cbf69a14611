"""How to train: the settings of the loop, and the command-line options that every trainer shares. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["FitConfig", "FitResult", "fit_options", "say_result"]

_IDENTITY = (
    "seed", "batch_size", "accumulation", "learning_rate", "warmup", "ema_decay", "weight_decay", "mixed_precision",
)  # fmt: skip


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        out: folder of checkpoints, logs, pictures and, at the end of a stage, the weights under ``model/``.
        seed: seed of data, noise and timesteps.
        max_steps: optimizer steps of the whole training; the learning rate falls to zero there. May be changed when
            resuming: the rate then follows the new curve.
        batch_size: samples a micro-batch and process.
        accumulation: micro-batches an optimizer step.
        learning_rate: peak.
        warmup: steps of linear rise.
        weight_decay: AdamW's.
        ema_decay: of the moving average of the weights, which is what is saved.
        first_step: step to count on from when weights come from elsewhere. Optimizer, learning rate and moving average
            begin anew there.
        max_minutes: end the stage after this time, with a checkpoint; None = no limit.
        resume: continue from the newest checkpoint in ``out``, if there is one.
        save_every: steps between checkpoints.
        log_every: steps between rows of ``log.csv``.
        picture_every: steps between contact sheets; 0 = none.
        mixed_precision: ``no`` | ``fp16`` | ``bf16``.
        tensorboard: also write event files (needs the extra ``train``).
        cpu: train on the CPU even where a GPU is present.
    """

    out: Path
    seed: int = 0
    max_steps: int = 1000
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 1e-2
    ema_decay: float = 0.999
    first_step: int = 0
    max_minutes: float | None = None
    resume: bool = False
    save_every: int = 250
    log_every: int = 20
    picture_every: int = 250
    mixed_precision: str = "no"
    tensorboard: bool = False
    cpu: bool = False

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued."""
        everything = asdict(self)
        return {name: everything[name] for name in _IDENTITY}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear rise, then half a cosine from the first step to ``max_steps``."""
        since, whole = step - self.first_step, max(1, self.max_steps - self.first_step)
        rise = min(1.0, (since + 1) / max(1, self.warmup))
        return self.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, since / whole)))


@dataclass(frozen=True)
class FitResult:
    """How a stage ended: the step reached, whether that is all of them, and seconds spent in this stage."""

    step: int
    finished: bool
    seconds: float


def _option(help_text: str, kind: Any, *names: str, **limits: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=help_text, rich_help_panel="How to train", **limits)]


# The fields of FitConfig that a command offers.
_OPTIONS: Mapping[str, Any] = {
    "out": _option("Folder of checkpoints, logs and contact sheets; the weights end in its model/.", Path),
    "seed": _option("Seed of the first weights, the data, the noise and the timesteps.", int, min=0),
    "max_steps": _option("Optimizer steps in all; the learning rate falls to zero there.", int, min=1),
    "batch_size": _option("Samples per micro-batch and process.", int, min=1),
    "accumulation": _option("Micro-batches per optimizer step.", int, min=1),
    "learning_rate": _option("Peak learning rate.", float, min=0.0),
    "warmup": _option("Steps over which the learning rate rises.", int, min=0),
    "ema_decay": _option("Decay of the moving average of the weights, which is saved.", float, min=0.0, max=1.0),
    "max_minutes": _option("End this stage after so many minutes, with a checkpoint.", float | None, min=0.0),
    "resume": _option("Continue from the newest checkpoint in --out, if there is one.", bool, "--resume"),
    "save_every": _option("Steps between checkpoints.", int, min=1),
    "log_every": _option("Steps between rows of log.csv.", int, min=1),
    "picture_every": _option("Steps between contact sheets; 0 = none.", int, min=0),
    "mixed_precision": _option("no, fp16 or bf16.", str),
    "tensorboard": _option("Also write event files (needs the extra 'train').", bool, "--tensorboard"),
    "cpu": _option("Stay on the CPU even where there is a GPU.", bool, "--cpu"),
}


def fit_options(
    *, without: Collection[str] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a typer command the options of :class:`FitConfig`, which it receives as its argument ``fit``.

    A command that declares an option of the same name itself keeps its own, and completes ``fit`` with it.

    Args:
        without: options that this command does not offer, because it fixes them itself.
        defaults: fields of :class:`FitConfig` whose default is another one for this command. A field that is no option
            (``weight_decay``) is fixed this way.
    """
    base = FitConfig(**{"out": Path("runs/train"), **defaults})  # refuses a misspelt name

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "fit"]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(base, name), annotation=kind)
            for name, kind in _OPTIONS.items()
            if name not in signature.parameters and name not in without
        ]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            settings = {parameter.name: given.pop(parameter.name) for parameter in shared}
            command(fit=dataclasses.replace(base, **settings), **given)

        parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared]
        with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_options

    return decorate


def say_result(fit: FitConfig, result: FitResult) -> None:
    """Say where the weights are, and how to continue if steps are left; of several processes, the first one says it."""
    if os.environ.get("RANK", "0") != "0":
        return
    typer.echo(f"Step {result.step} of {fit.max_steps} after {result.seconds / 60:.1f} minutes: {fit.out / 'model'}")
    if not result.finished:
        typer.echo("This stage is over before the training is: continue with --resume.")
