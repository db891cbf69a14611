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
from brushbench.training.checkpoints import check_identity, newest_good, refuse_used, write_checkpoint
from brushbench.training.settings import FitConfig, FitResult
from brushbench.types import JSON, Picture

__all__ = ["Draw", "Task", "contact_sheet", "fit", "steps_of"]


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

    def identity(self) -> Mapping[str, JSON]:
        """Return what must be equal for a checkpoint to be continued: model, settings, the data's content."""
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
        UsageError: invalid settings, or a folder that holds a training although ``resume`` is off.
        ConfigMismatchError: the checkpoint to resume was made with other settings or other data.
        WeightsError: no checkpoint can be read, or the loss is no number.
    """
    if not config.resume:
        refuse_used(config.out)
    run = _Run(task, config, optimizer or _adamw(config))
    step = run.restore() if config.resume else config.first_step
    run.open_log(step)
    started = time.monotonic()
    with _progress(config, step) as show:
        while step < config.max_steps:
            values = run.step(step)
            step += 1
            run.log(step, values, show)
            late = run.is_late(started)
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
            raise WeightsError(
                f"The loss is {totals['loss']} at step {step}. Train into another --out with a lower --learning-rate."
            )
        self.accelerator.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.weights)
        return totals

    # ------------------------------------------------------------------------------------------------- checkpoints

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a checkpoint to be continued, as JSON would hold it."""
        loop = {**self.config.identity(), "processes": self.accelerator.num_processes}
        plain: dict[str, Any] = json.loads(json.dumps({**loop, **self.task.identity()}))
        return plain

    def is_late(self, started: float) -> bool:
        """Say whether the stage's time is over; the main process decides for all, or the others would wait for it."""
        limit = self.config.max_minutes
        if limit is None:
            return False
        late = time.monotonic() - started > 60.0 * limit
        if self.accelerator.num_processes == 1:
            return late
        from accelerate.utils import broadcast

        told: Tensor = broadcast(torch.tensor(float(late), device=self.accelerator.device))
        return bool(told)

    def checkpoint(self, step: int) -> None:
        """Write ``checkpoints/step-N.pt``."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "step": step,
            "identity": self.identity(),
            "weights": self.accelerator.unwrap_model(self.module).state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        write_checkpoint(self.config.out, state)

    def restore(self) -> int:
        """Load the newest good checkpoint and return its step; the first step when there is none."""
        found = newest_good(self.config.out)
        if found is None:
            return self.config.first_step
        check_identity(found.path, found.state["identity"], self.identity())
        try:
            self.accelerator.unwrap_model(self.module).load_state_dict(found.state["weights"])
            self.ema.load_state_dict(found.state["ema"])
            self.optimizer.load_state_dict(found.state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(found.state["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ConfigMismatchError(
                f"{found.path} is of another model ({str(error).splitlines()[0]}). Train into another --out."
            ) from None
        self.ema.to(self.accelerator.device)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            for reason in found.damaged.values():
                Console(stderr=True).print(f"{reason}; continuing from {found.path.name}.", highlight=False)
            found.set_damaged_aside()
        return int(found.state["step"])

    # -------------------------------------------------------------------------------------------- logs and pictures

    def open_log(self, step: int) -> None:
        """Drop rows of steps that will be made again, and note the settings."""
        if not self.accelerator.is_main_process:
            return
        self.config.out.mkdir(parents=True, exist_ok=True)
        settings = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(self.config).items()
        }
        (self.config.out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        (self.config.out / "recipe.json").write_text(json.dumps(self.identity(), indent=2) + "\n")
        path = self.config.out / "log.csv"
        if path.exists():
            path.write_text(_log_up_to(step, path.read_text(errors="replace")))
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


def _log_up_to(step: int, text: str) -> str:
    """Return a log without the rows of later steps, and without rows that a crash cut short."""
    header, *rows = text.splitlines() or [""]
    whole = [row for row in rows if row.count(",") == header.count(",") and row.split(",")[0].isdecimal()]
    kept = [row for row in whole if int(row.split(",")[0]) <= step]
    return "".join(f"{line}\n" for line in (header, *kept)) if kept else ""


def contact_sheet(pictures: np.ndarray[Any, np.dtype[np.uint8]], columns: int) -> Picture:
    """Lay uint8 (n, H, W, 3) pictures out in rows; the last row is filled with white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, dtype=np.uint8)
    sheet[:count] = pictures
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * height, columns * width, 3))
