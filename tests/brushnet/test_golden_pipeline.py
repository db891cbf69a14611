"""The pipelines against calls recorded from the published implementation, float32 on CPU."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from brushnet import encode_conditioning
from brushnet.conditioning import masked_pixels
from tests.reference import golden_pipelines as golden

TOLERANCE = 2e-5  # of max|reference|


def pytest_generate_tests(metafunc):
    found = golden.variants(metafunc.config.getoption("--golden"))
    metafunc.parametrize(("case", "variant"), found, ids=["-".join(pair) for pair in found])


@pytest.fixture
def record(golden_dir, case, variant):
    folder = golden_dir / "brushnet" / case
    facts = json.loads((folder / "variants" / f"{variant}.json").read_text())
    return folder, facts, load_file(folder / "variants" / f"{variant}.safetensors")


def assert_close(ours, reference, what):
    error = (ours - reference).abs().max() / reference.abs().max()
    assert error <= TOLERANCE, f"{what}: {error:.2e} of the largest reference value"


def test_latents_of_every_step_and_picture(record):
    folder, facts, tensors = record
    steps = []

    def remember(pipe, step, timestep, values):
        steps.append(values["latents"])
        return values

    output = golden.pipeline(folder, facts)(
        **golden.call_arguments(facts, tensors),
        conditioning_latents=tensors["brushnet_cond"],
        callback_on_step_end=remember,
        output_type="pt" if "image_pt" in tensors else "latent",
    )
    for i, latents in enumerate(steps):
        assert_close(latents, tensors[f"step{i}.latents_out"], f"step {i}")
    assert_close(steps[-1], tensors["latents_final"], "final latents")
    if "image_pt" in tensors:
        assert_close(output.images, tensors["image_pt"], "picture")
    else:
        assert torch.equal(output.images, steps[-1])


def test_own_conditioning(record, variant):
    folder, facts, tensors = record
    if variant in golden.OTHER_PICTURES:
        pytest.skip("the recorded picture's hole is not black where its mask is white")
    vae = golden.components(folder)["vae"]
    image, mask = (golden.pictures(folder, facts[key], facts["images_as"]) for key in ("images", "masks"))
    size = {side: facts["call"].get(side) for side in ("height", "width")}
    rows = len(tensors["latents_final"])

    ours = encode_conditioning(vae, image, mask, **size, batch_size=rows)

    recorded = tensors["brushnet_cond"]
    expected = tensors["vae_moments"].chunk(2, dim=1)[0] * vae.config.scaling_factor
    for half in range(len(recorded) // rows):
        part = slice(half * rows, (half + 1) * rows)
        assert_close(ours[:, :4], expected[part], "masked-image latents")
        assert torch.equal(ours[:, 4], recorded[part, 4])
    if "vae_encoder_input" in tensors:
        pixels, _ = masked_pixels(image, mask, 8, **size)
        assert torch.equal(pixels.repeat_interleave(rows // len(pixels), 0), tensors["vae_encoder_input"][:rows])
