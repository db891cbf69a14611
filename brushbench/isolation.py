"""Code of others, kept apart: what a plug-in changes of the process is its own, and it cannot end the process.

Each plug-in module has a :class:`World`: the working folder, environment, library flags, random states and import path
as its code left them. Inside ``with world_of(cls):`` they are in force; outside are those of the run.

What ends a process with exit code 0 is refused there: ``SystemExit``, ``os._exit``, ``os.exec*``, and ``exit`` of the C
library by way of ``ctypes``. An extension module that calls it from C is out of reach in one process; with ``--jobs``
the other processes notice what it did not generate.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeAlias

from brushbench.errors import EndedEarlyError

__all__ = ["OWN_PACKAGES", "PLUGIN", "WORLDS", "World", "world_of", "world_of_module"]

OWN_PACKAGES = ("brushbench", "baselines", "brushnet")

Slot: TypeAlias = "tuple[Callable[[], Any], Callable[[Any], object]]"  # reads one part of the state, and puts it back


def _set_cwd(folder: Path | None) -> None:
    with suppress(OSError):  # it was removed meanwhile
        if folder is not None:
            os.chdir(folder)


def _cwd() -> Path | None:
    try:
        return Path.cwd()
    except OSError:  # it was removed
        return None


def _set_environment(wanted: Mapping[str, str]) -> None:
    if dict(os.environ) != wanted:
        os.environ.clear()
        os.environ.update(wanted)


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _set_handlers(wanted: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in wanted.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _set_list(target: list[Any], wanted: Sequence[Any]) -> None:
    if target != wanted:
        target[:] = wanted


def _attribute(module: Any, name: str) -> Slot:
    return (lambda: getattr(module, name)), (lambda value: setattr(module, name, value))


def _python() -> dict[str, Slot]:
    return {
        "cwd": (_cwd, _set_cwd),
        "environment": (lambda: dict(os.environ), _set_environment),
        "umask": (_umask, os.umask),
        "signals": (_handlers, _set_handlers),
        "random": (random.getstate, random.setstate),
        "warnings": (lambda: list(warnings.filters), lambda wanted: _set_list(warnings.filters, wanted)),  # type: ignore[arg-type]
        "showwarning": _attribute(warnings, "showwarning"),
        "sys.path": (lambda: list(sys.path), lambda wanted: _set_list(sys.path, wanted)),
        "stdout": _attribute(sys, "stdout"),
        "stderr": _attribute(sys, "stderr"),
        "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
        "sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    }


def _numpy(numpy: Any) -> dict[str, Slot]:
    return {
        "errors": (numpy.geterr, lambda wanted: numpy.seterr(**wanted)),
        "random": (numpy.random.get_state, numpy.random.set_state),
        "printing": (numpy.get_printoptions, lambda wanted: numpy.set_printoptions(**wanted)),
    }


def _torch(torch: Any) -> dict[str, Slot]:
    slots: dict[str, Slot] = {
        "dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "device": (torch.get_default_device, lambda wanted: _set_torch_device(torch, wanted)),
        "threads": (torch.get_num_threads, lambda wanted: _set_threads(torch, wanted)),
        "random": (torch.get_rng_state, torch.set_rng_state),
        "grad": (torch.is_grad_enabled, torch.set_grad_enabled),
        "precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "deterministic": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
        "benchmark": _attribute(torch.backends.cudnn, "benchmark"),
        "tf32": _attribute(torch.backends.cudnn, "allow_tf32"),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        slots["cuda"] = (torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
        slots["place"] = (torch.cuda.current_device, torch.cuda.set_device)
    return slots


def _set_threads(torch: Any, wanted: int) -> None:
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def _set_torch_device(torch: Any, wanted: Any) -> None:
    if torch.get_default_device() != wanted:
        torch.set_default_device(None if wanted == torch.device("cpu") else wanted)


def _pillow(_: Any) -> dict[str, Slot]:
    from PIL import Image, ImageFile, PngImagePlugin

    return {
        "truncated": _attribute(ImageFile, "LOAD_TRUNCATED_IMAGES"),
        "pixels": _attribute(Image, "MAX_IMAGE_PIXELS"),
        "text": _attribute(PngImagePlugin, "MAX_TEXT_CHUNK"),
        "texts": _attribute(PngImagePlugin, "MAX_TEXT_MEMORY"),
    }


def _opencv(cv2: Any) -> dict[str, Slot]:
    return {"threads": (cv2.getNumThreads, cv2.setNumThreads)}


# Libraries whose state counts, where they are imported.
LIBRARIES: Mapping[str, Callable[[Any], dict[str, Slot]]] = {
    "numpy": _numpy,
    "torch": _torch,
    "PIL.Image": _pillow,
    "cv2": _opencv,
}


def _slots() -> dict[str, dict[str, Slot]]:
    # Imported again: another thread may be in the middle of its first import, which this waits for.
    loaded = {name: slots(import_module(name)) for name, slots in LIBRARIES.items() if name in sys.modules}
    return {"": _python(), **loaded}


def _read() -> dict[str, dict[str, Any]]:
    return {library: {name: slot[0]() for name, slot in slots.items()} for library, slots in _slots().items()}


def _write(state: Mapping[str, Mapping[str, Any]]) -> None:
    for library, slots in _slots().items():
        for name, (_, put_back) in slots.items():
            if name in state.get(library, {}):
                put_back(state[library][name])


class _OnImport(importlib.abc.MetaPathFinder):
    """Notes a library's state right after its first import, before the code that imported it goes on."""

    def __init__(self, into: dict[str, dict[str, Any]]) -> None:
        self.into = into
        self.busy: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name not in LIBRARIES or name in self.into or name in self.busy:
            return None
        self.busy.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy.discard(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.into[name] = {key: slot[0]() for key, slot in LIBRARIES[name](module).items()}

        with suppress(AttributeError):  # a loader of C code; such a library has the same defaults always
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class World:
    """The process as one plug-in sees it. A context manager; may be entered again inside itself.

    Modules that the plug-in imports from its own folder are its own too: two plug-ins may each have a ``helper.py``.

    Args:
        name: what messages call the plug-in.
        folder: where its own modules lie, if it has a folder of its own.

    Raises:
        EndedEarlyError: on leaving: the code tried to end the process.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self._theirs: dict[str, dict[str, Any]] = {}
        self._modules: dict[str, ModuleType] = {}
        self._depth = 0

    def __enter__(self) -> World:
        self._depth += 1
        if self._depth == 1:
            self._ours = _read()
            _write(self._theirs)
            if self.folder is not None and str(self.folder) not in sys.path:
                sys.path.insert(0, str(self.folder))
            sys.modules.update(self._modules)
            self._watch = _OnImport(self._ours)
            sys.meta_path.insert(0, self._watch)
            _watch_endings()
            self._process = os.getpid()
            _ACTIVE.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            _ACTIVE.remove(self)
            with suppress(ValueError):
                sys.meta_path.remove(self._watch)
            self._modules = self._own_modules()
            for name in self._modules:
                sys.modules.pop(name, None)
            self._theirs = _read()
            _write(self._ours)
        if error is not None and not isinstance(error, Exception | KeyboardInterrupt):
            what = f"SystemExit({error.code!r})" if isinstance(error, SystemExit) else type(error).__name__
            raise EndedEarlyError(f"{self.name} ended the process: {what}.") from error

    def files(self) -> list[str]:
        """Return the files of the modules that were imported from the plug-in's folder."""
        return sorted(str(module.__file__) for module in self._modules.values())

    def _own_modules(self) -> dict[str, ModuleType]:
        """Return the modules that were imported from the plug-in's folder."""
        if self.folder is None:
            return {}
        found = {}
        inside = f"{self.folder}{os.sep}"  # compared as text: some thousand modules, at every call of a plug-in
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not file or not str(file).startswith(inside):
                continue
            if name.partition(".")[0] in OWN_PACKAGES or name.startswith(PLUGIN):
                continue
            if "site-packages" not in Path(file).parts:
                found[name] = module
        return found


PLUGIN = "brushbench_plugin_"  # how the modules of plug-in files are named
WORLDS: dict[str, World] = {}


def world_of(cls: type, name: str = "", folder: Path | None = None) -> AbstractContextManager[object]:
    """Return the world of the module that a class is from; code of this package needs none."""
    return world_of_module(cls.__module__, name or cls.__name__, folder)


def world_of_module(module: str, name: str, folder: Path | None = None) -> AbstractContextManager[object]:
    """Return the world of a module by its name; ``folder`` counts when it is first asked for."""
    if module.partition(".")[0] in OWN_PACKAGES:
        return nullcontext()
    world = WORLDS.setdefault(module, World(name, folder))
    world.name = name  # a module may hold several classes
    return world


# Ways to end the process ----------------------------------------------------------------------------------------------

_ACTIVE: list[World] = []  # those whose code is running
_ENDINGS = ("exit", "_exit", "_Exit", "quick_exit", "Py_Exit")  # of the C library and of the interpreter


@functools.cache
def _watch_endings() -> None:
    """Let what ends the process raise SystemExit instead, from now on wherever the code of a plug-in runs."""
    leave = os._exit

    @functools.wraps(leave)
    def exit_unless_active(status: int) -> None:
        if _is_active():
            raise SystemExit(status)
        leave(status)

    for module in (os, sys.modules[os.name]):  # `os` has it from `posix` or `nt`
        module._exit = exit_unless_active  # type: ignore[attr-defined]
    sys.addaudithook(_refuse_ending)


def _refuse_ending(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "ctypes.dlsym" and arguments[1] in _ENDINGS and _is_active():
        raise SystemExit(arguments[1])
    if event == "os.exec" and _is_active():
        raise SystemExit(f"exec {arguments[0]}")


def _is_active() -> bool:
    """Whether the code of a plug-in runs; a process that it forked may end as it likes."""
    return bool(_ACTIVE) and _ACTIVE[-1]._process == os.getpid()
