"""A pretended machine with two GPUs: a tensor says that it lies on one while its numbers lie in CPU memory.

Numbers and control flow are real, so whole pipelines, evaluations and trainings run; CUDA's rules are kept:

* operands on different devices raise, CPU scalars excepted; so do a CPU generator for CUDA, and ``.numpy()``;
* whatever would make the host wait for the GPU is recorded: ``.item()``, ``torch.equal``, boolean indexing, copies to
  the host, blocking copies to the device, error checks of ``torch.linalg``.

It cannot show real kernels and their rounding, TF32, memory, speed, streams, gradients on the device, ``torch.compile``
or NCCL; ``tests/benchmarks/gpu_acceptance.py`` measures those on a card.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Machine", "Wait", "gpus", "place_of", "waits", "with_index"]

GPUS = 2


class Wait(NamedTuple):
    """One moment at which the host would wait for the GPU.

    Attributes:
        kind: what for.
        place: file and line of the call, outside torch.
        is_own: whether that is code of this repository, and not of a library.
    """

    kind: str
    place: str
    is_own: bool


class Machine:
    """The state of the pretended GPUs."""

    current = 0
    waits: list[Wait] | None = None  # recorded while it is a list
    made: ClassVar[collections.Counter[str]] = collections.Counter()  # tensors by device


def with_index(device: torch.device | str) -> torch.device:
    """Give ``cuda`` the index of the current device."""
    named = torch.device(device)
    if named.type != "cuda":
        return named
    index = Machine.current if named.index is None else named.index
    if index >= GPUS:
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return torch.device("cuda", index)


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU; ``inner`` holds the numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(
        cls, inner: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False, **_: Any
    ) -> Any:
        if device is None:  # accelerate builds parameters as type(old)(value, requires_grad=…)
            return torch.nn.Parameter(inner, requires_grad=requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=device, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        Machine.made[str(device)] += 1
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.device}, {self.dtype}, {tuple(self.shape)})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as what it holds, and loaded with map_location="cpu"
        return self.inner.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = OnGpu(self.inner.detach().clone(), self.device).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


class Everywhere(TorchDispatchMode):
    """Sees what makes new tensors on ``cuda``."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return dispatch(func, args, kwargs or {})


class Attributes(TorchFunctionMode):
    """``parameter.data = …`` across devices, and ``cuda`` without an index, of which torch would ask a driver."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.data.__set__ and any(isinstance(a, OnGpu) for a in args):
            old, new = args
            with torch._C.DisableTorchFunction():
                new = new.detach()
                if isinstance(old, torch.nn.Parameter):
                    new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                kept = {name: value for name, value in old.__dict__.items() if name not in ("inner", "_is_param")}
                torch.utils.swap_tensors(old, new)
                old.__dict__.update(kept)
            return None
        if Machine.current and func in (torch.Tensor.to, torch.Tensor.cuda):
            args, kwargs = tree_map(_named, (args, kwargs))
        elif Machine.current and "device" in kwargs:
            kwargs = {**kwargs, "device": _named(kwargs["device"])}
        return func(*args, **kwargs)


def _named(x: object) -> object:
    is_cuda = (isinstance(x, torch.device) and x.type == "cuda") or (isinstance(x, str) and x == "cuda")
    return with_index(x) if is_cuda else x


WAITS = {
    "aten._local_scalar_dense.default": ".item()",
    "aten.equal.default": "torch.equal",
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "masked_select",
    "aten._unique2.default": "unique",
    "aten.repeat_interleave.Tensor": "repeat_interleave by tensor",
    "aten._linalg_check_errors.default": "error check of torch.linalg",
}
INDEXING = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default")
ACROSS = ("aten.copy_.default", "aten._to_copy.default", *INDEXING)


@functools.cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _tensors(*trees: object) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    tree_map(lambda x: found.append(x) if isinstance(x, torch.Tensor) else None, trees)
    return found


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check an operation as CUDA would, compute it on the CPU, and say where its result lies."""
    name = str(func)
    if _is_composite(func):
        with Everywhere():
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    operands = _tensors(args, kwargs)
    on_gpu = [t for t in operands if isinstance(t, OnGpu)]
    wanted = None if kwargs.get("device") is None else with_index(kwargs["device"])
    _refuse_mixed(name, args, kwargs, operands, on_gpu, wanted)
    _record(name, args, on_gpu, wanted)

    where = wanted or (on_gpu[0].device if on_gpu else None)
    if on_gpu and name in ("aten.copy_.default", "aten.index.Tensor"):
        where = args[0].device
    if name == "aten._fused_sdp_choice.default" and on_gpu:
        return 0  # the plain formula, which is decomposed into operations that are checked
    if name == "aten._linalg_check_errors.default":
        return None

    plain_args, plain_kwargs = tree_map(lambda x: x.inner if isinstance(x, OnGpu) else x, (args, kwargs))
    if wanted is not None and wanted.type == "cuda":
        plain_kwargs = {**plain_kwargs, "device": torch.device("cpu")}
    if plain_kwargs.get("pin_memory"):
        plain_kwargs = {**plain_kwargs, "pin_memory": False}
    try:
        out = func(*plain_args, **plain_kwargs)
    except RuntimeError as error:  # NotImplementedError is one
        if not any(text in str(error) for text in ("not implemented for", "not supported on CPU", "Could not run")):
            raise
        out = _in_float(func, plain_args, plain_kwargs, error)

    written = [
        args[i] if i < len(args) else kwargs.get(a.name)
        for i, a in enumerate(func._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]
    if written:  # in place
        returns = len(func._schema.returns)
        return None if not returns else written[0] if returns == 1 else tuple(written)
    if where is None or where.type != "cuda":
        return out
    return tree_map(lambda x: OnGpu(x, where) if isinstance(x, torch.Tensor) and not isinstance(x, OnGpu) else x, out)


def _refuse_mixed(
    name: str,
    args: Any,
    kwargs: dict[str, Any],
    operands: list[torch.Tensor],
    on_gpu: list[torch.Tensor],
    wanted: torch.device | None,
) -> None:
    """Raise as CUDA does for operands that do not lie together."""
    devices = sorted({str(t.device) for t in on_gpu})
    if on_gpu and name not in ACROSS:
        cpu = [t for t in operands if t.device.type == "cpu" and not isinstance(t, OnGpu) and t.dim() > 0]
        if len(devices) > 1 or cpu:
            found = [*devices, *(f"cpu {tuple(t.shape)}" for t in cpu[:1])]
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found {found}")
    if (
        name in INDEXING
        and not isinstance(args[0], OnGpu)
        and any(isinstance(i, OnGpu) for i in args[1] if i is not None)
    ):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    generator = kwargs.get("generator")
    if generator is not None:
        kind = (wanted or (on_gpu[0].device if on_gpu else torch.device("cpu"))).type
        if kind != generator.device.type:
            raise RuntimeError(f"Expected a '{kind}' device type for generator but found '{generator.device.type}'")


def _record(name: str, args: Any, on_gpu: list[torch.Tensor], wanted: torch.device | None) -> None:
    """Note where the host would wait."""
    if Machine.waits is None:
        return
    kind = WAITS.get(name) if on_gpu else None
    if name in ("aten._to_copy.default", "aten.copy_.default"):
        source = args[0] if name == "aten._to_copy.default" else args[1]
        target = wanted if name == "aten._to_copy.default" else args[0].device
        if target is not None and source.device.type != target.type:
            kind = "copy to the host" if target.type == "cpu" else "blocking copy to the device"
    if name in INDEXING and isinstance(args[0], OnGpu):
        indexes = [i for i in args[1] if i is not None]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indexes):
            kind = "boolean index"
    if kind:
        frames = [f for f in traceback.extract_stack() if f.filename != __file__ and "/torch/" not in f.filename]
        Machine.waits.append(Wait(kind, place_of(frames[-1]), "site-packages" not in frames[-1].filename))


def place_of(frame: traceback.FrameSummary) -> str:
    """Return the last two parts of a frame's file, and its line."""
    file = frame.filename.split("site-packages/")[-1]
    return f"{'/'.join(Path(file).parts[-2:])}:{frame.lineno}"


def _in_float(func: Any, args: Any, kwargs: dict[str, Any], error: RuntimeError) -> Any:
    """CUDA has this kernel in half precision and the CPU has not: compute in float32 and round."""
    if str(func) in ("aten._softmax.default", "aten._log_softmax.default") and args[2]:
        return func(args[0].float(), args[1], False)
    halves = [t for t in _tensors(args, kwargs) if t.dtype in (torch.float16, torch.bfloat16)]
    if not halves:
        raise error
    low = halves[0].dtype
    args, kwargs = tree_map(
        lambda x: x.float() if isinstance(x, torch.Tensor) and x.dtype == low else x, (args, kwargs)
    )
    out = func(*args, **kwargs)
    return tree_map(lambda x: x.to(low) if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x, out)


def _no_grad(mode: bool = True) -> torch.no_grad:
    return torch.no_grad()


@contextlib.contextmanager
def gpus() -> Iterator[None]:
    """Inside, this machine has two GPUs."""
    from diffusers.utils.torch_utils import TorchDeviceBackend

    Machine.current = 0
    properties = mock.Mock(total_memory=80 << 30, major=9, minor=0, multi_processor_count=132)

    def set_device(device: Any) -> None:
        Machine.current = with_index(torch.device("cuda", device) if isinstance(device, int) else device).index

    def peak(device: Any = None) -> int:
        return (1000 + (Machine.current if device is None else with_index(device).index)) << 20

    def named(device: Any = None) -> str:
        return f"pretended GPU {Machine.current if device is None else with_index(device).index}"

    replaced = {
        "is_available": lambda: True, "device_count": lambda: GPUS, "current_device": lambda: Machine.current,
        "set_device": set_device, "_lazy_init": lambda: None, "init": lambda: None, "is_initialized": lambda: True,
        "get_device_name": named, "max_memory_allocated": peak, "memory_allocated": peak, "empty_cache": lambda: None,
        "synchronize": lambda device=None: None, "is_bf16_supported": lambda *_, **__: True,
        "get_device_capability": lambda device=None: (9, 0), "get_device_properties": lambda device=None: properties,
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None, "ipc_collect": lambda: None,
        "get_rng_state": lambda device=None: torch.zeros(1), "set_rng_state": lambda state, device=None: None,
        "get_rng_state_all": list, "reset_peak_memory_stats": lambda device=None: None,
    }  # fmt: skip
    accelerator = {
        "is_available": lambda: True, "device_count": lambda: GPUS, "empty_cache": lambda: None,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
    }  # fmt: skip
    lift, swap = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in accelerator.items():
            stack.enter_context(mock.patch.object(torch.accelerator, name, value))
        # Wrapper tensors and inference mode do not go together; for devices and numbers no_grad is the same.
        stack.enter_context(mock.patch.object(torch, "inference_mode", new=_no_grad))
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters keep their identity, as on CUDA
        TorchDeviceBackend._detect_device_type.cache_clear()
        stack.callback(TorchDeviceBackend._detect_device_type.cache_clear)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        stack.enter_context(Attributes())
        stack.enter_context(Everywhere())
        yield


@contextlib.contextmanager
def waits() -> Iterator[list[Wait]]:
    """Record where the host would wait."""
    before, Machine.waits = Machine.waits, []
    try:
        yield Machine.waits
    finally:
        Machine.waits = before
