"""``train``: what a user trains, and in a checkout of the repository the embedded models."""

from importlib.util import find_spec

import typer

from brushbench.training.commands import app as training

app = typer.Typer(
    help="Train BrushNet; in a checkout of the repository also the embedded models.",
    no_args_is_help=True,
    callback=lambda: None,
)
app.registered_commands.extend(training.registered_commands)
if find_spec("brushbench.tiny.commands"):  # a wheel holds the scenes alone
    from brushbench.tiny.commands import app as tiny

    app.add_typer(tiny, name="tiny")
