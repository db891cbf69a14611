"""Records that were mended after their images had failed: the run goes on with them, and nothing else may differ.

``records.json`` of a run's folder holds the SHA-256 of every record of the benchmark, so that a run whose data differ
can tell in which records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from brushbench.errors import UnusableError
from brushbench.files import read_text
from brushbench.records import dump, write_atomically
from brushbench.store import RunFolder
from brushbench.types import Benchmark

__all__ = ["mended_records", "remake", "remember"]


def remember(folder: RunFolder, benchmark: Benchmark) -> None:
    """Write down what the records of a run are, where that is known and not yet there."""
    digests = dict(benchmark.digests)
    if digests and _remembered(folder) != digests:
        with folder.lock("begin"):  # workers begin at the same time
            write_atomically(folder.records_file, dump(digests))


def mended_records(folder: RunFolder, benchmark: Benchmark) -> set[str]:
    """Return the records that differ from those of a run, if of none of them an image came out; else nothing.

    Empty as well where it is not known what the records were, or where some were added or left out.
    """
    before, now = _remembered(folder), benchmark.digests
    if not before or set(before) != set(now):
        return set()
    changed = {name for name, digest in now.items() if before[name] != digest}
    made = {row.sample for row in folder.picture_rows().values() if row.state != "failed"}
    return set() if changed & made else changed


def remake(folder: RunFolder, records: set[str]) -> None:
    """Forget the batches in which images of mended records failed, so that they are generated again."""
    for batch in folder.finished_batches():
        if any(row.sample in records and row.state == "failed" for row in folder.rows(batch)):
            folder.discard(batch)


def _remembered(folder: RunFolder) -> Mapping[str, str]:
    try:
        content = json.loads(read_text(folder.records_file))
    except (UnusableError, ValueError, RecursionError):  # none, or damaged: then nothing is known
        return {}
    known = isinstance(content, dict) and all(isinstance(digest, str) for digest in content.values())
    return content if known else {}
