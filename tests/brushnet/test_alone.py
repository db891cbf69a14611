"""``brushnet`` for somebody who never heard of the toolkit: a copy of it alone loads, repaints and blends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BRUSHNET_ALONE = """
import pkgutil, sys


class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("brushbench", "baselines"):
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Refuse())
import brushnet

assert brushnet.__file__.startswith(sys.argv[1]), brushnet.__file__
for module in pkgutil.iter_modules(brushnet.__path__):
    __import__(f"brushnet.{module.name}")

import numpy as np
import torch
from brushnet import BrushNetModel, StableDiffusionBrushNetPipeline, blend

branch = BrushNetModel.from_pretrained(sys.argv[2] + "/brushnet_segmentation")
pipe = StableDiffusionBrushNetPipeline.from_pretrained(sys.argv[2] + "/base", brushnet=branch)
image, hole = np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64), bool)
hole[16:40, 20:44] = True
seeded = torch.Generator().manual_seed(0)
picture = pipe("a red circle", image, hole, num_inference_steps=2, generator=seeded).images[0]
pasted = blend(image, np.asarray(picture), hole, "paste")
assert (pasted[~hole] == 200).all() and (pasted[hole] != 200).any()
assert not {"brushbench", "baselines"} & set(sys.modules)
"""


def test_brushnet_stands_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "brushnet", tmp_path / "brushnet", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BRUSHNET_ALONE, str(tmp_path), str(ROOT / "data" / "tiny")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
