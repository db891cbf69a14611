"""Run every check: ``python -m tests.emulated_cuda [--only WORD …] [--waits]``; about ten minutes on one core.

Exit code 1 if any check is a DEFECT or FAILED. What it cannot show, see :mod:`tests.emulated_cuda.device`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import torch
import transformers

from brushbench import progress
from tests.emulated_cuda.evaluations import evaluations, metrics
from tests.emulated_cuda.pipelines import Tiny, attachments, emulation, options, schedulers
from tests.emulated_cuda.report import ONLY, RESULTS, check
from tests.emulated_cuda.runs import runs
from tests.emulated_cuda.training import training


def main() -> int:
    """Run the checks that are asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="only checks whose title holds one of these words")
    parser.add_argument("--waits", action="store_true", help="show every place where the host waits")
    told = parser.parse_args()
    ONLY.extend(told.only)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    progress.show_progress = False
    print(
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        scratch, tiny = Path(folder), Tiny()
        check("emulation", emulation)
        runs(scratch)
        schedulers(tiny, told.waits)
        options(tiny)
        attachments(tiny)
        metrics()
        training(tiny, scratch)
        evaluations(scratch, told.waits)
    print(", ".join(f"{n} {verdict}" for verdict, n in sorted(RESULTS.items())))
    return int(bool(RESULTS["DEFECT"] + RESULTS["FAILED"]))


if __name__ == "__main__":
    sys.exit(main())
