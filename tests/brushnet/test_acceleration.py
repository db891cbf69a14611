"""Accelerations: what they leave out, what they do not change, and what they refuse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from brushnet import acceleration
from brushnet.acceleration import Speed, deep_blocks, prepare_branch, prepare_unet
from tests.brushnet.tiny_pipelines import generator, make_picture, make_pipe, make_xl_pipe

STEPS = 6


def latents_of(pipe, speed: Speed, guidance: float = 5.0, batch: int = 2, **options):
    picture, hole = make_picture()
    with speed.at_work(pipe.unet, [pipe.brushnet], batch) as left_out:
        made = pipe(
            prompt=["ab", "c"][:batch], image=[picture] * batch, mask=[hole] * batch, num_inference_steps=STEPS,
            guidance_scale=guidance, generator=[generator(i) for i in range(batch)], output_type="latent", **options,
        ).images  # fmt: skip
    return made, left_out


def count_calls(module: torch.nn.Module) -> list[int]:
    """Return a list to which every call's number of rows is added."""
    seen: list[int] = []
    run = module.forward

    def forward(*args, **kwargs):
        first = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor) and v.dim() > 1)
        seen.append(len(first))
        return run(*args, **kwargs)

    module.forward = forward
    return seen


@pytest.mark.parametrize(
    ("make", "text", "left_out"),
    [
        (make_pipe, "branch-3", {"branch": 4}),
        (make_pipe, "branch-1000", {"branch": 5}),
        (make_pipe, "guidance-2", {"guidance": 3}),
        (make_pipe, "deep-2", {"deep": 3}),
        (make_pipe, "fast", {"branch": 3, "guidance": 4}),
        (make_xl_pipe, "fast", {"branch": 3, "guidance": 4}),
    ],
)
def test_work_is_left_out_in_the_steps_between_and_changes_the_result_little(make, text, left_out) -> None:
    pipe = make()
    exact, _ = latents_of(make(), Speed())
    made, counted = latents_of(pipe, Speed.parse(text))
    blocks = len(deep_blocks(pipe.unet))
    assert counted == {name: n * (blocks if name == "deep" else 1) for name, n in left_out.items()}
    assert torch.isfinite(made).all()
    assert not torch.equal(made, exact)
    assert (made - exact).abs().max() < 1.5 * exact.abs().max()


def test_the_unconditional_half_is_not_computed_between() -> None:
    pipe = make_pipe()
    rows = count_calls(pipe.unet)
    latents_of(pipe, Speed.parse("guidance-3"))
    assert rows == [4, 2, 2, 4, 2, 2]


def test_the_branch_runs_in_every_second_step_only() -> None:
    pipe = make_pipe()
    rows = count_calls(pipe.brushnet)
    latents_of(pipe, Speed.parse("branch-2"))
    assert rows == [2, 2, 2]


def test_the_difference_of_the_guidance_is_used_again_exactly() -> None:
    """Where text and latents do not change, the left-out half is exactly what it would have been."""
    pipe = make_pipe()
    sample, text = torch.randn(1, 4, 4, 4, generator=generator(0)), torch.randn(2, 77, 32, generator=generator(1))
    text = text[..., : pipe.unet.config.cross_attention_dim]
    both = torch.cat([sample, sample])
    with Speed.parse("guidance-2").at_work(pipe.unet, [], 1) as left_out, torch.no_grad():
        first, second = (pipe.unet(both, time, encoder_hidden_states=text).sample for time in (500, 500.0))
    assert left_out == {"guidance": 1}
    assert torch.allclose(first, second, atol=1e-5)


def test_nothing_is_left_behind_in_the_networks() -> None:
    pipe = make_pipe()
    before, _ = latents_of(pipe, Speed())
    latents_of(pipe, Speed.parse("fast"))
    with pytest.raises(ZeroDivisionError), Speed.parse("fast").at_work(pipe.unet, [pipe.brushnet], 2):
        raise ZeroDivisionError
    after, counted = latents_of(pipe, Speed())
    assert torch.equal(before, after)
    assert not counted
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks


def test_an_image_does_not_depend_on_the_call_before_or_its_neighbours() -> None:
    pipe = make_pipe()
    fresh, _ = latents_of(make_pipe(), Speed.parse("fast"))
    latents_of(pipe, Speed.parse("fast"), guidance=2.0)
    again, _ = latents_of(pipe, Speed.parse("fast"))
    assert torch.equal(fresh, again)
    alone, _ = latents_of(pipe, Speed.parse("fast"), batch=1)
    assert torch.allclose(alone, fresh[:1], atol=1e-4)


def test_what_is_not_guided_leaves_no_guidance_out() -> None:
    _, counted = latents_of(make_pipe(), Speed.parse("guidance-2"), guidance=1.0)
    assert not counted


def test_exact_ones_change_rounding_alone() -> None:
    exact, _ = latents_of(make_pipe(), Speed())
    pipe = make_pipe()
    speed = Speed.parse("exact")
    prepare_unet(pipe.unet, speed)
    made, _ = latents_of(pipe, speed)
    assert torch.allclose(made, exact, atol=1e-4)
    fused = [m for m in pipe.unet.modules() if getattr(m, "fused_projections", False)]
    assert fused
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_prepacked_weights_change_rounding_alone_and_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = Speed.parse("prepacked")
    with pytest.raises(ValueError, match=r"'prepacked' does nothing on it\. Leave it out"):
        prepare_unet(make_pipe().unet, speed)
    monkeypatch.setattr(acceleration, "PACKED", 1)
    exact, _ = latents_of(make_pipe(), Speed())
    pipe = make_pipe()
    prepare_unet(pipe.unet, speed)
    prepare_branch(pipe.brushnet, speed)
    made, _ = latents_of(pipe, Speed())
    assert torch.allclose(made, exact, atol=1e-4)
    conv, inputs = pipe.unet.conv_in, torch.randn(1, 4, 8, 8, generator=generator(0))
    with torch.no_grad():
        before = conv(inputs)
        conv.weight.mul_(2)
        doubled = conv(inputs) - conv.bias[:, None, None]
    assert torch.allclose(doubled, 2 * (before - conv.bias[:, None, None]), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("quick", "got 'quick', expected each of these at most once: exact, fast, branch-2"),
        ("branch", "got 'branch'"),
        ("branch-1", "branch is 1, expected 2 to 1000"),
        ("deep-0", "deep is 0, expected 2 to 1000"),
        ("branch-2+branch-3", "got 'branch-3'"),
        ("bf16+bf16", "got 'bf16'"),
        ("branch-٣", "got 'branch-٣'"),
    ],
)
def test_an_unknown_or_doubled_name_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Speed.parse(text)


def test_the_name_of_a_speed_is_the_same_however_it_was_written() -> None:
    assert (
        str(Speed.parse("fast+exact"))
        == str(Speed.parse("exact+fast"))
        == str(Speed.parse("guidance-4+channels-last+branch-2+fused"))
    )
    assert str(Speed.parse("")) == str(Speed.parse("published")) == "published"
    assert Speed.parse(str(Speed.parse("exact+fast"))) == Speed.parse("exact+fast")
    assert Speed.parse("bf16").dtype == "bfloat16"


@pytest.mark.slow
def test_compiled_blocks_change_rounding_alone_and_keep_the_residuals() -> None:
    exact, _ = latents_of(make_pipe(), Speed())
    pipe = make_pipe()
    prepare_unet(pipe.unet, Speed.parse("compiled"))
    made, _ = latents_of(pipe, Speed())
    assert torch.allclose(made, exact, atol=1e-4)
    assert any(part._compiled_call_impl is not None for part in pipe.unet.modules())


def test_a_call_of_another_thread_runs_in_full_and_a_second_acceleration_is_refused() -> None:
    pipe = make_pipe()
    exact, _ = latents_of(make_pipe(), Speed())
    working = Speed.parse("fast+deep-2").at_work(pipe.unet, [pipe.brushnet], 2)
    with ThreadPoolExecutor(1) as other, working as left_out:
        made, _ = other.submit(latents_of, pipe, Speed()).result()
        assert torch.equal(made, exact)
        assert not left_out
        with pytest.raises(ValueError, match="leaves work out of the same U-Net"):
            other.submit(latents_of, pipe, Speed.parse("branch-2")).result()
    _, counted = latents_of(pipe, Speed.parse("branch-3"))  # the remedy: once the first has ended
    assert counted == {"branch": 4}
