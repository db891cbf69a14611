"""Find, hash, read and check the weight files of metrics.

Nothing is downloaded unless ``weights=`` names a hub id. Files are read as safetensors or with
``torch.load(weights_only=True)``: a file that would have to run code is refused. torch is imported only when a file
is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from brushbench import assets
from brushbench.errors import BrushbenchError, MissingWeightsError, WeightsError, printable, reason_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from brushbench.types import JSON

__all__ = [
    "Needs",
    "Recipe",
    "WeightFile",
    "assemble",
    "locate",
    "materialise",
    "read_json",
    "read_shapes",
    "read_tensor",
    "read_tensors",
    "resolve",
    "sha256_file",
]

GENERIC_NAME = "weights.safetensors"  # a folder's state dict in the original keys
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
SIDECARS = ("config.json", "open_clip_config.json", "med_config.json", "vocab.txt")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Recipe: TypeAlias = (
    "tuple[Sequence[str], Callable[..., Tensor]]"  # keys in the file, and how one parameter is made of them
)


@dataclass(frozen=True)
class Needs:
    """One file that a metric needs, as ``brushbench list metrics`` shows it.

    Attributes:
        what: the model, in words.
        files: accepted file names, the published one first; ``weights.safetensors`` is always accepted in a folder.
        size: of the published file, in words.
        licence: of the published file.
        source: hub id or URL of the published file.
        sha256: of the published file where known, or its first digits.
        hub: hub ids whose local cache is looked in when ``weights`` is not given.
        cache_folders: other folders that are looked in, under the home directory unless absolute.
        tiny: name of the folder under ``data/tiny/metrics`` that holds this repository's own small model.
    """

    what: str
    files: tuple[str, ...]
    size: str
    licence: str
    source: str
    sha256: str | None = None
    hub: tuple[str, ...] = ()
    cache_folders: tuple[str, ...] = ()
    tiny: str | None = None

    def __str__(self) -> str:
        digits = f", SHA-256 {self.sha256[:12]}" if self.sha256 else ""
        return f"{self.what}: {self.files[0]} ({self.size}, {self.licence}{digits}) from {self.source}"

    @property
    def remedy(self) -> str:
        """How to get the file, in one sentence."""
        wanted = f"{self.files[0]} ({self.size}, {self.licence}) from {self.source}"
        if self.hub:
            return f"Pass weights={self.hub[0]} to download it, or a folder or file: {wanted}"
        return f"Fetch {wanted} and pass it as weights=FILE, or put it into {torch_hub_folder()}"


@dataclass(frozen=True)
class WeightFile:
    """A weight file that is there.

    Attributes:
        path: the file.
        tiny: whether it is one of this repository's own small models.
    """

    path: Path
    tiny: bool = False

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file."""
        return sha256_file(self.path)

    def beside(self, *names: str) -> Path | None:
        """Return the first of these files that lies in the same folder."""
        return _first_file(self.path.parent, names)

    def describe(self) -> Mapping[str, JSON]:
        """Return what identifies the weights; the place they lie at does not."""
        return {"file": self.path.name, "sha256": self.sha256, "tiny": self.tiny}


def torch_hub_folder() -> Path:
    """Return the folder that torchvision downloads checkpoints into, without importing torch."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", f"{cache}/torch")).expanduser()
    return home / "hub" / "checkpoints"


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file; remembered until the file changes."""
    status = path.stat()
    return _sha256(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, _size: int, _changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Finding --------------------------------------------------------------------------------------------------------------


def is_hub_id(place: str | Path) -> bool:
    """Whether a place is a hub id, owner/name, and not a file or folder that is here."""
    text = str(place)
    return bool(HUB_ID.fullmatch(text)) and not text.startswith((".", "~")) and not Path(text).exists()


def find_place(place: str | Path, download: Callable[[str], str | Path]) -> Path:
    """Return a file or folder as it is, of a training the ``model/`` that it wrote, and of a hub id its snapshot.

    Args:
        place: file, folder or hub id.
        download: returns the folder to which it has brought a hub id.

    Raises:
        MissingWeightsError: the hub id could not be downloaded.
    """
    path = Path(place).expanduser()
    if not is_hub_id(place):
        model = path / "model"
        trained = (model / "training.json").is_file() or (not _is_saved(path) and _is_saved(model))
        return model if trained else path
    try:
        return Path(download(str(place)))
    except Exception as error:  # the hub, its transport and the file system each raise kinds of their own
        raise MissingWeightsError(f"{place} could not be downloaded from the hub ({type(error).__name__})") from None


def _is_saved(folder: Path) -> bool:
    """Whether a folder is a saved model or pipeline."""
    return any((folder / name).is_file() for name in ("config.json", "model_index.json"))


def resolve(weights: str | Path | None, needs: Needs, download: bool = True) -> WeightFile:
    """Find the file that a metric needs.

    Args:
        weights: a file; a folder with ``weights.safetensors`` or a published file name; a hub id (downloaded unless
            cached); ``"tiny"`` for this repository's own small model; ``None`` for the caches of the hub and of torch.
        needs: what is looked for.
        download: whether a hub id may be fetched; else only its cache counts.

    Raises:
        MissingWeightsError: it is not there; the message says how to get it.
    """
    if weights is None:
        found = locate(needs)
        if found is None:
            raise MissingWeightsError(f"The weights of {needs.what} are not here. {needs.remedy}.")
        return WeightFile(found)
    if str(weights) == "tiny":
        return WeightFile(_in_folder(_tiny_folder(needs), needs), tiny=True)
    path = Path(weights).expanduser()
    if path.is_file():
        return WeightFile(path)
    if path.is_dir():
        return WeightFile(_in_folder(path, needs))
    if is_hub_id(weights):
        return WeightFile(_from_hub(str(weights), needs, download))
    raise MissingWeightsError(f"weights={str(weights)!r} is neither a file, a folder nor a hub id. {needs.remedy}.")


def locate(needs: Needs) -> Path | None:
    """Look for a file in the local caches, without the network."""
    for repository in filter(_is_in_hub_cache, needs.hub):
        from huggingface_hub import try_to_load_from_cache

        for name in needs.files:
            cached = try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached)
    folders = [torch_hub_folder(), *(Path.home() / folder for folder in needs.cache_folders)]
    return next((found for folder in folders if (found := _first_file(folder, needs.files))), None)


def _is_in_hub_cache(repository: str) -> bool:
    """Whether the hub's cache has a folder of a repository: the client that looks into it is slow to import."""
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}").is_dir()


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _in_folder(folder: Path, needs: Needs) -> Path:
    found = _first_file(folder, (GENERIC_NAME, *needs.files))
    if found is None:
        names = ", ".join((GENERIC_NAME, *needs.files))
        raise MissingWeightsError(f"The folder {folder} holds no weights of {needs.what}: expected one of {names}.")
    return found


def _tiny_folder(needs: Needs) -> Path:
    if needs.tiny is None:
        raise MissingWeightsError(f"There is no tiny model for {needs.what}. {needs.remedy}.")
    try:
        return assets.path(f"data/tiny/metrics/{needs.tiny}")
    except BrushbenchError as error:
        raise MissingWeightsError(f"The tiny model for {needs.what} is not here. {error}") from None


def _from_hub(repository: str, needs: Needs, download: bool) -> Path:
    """Return the file from the hub's cache, or download it with what belongs to it."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    names = (GENERIC_NAME, *needs.files)
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    if not download:
        raise MissingWeightsError(f"{repository} is not in the hub's cache; it is downloaded when the metric is used.")
    try:
        offered = set(HfApi().list_repo_files(repository))
        chosen = next((name for name in names if name in offered), None)
        if chosen is not None:
            return Path(snapshot_download(repository, allow_patterns=[chosen, *SIDECARS])) / chosen
    except Exception as error:  # the hub, its transport and the file system each raise kinds of their own
        raise MissingWeightsError(
            f"{needs.what} could not be downloaded from the hub id {repository!r} ({printable(str(error))}). Check the "
            f"id and the network, or pass weights=FILE: {needs.files[0]} from {needs.source}."
        ) from error
    raise MissingWeightsError(f"The hub id {repository!r} offers none of {', '.join(names)}. {needs.remedy}.")


# Reading --------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration that lies beside weights.

    Raises:
        WeightsError: not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not readable JSON: {error}. Fetch the file again.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU; one that is wrapped as ``{"state_dict": …}`` is unwrapped.

    Raises:
        WeightsError: damaged, not a state dict, or a pickle that holds more than tensors and plain values.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        is_safe = path.suffix == ".safetensors"
        loaded = (
            load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        )
    except (SafetensorError, OSError, EOFError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Fetch the file again.") from error
    except Exception as error:  # torch raises RuntimeError and pickle.UnpicklingError of several origins
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors and is not read because it could run code "
            f"({reason_of(error)}). Expected safetensors or a plain state dict."
        ) from error
    return _state_dict(loaded, path)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _state_dict(loaded: object, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, expected a state dict: names to tensors.")
    return _plain_tensors({str(name): value for name, value in loaded.items()}, path)


def _plain_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Refuse tensors that are no plain numbers: they would be cast, or fail somewhere in the model."""
    import torch

    for name, tensor in tensors.items():
        kind = ""
        if tensor.is_meta:
            kind = "without values (on the meta device)"
        elif tensor.is_quantized or tensor.layout != torch.strided or tensor.is_nested:
            kind = "quantised" if tensor.is_quantized else "sparse or nested"
        elif tensor.dtype in _strange_dtypes():
            kind = str(tensor.dtype).removeprefix("torch.")
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            kind = f"{tuple(tensor.shape)} over a storage of {tensor.untyped_storage().nbytes()} bytes"
        if kind:
            raise WeightsError(
                f"{path}: {name} is {kind}, expected a dense tensor of float32, float16 or bfloat16. "
                "Fetch the original weights, or convert them."
            )
    return tensors


@functools.cache
def _strange_dtypes() -> frozenset[torch.dtype]:
    """Return every dtype but floats of 16 to 64 bits, and the whole numbers and booleans of counters."""
    import torch

    known = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool}
    return frozenset(value for value in vars(torch).values() if isinstance(value, torch.dtype)) - known


def read_tensor(path: Path, name: str) -> Tensor:
    """Read one tensor of a state dict; of a safetensors file nothing else is read.

    Raises:
        WeightsError: as :func:`read_tensors`, or there is no such tensor.
    """
    from safetensors import safe_open

    if name not in read_shapes(path):
        raise WeightsError(f"{path} holds no {name}. Fetch the original weights.")
    if path.suffix != ".safetensors":
        return read_tensors(path)[name]
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Read names and shapes only, as tensors on the meta device; a safetensors file is not read beyond its header.

    Raises:
        WeightsError: as :func:`read_tensors`.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return {name: tensor.to("meta") for name, tensor in read_tensors(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a dict
            facts = {name: (found.get_shape(), found.get_dtype()) for name, found in slices.items()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}). Fetch the file again.") from error
    for name, (_, kind) in facts.items():
        if kind not in SAFETENSORS_DTYPES:
            raise WeightsError(
                f"{path}: {name} is {kind}, expected a dense tensor of float32, float16 or bfloat16. "
                "Fetch the original weights, or convert them."
            )
    return {
        name: torch.empty(shape, device="meta", dtype=getattr(torch, SAFETENSORS_DTYPES[kind]))
        for name, (shape, kind) in facts.items()
    }


# Checking and loading -------------------------------------------------------------------------------------------------


def same_name(name: str) -> Recipe:
    """Take a parameter from the key of the same name."""
    return (name,), lambda tensor: tensor


def assemble(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    recipe: Callable[[str], Recipe] = same_name,
    *,
    what: str,
    spare: Callable[[str], bool] = lambda _: False,
) -> dict[str, Tensor]:
    """Make a model's parameters of a file's tensors; every key must be used and every shape must fit.

    Args:
        expected: the model's state dict; only names and shapes are read.
        found: the file's state dict.
        recipe: for a parameter's name, the keys it is made of and the function that makes it.
        what: the model, in words, for the message.
        spare: keys that may be left over.

    Returns:
        One tensor for each name in ``expected``.

    Raises:
        WeightsError: keys missing, keys left over or shapes that do not fit; names them.
    """
    made: dict[str, Tensor] = {}
    missing: list[str] = []
    misfits: list[str] = []
    used: set[str] = set()
    for name, target in expected.items():
        keys, make = recipe(name)
        used.update(keys)
        absent = [key for key in keys if key not in found]
        missing += absent
        if absent:
            continue
        try:
            made[name] = make(*(found[key] for key in keys))
        except (RuntimeError, IndexError):  # the parts do not fit together
            misfits.append(f"{keys[0]} {tuple(found[keys[0]].shape)}")
            continue
        if made[name].shape != target.shape:
            misfits.append(f"{keys[0]} {tuple(made[name].shape)} instead of {tuple(target.shape)}")
        elif target.is_floating_point() and not made[name].is_floating_point():
            misfits.append(f"{keys[0]} {made[name].dtype} instead of a float")
    unexpected = [key for key in found if key not in used and not spare(key)]
    problems = [
        f"{len(names)} {kind} ({_some(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape or type", misfits))
        if names
    ]
    if problems:
        raise WeightsError(
            f"These are not the weights of {what}: of its keys, {'; '.join(problems)}. "
            "Give the original file, and the config.json of its size if it is not the published one."
        )
    return made


def _some(names: Sequence[str], limit: int = 4) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def materialise(
    model: nn.Module, tensors: Mapping[str, Tensor], *, what: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Put tensors into a model that was built on the meta device, ready for inference.

    Args:
        model: its parameters lie on the meta device, so that building it cost neither time nor random numbers.
        tensors: one for each name of its state dict.
        what: the model, in words, for the message.
        device: where the parameters go.
        dtype: what they are cast to.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise WeightsError(f"The weights of {what} hold NaN or infinity in {name}. Fetch the file again.")
    ready = {name: tensor.to(device=device, dtype=dtype).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(ready, strict=True, assign=True)
    model.eval().requires_grad_(False)
