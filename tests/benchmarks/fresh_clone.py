"""Do what a newcomer does: clone, `make eval`, `make test`, each with nothing installed before; time every part.

    python tests/benchmarks/fresh_clone.py            # both commands
    python tests/benchmarks/fresh_clone.py --only eval

The thresholds were written before anything was measured; a missed one makes the exit code 1. The clone holds what is
committed, so uncommitted work is not measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THRESHOLDS = {"make eval, after installation": 360.0, "make test, after installation": 900.0, "make test": 1200.0}
STAMPS = {"eval": ".venv/.eval", "test": ".venv/.dev"}


def make(target: str, folder: Path) -> float:
    """Run a target and return the seconds it took."""
    began = time.monotonic()
    print(f"$ make {target}", flush=True)
    subprocess.run(["make", target], cwd=folder, check=True)
    seconds = time.monotonic() - began
    print(f"make {target} took {seconds:.0f} s", flush=True)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(STAMPS))
    options = parser.parse_args()
    measured: dict[str, float] = {}
    for target in [options.only] if options.only else STAMPS:
        with tempfile.TemporaryDirectory() as place:
            clone = Path(place) / "brushbench"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            measured[f"make {target}, installation"] = make(STAMPS[target], clone)
            measured[f"make {target}, after installation"] = make(target, clone)
            parts = (f"make {target}, {part}" for part in ("installation", "after installation"))
            measured[f"make {target}"] = sum(measured[part] for part in parts)
    for name, seconds in measured.items():
        limit = THRESHOLDS.get(name)
        verdict = "" if limit is None else f" (at most {limit:.0f} s: {'reached' if seconds <= limit else 'MISSED'})"
        print(f"{name}: {seconds:.0f} s{verdict}")
    return int(any(measured.get(name, 0.0) > limit for name, limit in THRESHOLDS.items()))


if __name__ == "__main__":
    sys.exit(main())
