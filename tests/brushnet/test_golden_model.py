"""Parity with the published implementation, tensor by tensor, over whatever cases the golden folder holds.

``--golden DIR`` gives another folder. A case takes part in every check for which it holds the files.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from brushnet import BrushNetModel, BrushNetOutput, inject, injection
from brushnet.guidance import guided_residuals

TOLERANCE = 2e-5  # of max|reference|, float32, one thread


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    root: Path = metafunc.config.getoption("--golden") / "brushnet"
    calls = sorted(root.glob("model_*/*.inputs.safetensors"))
    steps = [
        (folder, variant, step)
        for folder in sorted(root.glob("pipeline_*"))
        if (folder / "unet.safetensors").is_file() and (folder / "brushnet.safetensors").is_file()
        for variant in sorted(folder.glob("variants/*.safetensors"))
        for step in (0, 3)
        if _holds(variant, f"step{step}.mid")
    ]
    choices = {
        "branch_call": [call for call in calls if (call.parent / "brushnet.safetensors").is_file()],
        "unet_call": [call for call in calls if (call.parent / "unet.safetensors").is_file()],
        "recorded_step": steps,
        "from_unet_case": [path.parent for path in sorted(root.glob("*from_unet/brushnet.safetensors"))],
    }
    none = pytest.param(None, marks=pytest.mark.skip(reason="the folder of --golden holds no such case"))
    for name, values in choices.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values or [none], ids=_name if values else None)


def _holds(file: Path, tensor: str) -> bool:
    with safe_open(file, "pt") as tensors:
        return tensor in tensors.keys()  # noqa: SIM118 - it is no mapping


def _name(value: object) -> str:
    if isinstance(value, tuple):
        folder, variant, step = value
        return f"{folder.name}-{variant.stem}-step{step}"
    assert isinstance(value, Path)
    return f"{value.parent.name}-{value.name.split('.')[0]}" if value.is_file() else value.name


@pytest.fixture(autouse=True)
def _as_recorded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@cache
def branch(folder: Path) -> BrushNetModel:
    model = BrushNetModel.from_config(json.loads((folder / "brushnet_config.json").read_text()))
    model.load_state_dict(load_file(folder / "brushnet.safetensors"))
    return model.eval()


@cache
def base(folder: Path) -> UNet2DConditionModel:
    model = UNet2DConditionModel.from_config(json.loads((folder / "unet_config.json").read_text()))
    model.load_state_dict(load_file(folder / "unet.safetensors"))
    return model.eval()


def read(call: Path) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Tensor]]:
    """Return inputs, added conditions and outputs of one recorded call."""
    inputs = load_file(call)
    outputs = load_file(call.with_name(call.name.replace(".inputs.", ".outputs.")))
    added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
    return inputs, added or None, outputs


def recorded(outputs: dict[str, Tensor], prefix: str = "") -> BrushNetOutput:
    def row(kind: str) -> tuple[Tensor, ...]:
        count = sum(key.startswith(f"{prefix}{kind}.") for key in outputs)
        return tuple(outputs[f"{prefix}{kind}.{i}"] for i in range(count))

    return BrushNetOutput(
        down_block_res_samples=row("down"), mid_block_res_sample=outputs[f"{prefix}mid"], up_block_res_samples=row("up")
    )


def parts(output: BrushNetOutput) -> list[Tensor]:
    return [*output.down_block_res_samples, output.mid_block_res_sample, *output.up_block_res_samples]


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest difference, as a share of the largest reference value; exact where the reference is zero."""
    assert ours.shape == reference.shape
    difference, scale = (ours - reference).abs().max().item(), reference.abs().max().item()
    return difference / scale if scale else float("inf") * difference if difference else 0.0


def predict(folder: Path, inputs: dict[str, Tensor], added: dict[str, Tensor] | None) -> Tensor:
    prediction = base(folder)(
        inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], added_cond_kwargs=added
    )
    return prediction.sample


def test_branch_gives_the_published_residuals(branch_call: Path) -> None:
    inputs, added, outputs = read(branch_call)
    options = json.loads((branch_call.parent / "case.json").read_text())["calls"][branch_call.name.split(".")[0]]
    ours = branch(branch_call.parent)(
        **inputs,
        conditioning_scale=options["conditioning_scale"],
        added_cond_kwargs=added,
        guess_mode=options["guess_mode"],
    )
    errors = [error(*pair) for pair in zip(parts(ours), parts(recorded(outputs)), strict=True)]
    assert max(errors) <= TOLERANCE


@pytest.mark.parametrize("only", ["", "down", "mid", "up"])
def test_injected_residuals_give_the_published_prediction(unet_call: Path, only: str) -> None:
    inputs, added, outputs = read(unet_call)
    residuals = recorded(outputs)
    if only:
        kept = {"down": "down_block_res_samples", "mid": "mid_block_res_sample", "up": "up_block_res_samples"}[only]
        silent = BrushNetOutput(*(_zeros(part) for part in residuals.to_tuple()))
        silent[kept] = residuals[kept]
        residuals = silent
    with inject(base(unet_call.parent), residuals):
        prediction = predict(unet_call.parent, inputs, added)
    assert error(prediction, outputs[f"noise_pred.only_{only}" if only else "noise_pred"]) <= TOLERANCE


def test_no_trace_is_left_in_the_unet(unet_call: Path) -> None:
    inputs, added, outputs = read(unet_call)
    with inject(base(unet_call.parent), recorded(outputs)):
        pass
    assert error(predict(unet_call.parent, inputs, added), outputs["noise_pred.no_brushnet"]) <= TOLERANCE


def guided_step(recorded_step: tuple[Path, Path, int]) -> tuple[BrushNetOutput | None, Tensor, dict[str, Tensor]]:
    """Return our residuals and prediction at one step of a recorded pipeline, and what was recorded."""
    folder, variant, step = recorded_step
    tensors, about = load_file(variant), json.loads(variant.with_suffix(".json").read_text())
    options, sample = about["per_step"][step], tensors[f"step{step}.unet_sample"]
    added = {name: tensors[f"unet_{name}"] for name in ("text_embeds", "time_ids") if f"unet_{name}" in tensors}
    # The recorder rounds what it prints; schedulers such as Euler have fractional timesteps.
    timestep = tensors["scheduler.timesteps"][step]
    ours = guided_residuals(
        branch(folder),
        sample,
        timestep,
        tensors["brushnet_cond"],
        guided=len(sample) == 2 * len(tensors["latents_final"]),
        conditioning_scale=options["conditioning_scale"],
        added_cond_kwargs=added,
        guess_mode=options["guess_mode"],
    )
    text = tensors["unet_prompt_embeds"]
    with inject(base(folder), ours):
        prediction = base(folder)(sample, timestep, text, added_cond_kwargs=added or None).sample
    return ours, prediction, tensors


def test_a_guided_step_of_the_published_pipeline(recorded_step: tuple[Path, Path, int]) -> None:
    ours, prediction, tensors = guided_step(recorded_step)
    step = f"step{recorded_step[2]}."
    if ours is not None:
        theirs = parts(recorded(tensors, step))
        rows = len(theirs[0])  # guess mode records the conditional half alone
        assert max(error(a[-rows:], b) for a, b in zip(parts(ours), theirs, strict=True)) <= TOLERANCE
    assert error(prediction, tensors[f"{step}unet_out"]) <= TOLERANCE


def test_from_unet_copies_what_the_published_code_copies(from_unet_case: Path) -> None:
    ours = BrushNetModel.from_unet(base(from_unet_case))
    theirs = load_file(from_unet_case / "brushnet.safetensors")
    config = json.loads((from_unet_case / "brushnet_config.json").read_text())
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    fields = {name: value for name, value in config.items() if not name.startswith("_")}
    assert json.loads(json.dumps({name: ours.config[name] for name in fields})) == fields


def _before_the_attention(block: nn.Module, samplers: nn.ModuleList | None) -> list[nn.Module]:
    return [*block.resnets, *(samplers or ())]


@pytest.mark.parametrize("fault", ["residual in the first skip", "residual before the attention"])
def test_the_parity_check_sees_a_fault(
    recorded_step: tuple[Path, Path, int], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, step = recorded_step
    residuals, right, tensors = guided_step(recorded_step)
    if residuals is None or not any(part.any() for part in parts(residuals)):
        pytest.skip("no residuals at this step: no fault could show")
    assert error(right, tensors[f"step{step}.unet_out"]) <= TOLERANCE
    if fault == "residual before the attention":
        monkeypatch.setattr(injection, "_layers", _before_the_attention)
        _, wrong, _ = guided_step(recorded_step)
    else:
        first = residuals.down_block_res_samples[0]
        hook = base(folder).conv_in.register_forward_hook(lambda _, __, output: output + first)
        _, wrong, _ = guided_step(recorded_step)
        hook.remove()
    assert error(wrong, tensors[f"step{step}.unet_out"]) > 1e-3


def _zeros(part: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return torch.zeros_like(part) if isinstance(part, Tensor) else tuple(map(torch.zeros_like, part))
