"""Benchmarks, one loader per file; :mod:`brushbench.benchmarks.base` says how to write another."""

from __future__ import annotations

from pathlib import Path

from brushbench.errors import DataError

__all__ = ["layout_of"]


def layout_of(root: Path) -> str:
    """Return the name of the benchmark that reads a folder: ``brushbench``, ``editbench`` or ``folder``.

    Raises:
        DataError: there is no such folder.
    """
    from brushbench.benchmarks.brushbench import find_mapping

    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"No folder {root}. Give the folder of a benchmark.")
    if any(root.glob("annotations_*.csv")):
        return "editbench"
    try:
        find_mapping(root)
    except DataError:
        return "folder"
    return "brushbench"
