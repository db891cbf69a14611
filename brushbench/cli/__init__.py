"""The command line: parses, calls one recipe, prints. Nothing heavy is imported before a command needs it.

One module per group of commands, each with an ``app``; what several commands share is in ``options`` and ``console``.
None has ``from __future__ import annotations``: Typer would compile the text of every annotation at every start.
"""

import errno
import io
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from brushbench import __version__
from brushbench.cli import console
from brushbench.cli.console import say
from brushbench.errors import BrushbenchError

__all__ = ["COMMANDS", "app", "load_command", "main"]

NOT_OUR_FAULT = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
    errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EFBIG, errno.ELOOP,
}  # fmt: skip


class Listed(NamedTuple):
    """A command as ``--help`` lists it: its module in this package, and the first sentences of its help."""

    module: str
    text: str


COMMANDS: Mapping[str, Listed] = {
    "eval": Listed("eval", "Run methods over a benchmark, score the images, print the leaderboard."),
    "generate": Listed("eval", "Generate the images of a run without scoring them; `score` does that later."),
    "inpaint": Listed("eval", "Repaint one image."),
    "score": Listed(
        "score",
        "Score a run again, or score images that were generated elsewhere. Other columns are left alone.",
    ),
    "leaderboard": Listed(
        "show",
        "Compare runs: methods x metrics per split in the paper's scales, with n and missing.",
    ),
    "list": Listed("show", "Show what there is, what each needs, and whether it is here."),
    "doctor": Listed(
        "show",
        "Check this installation: versions, device, embedded data, metric weights. Exit code 5 if something is broken.",
    ),
    "compare": Listed(
        "gate",
        "Compare two runs, paired by sample: differences with intervals, and the samples that changed most.",
    ),
    "gate": Listed("gate", "Say whether runs are worse than what was accepted."),
    "accept": Listed(
        "gate", "Write what a run scored into a small file to review and commit; `gate` compares with it."
    ),
    "report": Listed("report", "Write a page to look at: leaderboard, every image side by side, plots, provenance."),
    "sheet": Listed(
        "report", "Draw a contact sheet: a row per sample; hole, every method and the reference as columns."
    ),
    "export": Listed(
        "report",
        "Write runs in a form that travels: one table of every score, copies, or a repository for the hub.",
    ),
    "push": Listed("report", "Upload runs to the hub as a `datasets` repository, private unless told otherwise."),
    "pull": Listed("report", "Fetch runs that were pushed. They are read as data; nothing in them is executed."),
    "audit": Listed(
        "audit", "Damage the references of a benchmark on purpose and ask each metric which picture is worse."
    ),
    "speed": Listed(
        "speed", "Run methods with each acceleration, and gate the images against those of the published way."
    ),
    "data": Listed("data", "Look at benchmarks and check them."),
    "train": Listed("train", "Train BrushNet; in a checkout of the repository also the embedded models."),
}
GROUPS = ("data", "train")  # commands that hold commands: all of their module's


def load_command(name: str) -> Any:
    """Return a command with its parameters, or a group with its commands; imports its module.

    Args:
        name: of :data:`COMMANDS`.
    """
    group = get_group(import_module(f"brushbench.cli.{COMMANDS[name].module}").app)
    return group if name in GROUPS else group.commands[name]


class Commands(TyperGroup):
    """The commands by name and help; one is imported when it is called: all of them took a sixth of ``--help``."""

    def __init__(self, **settings: Any) -> None:
        mode = settings["rich_markup_mode"]
        commands = [TyperCommand(name, help=each.text, rich_markup_mode=mode) for name, each in COMMANDS.items()]
        super().__init__(**{**settings, "commands": commands})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the command that is called, the command, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


app = typer.Typer(
    name="brushbench",
    cls=Commands,
    help="Measure text-guided image inpainting: run methods over benchmarks, score them, compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: [bold]brushbench eval --model telea --model ns --bench photos[/]",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error of ours becomes one sentence and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of an encoding without ↑ shows ?, and the command goes on
            stream.reconfigure(errors="replace")
    console.end_in_order()
    try:
        app()
    except BrushbenchError as error:
        say(f"error: {error}")
        if console.debug:
            traceback.print_exc()
        sys.exit(error.exit_code)
    except Exception as error:  # the interpreter's own exit code, 1, means a quality regression here
        if isinstance(error, OSError) and error.errno in NOT_OUR_FAULT:
            say(f"error: {error}. Free space or mend permissions there; the same command then continues.")
        else:
            traceback.print_exc()
        sys.exit(BrushbenchError.exit_code)
