"""A benchmark and methods small enough for tests of the machinery."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from brushbench.errors import UsageError
from brushbench.masks import encode_rle
from brushbench.metrics.base import CAPTION_CUT
from brushbench.types import JSON, Capabilities, InpaintRequest, Picture, Sample, Scored, Unscored


def write_benchmark(root: Path, pictures: int = 5, height: int = 48, width: int = 40) -> Path:
    """Write a benchmark in the published layout: noisy ramps, a rectangle as inside hole, its complement outside."""
    rng = np.random.default_rng(7)
    (root / "images").mkdir(parents=True)
    mapping = {}
    for i in range(pictures):
        ramp = np.linspace(40, 200, width)[None, :, None] + rng.integers(0, 30, (height, width, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(root / "images" / f"{i:09d}.png")
        hole = np.zeros((height, width), dtype=bool)
        hole[10 : 30 + i, 8:28] = True
        mapping[f"{i:09d}"] = {
            "image": f"images/{i:09d}.png",
            "caption": f"ramp number {i}",
            "inpainting_mask": encode_rle(hole, "brushbench"),
            "outpainting_mask": encode_rle(~hole, "brushbench"),
        }
    (root / "mapping_file.json").write_text(json.dumps(mapping))
    return root


class Noise:
    """Seeded noise in the hole; kills the process after a number of pictures where the environment says so."""

    capabilities = Capabilities(text=False, batch=64)

    def __init__(self, fail: str = "", black: str = "", explode: str = "", wrong: str = "") -> None:
        self.fail, self.black, self.explode, self.wrong = fail, black, explode, wrong

    def describe(self) -> Mapping[str, JSON]:
        return {"method": "noise", "fail": self.fail, "black": self.black}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        return [self._one(request) for request in requests]

    def _one(self, request: InpaintRequest) -> Picture:
        if request.id == self.fail or self.fail == "all":
            raise RuntimeError("out of paint")
        if request.id == self.explode:
            os.kill(os.getpid(), signal.SIGKILL)
        if request.id == self.black:
            return np.zeros_like(request.image)
        if request.id == self.wrong:
            return request.image[:-1]
        rng = np.random.default_rng(request.seed)
        picture = request.image.copy()
        picture += rng.integers(0, 3, picture.shape, dtype=np.uint8)
        picture[request.hole] = rng.integers(0, 256, (int(request.hole.sum()), 3), dtype=np.uint8)
        return picture


class Slow(Noise):
    """Noise that takes its time, so that a test can kill it between two pictures."""

    def _one(self, request: InpaintRequest) -> Picture:
        import time

        if pids := os.environ.get("TOY_PIDS"):
            Path(pids, str(os.getpid())).touch()
        time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
        if os.environ.get("TOY_FAILS_IN_JOBS") and multiprocessing.parent_process() is not None:
            raise UsageError("out of paint")
        return super()._one(request)

    def describe(self) -> Mapping[str, JSON]:
        return {"method": "slow noise"}


class Brightness:
    """Mean of the picture; reads three words of a caption, and has no score for pictures of nothing but even ids."""

    protocols = ("standard",)

    def __init__(self, protocol: str = "standard") -> None:
        self.name, self.protocol, self.unit, self.higher_is_better, self.region = "bright", protocol, "", True, "whole"

    def describe(self) -> Mapping[str, JSON]:
        return {"metric": self.name}

    def __call__(
        self, pictures: Sequence[Picture], samples: Sequence[Sample], features: object = None
    ) -> list[float | Unscored]:
        means = [float(picture.mean()) for picture in pictures]
        scores = [Scored(m, CAPTION_CUT) if s.prompt.endswith("2") else m for m, s in zip(means, samples, strict=True)]
        return [m if s.id != "000000001" else Unscored("odd") for m, s in zip(scores, samples, strict=True)]
