"""Classes from files and modules of others: imported in a world of their own, their constructors read."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from brushbench.errors import BrushbenchError, UsageError, reason_of
from brushbench.isolation import OWN_PACKAGES, PLUGIN, WORLDS, World, world_of_module

__all__ = ["annotations_of", "explained", "literal", "load_file", "load_module", "passes_on"]

_LOADED: dict[Path, tuple[tuple[tuple[str, int, int], ...], types.ModuleType]] = {}


@contextmanager
def explained(module: str, what: str, verb: str) -> Iterator[None]:
    """Turn what code of others raises into one sentence; the cause keeps its traceback.

    Args:
        module: whose code runs; errors of this package's own stay as they are.
        what: what messages call it.
        verb: what was done to it, such as ``imported``.

    Raises:
        UsageError: the code raised an exception.
    """
    try:
        yield
    except BrushbenchError:
        raise
    except Exception as error:
        if module.partition(".")[0] in OWN_PACKAGES:
            raise
        text = f"{what} cannot be {verb}: {reason_of(error)}{_where(error)}. Correct its code; --debug shows more."
        raise UsageError(text) from error


def _where(error: BaseException) -> str:
    """Return the place in the code of others that raised."""
    frames = [frame for frame in _frames(error) if not frame[0].startswith("<")]
    return f" ({Path(frames[-1][0]).name}, line {frames[-1][1]})" if frames else ""


def _frames(error: BaseException) -> list[tuple[str, int]]:
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return found


def load_module(name: str, what: str) -> types.ModuleType:
    """Import a module by its dotted name; one in the current folder is found too, after the installed ones.

    Raises:
        UsageError: there is no such module, or its code raises.
    """
    if name.partition(".")[0] in OWN_PACKAGES:
        return _import(name)
    with explained(name, what, "imported"), world_of_module(name, what):
        here = str(Path.cwd())
        if here not in sys.path and "" not in sys.path:
            sys.path.append(here)
        return _import(name)


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not name.startswith(error.name):
            raise
        raise UsageError(f"No module {name!r}. Install it, or write file.py:Class.") from None


def load_file(name: str, what: str) -> types.ModuleType:
    """Import a Python file; modules beside it are found, and are its own. It runs again only when it has changed.

    Raises:
        UsageError: there is no such file, or its code raises.
    """
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"No file {path}. Write file.py:Class with a file that exists.")
    if path in _LOADED and _stamps(*(file for file, _, _ in _LOADED[path][0])) == _LOADED[path][0]:
        return _LOADED[path][1]
    module_name = f"{PLUGIN}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(module_name, path)
    if found is None or found.loader is None:
        raise UsageError(f"{path} cannot be imported as Python.")
    module = importlib.util.module_from_spec(found)
    world = WORLDS[module_name] = World(what, path.parent)
    sys.modules[module_name] = module
    try:
        with explained(module_name, what, "imported"), world:
            found.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name], WORLDS[module_name]
        raise
    _LOADED[path] = (_stamps(str(path), *world.files()), module)
    return module


def _stamps(*files: str) -> tuple[tuple[str, int, int], ...]:
    """Return what tells whether files have changed."""
    found = []
    for file in files:
        try:
            status = Path(file).stat()
            found.append((file, status.st_mtime_ns, status.st_size))
        except OSError:  # it is gone
            found.append((file, 0, 0))
    return tuple(found)


# Constructors ---------------------------------------------------------------------------------------------------------


def passes_on(cls: type[Any]) -> bool:
    """Whether the constructor takes options by any name (``**kwargs``), as wrappers do."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


def annotations_of(cls: type[Any]) -> Mapping[str, Any]:
    """Return the types of a class's options.

    Where an annotation means nothing at run time (names for the type checker only), and where there is none, the type
    of the default counts; without either an option is missing here.
    """
    # An inherited field of a dataclass is annotated in its own class's module.
    target = cls if is_dataclass(cls) else cls.__init__
    try:
        found = dict(typing.get_type_hints(target))
    except Exception:  # an annotation may be any expression
        found = _one_by_one(target)
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in found and isinstance(parameter.default, bool | int | float | str):
            found[name] = type(parameter.default)
    return found


def _one_by_one(target: Any) -> dict[str, Any]:
    found = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        alone = types.SimpleNamespace(
            __annotations__={name: annotation}, __globals__=vars(sys.modules.get(target.__module__, object))
        )
        try:
            found.update(typing.get_type_hints(alone))
        except Exception:  # noqa: S112 - it means nothing at run time
            continue
    return found


def literal(text: str) -> Any:
    """Return a number, truth value or None that a text writes in Python, or the text itself."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | None) else text
