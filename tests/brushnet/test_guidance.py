"""One Guide for the pipelines and attach: its window, what it compares, and whose calls of the U-Net it guides."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from brushnet import BrushNetModel, attach, inject
from brushnet.guidance import Guide, Window
from tests.brushnet.tiny import make_branch, make_cond, make_inputs, make_unet, relative
from tests.brushnet.tiny_pipelines import DDIM, generator, make_picture, make_pipe

EMBEDS = {
    name: torch.randn(1, 7, 12, generator=generator(seed))
    for seed, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))
}


def rows_of(brushnet: BrushNetModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write down the batch of every run of the branch."""
    rows: list[int] = []
    forward = brushnet.forward

    def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(brushnet, "forward", counted)
    return rows


def comparisons(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write down every ``torch.equal``: on a GPU each one waits."""
    calls: list[int] = []
    equal = torch.equal

    def counted(*args: Tensor) -> bool:
        calls.append(1)
        return equal(*args)

    monkeypatch.setattr(torch, "equal", counted)
    return calls


def call(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Arguments of a small call of a BrushNet pipeline."""
    image, hole = make_picture(seed)
    fixed = {"image": image, "mask": hole, "num_inference_steps": 4, "output_type": "latent"}
    return {**EMBEDS, **fixed, "generator": generator(seed), **changes}


def stock_call(**changes: Any) -> dict[str, Any]:
    wanted = {"height": 32, "width": 32, **changes}
    return {name: value for name, value in call(**wanted).items() if name not in ("image", "mask")}


def stock_of(pipe: Any, kind: type = StableDiffusionPipeline) -> Any:
    parts = {name: part for name, part in pipe.components.items() if name != "brushnet"}
    stock = kind(**parts | {"scheduler": DDIMScheduler(**DDIM)}, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    return stock


# ---------------------------------------------------------------------------------------------------- window


@pytest.mark.parametrize(
    ("start", "end", "active"), [(0, 1, [0, 1, 2, 3]), (0.25, 0.75, [1, 2]), (0.3, 0.6, []), (0, 0.24, [])]
)
def test_window_counts_whole_steps(start: float, end: float, active: list[int]) -> None:
    assert [step for step in range(4) if Window(start, end).holds(step, 4)] == active


def test_an_attached_branch_had_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe()
    stock = stock_of(pipe)
    image, hole = make_picture()
    window = {"control_guidance_start": 0.25, "control_guidance_end": 0.75}
    expected = pipe(**call(**window)).images
    rows = rows_of(pipe.brushnet, monkeypatch)
    with attach(stock, pipe.brushnet, image, hole, **window):
        for _ in range(2):  # a second call counts its own steps
            assert relative(stock(**stock_call()).images, expected) < 1e-5
    assert rows == [1] * 4
    with (
        pytest.raises(ValueError, match="expected 0 <= start < end <= 1"),
        attach(stock, pipe.brushnet, image, hole, control_guidance_start=1.0),
    ):
        pass


def test_image_to_image_starts_in_the_middle_of_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make_pipe()
    stock = stock_of(pipe, StableDiffusionImg2ImgPipeline)
    image, hole = make_picture()
    options = {**EMBEDS, "image": torch.rand(1, 3, 32, 32), "num_inference_steps": 8, "strength": 0.5}
    for window, steps in ((0.75, 2), (0.25, 4)):
        rows = rows_of(pipe.brushnet, monkeypatch)
        with attach(stock, pipe.brushnet, image, hole, control_guidance_start=window):
            stock(**options, output_type="latent")
        assert len(rows) == steps


# ---------------------------------------------------------------------------------------------------- one comparison


def test_halves_were_compared_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = make_pipe(), comparisons(monkeypatch)
    rows = rows_of(pipe.brushnet, monkeypatch)
    pipe(**call())
    assert rows == [1] * 4
    assert len(calls) == 1  # the latents; one row of conditioning serves both halves


def loop(family: str, brushnet: BrushNetModel, inputs: list[dict[str, Any]], cond: Tensor) -> None:
    """Call a U-Net as a pipeline would, once per entry of ``inputs``, under a Guide."""
    scheduler = DDIMScheduler(**DDIM)
    scheduler.set_timesteps(len(inputs))
    pipe: Any = SimpleNamespace(unet=make_unet(family), scheduler=scheduler)
    guide = Guide(pipe, brushnet, lambda sample: (cond, len(sample) == 2 * len(cond)))
    with torch.no_grad(), guide.at_work(claims_unet=False):
        for timestep, more in zip(scheduler.timesteps, inputs, strict=True):
            pipe.unet(**more | {"timestep": timestep})


def doubled(family: str, draws: int = 2) -> dict[str, Any]:
    inputs = make_inputs(make_unet(family), batch=1)
    inputs["sample"] = torch.cat([torch.randn(1, 4, 8, 8, generator=generator(draws))] * 2)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].repeat(2, 1, 1)
    if "added_cond_kwargs" in inputs:
        inputs["added_cond_kwargs"] = {
            name: torch.cat([part] * 2) for name, part in inputs["added_cond_kwargs"].items()
        }
    return inputs


def test_other_pooled_texts_in_a_later_step_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    brushnet = make_branch(make_unet("sdxl"))
    rows = rows_of(brushnet, monkeypatch)
    same, other = doubled("sdxl"), doubled("sdxl")
    other["added_cond_kwargs"]["text_embeds"][0] += 1
    loop("sdxl", brushnet, [same, same, other, same], make_cond(1))
    assert rows == [1, 1, 2, 1]


def test_pooled_texts_that_change_in_place_are_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    brushnet, inputs = make_branch(make_unet("sdxl")), doubled("sdxl")
    rows: list[int] = []
    forward = brushnet.forward

    def change_after(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        output = forward(sample, *args, **kwargs)
        inputs["added_cond_kwargs"]["text_embeds"][0] += 1
        return output

    monkeypatch.setattr(brushnet, "forward", change_after)
    loop("sdxl", brushnet, [inputs, inputs], make_cond(1))
    assert rows == [1, 2]


def test_latents_whose_halves_differ_later_are_no_silent_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    brushnet, apart = make_branch(make_unet()), doubled("sd", 3)
    apart["sample"][0] += 1
    with pytest.raises(RuntimeError, match="equal at the first step of this call and differed at a later one"):
        loop("sd", brushnet, [doubled("sd"), apart, doubled("sd")], make_cond(1))
    rows = rows_of(brushnet, monkeypatch)
    loop("sd", brushnet, [apart, doubled("sd")], make_cond(1))  # apart from the start: both halves run, always
    assert rows == [2, 2]
    broken = doubled("sd", 3)
    broken["sample"][:, 0] = float("nan")  # equal, though NaN is not equal to itself
    loop("sd", brushnet, [doubled("sd"), broken], make_cond(1))


# ---------------------------------------------------------------------------------------------------- threads


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """Start all works at once; return what they return or raise."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def work(i: int) -> None:
        start.wait()
        try:
            results[i] = works[i]()
        except (RuntimeError, ValueError) as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def twin(pipe: Any) -> Any:
    """The same components with a scheduler of its own, as diffusers advises for threads."""
    other = type(pipe)(**pipe.components | {"scheduler": copy.deepcopy(pipe.scheduler)}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def test_two_threads_on_one_unet_mixed_their_residuals() -> None:
    pipes = [make_pipe()]
    pipes += [twin(pipes[0]), stock_of(pipes[0])]
    calls = [call(0, num_inference_steps=12), call(1, num_inference_steps=12), stock_call(num_inference_steps=12)]
    fresh = [generator(5), generator(6), generator(7)]
    alone = [
        pipe(**one | {"generator": generator(5 + i)}).images
        for i, (pipe, one) in enumerate(zip(pipes, calls, strict=True))
    ]
    works = [lambda i=i: pipes[i](**calls[i] | {"generator": fresh[i]}).images for i in range(3)]
    together = in_threads(*works)
    assert all(map(torch.equal, together, alone))


def test_threads_that_share_a_tokenizer_encode_one_at_a_time() -> None:
    """Without the lock one thread's padding reaches the other's prompt, as in the stock pipelines."""
    pipes = [make_pipe()]
    pipes += [twin(pipes[0]) for _ in range(2)]
    texts = ["a", "a cat", "a long cat"]

    def encode(i: int) -> list[Tensor]:
        return [pipes[i].encode_prompt(texts[i], "cpu", 1, True, "no")[0] for _ in range(60)]

    alone = [encode(i)[0] for i in range(3)]
    together = in_threads(*(lambda i=i: encode(i) for i in range(3)))
    assert all(torch.equal(one, alone[i]) for i in range(3) for one in together[i])


def test_threads_that_each_attach_share_a_unet() -> None:
    pipes = [make_pipe()]
    pipes += [twin(pipes[0])]
    stocks = [stock_of(pipe) for pipe in pipes]

    def attached(i: int) -> Tensor:
        image, hole = make_picture(i)
        with attach(stocks[i], pipes[i].brushnet, image, hole):
            return stocks[i](**stock_call(num_inference_steps=12, generator=generator(i))).images

    alone = [attached(0), attached(1)]
    assert all(map(torch.equal, in_threads(lambda: attached(0), lambda: attached(1)), alone))


def test_a_call_between_the_two_steps_in_which_torch_adds_a_hook_failed() -> None:
    """torch first lists a hook and then that it takes keyword arguments; a call of another thread may come between."""
    pipe = make_pipe()
    inputs = make_inputs(pipe.unet)
    plain = pipe.unet(**inputs).sample
    image, hole = make_picture()
    output = pipe.brushnet(**inputs, brushnet_cond=make_cond())
    for opened in (attach(stock_of(pipe), pipe.brushnet, image, hole), inject(pipe.unet, output)):
        with opened:
            for module in pipe.unet.modules():
                module._forward_pre_hooks_with_kwargs.clear()
                module._forward_hooks.clear()
            (found,) = in_threads(lambda: pipe.unet(**inputs).sample)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("how", ["attach", "inject"])
def test_a_call_by_a_thread_that_injected_nothing_is_refused(how: str) -> None:
    pipe = make_pipe()
    stock, inputs = stock_of(pipe), make_inputs(pipe.unet)
    output = pipe.brushnet(**inputs, brushnet_cond=make_cond())
    image, hole = make_picture()

    def work() -> Tensor:
        return pipe.unet(**inputs).sample

    plain = work()
    with attach(stock, pipe.brushnet, image, hole) if how == "attach" else inject(pipe.unet, output):
        (error,) = in_threads(work)
        assert "Open attach or inject in the thread that calls the U-Net" in str(error)

        def as_advised() -> Tensor:
            with inject(pipe.unet, output):
                return work()

        (advised,) = in_threads(as_advised)
    (after,) = in_threads(work)
    assert torch.equal(after, plain)
    with inject(pipe.unet, output):
        assert torch.equal(advised, work())


def test_an_empty_injection_leaves_other_threads_alone() -> None:
    unet = make_unet()
    inputs = make_inputs(unet)
    with inject(unet):
        (result,) = in_threads(lambda: unet(**inputs).sample)
    assert torch.equal(result, unet(**inputs).sample)


def test_threads_that_come_and_go_leave_no_hooks() -> None:
    unet = make_unet()
    output = make_branch(unet)(**make_inputs(unet), brushnet_cond=make_cond())

    def work() -> None:
        for _ in range(200):
            with inject(unet, output):
                pass

    assert in_threads(work, work, work) == [None] * 3
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in unet.modules())


@pytest.mark.slow
def test_a_compiled_unet_gives_each_thread_its_own_residuals() -> None:
    unet = make_unet("single")
    inputs = make_inputs(unet)
    outputs = [make_branch(unet)(**inputs, brushnet_cond=sign * make_cond()) for sign in (1, -1)]
    torch.compiler.reset()
    with inject(unet):
        compiled: UNet2DConditionModel = torch.compile(unet, backend="eager", fullgraph=True)

        def work(output: Any) -> Tensor:
            with inject(compiled, output):
                return compiled(**inputs).sample

        alone = [work(output) for output in outputs]
        together = in_threads(lambda: work(outputs[0]), lambda: work(outputs[1]))
    torch.compiler.reset()
    assert all(map(torch.equal, together, alone))


# ---------------------------------------------------------------------------------------------------- calls in calls


class Preview(PipelineCallback):
    """Call other pipelines on the same U-Net after each step, as a preview would."""

    tensor_inputs = ("latents",)

    def __init__(self, *pipes_and_calls: tuple[Any, dict[str, Any]]) -> None:
        super().__init__(cutoff_step_ratio=0.5)
        self.pipes_and_calls, self.results = pipes_and_calls, []

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            for pipe, options in self.pipes_and_calls:
                self.results.append(pipe(**options | {"generator": generator(9)}).images)
        return tensors


@pytest.mark.parametrize("kind", ["function", "PipelineCallback"])
def test_a_call_inside_a_callback_got_the_outer_calls_residuals(kind: str) -> None:
    outer = make_pipe()
    inner = [(twin(outer), call(1)), (stock_of(outer), stock_call())]
    expected = outer(**call()).images
    alone = [pipe(**options | {"generator": generator(9)}).images for pipe, options in inner]
    preview = Preview(*inner)
    callback: Any = preview if kind == "PipelineCallback" else lambda *args: preview(*args)
    assert torch.equal(outer(**call(), callback_on_step_end=callback).images, expected)
    assert all(map(torch.equal, preview.results, alone))
