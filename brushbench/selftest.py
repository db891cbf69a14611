"""The gate's self-test: runs that are damaged on purpose, and what the gate says of each.

k6's lesson: make a gate fail once before it is trusted. An identical run passes, another seed does not fail, and every
damage fails or is refused as not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from brushbench.evaluation import evaluate, load_benchmark, load_inpainter
from brushbench.features import Features
from brushbench.gating import Policy, accept, gate
from brushbench.runs import Run
from brushbench.types import JSON, Benchmark, Inpainter, InpaintRequest, Picture

__all__ = ["HEADER", "METRICS", "Damaged", "selftest"]

HEADER = ("what was done", "expected", "verdict", "exit code", "because of")
METRICS = ("psnr", "lpips", "clip_score", "attribute_accuracy")
LIMIT = 240  # all of shapes; with 64 a branch that lost its mask channel is inconclusive
STEPS = 8  # instead of 20: what is damaged shows as well, in less than half the time
SPLIT = "inside"

Answer = Callable[[Inpainter, Sequence[InpaintRequest]], Sequence[Any]]  # pictures, as an inpainter returns them


@dataclass(frozen=True)
class Case:
    """One run to be gated: what was done, and whether the gate must refuse it."""

    what: str
    refused: bool
    method: Inpainter
    seed: int = 1234


class Damaged:
    """A method whose requests or images are damaged on their way."""

    def __init__(self, inner: Inpainter, what: str, answer: Answer) -> None:
        self.inner, self.what, self.answer = inner, what, answer
        self.capabilities = inner.capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the inner method's settings and the damage."""
        return {**self.inner.describe(), "damage": self.what}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> Sequence[Any]:
        """Return the damaged images."""
        return self.answer(self.inner, requests)


class Replay:
    """The images of a run, so that damage done afterwards needs no second generation."""

    def __init__(self, run: Run, inner: Inpainter) -> None:
        self.folder, self.inner, self.capabilities = run.path / "pictures" / SPLIT / "0", inner, inner.capabilities

    def describe(self) -> Mapping[str, JSON]:
        """Return the settings of the method that made the images."""
        return self.inner.describe()

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        """Return the images as they were generated."""
        found = []
        for request in requests:
            with Image.open(self.folder / f"{request.id}.png", formats=("PNG",)) as image:
                found.append(np.asarray(image.convert("RGB")))
        return found


def selftest(notify: Callable[[str], None] = lambda _: None, limit: int = LIMIT) -> tuple[list[list[str]], bool]:
    """Gate runs of the embedded BrushNet on ``shapes``, damaged in ten ways, and say whether each verdict is right.

    Args:
        notify: called with a sentence per run.
        limit: samples; a gate needs at least 64. With fewer than all, the smaller damages may be inconclusive.

    Returns:
        One line per run, in the order of :data:`HEADER`, and whether all verdicts were as expected.
    """
    benchmark = load_benchmark("shapes", SPLIT, limit)
    features = Features()
    lines = []
    with TemporaryDirectory() as folder:

        def run(method: Inpainter, name: str, seed: int = 1234) -> Run:
            notify(f"{name} …")
            return evaluate(
                method, benchmark, out=Path(folder) / name, name=name, metrics=METRICS, variants="raw", seed=seed,
                batch_size=16, features=features,
            )  # fmt: skip

        method = load_inpainter(f"brushnet,steps={STEPS}")
        base, other = run(method, "accepted"), run(method, "another seed for the noise", seed=2)
        file = accept(base, "selftest", "the gate's self-test", noise=other, folder=Path(folder))
        for number, case in enumerate(_cases(method, base, benchmark)):
            verdict = gate(
                base if case.what == "identical" else run(case.method, f"{number}", case.seed), file, Policy()
            )
            refused = verdict.exit_code in (1, 3)
            allowed = (1, 3) if case.refused else (0,) if case.what == "identical" else (0, 4)
            why = "; ".join(c.name for c in verdict.checks if c.result == verdict.verdict) if refused else ""
            lines.append([case.what, _expected(case), verdict.verdict, str(verdict.exit_code), why])
            lines[-1] += [] if verdict.exit_code in allowed else ["WRONG"]
    wrong = [line for line in lines if len(line) > len(HEADER)]
    for line in wrong:
        line[2] += f" ({line.pop()})"
    return lines, not wrong


def _expected(case: Case) -> str:
    if case.refused:
        return "fail or not comparable"
    return "pass" if case.what == "identical" else "not fail"


def _cases(method: Inpainter, base: Run, benchmark: Benchmark) -> Iterator[Case]:
    replay = Replay(base, method)
    yield Case("identical", False, method)
    yield Case("another seed", False, method, seed=3)
    yield Case("JPEG quality 30", True, Damaged(replay, "jpeg", _each(_jpeg)))
    yield Case("blurred", True, Damaged(replay, "blur", _each(_blur)))
    yield Case("one image in ten black", True, Damaged(replay, "black", _black(benchmark)))
    yield Case("hole inverted", True, Damaged(method, "inverted", _inverted))
    yield Case("prompts swapped", True, Damaged(method, "prompts", _swapped(benchmark)))
    yield Case("half the steps", True, load_inpainter(f"brushnet,steps={STEPS // 2}"))
    yield Case("branch scale 0", True, load_inpainter(f"brushnet,steps={STEPS},scale=0"))
    for what, mutate in MUTATIONS.items():
        mutant: Any = load_inpainter(f"brushnet,steps={STEPS}")
        branch = mutant.pipe_for("segmentation").brushnet
        branch.forward = mutate(branch.forward)
        yield Case(what, True, Damaged(mutant, what, lambda inner, requests: inner.inpaint(requests)))


# Damage to images and requests ----------------------------------------------------------------------------------------


def _each(change: Callable[[Image.Image], Image.Image]) -> Answer:
    return lambda inner, requests: [np.asarray(change(Image.fromarray(np.asarray(p)))) for p in inner.inpaint(requests)]


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer, formats=("JPEG",)).convert("RGB")


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.5))


def _black(benchmark: Benchmark) -> Answer:
    struck = {sample for sample, _ in list(benchmark.keys)[::10]}
    return lambda inner, requests: [
        np.zeros_like(picture) if request.id in struck else picture
        for request, picture in zip(requests, inner.inpaint(requests), strict=True)
    ]


def _inverted(inner: Inpainter, requests: Sequence[InpaintRequest]) -> Sequence[Any]:
    return inner.inpaint([replace(request, hole=~request.hole) for request in requests])


def _swapped(benchmark: Benchmark) -> Answer:
    """Give each sample the prompt of the next one."""
    ids = [sample for sample, _ in benchmark.keys]
    prompts = [benchmark[i].prompt for i in range(len(ids))]
    next_one = dict(zip(ids, [*prompts[1:], prompts[0]], strict=True))
    return lambda inner, requests: inner.inpaint([replace(r, prompt=next_one[r.id]) for r in requests])


# Mutations of the model -----------------------------------------------------------------------------------------------


def _no_mask_channel(forward: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(*, brushnet_cond: Any, **options: Any) -> Any:
        cond = brushnet_cond.clone()
        cond[:, -1] = 0
        return forward(brushnet_cond=cond, **options)

    return mutant


def _encoder_half(forward: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(**options: Any) -> Any:
        down, mid, up = forward(**options)
        return down, mid, tuple(residual * 0 for residual in up)

    return mutant


def _wrong_timestep(forward: Callable[..., Any]) -> Callable[..., Any]:
    def mutant(*, timestep: Any, **options: Any) -> Any:
        return forward(timestep=999 - timestep, **options)

    return mutant


MUTATIONS: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "mask channel dropped": _no_mask_channel,
    "residuals on the encoder half only": _encoder_half,
    "wrong timestep": _wrong_timestep,
}
