"""The driver: what a method is asked, what it may answer, and that each of its capabilities is seen to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brushbench.errors import UsageError, WeightsError
from brushbench.evaluation.sources import Method, NoPicture
from brushbench.types import Capabilities, InpaintRequest, Picture, Sample


class Recorder:
    """Returns each picture with one level added, and remembers what it was asked."""

    def __init__(self, **capabilities: Any) -> None:
        self.capabilities = Capabilities(**{"batch": 16, **capabilities})
        self.calls: list[list[InpaintRequest]] = []
        self.grad: list[bool] = []

    def describe(self) -> dict[str, Any]:
        return {"method": "recorder"}

    def inpaint(self, requests: Sequence[InpaintRequest]) -> list[Picture]:
        self.calls.append(list(requests))
        self.grad.append(torch.is_grad_enabled())
        return [request.image + np.uint8(1) for request in requests]


class Answering(Recorder):
    """Returns what a function makes of the requests."""

    def __init__(self, answer: Callable[[Sequence[InpaintRequest]], Any], **capabilities: Any) -> None:
        super().__init__(**capabilities)
        self.answer = answer

    def inpaint(self, requests: Sequence[InpaintRequest]) -> Any:
        return self.answer(requests)


def make_sample(name: str, height: int = 50, width: int = 70, split: str = "inside") -> Sample:
    image = np.random.default_rng(len(name)).integers(0, 250, (height, width, 3), dtype=np.uint8)
    hole = np.zeros((height, width), dtype=bool)
    hole[10:20, 8:30] = True
    return Sample(name, image, hole, f"caption of {name}", split)


def ask(method: Recorder, *samples: Sample, negative: str = "") -> list[Any]:
    return Method(method).answers(samples, list(range(len(samples))), negative)


def test_a_call_holds_one_split_one_size_and_at_most_batch_requests() -> None:
    method = Recorder(batch=2)
    samples = [make_sample(f"{'x' * i}", 50 if i % 2 else 40, split="brush" if i == 4 else "inside") for i in range(7)]
    answers = ask(method, *samples)
    kinds = [{(r.split, r.image.shape) for r in call} for call in method.calls]
    assert all(len(kind) == 1 for kind in kinds)
    assert [[len(r.id) for r in call] for call in method.calls] == [[0, 2], [6], [1, 3], [5], [4]]
    for sample, answer in zip(samples, answers, strict=True):
        assert (answer == sample.request(0).image + 1).all()


def test_pictures_come_padded_to_the_multiple_and_go_back_as_they_were() -> None:
    method, sample = Recorder(multiple=32), make_sample("a")
    (answer,) = ask(method, sample)
    ((request,),) = method.calls
    assert request.image.shape == (64, 96, 3)
    assert request.hole.shape == (64, 96)
    assert (request.image[50:, :70] == request.image[49, :70]).all()
    assert (request.image[:, 70:] == request.image[:, 69:70]).all()
    assert answer.shape == (50, 70, 3)
    assert (answer == sample.request(0).image + 1).all()


@pytest.mark.parametrize(("side", "size"), [(25, (25, 35)), (100, (100, 140)), (50, (50, 70))])
def test_the_shorter_side_is_brought_to_the_native_size_and_the_result_back(side: int, size: tuple[int, int]) -> None:
    method, sample = Recorder(native_size=side), make_sample("a")
    (answer,) = ask(method, sample)
    ((request,),) = method.calls
    assert request.image.shape == (*size, 3)
    assert answer.shape == (50, 70, 3)
    # No truth: a pixel that stands for any hole pixel is hole, and hole pixels are grey.
    big = np.kron(request.hole, np.ones((2, 2), bool)) if side == 25 else None
    assert big is None or big[sample.hole].all()
    assert (request.image[request.hole] == 127).all()
    assert Method(method).describe()["resize"] == f"shorter side to {side} pixels, Lanczos; hole: any"
    assert "resize" not in Method(Recorder()).describe()


def test_truth_under_the_hole_does_not_leak_through_the_resize() -> None:
    sample = make_sample("a")
    other = replace(sample, image=np.where(sample.hole[..., None], 255 - sample.image, sample.image))
    first, second = Recorder(native_size=33), Recorder(native_size=33)
    ask(first, sample)
    ask(second, other)
    assert (first.calls[0][0].image == second.calls[0][0].image).all()


def test_a_picture_that_the_native_size_would_blow_up_is_failed_alone() -> None:
    method = Recorder(native_size=512)
    wide, whole = ask(method, make_sample("wide", 1, 4000), make_sample("whole"))
    assert isinstance(wide, NoPicture)
    assert "1 x 4000 pixels would be 512 x 2048000" in wide.reason
    assert whole.shape == (50, 70, 3)


def test_prompts_that_a_method_does_not_read_are_not_passed() -> None:
    silent, reader = Recorder(text=False), Recorder(text=True, negative_prompt=True)
    for method in (silent, reader):
        ask(method, make_sample("a"), negative="ugly")
    assert (silent.calls[0][0].prompt, silent.calls[0][0].negative_prompt) == ("", "")
    assert (reader.calls[0][0].prompt, reader.calls[0][0].negative_prompt) == ("caption of a", "ugly")


def test_requests_with_and_without_a_negative_prompt_do_not_share_a_call() -> None:
    method = Recorder(negative_prompt=True)
    Method(method).ask([make_sample("a").request(0), make_sample("a").request(1, "ugly")])
    assert [len(call) for call in method.calls] == [1, 1]


def test_a_method_is_called_without_autograd_unless_it_needs_gradients() -> None:
    plain, guided = Recorder(), Recorder(needs_grad=True)
    with torch.enable_grad():
        ask(plain, make_sample("a"))
    with torch.no_grad():
        ask(guided, make_sample("a"))
    assert (plain.grad, guided.grad) == ([False], [True])


def test_a_reference_line_gets_samples_of_the_same_make() -> None:
    class Line(Recorder):
        def inpaint_reference(self, samples: Sequence[Sample]) -> list[Picture]:
            self.calls.append(list(samples))  # type: ignore[arg-type]
            return [sample.image for sample in samples]

    line = Line(needs_reference=True, multiple=32, batch=1)
    first, second = ask(line, make_sample("a"), make_sample("b"))
    assert [call[0].image.shape for call in line.calls] == [(64, 96, 3), (64, 96, 3)]
    assert (first == make_sample("a").image).all()
    assert (second == make_sample("b").image).all()


@pytest.mark.parametrize(
    "limits", [{"batch": 0}, {"multiple": 1.5}, {"native_size": True}, {"batch": None}, {"background": "none"}]
)
def test_capabilities_that_no_call_can_keep_to_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(limits))} is"):
        Capabilities(**limits)


# Answers --------------------------------------------------------------------------------------------------------------


def as_pil(requests: Sequence[InpaintRequest]) -> list[Image.Image]:
    return [Image.fromarray(request.image) for request in requests]


@pytest.mark.parametrize(
    "answer",
    [
        as_pil,
        lambda requests: np.stack([request.image for request in requests]),
        lambda requests: (request.image for request in requests),
        lambda requests: [np.asfortranarray(request.image) for request in requests],
    ],
)
def test_lists_generators_stacks_and_pil_are_taken(answer: Callable[..., Any]) -> None:
    samples = [make_sample("a"), make_sample("bb")]
    for sample, got in zip(samples, ask(Answering(answer), *samples), strict=True):
        assert (got == sample.request(0).image).all()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda r: None, "returned None, expected a list with one"),
        (lambda r: {"a": r[0].image}, "returned a dict, expected a list"),
        (lambda r: [], "returned 0 pictures, expected 1"),
        (lambda r: [r[0].image, r[0].image], "returned 2 pictures, expected 1"),
        (lambda r: [r[0].image / 255], "returned float64 (50, 70, 3), expected uint8 (50, 70, 3)"),
        (lambda r: [r[0].image[:-1]], "returned uint8 (49, 70, 3), expected uint8 (50, 70, 3)"),
        (lambda r: [Image.fromarray(r[0].image).convert("RGBA")], "returned a PIL picture of mode RGBA, 50 x 70"),
        (lambda r: [np.ma.masked_array(r[0].image)], "returned a MaskedArray: uint8 (50, 70, 3)"),
        (lambda r: [object], "returned a type"),
        (lambda r: {}["x"], "KeyError: 'x'"),
    ],
)
def test_other_answers_are_failed_with_what_was_expected(answer: Callable[..., Any], reason: str) -> None:
    (got,) = ask(Answering(answer), make_sample("a"))
    assert isinstance(got, NoPicture)
    assert got.state == "failed"
    assert reason in got.reason


def test_one_request_that_fails_costs_none_of_its_neighbours() -> None:
    def answer(requests: Sequence[InpaintRequest]) -> list[Picture]:
        if any(request.id == "bb" for request in requests):
            raise RuntimeError("out of paint")
        return [request.image for request in requests]

    first, second, third = ask(Answering(answer), make_sample("a"), make_sample("bb"), make_sample("ccc"))
    assert isinstance(second, NoPicture)
    assert second.reason == "RuntimeError: out of paint"
    assert first.shape == third.shape == (50, 70, 3)


def test_a_short_answer_is_asked_for_again_one_by_one() -> None:
    """Case inpainter_answers: a method that drops a picture ended the run, one that raises there did not."""
    answers = ask(
        Answering(lambda requests: [r.image for r in requests if r.id != "bb"]), make_sample("a"), make_sample("bb")
    )
    assert answers[0].shape == (50, 70, 3)
    assert answers[1].reason == "ValueError: the method returned 0 pictures, expected 1"


def test_one_buffer_for_all_pictures_does_not_make_them_all_the_last_one() -> None:
    buffer = np.zeros((50, 70, 3), dtype=np.uint8)

    def answer(requests: Sequence[InpaintRequest]) -> list[Picture]:
        for request in requests:
            buffer[:] = request.image
        return [buffer] * len(requests)

    samples = [make_sample("a"), make_sample("bb")]
    for sample, got in zip(samples, ask(Answering(answer), *samples), strict=True):
        assert (got == sample.request(0).image).all()


def test_settings_and_weights_that_are_wrong_stop_at_once() -> None:
    def answer(requests: Sequence[InpaintRequest]) -> Any:
        raise WeightsError("the branch is damaged")

    with pytest.raises(WeightsError, match="damaged"):
        ask(Answering(answer), make_sample("a"))


# What is no method ----------------------------------------------------------------------------------------------------


def test_what_is_no_method_is_explained() -> None:
    class Half:
        capabilities = Capabilities()

        def inpaint(self, requests: Any) -> Any: ...

    class Dict(Half):
        capabilities = {"batch": 1}  # type: ignore[assignment]  # noqa: RUF012

        def describe(self) -> dict[str, Any]:
            return {}

    class Line(Dict):
        capabilities = Capabilities(needs_reference=True)

    for found, words in (
        (lambda request: request.image, "Got the function <lambda> as a method"),
        (Recorder, "Got the class Recorder as a method, expected an object: Recorder"),
        (Half(), "Got a Half as a method, without describe"),
        (Image.new("RGB", (2, 2)), "without capabilities, describe, inpaint"),
        (Dict(), "capabilities is a dict, expected Capabilities"),
        (Line(), "has no inpaint_reference"),
    ):
        with pytest.raises(UsageError, match=words):
            Method(found)  # type: ignore[arg-type]


def test_descriptions_hold_paths_numpy_numbers_and_nan_and_name_the_key_of_what_they_cannot() -> None:
    method = Recorder()
    method.describe = lambda: {  # type: ignore[method-assign]
        "path": Path("weights/a"), "scale": np.float32(0.5), "nan": float("nan"), "sizes": (np.int64(3), np.arange(2)),
    }  # fmt: skip
    assert Method(method).describe() == {"path": "weights/a", "scale": 0.5, "nan": "nan", "sizes": [3, [0, 1]]}
    method.describe = lambda: {"deep": {"model": object()}}  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"Recorder\.describe\(\)\['deep'\]\['model'\] is a object, expected texts"):
        Method(method).describe()
    method.describe = lambda: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(UsageError, match=r"describe\(\) returned None, expected a dict"):
        Method(method).describe()
