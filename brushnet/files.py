"""Files of a branch: which of a folder's files are its weights, and what may be in them. No foreign code is run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from brushnet.checks import not_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SUFFIXES", "BranchFiles", "check_dtypes", "check_tensors", "find_files", "read_config", "read_weights"]

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
MAX_CONFIG_BYTES = 1_000_000

# Where a branch may lie in a folder: in a pipeline or a published training (brushnet/), in one of brushbench (model/).
HOMES = (".", "brushnet", "model", "model/brushnet")
# NAME[.VARIANT][-00001-of-00002][.VARIANT].SUFFIX, as diffusers and transformers write them.
NAMED = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model|pytorch_model)"
    r"(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<late_variant>\w+))?\.(?P<suffix>safetensors|bin)"
)
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# Around the state dict, and in front of every key, where a whole training step was saved instead of the branch.
WRAPPERS = ("state_dict", "model_state_dict", "module", "model", "brushnet", "weights")
PREFIXES = ("module.", "_orig_mod.", "brushnet.", "model.")
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOATING_NAMES = ("F32", "F16", "BF16", "F64")  # of the same types, as a safetensors header says them


@dataclass(frozen=True)
class BranchFiles:
    """A branch on disk.

    Attributes:
        weights: its file, or its shards.
        config: the ``config.json`` beside them; None if there is none.
        variant: of the file names, such as ``fp16``; None for plain ones.
    """

    weights: tuple[Path, ...]
    config: Path | None
    variant: str | None = None


def find_files(place: Path, variant: str | None = None) -> BranchFiles:
    """Find a branch's files.

    Args:
        place: a file of weights, or a folder that holds them: itself, or in ``brushnet/`` or ``model/``.
        variant: of the file names. None takes the plain files or, if there are none, the only variant there is.

    Raises:
        OSError: nothing there, several to choose from, a missing shard, or neither a file nor a folder.
    """
    if place.is_file():
        return _beside((place,))
    if not place.is_dir():
        raise OSError(f"{place} is neither a file nor a folder; expected the weights of a BrushNet branch.")
    homes = [place / "brushnet"] if (place / "model_index.json").is_file() else [place / home for home in HOMES]
    for home in homes:
        if home.is_dir() and (found := _named(home, variant)):
            return found
    loose = [path for path in sorted(place.iterdir()) if path.suffix in (".safetensors", ".bin") and path.is_file()]
    if len(loose) == 1 and variant is None:
        return _beside((loose[0],))
    seen = ", ".join(path.name for path in loose[:5]) or "none"
    wanted = f"diffusion_pytorch_model{f'.{variant}' if variant else ''}.safetensors"
    raise OSError(
        f"{place} holds no weights of a BrushNet branch: expected {wanted}, here or in brushnet/ or model/; its files "
        f"of weights: {seen}. Name the file itself, if it is one of these."
    )


def _beside(weights: tuple[Path, ...], variant: str | None = None) -> BranchFiles:
    config = weights[0].parent / "config.json"
    return BranchFiles(weights, config if config.is_file() else None, variant)


def _named(home: Path, variant: str | None) -> BranchFiles | None:
    """Return the files of one folder that have a known name."""
    groups: dict[tuple[str, str, str | None], list[tuple[Path, int]]] = {}
    for path in sorted(home.iterdir()):
        if (name := NAMED.fullmatch(path.name)) and path.is_file():
            key = (name["stem"], name["suffix"], name["variant"] or name["late_variant"])
            groups.setdefault(key, []).append((path, int(name["shards"] or 1)))
    variants = {key[2] for key in groups}
    if variant is None and None not in variants and len(variants) == 1:
        (variant,) = variants
    for stem in STEMS:
        for suffix in ("safetensors", "bin"):
            if files := groups.get((stem, suffix, variant)):
                if len(files) != files[0][1]:
                    raise OSError(f"{home} holds {len(files)} of {files[0][1]} shards of {stem}; fetch the others too.")
                return _beside(tuple(path for path, _ in files), variant)
    return None


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``; what it names is data and never imported.

    Raises:
        OSError: not a JSON object of at most 1 MB.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OSError(f"{path} is no configuration ({error}); expected a small JSON object. Fetch it again.") from error
    if not isinstance(value, dict):
        raise OSError(f"{path} holds a {type(value).__name__}; expected a JSON object with a branch's configuration.")
    return value


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read a branch's state dict from its file or its shards onto the CPU.

    What surrounds it goes: ``{"state_dict": …}`` and the like, ``module.`` in front of all keys, and everything but
    ``brushnet.…`` of a whole training step.

    Raises:
        OSError: damaged, or not weights.
        ValueError: not names and tensors.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        weights |= _unwrapped(_read(path), path)
    return weights


def check_tensors(what: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no dense floating-point numbers.

    Args:
        what: where they were read, for the message.
        weights: names and tensors.

    Raises:
        ValueError: names the first.
    """
    for name, tensor in weights.items():
        kinds = {
            "quantised": tensor.is_quantized,
            "sparse": tensor.layout != torch.strided,
            "empty (on the meta device)": tensor.is_meta,
            str(tensor.dtype).removeprefix("torch."): tensor.dtype not in FLOATING,
        }
        for kind, found in kinds.items():
            if found:
                raise _not_floating(what, name, kind)


def check_dtypes(files: Iterable[Path]) -> None:
    """Refuse weights that are no dense floating-point numbers; of a safetensors file only the header is read.

    Raises:
        OSError: as :func:`read_weights`.
        ValueError: names the first.
    """
    for path in files:
        if path.suffix != ".safetensors":
            check_tensors(str(path), read_weights([path]))
            continue
        _refuse_foreign(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a dict
                    if (dtype := file.get_slice(name).get_dtype()) not in FLOATING_NAMES:
                        raise _not_floating(str(path), name, dtype)
        except (SafetensorError, OSError) as error:
            raise _damaged(path) from error


def _read(path: Path) -> object:
    """Read a file of tensors and nothing else: no pickle runs code here."""
    _refuse_foreign(path)
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> OSError:
    return OSError(
        f"{path} is damaged, or holds more than weights: a pickle that could run code is not opened. Use a "
        ".safetensors file."
    )


def _refuse_foreign(path: Path) -> None:
    """Name what downloads leave behind instead of weights.

    Raises:
        OSError: an empty file, a web page, a Git LFS pointer, or a file of another kind than its name says.
    """
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        raise OSError(f"{path} is empty; download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise OSError(
            f"{path} is a web page, not weights: the download was answered by a page, such as Google Drive's virus "
            "warning. Open the link in a browser and download the file there."
        )
    if head.startswith(b"version https://git-lfs"):
        raise OSError(f"{path} is a Git LFS pointer, not weights; run git lfs pull in its repository.")
    if path.suffix == ".safetensors" and head.startswith(b"PK\x03\x04"):
        raise OSError(f"{path} is a PyTorch file in spite of its name; rename it to {path.stem}.bin.")


def _unwrapped(loaded: object, path: Path) -> dict[str, Tensor]:
    """Return the branch's names and tensors, without what a training wraps around them."""
    for _ in WRAPPERS:  # nested, but not without end
        if not isinstance(loaded, dict):
            break
        loaded = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), dict)), loaded)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise not_ours(str(path), "it is no mapping of names to tensors")
    weights: dict[str, Tensor] = loaded
    for _ in PREFIXES:
        shared = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in weights)), "brushnet.")
        if any(name.startswith(shared) for name in weights):  # all, or brushnet's beside those of the base model
            weights = {name.removeprefix(shared): part for name, part in weights.items() if name.startswith(shared)}
    return weights


def _not_floating(what: str, name: str, found: str) -> ValueError:
    return ValueError(
        f"{what} holds {found} numbers in {name}; expected dense float32, float16 or bfloat16 weights. Convert them "
        "with the tool that quantised them, or get the original file."
    )
