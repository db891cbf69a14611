"""What a run records of itself: everything its images depend on, and where they were generated."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from baselines.credits import CREDITS
from brushbench import __version__
from brushbench.config import (
    SCHEMA_VERSION,
    BenchmarkRecord,
    Origin,
    PlanRecord,
    RunConfig,
    RunHeader,
    SpecRecord,
    problems,
)
from brushbench.devices import cuda_settings
from brushbench.errors import BrushbenchError, RunError, UsageError
from brushbench.evaluation.plan import make_plan
from brushbench.evaluation.sources import Source
from brushbench.files import regular_file
from brushbench.isolation import OWN_PACKAGES, PLUGIN
from brushbench.registry import Spec, parse_source
from brushbench.types import JSON, Benchmark
from brushbench.weights import sha256_file

__all__ = ["code_of", "contents_of", "git_revision", "machine", "make_header", "own_code", "software", "source_file"]


def make_header(
    source: Source,
    benchmark: Benchmark,
    config: RunConfig,
    *,
    code: Mapping[str, str] | None = None,
    contents: Mapping[str, str] | None = None,
    device: str = "",
) -> RunHeader:
    """Return what ``run.json`` records.

    Args:
        source: where the images come from.
        benchmark: what they answer.
        config: what was asked for.
        code: see :func:`code_of`.
        contents: SHA-256 of what options name, see :func:`contents_of`.
        device: kind of device the method computes on; empty where it has no say.

    Raises:
        UsageError: the method's description is no JSON.
    """
    plan = make_plan(benchmark.keys, config.batch_size, config.repeats)
    keys = hashlib.sha256(json.dumps(list(benchmark.keys)).encode()).hexdigest()
    return RunHeader(
        schema=SCHEMA_VERSION,
        config=config,
        method=_described(source),
        capabilities=source.capabilities,
        benchmark=_manifest(benchmark),
        bench=SpecRecord(name=benchmark.spec, options=dict(benchmark.loaded_with)),
        plan=PlanRecord(batches=len(plan), pictures=len(benchmark) * config.repeats, keys_sha256=keys),
        software=software(),
        code=dict(code or {}),
        contents=dict(contents or {}),
        device=device,
        where=Origin(git=git_revision(), machine=machine(config.device), credits=_credits(config.model)),
    )


def _credits(model: str) -> dict[str, str]:
    """Return paper and licence of a built-in method."""
    credit = CREDITS.get(model)
    return {} if credit is None else {"paper": credit.paper, "licence": credit.licence}


def _manifest(benchmark: Benchmark) -> BenchmarkRecord:
    try:
        return BenchmarkRecord.model_validate(dict(benchmark.manifest))
    except ValidationError as error:
        raise UsageError(f"The manifest of {benchmark.name!r} is invalid: {problems(error)}.") from None


def _described(source: Source) -> dict[str, Any]:
    description = source.describe()
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(description)))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"describe() of the method returned what is no JSON ({error}). Return a dict of texts and numbers."
        ) from None
    return plain


# Plug-in code ---------------------------------------------------------------------------------------------------------


def code_of(cls: type[Any]) -> dict[str, str]:
    """Return the SHA-256 of a plug-in class's file, and of every module that it imports from its own folder.

    Imports are read from the source, so those inside functions count too. Code of this package is left out (its version
    is recorded), and so is that of a notebook, which has no file.

    Returns:
        File name, relative to the plug-in's folder, to SHA-256; empty for code of this package or without a file.
    """
    if cls.__module__.partition(".")[0] in OWN_PACKAGES:
        return {}
    file = source_file(cls)
    if file is None:
        return {}
    package = cls.__module__.count(".") if not cls.__module__.startswith(PLUGIN) else 0
    root = file.parents[min(package, len(file.parents) - 1)]
    if "site-packages" in file.parts or "dist-packages" in file.parts:
        return {file.name: sha256_file(file)}  # installed: its version changes with its files
    found: dict[str, str] = {}
    waiting = [file]
    while waiting:
        module = waiting.pop()
        name = module.relative_to(root).as_posix()
        if name not in found:
            found[name] = sha256_file(module)
            waiting += _imported(module, root)
    return dict(sorted(found.items()))


def source_file(cls: type[Any]) -> Path | None:
    """Return the file that a class was read from; ``None`` for a notebook, an interpreter's prompt or ``python -c``."""
    functions = [inspect.unwrap(value) for value in vars(cls).values() if inspect.isfunction(value)]
    names = [function.__code__.co_filename for function in functions]  # of a dataclass, some are made of no file
    if not names:
        try:
            names = [inspect.getsourcefile(cls) or ""]
        except TypeError:  # a class of __main__ without a file
            return None
    return next((Path(name).resolve() for name in names if name and Path(name).is_file()), None)


def _imported(module: Path, root: Path) -> Iterator[Path]:
    """Yield the files below ``root`` that a module imports, by its text."""
    try:
        tree = parse_source(module.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            starts, names = [root, module.parent], [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            starts = (
                [module.parents[node.level - 1]] if 0 < node.level <= len(module.parents) else [root, module.parent]
            )
            stem = [node.module] if node.module else []
            names = [*stem, *(".".join([*stem, alias.name]) for alias in node.names)]
        else:
            continue
        for start in dict.fromkeys(starts):
            for name in names:
                yield from _files_of(start, name, root)


def _files_of(start: Path, name: str, root: Path) -> Iterator[Path]:
    """Yield the files that importing a dotted name from a folder reads: its packages' __init__.py and the module."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        base = start.joinpath(*parts[:depth])
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file() and file.resolve().is_relative_to(root):
                yield file.resolve()


def contents_of(spec: Spec) -> dict[str, str]:
    """Return the SHA-256 of every file or folder that an option of a method names, by option.

    Raises:
        RunError: an option names a pipe, a socket or a device, or a file that cannot be read.
    """
    found = {key: _content_sha256(value) for key, value in spec.options.items() if not _is_number(value)}
    return {key: sha256 for key, sha256 in found.items() if sha256 is not None}


def _is_number(text: str) -> bool:
    """Whether an option is a number, and so no path, even where a file of that name is there."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _content_sha256(text: str) -> str | None:
    """Return the SHA-256 of a file, or of the names and contents of all files in a folder; ``None`` for neither."""
    try:
        path = Path(text).expanduser()
        if not text or not path.exists():
            return None
        if path.is_dir():
            return _tree_sha256(path, "*")
        return sha256_file(regular_file(path))
    except BrushbenchError as error:
        raise RunError(str(error)) from None
    except (OSError, ValueError, RuntimeError):  # a name that the system refuses, or a user that there is not
        return None


def _tree_sha256(folder: Path, pattern: str) -> str:
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob(pattern) if f.is_file()):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


# Software and machine -------------------------------------------------------------------------------------------------


def software() -> dict[str, str]:
    """Return the versions that pictures and scores may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0], "brushbench": __version__}
    for package in ("torch", "diffusers", "transformers", "numpy", "opencv-python-headless", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def own_code() -> dict[str, str]:
    """Return the SHA-256 over the Python files of each of our own packages, as they are installed here."""
    root = Path(__file__).resolve().parents[2]
    return {package: _tree_sha256(root / package, "*.py") for package in OWN_PACKAGES}


def git_revision() -> str:
    """Return the checkout's revision, with ``-dirty`` where files differ from it; empty for an installed wheel.

    Nothing is written: ``git describe --dirty`` would refresh the index.
    """
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def machine(device: str = "auto") -> dict[str, JSON]:
    """Return the machine a run was begun on, and how CUDA rounds there.

    Args:
        device: of the run; its GPU is the one that is named.
    """
    import platform

    torch = sys.modules.get("torch")
    on_gpu = torch is not None and device != "cpu" and torch.cuda.is_available()
    cuda = torch.cuda.get_device_name(None if device == "auto" else device) if torch is not None and on_gpu else None
    return {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cuda": cuda,
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),  # see brushnet/__init__.py
        "threads": torch.get_num_threads() if torch is not None else None,
        **({"cuda_settings": cuda_settings()} if on_gpu else {}),
    }
