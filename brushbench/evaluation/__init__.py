"""From settings to scores: plan, generate, score.

The plan, a list of fixed batches, decides which pictures are made together. So a resumed or a sharded run is
byte-equal to a whole one on the same device.
"""

from brushbench.evaluation.columns import choose_columns
from brushbench.evaluation.loading import load_benchmark, load_inpainter, load_metric
from brushbench.evaluation.recipes import (
    Made,
    Session,
    carry_out,
    configure,
    evaluate,
    inpaint_one,
    rescore,
    score_images,
)
from brushbench.evaluation.scoring import Scoring

__all__ = [
    "Made",
    "Scoring",
    "Session",
    "carry_out",
    "choose_columns",
    "configure",
    "evaluate",
    "inpaint_one",
    "load_benchmark",
    "load_inpainter",
    "load_metric",
    "rescore",
    "score_images",
]
