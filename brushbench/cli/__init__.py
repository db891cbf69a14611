"""The command line: parses, calls one recipe, prints. Nothing heavy is imported before a command needs it.

One module per group of commands, each with an ``app``; what several commands share is in ``options`` and ``console``.
None has ``from __future__ import annotations``: Typer would compile the text of every annotation at every start.
"""

import errno
import io
import sys
import traceback
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from brushbench import __version__
from brushbench.cli import audit, console, data, eval, gate, report, score, show, speed  # noqa: A004 - the command's own name
from brushbench.cli.console import say
from brushbench.errors import BrushbenchError

__all__ = ["app", "main"]

NOT_OUR_FAULT = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
    errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EFBIG, errno.ELOOP,
}  # fmt: skip

app = typer.Typer(
    name="brushbench",
    help="Measure text-guided image inpainting: run methods over benchmarks, score them, compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Example: [bold]brushbench eval --model telea --model ns --bench photos[/]",
)
for commands in (eval, score, show, gate, report, audit, speed):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")


class TrainGroup(TyperGroup):
    """``train``, whose commands are made when one is asked for: they were a sixth of the time of ``--help``."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        self._make()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name."""
        self._make()
        return super().get_command(ctx, cmd_name)

    def _make(self) -> None:
        if self.commands:
            return
        from brushbench.training.commands import app as training

        self.commands = dict(get_group(training).commands)
        if find_spec("brushbench.tiny.commands"):  # in a checkout; a wheel holds the scenes alone
            from brushbench.tiny.commands import app as tiny

            tiny_group = get_group(tiny)
            tiny_group.name = "tiny"
            self.commands["tiny"] = tiny_group


app.add_typer(
    typer.Typer(
        cls=TrainGroup,
        help="Train BrushNet; in a checkout of the repository also the embedded models.",
        no_args_is_help=True,
        callback=lambda: None,
    ),
    name="train",
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
