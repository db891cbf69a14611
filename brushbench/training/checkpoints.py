"""Checkpoints of a training: written whole or not at all, read without running code, the newest good one first.

A checkpoint is one file, ``checkpoints/step-N.pt``: a mapping of the step, the training's identity, weights, their
moving average, optimizer and, for fp16, the scale of the loss.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushbench.errors import ConfigMismatchError, UsageError, WeightsError

__all__ = ["Checkpoint", "check_identity", "latest_checkpoint", "newest_good", "refuse_used", "write_checkpoint"]

KEPT = 2  # checkpoints
DAMAGED = ".damaged"
CONTENTS: Mapping[str, type | tuple[type, ...]] = {
    "step": int, "identity": dict, "weights": dict, "ema": dict, "optimizer": dict, "scaler": (dict, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that could be read, and the newer ones that could not, with the reason of each."""

    path: Path
    state: Mapping[str, Any]
    damaged: Mapping[Path, str]

    def set_damaged_aside(self) -> None:
        """Rename the damaged ones, so that no later run takes them for the newest."""
        for path in self.damaged:
            if path.exists():
                path.replace(path.with_name(path.name + DAMAGED))


def write_checkpoint(out: Path, state: Mapping[str, Any]) -> None:
    """Write ``checkpoints/step-N.pt`` whole or not at all, and keep the two newest."""
    import torch

    folder = out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.tmp"
    torch.save(dict(state), partial)
    partial.replace(folder / f"step-{state['step']:07d}.pt")
    for old in _checkpoints(out)[:-KEPT]:
        old.unlink()


def newest_good(out: Path) -> Checkpoint | None:
    """Return the newest checkpoint that can be read, or None where there is none at all.

    Raises:
        WeightsError: there are checkpoints, and none of them can be read.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_checkpoints(out)):
        try:
            return Checkpoint(path, _read(path), damaged)
        except WeightsError as error:
            damaged[path] = str(error)
    if damaged:
        reasons = "; ".join(damaged.values())
        raise WeightsError(f"No checkpoint in {out / 'checkpoints'} can be read: {reasons}. Train into another --out.")
    return None


def latest_checkpoint(out: Path) -> Path | None:
    """Return the path of the newest checkpoint under ``out``, readable or not, or None."""
    found = _checkpoints(out)
    return found[-1] if found else None


def _checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoints").glob("step-*.pt"))


def _read(path: Path) -> Mapping[str, Any]:
    """Return the contents of a checkpoint.

    Raises:
        WeightsError: it is cut, empty, no checkpoint, or holds more than weights. Nothing in it is run.
    """
    import torch

    if not path.is_file():
        raise WeightsError(f"{path.name} is no file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path.name} is damaged ({type(error).__name__})") from None
    wrong = [
        name
        for name, kind in CONTENTS.items()
        if not isinstance(state, dict) or not isinstance(state.get(name), kind) or name not in state
    ]
    if wrong:
        raise WeightsError(f"{path.name} is no checkpoint of this trainer ({', '.join(wrong)} missing)")
    return dict(state)


def check_identity(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Hold what a checkpoint was made with against what is asked for now.

    Raises:
        ConfigMismatchError: they differ; the message names what.
    """
    changed = [
        f"{name} was {_short(then.get(name))}, now {_short(now.get(name))}"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigMismatchError(
            f"{path} was made with other settings: {'; '.join(changed[:5])}. Give the same ones again, or train into "
            "another --out."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def refuse_used(out: Path) -> None:
    """Refuse to begin a training in a folder that holds one.

    Raises:
        UsageError: it does, or ``out`` is no folder.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file. Give a folder.")
    log, model = out / "log.csv", out / "model"
    latest = latest_checkpoint(out)
    if latest or (model.is_dir() and any(model.iterdir())) or (log.is_file() and log.stat().st_size):
        what = f"a training ({latest.stem})" if latest else "a training"
        raise UsageError(f"{out} holds {what}. Continue it with --resume, or train into another --out.")
