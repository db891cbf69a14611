"""Residuals inside a stock U-Net: where they enter, that no trace is left, compiling, and the guided step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from brushnet import BrushNetModel, BrushNetOutput, inject
from brushnet.guidance import guided_residuals
from tests.brushnet.tiny import TOPOLOGIES, make_branch, make_cond, make_inputs, make_unet, relative
from tests.reference import naive_injection

Hooks = list[tuple[str, dict[int, Any], dict[int, Any], dict[int, Any], dict[int, Any]]]


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


def residuals_for(unet: UNet2DConditionModel, size: tuple[int, int] = (8, 8)) -> BrushNetOutput:
    inputs = make_inputs(unet, size=size)
    return make_branch(unet)(**inputs, brushnet_cond=make_cond(size=size))


def hooks_of(unet: nn.Module) -> Hooks:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return [(name, *(dict(getattr(module, kind)) for kind in kinds)) for name, module in unet.named_modules()]


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=["even", "odd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_hooks_equal_the_published_walk(topology: str, size: tuple[int, int]) -> None:
    unet = make_unet(topology)
    inputs, output = make_inputs(unet, size=size), residuals_for(unet, size)
    with inject(unet, output):
        prediction = unet(**inputs).sample
    expected = naive_injection.predict(unet, inputs, *output.to_tuple())
    assert relative(prediction, expected) < 1e-5
    assert relative(prediction, unet(**inputs).sample) > 1e-2


def test_layers_per_block_and_heads_of_the_real_sizes() -> None:
    unet = make_unet("sdxl", layers_per_block=2)
    output = residuals_for(unet)
    assert (len(output.down_block_res_samples), len(output.up_block_res_samples)) == (9, 11)
    with inject(unet, output):
        prediction = unet(**make_inputs(unet)).sample
    assert relative(prediction, naive_injection.predict(unet, make_inputs(unet), *output.to_tuple())) < 1e-5


def test_controlnet_and_brushnet_together(unet: UNet2DConditionModel) -> None:
    inputs, output = make_inputs(unet), residuals_for(unet)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4))
        for parameter in controlnet.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        hint = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        down, mid = controlnet(**inputs, controlnet_cond=hint, return_dict=False)
        with inject(unet, output):
            prediction = unet(**inputs, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
    expected = naive_injection.predict(unet, inputs, *output.to_tuple(), controlnet=(down, mid))
    assert relative(prediction, expected) < 1e-5


def test_zero_branch_and_empty_slot_change_nothing(unet: UNet2DConditionModel) -> None:
    inputs = make_inputs(unet)
    plain = unet(**inputs).sample
    untrained = BrushNetModel.from_unet(unet)(**inputs, brushnet_cond=make_cond())
    with inject(unet, untrained):
        assert torch.equal(unet(**inputs).sample, plain)
    with inject(unet) as slot:
        assert torch.equal(unet(**inputs).sample, plain)
        slot.set(residuals_for(unet))
        assert not torch.equal(unet(**inputs).sample, plain)
        slot.set(None)
        assert torch.equal(unet(**inputs).sample, plain)


def test_no_trace_is_left(unet: UNet2DConditionModel) -> None:
    before, plain = hooks_of(unet), unet(**make_inputs(unet)).sample
    with inject(unet, residuals_for(unet)):
        assert hooks_of(unet) != before
    assert hooks_of(unet) == before
    with pytest.raises(KeyError, match="inside"), inject(unet, residuals_for(unet)), inject(unet):
        raise KeyError("inside")
    with pytest.raises(ValueError, match="residuals"), inject(unet, ((), torch.zeros(1), ())):
        pass
    assert hooks_of(unet) == before
    assert torch.equal(unet(**make_inputs(unet)).sample, plain)


def test_foreign_hooks_survive(unet: UNet2DConditionModel) -> None:
    seen: list[int] = []
    unet.mid_block.register_forward_hook(lambda *_: seen.append(1))
    with inject(unet, residuals_for(unet)):
        unet(**make_inputs(unet))
    unet(**make_inputs(unet))
    assert seen == [1, 1]


def test_output_is_read_and_not_emptied(unet: UNet2DConditionModel) -> None:
    output, inputs = residuals_for(unet), make_inputs(unet)
    lists = tuple(list(part) if isinstance(part, tuple) else part for part in output.to_tuple())
    with inject(unet, output):
        first, second = unet(**inputs).sample, unet(**inputs).sample
    with inject(unet, lists):
        third = unet(**inputs).sample
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert len(lists[0]) == len(output.down_block_res_samples) > 0


def test_nested_injections_add(unet: UNet2DConditionModel) -> None:
    output, inputs = residuals_for(unet), make_inputs(unet)
    double = [[2 * r for r in output.down_block_res_samples], 2 * output.mid_block_res_sample]
    double.append([2 * r for r in output.up_block_res_samples])
    with inject(unet, double):
        expected = unet(**inputs).sample
    with inject(unet, output):
        single = unet(**inputs).sample
        with inject(unet, output):
            assert relative(unet(**inputs).sample, expected) < 1e-5
        assert torch.equal(unet(**inputs).sample, single)


def test_residuals_come_to_the_features_dtype(unet: UNet2DConditionModel) -> None:
    output, inputs = residuals_for(unet), make_inputs(unet)
    inputs |= {
        "sample": inputs["sample"].bfloat16(),
        "encoder_hidden_states": inputs["encoder_hidden_states"].bfloat16(),
    }
    with inject(unet.bfloat16(), output):
        assert unet(**inputs).sample.dtype == torch.bfloat16


def test_pooled_residuals_spread_over_the_features(unet: UNet2DConditionModel) -> None:
    down, mid, up = residuals_for(unet).to_tuple()
    pooled = [[r.mean((2, 3), keepdim=True) for r in down], mid.mean((2, 3), keepdim=True)]
    pooled.append([r.mean((2, 3), keepdim=True) for r in up])
    spread = [[p.expand_as(r) for p, r in zip(pooled[0], down, strict=True)], pooled[1].expand_as(mid)]
    spread.append([p.expand_as(r) for p, r in zip(pooled[2], up, strict=True)])
    predictions = []
    for residuals in (pooled, spread):
        with inject(unet, residuals):
            predictions.append(unet(**make_inputs(unet)).sample)
    assert torch.equal(*predictions)


def test_gradients_reach_the_branch_through_a_frozen_checkpointed_unet(unet: UNet2DConditionModel) -> None:
    inputs, grads = make_inputs(unet), []
    for checkpointing in (False, True):
        brushnet = make_branch(unet).train().requires_grad_(True)
        if checkpointing:
            brushnet.enable_gradient_checkpointing()
            unet.enable_gradient_checkpointing()
            unet.train()
        with inject(unet, brushnet(**inputs, brushnet_cond=make_cond())):
            prediction = unet(**inputs).sample
        prediction.square().mean().backward()  # outside: recomputing needs no hooks
        grads.append([parameter.grad for parameter in brushnet.parameters()])
    assert all(grad is not None and grad.isfinite().all() for grad in grads[1])
    assert max(relative(b, a) for a, b in zip(*grads, strict=True) if a.any()) < 1e-4


def test_injections_may_end_in_any_order(unet: UNet2DConditionModel) -> None:
    output, inputs, before = residuals_for(unet), make_inputs(unet), hooks_of(unet)
    outer, inner = inject(unet), inject(unet, output)
    outer.__enter__()
    inner.__enter__()
    expected = unet(**inputs).sample
    outer.__exit__(None, None, None)
    assert torch.equal(unet(**inputs).sample, expected)
    inner.__exit__(None, None, None)
    assert hooks_of(unet) == before


# ---------------------------------------------------------------------------------------------------- bad input


def test_other_counts_are_refused(unet: UNet2DConditionModel) -> None:
    with (
        pytest.raises(ValueError, match=r"6 residuals for the way down .* takes 4 and 5"),
        inject(unet, residuals_for(make_unet("mixed"))),
    ):
        pass


def test_other_shapes_are_refused(unet: UNet2DConditionModel) -> None:
    with inject(unet, residuals_for(unet)), pytest.raises(ValueError, match=r"has the shape \(2, 16, 8, 8\).*\(1, 16"):
        unet(**make_inputs(unet, batch=1))


def test_other_blocks_and_networks_are_refused(unet: UNet2DConditionModel) -> None:
    attn = make_unet("text-free", down_block_types=("AttnDownBlock2D", "DownBlock2D"))
    with pytest.raises(ValueError, match="no residuals for AttnDownBlock2D"), inject(attn):
        pass
    with pytest.raises(ValueError, match="no mid block"), inject(make_unet("text-free", mid_block_type=None)):
        pass
    with pytest.raises(TypeError, match="UNet2DConditionModel; got Linear"), inject(nn.Linear(1, 1)):
        pass


# ---------------------------------------------------------------------------------------------------- torch.compile


class Counting:
    """A compiling backend that runs the traced graph as it is and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_unet_compiled_inside_an_injection_takes_residuals() -> None:
    unet, backend = make_unet("single"), Counting()
    inputs, first = make_inputs(unet), residuals_for(unet)
    second = make_branch(unet)(**inputs, brushnet_cond=-make_cond())
    plain = unet(**inputs).sample
    expected = []
    for output in (first, second):
        with inject(unet, output):
            expected.append(unet(**inputs).sample)

    with inject(unet):  # the outer injection brings the hooks, the inner ones the residuals
        compiled = torch.compile(unet, backend=backend, fullgraph=True)
        with inject(compiled) as slot:
            for output, prediction in zip((first, second), expected, strict=True):
                slot.set(output)
                assert relative(compiled(**inputs).sample, prediction) < 1e-5
        assert backend.graphs == 1  # other residuals need no other graph
    assert relative(compiled(**inputs).sample, plain) < 1e-5


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_branch_gives_the_same() -> None:
    unet, backend = make_unet("single"), Counting()
    brushnet, inputs = make_branch(unet), make_inputs(unet)
    compiled = torch.compile(brushnet, backend=backend, fullgraph=True)
    sample = torch.cat([inputs["sample"][:1]] * 2)
    options: dict[str, Any] = {"guided": True, "brushnet_cond": make_cond(1)}
    ours = guided_residuals(compiled, sample, torch.tensor(501), **options)
    expected = guided_residuals(brushnet, sample, torch.tensor(501), **options)
    guided_residuals(compiled, sample, torch.tensor(21), **options)
    assert backend.graphs == 1
    assert ours is not None
    assert expected is not None
    for a, b in zip(ours.up_block_res_samples, expected.up_block_res_samples, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_inductor_runs_unet_and_branch() -> None:
    unet = make_unet()
    brushnet, inputs = make_branch(unet), make_inputs(unet)
    output = brushnet(**inputs, brushnet_cond=make_cond())
    with inject(unet, output):
        expected = unet(**inputs).sample
    with torch.no_grad(), inject(unet) as slot:
        slot.set(torch.compile(brushnet)(**inputs, brushnet_cond=make_cond()))
        assert relative(torch.compile(unet)(**inputs).sample, expected) < 1e-4


@pytest.mark.parametrize("part", ["whole", "in place", "block", "layer"])
def test_hooks_that_torch_would_ignore_are_refused(unet: UNet2DConditionModel, part: str) -> None:
    before: nn.Module = unet
    if part == "whole":
        before = torch.compile(unet, backend="eager")
    elif part == "in place":
        unet.compile(backend="eager")
    elif part == "block":
        unet.down_blocks[0] = torch.compile(unet.down_blocks[0], backend="eager")
    else:
        unet.up_blocks[1].attentions[0].compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"compiled before the injection.*Compile it inside"), inject(before):
        pass


def test_compiled_transformer_blocks_are_welcome(unet: UNet2DConditionModel) -> None:
    output, inputs = residuals_for(unet), make_inputs(unet)
    with inject(unet, output):
        expected = unet(**inputs).sample
    regional = copy.deepcopy(unet)
    regional.compile_repeated_blocks(backend="eager")  # the hooks sit outside of them
    with inject(regional, output):
        assert relative(regional(**inputs).sample, expected) < 1e-5


# ---------------------------------------------------------------------------------------------------- the guided step


class Counted:
    """Stand in for ``BrushNetModel.forward``, writing down the batch of every call."""

    def __init__(self, brushnet: BrushNetModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        forward = brushnet.forward

        def counted(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.rows.append(len(sample))
            return forward(sample, *args, **kwargs)

        monkeypatch.setattr(brushnet, "forward", counted)


def guided_inputs(unet: UNet2DConditionModel, pooled: str = "same") -> dict[str, Any]:
    inputs = make_inputs(unet, batch=2)
    inputs["sample"] = torch.cat([inputs["sample"]] * 2)
    del inputs["encoder_hidden_states"]
    if "added_cond_kwargs" in inputs:
        added = {name: torch.cat([value] * 2) for name, value in inputs["added_cond_kwargs"].items()}
        if pooled == "different":
            added["text_embeds"][:2] += 1
        inputs["added_cond_kwargs"] = added
    return inputs


def all_of(output: BrushNetOutput | None) -> list[Tensor]:
    assert output is not None
    return [*output.down_block_res_samples, output.mid_block_res_sample, *output.up_block_res_samples]


@pytest.mark.parametrize(
    ("topology", "pooled", "cond", "rows"),
    [
        ("sd", "same", "B", [2]),
        ("sd", "same", "2B", [2]),
        ("sd", "same", "2B different", [4]),
        ("sdxl", "same", "B", [2]),
        ("sdxl", "different", "B", [4]),
    ],
)
def test_branch_runs_once_where_both_halves_are_equal(
    topology: str, pooled: str, cond: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = make_unet(topology)
    brushnet, inputs = make_branch(unet), guided_inputs(unet, pooled)
    given = make_cond(2) if cond == "B" else torch.cat([make_cond(2)] * 2)
    whole = torch.cat([make_cond(2)] * 2)
    if cond == "2B different":
        given[:2, :4] += 1
        whole = given
    expected = all_of(brushnet(**inputs, brushnet_cond=whole, conditioning_scale=0.7))
    counted = Counted(brushnet, monkeypatch)
    ours = all_of(guided_residuals(brushnet, **inputs, brushnet_cond=given, guided=True, conditioning_scale=0.7))
    assert counted.rows == rows
    assert max(relative(a, b) for a, b in zip(ours, expected, strict=True)) < 1e-5


def test_other_latents_in_each_half_need_both(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    brushnet, inputs = make_branch(unet), guided_inputs(unet)
    inputs["sample"][0] += 1
    counted = Counted(brushnet, monkeypatch)
    guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(2), guided=True)
    guided_residuals(brushnet, **inputs, brushnet_cond=torch.cat([make_cond(2)] * 2), guided=False)
    assert counted.rows == [4, 4]


def test_a_timestep_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet), guided_inputs(unet), torch.cat([make_cond(2)] * 2)
    counted = Counted(brushnet, monkeypatch)
    for steps in (torch.tensor([9, 8, 9, 8]), torch.tensor([9, 8, 7, 6])):
        inputs["timestep"] = steps
        ours = all_of(guided_residuals(brushnet, **inputs, brushnet_cond=cond, guided=True))
        expected = all_of(brushnet(**inputs, brushnet_cond=cond))
        assert max(relative(a, b) for a, b in zip(ours, expected, strict=True)) < 1e-5
    assert counted.rows == [2, 4, 4, 4]


def test_branch_with_text_runs_twice_unless_its_texts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    brushnet, inputs = make_branch(unet, cross_attention=True), guided_inputs(unet)
    text = make_inputs(unet, batch=4)["encoder_hidden_states"]
    counted = Counted(brushnet, monkeypatch)
    for states in (text, text[:2], torch.cat([text[:2]] * 2)):
        guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(2), guided=True, encoder_hidden_states=states)
    assert counted.rows == [4, 2, 2]


def test_a_branch_with_text_of_another_dtype_than_the_unet() -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet, cross_attention=True), guided_inputs(unet), make_cond(2)
    text = make_inputs(unet, batch=2)["encoder_hidden_states"].bfloat16()
    inputs["sample"] = inputs["sample"].bfloat16()
    low = all_of(guided_residuals(brushnet, **inputs, brushnet_cond=cond, guided=True, encoder_hidden_states=text))
    inputs["sample"], text = inputs["sample"].float(), text.float()
    high = all_of(guided_residuals(brushnet, **inputs, brushnet_cond=cond, guided=True, encoder_hidden_states=text))
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))


@pytest.mark.parametrize("topology", ["sd", "sdxl"])
def test_guess_mode_guides_the_conditional_half_alone(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet(topology)
    brushnet, inputs, cond = make_branch(unet), guided_inputs(unet, "different"), make_cond(2)
    half = {"sample": inputs["sample"][2:], "timestep": inputs["timestep"], "brushnet_cond": cond, "guess_mode": True}
    if "added_cond_kwargs" in inputs:
        half["added_cond_kwargs"] = {name: value[2:] for name, value in inputs["added_cond_kwargs"].items()}
    expected = all_of(brushnet(**half))
    counted = Counted(brushnet, monkeypatch)
    for given in (cond, torch.cat([-cond, cond])):
        ours = all_of(guided_residuals(brushnet, **inputs, brushnet_cond=given, guided=True, guess_mode=True))
        assert all(
            not tensor[:2].any() and torch.equal(tensor[2:], b) for tensor, b in zip(ours, expected, strict=True)
        )
    assert counted.rows == [2, 2]


def test_scale_zero_leaves_the_branch_out(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make_unet()
    brushnet, inputs = make_branch(unet), guided_inputs(unet)
    counted = Counted(brushnet, monkeypatch)
    silent = guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(2), guided=True, conditioning_scale=0)
    assert silent is None
    assert counted.rows == []
    zeros = brushnet(**inputs, brushnet_cond=torch.cat([make_cond(2)] * 2), conditioning_scale=0.0)
    assert not any(tensor.any() for tensor in all_of(zeros))


def test_guided_step_refuses_what_does_not_fit() -> None:
    unet = make_unet()
    brushnet, inputs = make_branch(unet), guided_inputs(unet)
    with pytest.raises(ValueError, match="brushnet_cond has 3 rows; the U-Net's batch of 4 asks for 4 or 2"):
        guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(3), guided=True)
    with pytest.raises(ValueError, match="brushnet_cond has 2 rows; the U-Net's batch of 4 asks for 4"):
        guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(2), guided=False)
    for scale in ("1", [1.0], float("nan"), None):
        with pytest.raises(TypeError, match="conditioning_scale must be one finite number"):
            guided_residuals(brushnet, **inputs, brushnet_cond=make_cond(2), guided=True, conditioning_scale=scale)
