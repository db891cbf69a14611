"""What a benchmark holds, in lines for a person: behind ``data check``."""

from __future__ import annotations

from collections import Counter, defaultdict

from brushbench.errors import BadRecordError
from brushbench.types import Benchmark

__all__ = ["survey"]

PUBLISHED_SIZE = (512, 512)  # of BrushBench


def survey(benchmark: Benchmark) -> tuple[list[str], int]:
    """Decode every sample of a benchmark.

    Returns:
        Lines that say what it holds: hash, sizes, hole shares, missing captions, every bad record with its reason; and
        the number of bad records.
    """
    bad = dict(benchmark.skipped)
    sizes: dict[str, tuple[int, int]] = {}
    shares: dict[str, list[float]] = defaultdict(list)
    blank: dict[str, None] = {}
    for index, (name, split) in enumerate(benchmark.keys):
        try:
            sample = benchmark[index]
        except BadRecordError as error:
            bad[name] = error.problem
            continue
        sizes[name] = sample.image.shape[:2]
        shares[split].append(float(sample.hole.mean()))
        if not sample.prompt.strip():
            blank[name] = None
    lines = [f"{key}: {_shown(value)}" for key, value in benchmark.manifest.items() if key != "skipped"]
    lines += [f"size (height x width): {_counted(sizes)}"]
    lines += [
        f"hole, {split}: {sum(values) / len(values):.1%} of the image on average, "
        f"{min(values):.1%} to {max(values):.1%}"
        for split, values in shares.items()
    ]
    if blank:
        lines.append(f"no caption: {_first(blank)}; only methods and metrics that read none can use them")
    if benchmark.spec == "brushbench" and any(size != PUBLISHED_SIZE for size in sizes.values()):
        lines.append("note: the published BrushBench is 512 x 512; scores on other sizes are no published scores")
    lines += [f"note: {note}" for note in benchmark.notes]
    lines += [f"bad: {name}: {reason}" for name, reason in bad.items()]
    lines.append(f"bad records: {len(bad)}")
    return lines, len(bad)


def _shown(value: object) -> object:
    return f"{len(value)} entries" if isinstance(value, list) and len(value) > 8 else value


def _counted(sizes: dict[str, tuple[int, int]]) -> str:
    common = Counter(f"{height} x {width}" for height, width in sizes.values()).most_common()
    more = f", and {len(common) - 5} other sizes" if len(common) > 5 else ""
    return ", ".join(f"{size} ({count})" for size, count in common[:5]) + more


def _first(names: dict[str, None]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return f"{len(names)} ({', '.join(list(names)[:5])}{more})"
