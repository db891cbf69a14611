"""Options that several commands share, in groups; one decorator puts a group's options on a command.

::

    @dataclass(frozen=True)
    class Fit:
        '''How a model is trained.'''

        panel: ClassVar[str] = "Training"
        seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0

    @app.command()
    @shared_options
    def vae(fit: Fit) -> None: ...   # brushbench train tiny vae --seed 3
"""

import functools
import inspect
import re
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from brushbench.cli import console
from brushbench.errors import UnknownNameError, UsageError, printable

__all__ = [
    "DataOptions",
    "EngineOptions",
    "FailureOptions",
    "LookOptions",
    "MachineOptions",
    "MethodOptions",
    "RunOptions",
    "ScoreOptions",
    "TableOptions",
]
__all__ += ["shared_options"]

MAX_INTEGER = 10**18
ENGINES = ("local", "ray", "slurm")


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is annotated with a dataclass by that dataclass's fields, as keyword options.

    The command is called with the dataclass, made of what was given. ``panel`` of the dataclass is the heading of its
    options in ``--help``.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _parameters(groups[parameter.name])
        else:
            kind = _strict(hints[parameter.name])
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def call(**given: Any) -> None:
        # `--out=~/x` reaches us as it is: a shell expands only a word that begins with the tilde.
        given = {key: value.expanduser() if isinstance(value, Path) else value for key, value in given.items()}
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        try:
            command(**given)
        except console.Stopped as stopped:
            console.say(f"Stopped by {stopped}. What was finished is kept; the same command continues.")
            raise typer.Exit(stopped.exit_code) from None

    # Typer reads these two; without a default first, so that required options need no special place.
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _strict(annotated: Any) -> Any:
    """Return an option of whole numbers that takes ASCII digits only, of a length that a number can have."""
    if get_origin(annotated) is not Annotated:
        return annotated
    kind, option = get_args(annotated)
    if kind not in (int, int | None) or not isinstance(option, OptionInfo):
        return annotated
    option = copy(option)
    low, high = option.min, option.max if option.max is not None else MAX_INTEGER

    def whole_number(text: str | int) -> int:
        plain = str(text).strip()
        if not re.fullmatch(r"-?[0-9]{1,18}", plain) or not (low is None or int(plain) >= low) or int(plain) > high:
            least = "" if low is None else f" of at least {low}"
            raise typer.BadParameter(f"{printable(plain, 40)!r} is not a whole number{least}, at most {high}.")
        return int(plain)

    option.parser, option.metavar, option.min, option.max = whole_number, "INTEGER", None, None
    return Annotated[kind, option]


@functools.cache
def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    found = []
    for field in fields(group):
        kind, option = get_args(_strict(hints[field.name]))
        option = copy(option)
        if isinstance(option, OptionInfo):
            option.rich_help_panel = option.rich_help_panel or group.panel
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        found.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
            )
        )
    return found


@dataclass(frozen=True)
class MethodOptions:
    """Which methods."""

    panel: ClassVar[str] = "Method"
    model: Annotated[
        list[str],
        typer.Option(
            "--model", "-m", help="Method with its options: NAME or NAME,option=value. Repeatable. all: every one."
        ),
    ]
    preset: Annotated[
        str | None, typer.Option("--preset", help="tiny, sd15, sdxl: weights of every --model that takes a preset.")
    ] = None
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Label of the first --model, then of the second. Repeatable."),
    ] = None


@dataclass(frozen=True)
class DataOptions:
    """Which benchmark, and how much of it."""

    panel: ClassVar[str] = "Benchmark"
    bench: Annotated[
        str | None,
        typer.Option("--bench", "-b", help="A name (see `list benchmarks`) or a folder. Default: an embedded one."),
    ] = None
    data: Annotated[Path | None, typer.Option("--data", help="Folder of the benchmark, where it is not embedded.")] = (
        None
    )
    split: Annotated[str, typer.Option("--split", help="all, or inside, outside, brush; several with commas.")] = "all"
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="First N images of the manifest, for every split.")
    ] = None
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out and count them.")] = False


@dataclass(frozen=True)
class RunOptions:
    """How images are generated, and where they are kept."""

    panel: ClassVar[str] = "Run"
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run.")] = 1234
    repeats: Annotated[int, typer.Option("--repeats", min=1, max=10_000, help="Images per sample.")] = 1
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Batch size; changing it starts a new run.")
    ] = 4
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", help="Given with every request.")] = ""
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: generate part i of n only.")] = None
    jobs: Annotated[
        int,
        typer.Option("--jobs", "-j", min=1, max=256, help="Processes that share the work; one per GPU."),
    ] = 1
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Parent folder of the runs. Default: runs/BENCHMARK.")
    ] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Generate failed images again.")] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that is there, whatever its settings.")
    ] = False


@dataclass(frozen=True)
class EngineOptions:
    """On which machines the processes of --jobs run."""

    panel: ClassVar[str] = "Many machines"
    engine: Annotated[
        str, typer.Option("--engine", help="local; ray or slurm: --jobs workers on machines that share the folder.")
    ] = "local"
    engine_address: Annotated[
        str | None,
        typer.Option(
            "--engine-address",
            help="Of a Ray cluster; default: RAY_ADDRESS, else one is started here. For slurm: local, to try it here.",
        ),
    ] = None
    engine_option: Annotated[
        list[str] | None,
        typer.Option("--engine-option", help="slurm: NAME=VALUE, such as slurm_partition=gpu. Repeatable."),
    ] = None

    def __post_init__(self) -> None:
        """Refuse, before any work, an unknown engine and options of another one."""
        if self.engine not in ENGINES:
            raise UnknownNameError("engine", self.engine, ENGINES)
        if self.engine == "local" and self.engine_address:
            raise UsageError("--engine-address belongs to --engine ray or slurm. Name one of them, or leave it out.")
        if self.engine != "slurm" and self.engine_option:
            raise UsageError("--engine-option belongs to --engine slurm. Name that, or leave it out.")
        _ = self.settings

    @property
    def is_local(self) -> bool:
        """Whether all processes are the command's own, on this machine."""
        return self.engine == "local"

    @property
    def settings(self) -> dict[str, int | str]:
        """What --engine-option gives, whole numbers as such.

        Raises:
            UsageError: an option without a name or a value.
        """
        found: dict[str, int | str] = {}
        for text in self.engine_option or []:
            name, _, value = (part.strip() for part in text.partition("="))
            if not (name and value):
                raise UsageError(f"--engine-option {text!r} is not NAME=VALUE, such as slurm_partition=gpu.")
            found[name] = int(value) if re.fullmatch("[0-9]{1,9}", value) else value
        return found


def _show_tracebacks(wanted: bool) -> bool:
    console.debug = wanted
    return wanted


@dataclass(frozen=True)
class FailureOptions:
    """What becomes of failed images."""

    panel: ClassVar[str] = "Failures"
    max_failed: Annotated[
        int, typer.Option("--max-failed", min=0, help="Failed or missing images per run without exit code 3.")
    ] = 0
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", callback=_show_tracebacks)] = False


@dataclass(frozen=True)
class ScoreOptions:
    """What is scored."""

    panel: ClassVar[str] = "Scoring"
    metrics: Annotated[str, typer.Option("--metrics", help="auto, none, or names: psnr,lpips@brushnet-paper.")] = "auto"
    variants: Annotated[str, typer.Option("--variants", help="auto, or raw, blended, pasted, raw+jpeg75.")] = "auto"
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="METRIC=PATH or METRIC=HUB_ID: where its weights are. Repeatable."),
    ] = None
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Keep one metric model in memory at a time.")] = False


@dataclass(frozen=True)
class TableOptions:
    """How the table is shown."""

    panel: ClassVar[str] = "Table"
    protocol: Annotated[str, typer.Option("--protocol", help="standard, or brushnet-paper beside published rows.")] = (
        "standard"
    )
    intervals: Annotated[bool, typer.Option("--intervals", help="Show the 95 % interval behind each mean.")] = False
    plus_minus: Annotated[
        bool, typer.Option("--plus-minus", help="Show ± half the interval's width behind each mean.")
    ] = False

    def __post_init__(self) -> None:
        """Refuse an unknown protocol before any work."""
        if self.protocol == "standard":
            return
        from brushbench.types import PROTOCOLS

        if self.protocol not in PROTOCOLS:
            raise UsageError(f"No protocol {self.protocol!r}. Known: {', '.join(PROTOCOLS)}.")

    @property
    def spread(self) -> Literal["none", "interval", "plus-minus"]:
        """What stands behind each mean.

        Raises:
            UsageError: both were asked for.
        """
        if self.intervals and self.plus_minus:
            raise UsageError("--intervals and --plus-minus show the same interval. Leave one of them out.")
        return "interval" if self.intervals else "plus-minus" if self.plus_minus else "none"


@dataclass(frozen=True)
class MachineOptions:
    """Where methods and metrics compute."""

    panel: ClassVar[str] = "Machine"
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1.")] = "auto"
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto, float32, float16, bfloat16: of the method's weights.")
    ] = "auto"
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let the method's float32 round to TF32 on CUDA: quicker, other images.")
    ] = False


@dataclass(frozen=True)
class LookOptions:
    """Where a finished run can be looked at."""

    panel: ClassVar[str] = "To look at"
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder of a page to write: tables and every image side by side.")
    ] = None
    track: Annotated[
        str | None, typer.Option("--track", help="Log the means to tensorboard, wandb, mlflow or trackio as well.")
    ] = None
