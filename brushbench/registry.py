"""Names to classes: the built-in tables, ``module:Class``, ``file.py:Class`` and entry points.

Nothing is imported before its name is asked for, so an unknown name fails before any weight loads.
"""

from __future__ import annotations

import ast
import inspect
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeAlias

from brushbench.errors import UnknownNameError, UnusableError, UsageError, printable
from brushbench.files import read_bytes
from brushbench.isolation import world_of_module
from brushbench.plugins import annotations_of, explained, literal, load_file, load_module, passes_on

__all__ = [
    "BUILTIN",
    "OF_SETS",
    "Kind",
    "Spec",
    "build",
    "check_options",
    "find",
    "names",
    "option_names",
    "parse_source",
    "parse_spec",
    "resolve",
    "takes_preset",
    "with_preset",
]

_PARSING = threading.Lock()
Kind: TypeAlias = Literal["model", "metric", "benchmark"]

BUILTIN: Mapping[Kind, Mapping[str, str]] = {
    "model": {
        "blended-latent": "baselines.blended_latent:BlendedLatent",
        "brushedit": "baselines.brushedit:BrushEdit",
        "brushnet": "baselines.brushnet:BrushNet",
        "controlnet": "baselines.controlnet:ControlNet",
        "controlnet-blended": "baselines.controlnet:ControlNetBlended",
        "copy": "baselines.copy:Copy",
        "diffusers": "baselines.diffusers_pipeline:DiffusersPipeline",
        "flux-fill": "baselines.diffusers_pipeline:FluxFill",
        "hd-painter": "baselines.hd_painter:HdPainter",
        "jpeg": "baselines.jpeg:Jpeg",
        "latent-copy": "baselines.latent_copy:LatentCopy",
        "ns": "baselines.ns:NavierStokes",
        "oracle": "baselines.oracle:Oracle",
        "powerpaint": "baselines.powerpaint:PowerPaint",
        "powerpaint-v2": "baselines.powerpaint:PowerPaintV2",
        "sdxl-inpainting": "baselines.diffusers_pipeline:SdxlInpainting",
        "sd-inpainting": "baselines.sd_inpainting:SdInpainting",
        "telea": "baselines.telea:Telea",
        "vae": "baselines.vae:Vae",
    },
    "metric": {
        "psnr": "brushbench.metrics.psnr:PSNR",
        "mse": "brushbench.metrics.mse:MSE",
        "ssim": "brushbench.metrics.ssim:SSIM",
        "lpips": "brushbench.metrics.lpips:LPIPS",
        "boundary": "brushbench.metrics.boundary:Boundary",
        "seam": "brushbench.metrics.seam:Seam",
        "seam_levels": "brushbench.metrics.seam:SeamLevels",
        "seam_difference": "brushbench.metrics.seam:SeamDifference",
        "attribute_accuracy": "brushbench.metrics.attribute_accuracy:AttributeAccuracy",
        "clip_score": "brushbench.metrics.clip:ClipScore",
        "clip_score_crop": "brushbench.metrics.clip_crop:ClipScoreCrop",
        "clip_score_local": "brushbench.metrics.clip_local:ClipScoreLocal",
        "aesthetic": "brushbench.metrics.aesthetic:Aesthetic",
        "image_reward": "brushbench.metrics.image_reward:ImageReward",
        "hps_v2": "brushbench.metrics.hps:HpsV2",
        "hps_v2.1": "brushbench.metrics.hps:HpsV21",
        "hps_v3": "brushbench.metrics.hps_v3:HpsV3",
        "pick_score": "brushbench.metrics.pick_score:PickScore",
        "fid": "brushbench.metrics.fid:FID",
        "kid": "brushbench.metrics.kid:KID",
        "inpaint_reward": "brushbench.metrics.inpaint_reward:InpaintReward",
        "dino_similarity": "brushbench.metrics.dino_similarity:DinoSimilarity",
        "remove": "brushbench.metrics.remove:Remove",
        "cfd": "brushbench.metrics.cfd:Cfd",
    },
    "benchmark": {
        "brushbench": "brushbench.benchmarks.brushbench:BrushBench",
        "editbench": "brushbench.benchmarks.editbench:EditBench",
        "folder": "brushbench.benchmarks.folder:Folder",
        "photos": "brushbench.benchmarks.photos:Photos",
        "shapes": "brushbench.benchmarks.shapes:Shapes",
    },
}
COMMA = 'A comma separates options; a name or a value with a comma in it is quoted: "a,b.py:Mine",key="c,d".'
OF_SETS = frozenset({"fid", "kid"})  # metrics of whole sets of images, which nothing pairs by sample
OUTSIDE_QUOTES = r',(?=(?:[^"]*"[^"]*")*[^"]*$)'  # a comma followed by whole pairs of quotes
GROUPS: Mapping[Kind, str] = {
    "model": "brushbench.inpainters",
    "metric": "brushbench.metrics",
    "benchmark": "brushbench.benchmarks",
}


@dataclass(frozen=True)
class Spec:
    """A name with its options, as written after ``--model``: ``brushnet,checkpoint=DIR,scale=0.8``."""

    name: str
    options: Mapping[str, str]

    def __str__(self) -> str:
        return ",".join([_quoted(self.name), *(f"{key}={_quoted(value)}" for key, value in self.options.items())])

    @property
    def label(self) -> str:
        """What tables call it and its folder is named, unless told otherwise."""
        return str(self).replace("/", "_").replace('"', "").lstrip(".") or "unnamed"


def parse_spec(text: str) -> Spec:
    """Read ``name,key=value,key=value``; what holds a comma is quoted: ``name,key="a,b"``.

    Raises:
        UsageError: an empty name, an option without ``=``, an option given twice, or a quote that does not end.
    """
    if text.count('"') % 2:
        raise UsageError(f'A quote in {printable(text)!r} does not end. Quote what holds a comma: key="a,b".')
    name, *pairs = [part.strip() for part in re.split(OUTSIDE_QUOTES, text)]
    name = _unquoted(name)
    if not name:
        raise UsageError(f"No name in {printable(text)!r}. Write NAME or NAME,option=value,option=value.")
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UsageError(
                f"Option {printable(pair)!r} of {printable(name)!r} has no value. Write {printable(key) or 'option'}"
                f"=VALUE. {COMMA}"
            )
        if key in options:
            raise UsageError(f"Option {key!r} of {name!r} is given twice. Keep one.")
        options[key] = _unquoted(value)
    return Spec(name, options)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"') or text != text.strip() else text


def _unquoted(text: str) -> str:
    return text[1:-1].replace('""', '"') if len(text) > 1 and text[0] == text[-1] == '"' else text


def names(kind: Kind) -> list[str]:
    """Return every registered name of a kind, built in or installed, in alphabetical order."""
    return sorted({*BUILTIN[kind], *(entry.name for entry in entry_points(group=GROUPS[kind]))})


def resolve(kind: Kind, name: str) -> type[Any]:
    """Return the class behind a name, a ``module:Class``, a ``file.py:Class`` or an entry point.

    Raises:
        UnknownNameError: nothing is registered under that name; the nearest match is named.
        UsageError: the module, file or class of a path does not exist.
    """
    found = find(kind, name)
    if not isinstance(found, type):
        module_name = name.rpartition(":")[0]
        raise UsageError(
            f"{kind} {name!r}: {module_name} has no class {name.rpartition(':')[2]!r}. "
            "Write module:Class or file.py:Class."
        )
    return found


def find(kind: Kind, name: str) -> Any:
    """Return what a name stands for, which need not be a class; ``None`` where its module has no such attribute.

    Raises:
        UnknownNameError: nothing is registered under that name; the nearest match is named.
        UsageError: the module or file of a path does not exist.
    """
    target = BUILTIN[kind].get(name)
    if target is None:
        installed = entry_points(group=GROUPS[kind], name=name)
        target = next(iter(installed)).value if installed else name
    module_name, colon, attribute = target.rpartition(":")
    if not colon and target.endswith(".py"):
        raise UsageError(f"{kind} {name!r} names a file and no class. Write {name}:Class{_classes_in(target)}.")
    if not colon:
        raise UnknownNameError(kind, name, names(kind))
    if not attribute or not module_name.strip() or (module_name.startswith(".") and not module_name.endswith(".py")):
        raise UsageError(f"{kind} {name!r} names no class. Write module:Class or file.py:Class.")
    load = load_file if module_name.endswith(".py") else load_module
    module = load(module_name, f"{kind} {name!r}")
    return getattr(module, attribute, None)


def parse_source(text: bytes) -> ast.Module:
    """Return a Python file's syntax tree, one thread at a time: CPython 3.11's parser fails when two run at once.

    Raises:
        SyntaxError, ValueError, RecursionError: it is no Python.
    """
    with _PARSING:
        return ast.parse(text)


def _classes_in(file: str) -> str:
    """Return the classes of a Python file as a hint; its code is read and not run."""
    try:
        tree = parse_source(read_bytes(Path(file).expanduser()))
    except (UnusableError, SyntaxError, ValueError, RecursionError):
        return ""
    found = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return f"; it holds {', '.join(found[:5])}" if found else ""


def option_names(cls: type[Any]) -> list[str]:
    """Return the option names a class takes: its constructor's named parameters, ``class_`` written as ``class``."""
    anonymous = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [_written(name) for name, p in inspect.signature(cls).parameters.items() if p.kind not in anonymous]


def _written(parameter: str) -> str:
    """Return how a parameter is written as an option: a Python keyword without the underscore it needs there."""
    return parameter.removesuffix("_")


def takes_preset(spec: Spec) -> bool:
    """Whether a method comes in presets, families of weights."""
    return "preset" in option_names(resolve("model", spec.name))


def with_preset(spec: Spec, preset: str | None) -> Spec:
    """Return the spec with a preset, where its method takes one and the spec names none."""
    if preset is None or "preset" in spec.options or not takes_preset(spec):
        return spec
    return Spec(spec.name, {**spec.options, "preset": preset})


def build(kind: Kind, spec: Spec, context: Mapping[str, Any] | None = None) -> Any:
    """Construct what a spec names.

    Args:
        kind: ``model``, ``metric`` or ``benchmark``.
        spec: name and options; option values are strings and are converted by the constructor's annotations.
        context: values such as ``device``, passed on where the constructor takes them and the spec is silent.

    Raises:
        UnknownNameError: no such name, or an option that the class does not take.
        UsageError: an option value that does not fit the annotation, or a missing option.
    """
    cls = resolve(kind, spec.name)
    what = f"{kind} {spec.name!r}"
    with explained(cls.__module__, what, "constructed"), world_of_module(cls.__module__, what):
        return cls(**_options(kind, spec, cls, context or {}))


def check_options(kind: Kind, spec: Spec) -> None:
    """Refuse an option that a class does not take; nothing is constructed.

    Raises:
        UnknownNameError: no such name or option.
    """
    cls = resolve(kind, spec.name)
    known = option_names(cls)
    for key in spec.options:
        if key not in known and not passes_on(cls):
            hint = COMMA if len(spec.options) > 1 else ""
            raise UnknownNameError(f"option of {kind} {spec.name!r}", key, known, hint)


def _options(kind: Kind, spec: Spec, cls: type[Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a class is constructed with."""
    check_options(kind, spec)
    known = option_names(cls)
    hints = {_written(parameter): hint for parameter, hint in annotations_of(cls).items()}
    options = {
        key: _convert(spec.name, key, value, hints.get(key, str)) if key in known else literal(value)
        for key, value in spec.options.items()
    }
    for key, value in context.items():
        if key in known:
            options.setdefault(key, value)
    parameters = {_written(name): parameter for name, parameter in inspect.signature(cls).parameters.items()}
    missing = [key for key in known if key not in options and parameters[key].default is inspect.Parameter.empty]
    if missing:
        raise UsageError(f"{kind} {spec.name!r} needs {', '.join(missing)}: write {spec.name},{missing[0]}=VALUE.")
    return {parameters[key].name if key in parameters else key: value for key, value in options.items()}


def _convert(name: str, key: str, value: str, annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        expected = getattr(annotation, "__name__", str(annotation))
        raise UsageError(
            f"Option {key}={value!r} of {name!r} is not a {expected}: {error.errors()[0]['msg']}."
        ) from None
