"""The training loop every small model here shares: accelerate, moving average, checkpoints, logs, pictures.

Nothing random lives outside a step: the data, the noise and the timesteps of a step are drawn from ``(seed, step)``,
and the learning rate is a function of the step. A checkpoint is therefore weights, their moving average, optimizer
and a number, and a resumed run equals an uninterrupted one bit for bit on the same device.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from brushbench.errors import ConfigMismatchError, UsageError, WeightsError
from brushbench.training.settings import FitConfig, FitResult
from brushbench.types import Picture

__all__ = ["Draw", "Task", "contact_sheet", "fit", "latest_checkpoint", "steps_of"]


@dataclass(frozen=True)
class Draw:
    """What one micro-batch is made from.

    Attributes:
        seed: seed of the run.
        step: optimizer step, from 0.
        first: index of the first sample in the endless stream.
        size: number of samples.
    """

    seed: int
    step: int
    first: int
    size: int

    def generator(self, purpose: int = 0) -> torch.Generator:
        """Return a CPU generator of this micro-batch alone; ``purpose`` separates several uses."""
        words = np.random.SeedSequence((self.seed, self.step, self.first, purpose)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))


class Task(Protocol):
    """What is trained.

    ``objective`` holds every trainable weight; its forward takes the batch as keywords and returns the loss and what is
    logged beside it.
    """

    @property
    def objective(self) -> nn.Module:
        """What is optimized."""
        ...

    def batch(self, draw: Draw) -> dict[str, Tensor]:
        """Return the CPU tensors of one micro-batch, a function of the draw alone."""
        ...

    def pictures(self) -> Picture:
        """Return one contact sheet made with the weights now in ``objective``."""
        ...

    def save(self, folder: Path) -> None:
        """Write the weights now in ``objective`` in their final layout."""
        ...


def fit(
    task: Task, config: FitConfig, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
) -> FitResult:
    """Train, or continue to train, until the steps or the minutes are used up; then save checkpoint and weights.

    Args:
        task: what is trained.
        config: how.
        optimizer: makes the optimizer of the trained weights; None = AdamW. The learning rate is set at every step.

    Raises:
        UsageError: settings that cannot be right.
        ConfigMismatchError: the checkpoint to resume was made with other settings.
    """
    run = _Run(task, config, optimizer or _adamw(config))
    step = run.restore() if config.resume else config.first_step
    run.open_log(step)
    started = time.monotonic()
    with _progress(config, step) as show:
        while step < config.max_steps:
            values = run.step(step)
            step += 1
            run.log(step, values, show)
            late = config.max_minutes is not None and time.monotonic() - started > 60.0 * config.max_minutes
            last = late or step == config.max_steps
            if last or step % config.save_every == 0:
                run.checkpoint(step)
            if config.picture_every and (last or step % config.picture_every == 0):
                run.pictures(step)
            if late:
                break
    run.export(step)
    return FitResult(step, step >= config.max_steps, time.monotonic() - started)


class _Run:
    """The moving parts of one call of :func:`fit`."""

    def __init__(
        self, task: Task, config: FitConfig, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel

        if min(config.max_steps, config.batch_size, config.accumulation, config.save_every, config.log_every) < 1:
            raise UsageError("Steps, batch size, accumulation, save_every and log_every must be 1 or more.")
        self.task, self.config = task, config
        self.accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu)
        torch.manual_seed(config.seed)  # only dropout could use it: every draw has its own generator
        self.weights = [p for p in task.objective.parameters() if p.requires_grad]
        self.module, self.optimizer = self.accelerator.prepare(task.objective, make(self.weights))
        self.ema = EMAModel(self.weights, decay=config.ema_decay)
        self.ema.to(self.accelerator.device)
        self.since = time.monotonic()
        self.board: Any = None

    def step(self, step: int) -> dict[str, float]:
        """Make one optimizer step and return what is logged."""
        config, world = self.config, self.accelerator.num_processes
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(step)
        totals: dict[str, float] = {}
        for micro in range(config.accumulation):
            place = ((step * config.accumulation + micro) * world + self.accelerator.process_index) * config.batch_size
            batch = self.task.batch(Draw(config.seed, step, place, config.batch_size))
            batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
            silent = self.accelerator.no_sync(self.module) if micro + 1 < config.accumulation else _nothing()
            with silent, self.accelerator.autocast():
                loss, extras = self.module(**batch)
                self.accelerator.backward(loss / config.accumulation)
            for name, value in {"loss": loss, **extras}.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / config.accumulation
        if not math.isfinite(totals["loss"]):
            raise WeightsError(f"The loss is {totals['loss']} at step {step}. Lower the learning rate and resume.")
        self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.weights)
        return totals

    # ------------------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, step: int) -> None:
        """Write ``checkpoints/step-N.pt`` whole or not at all, and drop the one before the last."""
        if not self.accelerator.is_main_process:
            return
        folder = self.config.out / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            "step": step,
            "config": self.config.identity(),
            "weights": self.accelerator.unwrap_model(self.module).state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = folder / "partial.tmp"
        torch.save(state, partial)
        partial.replace(folder / f"step-{step:07d}.pt")
        for old in sorted(folder.glob("step-*.pt"))[:-2]:
            old.unlink()

    def restore(self) -> int:
        """Load the newest checkpoint and return its step; the first step when there is none."""
        path = latest_checkpoint(self.config.out)
        if path is None:
            return self.config.first_step
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = {k: (state["config"].get(k), v) for k, v in self.config.identity().items()}
        changed = {k: (then, now) for k, (then, now) in changed.items() if then != now}
        if changed:
            raise ConfigMismatchError(f"{path} was made with other settings (then, now): {changed}. Use another --out.")
        self.accelerator.unwrap_model(self.module).load_state_dict(state["weights"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    # -------------------------------------------------------------------------------------------- logs and pictures

    def open_log(self, step: int) -> None:
        """Drop rows of steps that will be made again, and note the settings."""
        if not self.accelerator.is_main_process:
            return
        self.config.out.mkdir(parents=True, exist_ok=True)
        settings = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self.config).items()
        }
        (self.config.out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        path = self.config.out / "log.csv"
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
            path.write_text("".join(lines[:1] + kept) if kept else "")
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.config.out / "tensorboard"), purge_step=step)

    def log(self, step: int, values: Mapping[str, float], show: Any) -> None:
        """Append a row every ``log_every`` steps and move the progress bar."""
        config = self.config
        if not self.accelerator.is_main_process:
            return
        show(step, values["loss"])
        if step % config.log_every:
            return
        now = time.monotonic()
        per_second = config.log_every * config.batch_size * config.accumulation * self.accelerator.num_processes
        rate = per_second / max(1e-9, now - self.since)
        self.since = now
        row = {"step": step, **values, "learning_rate": config.rate(step - 1), "samples_per_second": rate}
        path = config.out / "log.csv"
        fresh = not path.exists() or path.stat().st_size == 0
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({name: v if isinstance(v, int) else f"{v:.6g}" for name, v in row.items()})
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, step)
            self.board.flush()

    def pictures(self, step: int) -> None:
        """Write ``pictures/step-N.png``, made with the averaged weights."""
        if not self.accelerator.is_main_process:
            return
        with self.averaged():
            sheet = self.task.pictures()
        folder = self.config.out / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(folder / f"step-{step:07d}.png")

    def export(self, step: int) -> None:
        """Write the averaged weights in their final layout under ``model/``, with the step they are from."""
        if not self.accelerator.is_main_process:
            return
        folder = self.config.out / "model"
        folder.mkdir(parents=True, exist_ok=True)
        with self.averaged():
            self.task.save(folder)
        (folder / "training.json").write_text(
            json.dumps({"step": step, "max_steps": self.config.max_steps, **self.config.identity()}, indent=2) + "\n"
        )
        if self.board is not None:
            self.board.close()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the moving average in the model's place for a while."""
        self.ema.store(self.weights)
        self.ema.copy_to(self.weights)
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.ema.restore(self.weights)
            self.module.train()


def _adamw(config: FitConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    return lambda weights: torch.optim.AdamW(
        weights, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
    )


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _progress(config: FitConfig, start: int) -> Iterator[Any]:
    """Yield ``show(step, loss)``: a bar with the time left on a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("loss {task.fields[loss]:.4f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            job = bar.add_task("training", total=config.max_steps, completed=start, loss=float("nan"))
            yield lambda step, loss: bar.update(job, completed=step, loss=loss)
        return
    began = time.monotonic()

    def show(step: int, loss: float) -> None:
        if step % config.log_every == 0 or step == config.max_steps:
            left = (time.monotonic() - began) / max(1, step - start) * (config.max_steps - step)
            console.print(f"step {step}/{config.max_steps}  loss {loss:.4f}  {left / 60:.1f} min left", highlight=False)

    yield show


def steps_of(folder: Path) -> int:
    """Return how many steps saved weights were trained for, as its ``training.json`` says; 0 without one."""
    path = folder / "training.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def latest_checkpoint(out: Path) -> Path | None:
    """Return the newest checkpoint under ``out``, or None."""
    found = sorted((out / "checkpoints").glob("step-*.pt"))
    return found[-1] if found else None


def contact_sheet(pictures: np.ndarray[Any, np.dtype[np.uint8]], columns: int) -> Picture:
    """Lay uint8 (n, H, W, 3) pictures out in rows; the last row is filled with white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    sheet[:count] = pictures
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, 3))
