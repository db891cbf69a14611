"""Device and dtype names to torch's own. Torch is imported only where its answer is needed."""

from __future__ import annotations

import gc
import re
import sys
from typing import TYPE_CHECKING

from brushbench.errors import BrokenDeviceError, UnknownNameError, UsageError, message_of, printable
from brushbench.types import JSON

if TYPE_CHECKING:
    import torch

__all__ = [
    "DTYPES",
    "allow_tf32",
    "check_device",
    "choose_device",
    "choose_dtype",
    "cuda_settings",
    "free_memory",
    "refuse_broken_device",
]

DTYPES = ("float32", "float16", "bfloat16")
# What CUDA says when "any further CUDA work will return the same error" in this process (its Runtime API).
BROKEN = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "misaligned address",
    "illegal instruction",
    "uncorrectable ecc error",
    "hardware stack error",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "fallen off the bus",
)
_tf32 = False  # see allow_tf32


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

    Float32 is true float32 on it from now on, unless :func:`allow_tf32` has said otherwise.

    Raises:
        UsageError: as :func:`check_device`.
    """
    check_device(name)
    import torch

    _settle_float32()
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


def refuse_broken_device(error: BaseException) -> None:
    """End the run for an error after which CUDA answers every call of this process with the same error.

    Raises:
        BrokenDeviceError: it is one of those; else nothing happens.
    """
    text = message_of(error)
    if "CUDA error" in text and any(words in text.lower() for words in BROKEN):
        raise BrokenDeviceError(
            f"The GPU stopped working for this process: {printable(text.partition(chr(10))[0])}. What is made is kept; "
            "the same command continues. If it stops at the same image again, CUDA_LAUNCH_BLOCKING=1 and --debug show "
            "where."
        ) from error


def free_memory() -> None:
    """Collect what nobody refers to, and give the memory that torch keeps for later back to the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def allow_tf32(allowed: bool) -> None:
    """Say whether float32 on CUDA may round its factors to TF32's 10 bits, in convolutions and products of matrices.

    Torch's own default is yes for convolutions: one LPIPS score moved by 1.5 %. Ours is no, from the first
    :func:`choose_device` on.
    """
    global _tf32
    _tf32 = allowed
    _settle_float32()


def _settle_float32() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.backends.cudnn.allow_tf32 = _tf32
        torch.backends.cuda.matmul.allow_tf32 = _tf32


def cuda_settings() -> dict[str, JSON]:
    """Return what decides how CUDA rounds: TF32, cuDNN and the kinds of attention that torch may choose from."""
    import torch

    attention = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        "attention": [name for name, enabled in attention.items() if enabled],
    }
