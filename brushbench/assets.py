"""Where the assets lie: the one place that knows a checkout from an installed wheel.

Write the path as it is in the repository, with its room first::

    assets.path("data/shapes")              # right
    assets.path("reports/published.json")   # right
    assets.path("shapes")                   # refused: names the room that is missing
    assets.path("data", "shapes")           # TypeError: one string

In a checkout ``data/`` and ``reports/`` lie beside the package, in a wheel inside it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from brushbench.errors import BrushbenchError, UsageError

__all__ = ["ROOMS", "path"]

ROOMS = ("data", "reports")


def path(name: str) -> Path:
    """Return the place of an asset that is there.

    Args:
        name: with forward slashes and its room first: ``"data/shapes"``, ``"reports/published.json"``, ``"data"``.

    Returns:
        Absolute path of a file or folder that exists.

    Raises:
        UsageError: ``name`` does not begin with ``data`` or ``reports``, or climbs out of them.
        BrushbenchError: this installation holds no such asset; the message says where it was looked for.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] not in ROOMS or ".." in parts:
        inside = "/".join(part for part in parts if part not in ("/", ".."))
        raise UsageError(
            f"No asset {name!r}: write its room first, {ROOMS[0]}/ or {ROOMS[1]}/, for example 'data/{inside}'."
        )
    package = Path(__file__).resolve().parent
    candidates = [root.joinpath(*parts) for root in (package, package.parent)]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise BrushbenchError(
        f"The asset {name!r} is missing (looked for {looked}). Reinstall brushbench, or complete the checkout."
    )
