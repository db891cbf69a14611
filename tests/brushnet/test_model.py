"""The branch itself: sizes and keys of the real thing, its start from a U-Net, its outputs, saving, and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import brushnet as package
from brushnet import BrushNetModel, BrushNetOutput
from tests.benchmarks import guided_step
from tests.brushnet.tiny import TOPOLOGIES, make_branch, make_cond, make_inputs, make_unet, relative, zero_convs


def residuals(output: BrushNetOutput) -> list[Tensor]:
    return [*output.down_block_res_samples, output.mid_block_res_sample, *output.up_block_res_samples]


# ---------------------------------------------------------------------------------------------------- the package


def test_public_names() -> None:
    assert package.__all__ == sorted(package.__all__) == dir(package)
    assert set(package.__all__) == {
        "BrushNetModel",
        "BrushNetOutput",
        "StableDiffusionBrushNetPipeline",
        "StableDiffusionXLBrushNetPipeline",
        "attach",
        "blend",
        "encode_conditioning",
        "inject",
    }
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith("brushnet.")
    with pytest.raises(AttributeError, match="no attribute 'BrushNet'"):
        _ = package.BrushNet


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, brushnet; print([name for name in ('torch', 'diffusers', 'numpy') if name in sys.modules])"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert printed.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------- real sizes


@pytest.mark.parametrize(("family", "keys", "parameters"), [("sd15", 322, 618_830_080), ("sdxl", 252, 373_332_480)])
def test_keys_shapes_and_config_of_the_published_checkpoints(
    family: str, keys: int, parameters: int, golden_dir: Path
) -> None:
    own = Path(__file__).parents[1] / "golden"
    folder = golden_dir if (golden_dir / "brushnet" / f"keys_{family}.json").is_file() else own
    published = json.loads((folder / "brushnet" / f"keys_{family}.json").read_text())
    with torch.device("meta"):
        from_config = BrushNetModel.from_config(published["brushnet_config"])
        from_unet = BrushNetModel.from_unet(UNet2DConditionModel(**published["unet_config"]))
    for brushnet in (from_config, from_unet):
        shapes = {name: list(tensor.shape) for name, tensor in brushnet.state_dict().items()}
        assert shapes == published["keys"]
        assert list(shapes) == list(published["keys"])  # the order too: optimizer states follow it
        assert len(shapes) == keys
        assert sum(parameter.numel() for parameter in brushnet.parameters()) == parameters == published["n_params"]
    fields = {name: value for name, value in published["brushnet_config"].items() if not name.startswith("_")}
    assert json.loads(json.dumps({name: from_unet.config[name] for name in fields})) == fields


def test_defaults_are_the_released_sd15_configuration() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in BrushNetModel().parameters()) == 618_830_080


def test_a_guided_step_saves_the_arithmetic_of_one_branch_pass() -> None:
    once, both = guided_step.arithmetic()
    assert once / both <= guided_step.MAX_ARITHMETIC
    # Measured on the published code: U-Net 0.803, branch 0.441 TFLOP a sample.
    assert both / 2 == pytest.approx((0.803 + 0.441) * 1e12, rel=2e-3)
    assert both - once == pytest.approx(0.441e12, rel=2e-3)


# ---------------------------------------------------------------------------------------------------- from_unet


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_untrained_branch_is_silent_and_a_copy(topology: str) -> None:
    unet = make_unet(topology)
    brushnet, weights = BrushNetModel.from_unet(unet), unet.state_dict()
    conv = brushnet.conv_in_condition
    assert torch.equal(conv.weight[:, :4], weights["conv_in.weight"])
    assert torch.equal(conv.weight[:, 4:8], weights["conv_in.weight"])
    assert not conv.weight[:, 8].any()
    shared = [name for name in brushnet.state_dict() if name in weights]
    assert any(name.startswith("up_blocks") for name in shared)
    assert all(torch.equal(brushnet.state_dict()[name], weights[name]) for name in shared)
    assert not any(parameter.any() for zero in zero_convs(brushnet) for parameter in zero.parameters())
    output = brushnet(**make_inputs(unet), brushnet_cond=make_cond())
    assert not any(tensor.any() for tensor in residuals(output))


def test_bias_is_not_shared_with_the_unet() -> None:
    """The published code hands out the U-Net's own parameter: freezing or casting the U-Net froze and cast it."""
    unet = make_unet()
    brushnet = BrushNetModel.from_unet(unet)
    theirs = {parameter.data_ptr() for parameter in unet.parameters()}
    assert theirs.isdisjoint(parameter.data_ptr() for parameter in brushnet.parameters())
    unet.requires_grad_(False)
    unet.to(torch.float16)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in brushnet.parameters())


def test_sdxl_embedding_comes_from_the_unet() -> None:
    """The published code leaves it at random values."""
    unet = make_unet("sdxl")
    ours, theirs = BrushNetModel.from_unet(unet).add_embedding.state_dict(), unet.add_embedding.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_from_unet_without_weights_still_starts_silent() -> None:
    unet = make_unet()
    brushnet = BrushNetModel.from_unet(unet, load_weights_from_unet=False)
    assert not torch.equal(brushnet.conv_in_condition.weight[:, :4], unet.conv_in.weight)
    assert not any(tensor.any() for tensor in residuals(brushnet(**make_inputs(unet), brushnet_cond=make_cond())))


def test_from_unet_draws_no_random_numbers() -> None:
    unet, state = make_unet(), torch.get_rng_state()
    BrushNetModel.from_unet(unet)
    assert torch.equal(torch.get_rng_state(), state)


def test_branch_of_a_half_precision_unet_is_float32_for_training() -> None:
    brushnet = BrushNetModel.from_unet(make_unet().half())
    assert {parameter.dtype for parameter in brushnet.parameters()} == {torch.float32}


def test_from_unet_refuses_other_unets() -> None:
    with pytest.raises(ValueError, match=r"reads 9 channels .* not an inpainting one"):
        BrushNetModel.from_unet(make_unet(in_channels=9))
    with pytest.raises(ValueError, match="class_embed_type is 'timestep'"):
        BrushNetModel.from_unet(make_unet(class_embed_type="timestep"))
    with pytest.raises(ValueError, match="lacks 10 weights that its branch needs"):
        BrushNetModel.from_unet(make_unet("text-free", mid_block_type="UNetMidBlock2D"))


# ---------------------------------------------------------------------------------------------------- forward


def features_of(unet: UNet2DConditionModel, inputs: dict[str, Any]) -> list[Tensor]:
    """Record what the U-Net's own layers give at the places of the residuals."""
    places: list[nn.Module] = [unet.conv_in]
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        if block is unet.mid_block:
            places.append(block)
            continue
        sampler = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or []
        places += [*getattr(block, "attentions", block.resnets), *sampler]
    features: list[Tensor] = []

    def write_down(_: nn.Module, __: Any, output: Any) -> None:
        features.append(output[0] if isinstance(output, tuple) else output)

    handles = [place.register_forward_hook(write_down) for place in places]
    unet(**inputs)
    for handle in handles:
        handle.remove()
    return features


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=["even", "odd"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_taps_are_the_unets_own_features(topology: str, size: tuple[int, int]) -> None:
    """With the whole U-Net kept (PowerPaint v2), identity convolutions and no picture, the branch *is* the U-Net."""
    unet = make_unet(topology)
    brushnet = BrushNetModel.from_unet(unet, cross_attention=True).eval().requires_grad_(False)
    for conv in zero_convs(brushnet):
        conv.weight.copy_(torch.eye(conv.in_channels)[:, :, None, None])
    inputs = make_inputs(unet, size=size)
    ours = residuals(brushnet(**inputs, brushnet_cond=torch.zeros(2, 5, *size)))
    theirs = features_of(unet, inputs)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-5


def test_text_has_no_effect_unless_configured() -> None:
    unet = make_unet()
    inputs, cond = make_inputs(unet), make_cond()
    other = inputs | {"encoder_hidden_states": -inputs["encoder_hidden_states"]}
    none = {name: value for name, value in inputs.items() if name != "encoder_hidden_states"}
    for cross_attention in (False, True):
        brushnet = make_branch(unet, cross_attention=cross_attention)
        assert brushnet.uses_text is cross_attention
        first, second = brushnet(**inputs, brushnet_cond=cond), brushnet(**other, brushnet_cond=cond)
        assert torch.equal(first.mid_block_res_sample, second.mid_block_res_sample) is not cross_attention
    with pytest.raises(ValueError, match="needs encoder_hidden_states"):
        brushnet(**none, brushnet_cond=cond)
    without = make_branch(unet)(**none, brushnet_cond=cond)
    assert torch.equal(
        without.mid_block_res_sample, make_branch(unet)(**inputs, brushnet_cond=cond).mid_block_res_sample
    )


def test_powerpaint_v2_configuration() -> None:
    options = {
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    sizes = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 2, "norm_num_groups": 4, "cross_attention_dim": 12}
    brushnet = BrushNetModel(mid_block_type="UNetMidBlock2DCrossAttn", attention_head_dim=2, **options, **sizes)
    sample, text = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 12)
    output = brushnet(sample, 10, make_cond(1, (16, 16)), encoder_hidden_states=text)
    assert (len(output.down_block_res_samples), len(output.up_block_res_samples)) == (12, 15)


@pytest.mark.parametrize("scale", [0.5, 2, 0])
def test_scale_multiplies_every_residual(scale: float) -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet), make_inputs(unet), make_cond()
    ones = residuals(brushnet(**inputs, brushnet_cond=cond))
    scaled = residuals(brushnet(**inputs, brushnet_cond=cond, conditioning_scale=scale))
    assert all(torch.equal(a * scale, b) for a, b in zip(ones, scaled, strict=True))


def test_guess_mode_scales_rise_from_a_tenth_to_one() -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet), make_inputs(unet), make_cond()
    ones = residuals(brushnet(**inputs, brushnet_cond=cond))
    guessed = residuals(brushnet(**inputs, brushnet_cond=cond, conditioning_scale=0.5, guess_mode=True))
    for i, (a, b) in enumerate(zip(ones, guessed, strict=True)):
        assert relative(b, a * 0.5 * 10 ** (i / (len(ones) - 1) - 1)) < 1e-5


def test_global_pooling_averages_and_leaves_guess_mode_out() -> None:
    unet = make_unet()
    inputs, cond, plain = make_inputs(unet), make_cond(), make_branch(unet)
    pooling = BrushNetModel.from_config(plain.config, global_pool_conditions=True)
    pooling.load_state_dict(plain.state_dict())
    ones = residuals(plain(**inputs, brushnet_cond=cond))
    pooled = residuals(pooling(**inputs, brushnet_cond=cond, guess_mode=True))
    assert all(torch.equal(a.mean((2, 3), keepdim=True), b) for a, b in zip(ones, pooled, strict=True))


def test_bgr_flips_all_five_channels_as_published() -> None:
    unet = make_unet()
    inputs, cond = make_inputs(unet), make_cond()
    rgb, bgr = make_branch(unet), make_branch(unet, brushnet_conditioning_channel_order="bgr")
    flipped, ours = rgb(**inputs, brushnet_cond=cond.flip(1)), bgr(**inputs, brushnet_cond=cond)
    assert torch.equal(flipped.mid_block_res_sample, ours.mid_block_res_sample)


def test_every_form_of_a_timestep() -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet), make_inputs(unet), make_cond()
    forms = [501, 501.0, torch.tensor(501), torch.tensor([501]), torch.tensor([501, 501]), torch.tensor(501.0)]
    outputs = [brushnet(**inputs | {"timestep": t}, brushnet_cond=cond).mid_block_res_sample for t in forms]
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    mixed = brushnet(**inputs | {"timestep": torch.tensor([501, 1])}, brushnet_cond=cond).mid_block_res_sample
    assert relative(mixed[:1], outputs[0][:1]) < 1e-5
    assert relative(mixed[1:], outputs[0][1:]) > 1e-3


def test_samples_do_not_meet() -> None:
    unet = make_unet("sdxl")
    brushnet, cond = make_branch(unet), make_cond(3)
    inputs = make_inputs(unet, batch=3)
    whole = residuals(brushnet(**inputs, brushnet_cond=cond))
    added = {name: value[1:2] for name, value in inputs["added_cond_kwargs"].items()}
    one = residuals(brushnet(inputs["sample"][1:2], inputs["timestep"], cond[1:2], added_cond_kwargs=added))
    assert max(relative(a, b[1:2]) for a, b in zip(one, whole, strict=True)) < 1e-5


def test_tuple_instead_of_output() -> None:
    unet = make_unet()
    brushnet, inputs, cond = make_branch(unet), make_inputs(unet), make_cond()
    output = brushnet(**inputs, brushnet_cond=cond)
    down, mid, up = brushnet(**inputs, brushnet_cond=cond, return_dict=False)
    assert torch.equal(mid, output.mid_block_res_sample)
    assert (len(down), len(up)) == (len(output[0]), len(output[2]))


@pytest.mark.parametrize("cross_attention", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(cross_attention: bool) -> None:
    unet, grads = make_unet(), []
    for checkpointing in (False, True):
        brushnet = make_branch(unet, cross_attention=cross_attention).train().requires_grad_(True)
        if checkpointing:
            brushnet.enable_gradient_checkpointing()
            assert brushnet.is_gradient_checkpointing
        output = brushnet(**make_inputs(unet), brushnet_cond=make_cond())
        sum(tensor.square().mean() for tensor in residuals(output)).backward()
        grads.append([parameter.grad for parameter in brushnet.parameters()])
    assert all(grad is not None for grad in grads[0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_half_precision_stays_half() -> None:
    unet = make_unet("sdxl")
    brushnet, inputs = make_branch(unet).bfloat16(), make_inputs(unet)
    inputs["sample"] = inputs["sample"].bfloat16()
    output = brushnet(**inputs, brushnet_cond=make_cond().bfloat16(), guess_mode=True)
    assert {tensor.dtype for tensor in residuals(output)} == {torch.bfloat16}


# ---------------------------------------------------------------------------------------------------- bad input


def test_sdxl_branch_needs_its_conditions() -> None:
    unet = make_unet("sdxl")
    brushnet, inputs = make_branch(unet), make_inputs(unet)
    with pytest.raises(ValueError, match="needs added_cond_kwargs with text_embeds and time_ids; got None"):
        brushnet(inputs["sample"], 1, make_cond())
    with pytest.raises(ValueError, match=r"got the keys \['time_ids'\]"):
        brushnet(inputs["sample"], 1, make_cond(), added_cond_kwargs={"time_ids": torch.ones(2, 6)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"down_block_types": ("DownBlock2D",)}, r"down_block_types is \('DownBlock2D',\); expected 4"),
        ({"up_block_types": ("AttnUpBlock2D",) * 4}, "of UpBlock2D, CrossAttnUpBlock2D"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type is 'UNetMidBlock2D'; .* 'MidBlock2D' or"),
        ({"addition_embed_type": "text"}, "addition_embed_type is 'text'; .* None or 'text_time'"),
        ({"brushnet_conditioning_channel_order": "gbr"}, "'rgb' or 'bgr'"),
        ({"num_class_embeds": 3}, "num_class_embeds is 3"),
    ],
)
def test_configurations_that_do_not_exist(fields: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        BrushNetModel(**fields)
