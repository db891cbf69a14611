"""Device and dtype names to torch's own. Torch is imported only where its answer is needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from brushbench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "check_device", "choose_device", "choose_dtype"]

DTYPES = ("float32", "float16", "bfloat16")


def check_device(name: str) -> None:
    """Refuse a device that is unknown or that this machine does not have. ``auto`` and ``cpu`` need no torch.

    Raises:
        UsageError: the name is none of ``auto``, ``cpu``, ``cuda`` and ``cuda:N``, or there is no such device here.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"Unknown device {name!r}. Write auto, cpu, cuda or cuda:1.")
    if not name.startswith("cuda"):
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise UsageError(f"device={name!r} asks for CUDA, and torch sees no CUDA device. Write auto or cpu.")
    if int(name.partition(":")[2] or 0) >= count:
        raise UsageError(f"device={name!r}: torch sees {count} CUDA device(s). Write cuda:0 to cuda:{count - 1}.")


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where there is one, and otherwise the CPU.

    Raises:
        UsageError: as :func:`check_device`.
    """
    check_device(name)
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; ``auto`` is float16 on CUDA, and otherwise float32.

    Raises:
        UnknownNameError: the name is neither ``auto`` nor one of :data:`DTYPES`.
    """
    import torch

    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, ["auto", *DTYPES])
    found: torch.dtype = getattr(torch, name)
    return found
