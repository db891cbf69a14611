"""The tiny weights in the repository: whole, stock, small, and (slow) as good as their model card says."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from brushbench import assets


@pytest.fixture(scope="module")
def tiny():
    return assets.path("data/tiny")


@pytest.fixture(scope="module")
def parts(tiny):
    from brushbench.tiny.text_to_image import load_text_to_image

    return load_text_to_image(tiny / "base")


def test_every_file_is_the_one_of_the_manifest(tiny):
    manifest = json.loads((tiny / "manifest.json").read_text())
    assert manifest["licence"] == "Apache-2.0"
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tiny / name).read_bytes()).hexdigest() == digest, name
    weights = {path.relative_to(tiny).as_posix() for path in tiny.rglob("*.safetensors")}
    assert weights == {name for name in manifest["files"] if name.endswith(".safetensors")}


def test_a_stock_pipeline_draws_with_them(tiny):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny / "base")
    pipeline.set_progress_bar_config(disable=True)
    assert sum(p.numel() for p in pipeline.unet.parameters()) <= 5_000_000
    picture = pipeline("a large red circle on plain grey", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()


def test_both_branches_repaint_beside_the_base():
    import brushbench

    benchmark = brushbench.load_benchmark("shapes", limit=1)
    requests = [sample.request(seed=0) for sample in benchmark]
    ours = brushbench.load_inpainter("brushnet,steps=2", device="cpu")
    for split in ("inside", "brush"):
        (picture,) = ours.inpaint([request for request in requests if request.split == split])
        assert picture.shape == (64, 64, 3)
        assert picture.std() > 1


def test_latents_have_unit_deviation(parts):
    from brushbench.tiny.vae import encode_unscaled, held_out_pictures

    latents = encode_unscaled(parts.vae, held_out_pictures(48)[0]) * parts.vae.config.scaling_factor
    assert latents.shape[1:] == (4, 16, 16)
    assert float(latents.std()) == pytest.approx(1.0, abs=0.1)


def test_the_judge_knows_the_benchmark(tiny):
    """All references judged by the metric itself, unseen pairs included; the full thresholds are the slow test's."""
    from brushbench.benchmarks.shapes import Shapes
    from brushbench.metrics.attribute_accuracy import AttributeAccuracy

    metric = AttributeAccuracy(device="cpu")
    bench = Shapes(split="inside", limit=120)
    samples = list(bench)
    scores = metric([sample.image for sample in samples], samples)
    assert np.mean(scores) >= 0.97
    strange = [s for s, sample in zip(scores, samples, strict=True) if sample.meta["unseen_pair"] == "yes"]
    assert np.mean(strange) >= 0.9
    wrong = [
        type(s)(s.id, s.image, s.hole, s.prompt, s.split, {**s.meta, "target_colour": other(s)}) for s in samples[:20]
    ]
    assert sum(metric([s.image for s in wrong], wrong)) == 0


def other(sample):
    return "blue" if sample.meta["target_colour"] != "blue" else "yellow"


@pytest.mark.slow
def test_autoencoder_and_classifier_reach_their_thresholds(tiny, parts):
    from brushbench.metrics.attribute_classifier import load_classifier
    from brushbench.tiny.attributes import held_out_accuracy
    from brushbench.tiny.vae import psnr_by_background

    classifier = load_classifier(tiny / "attributes")
    assert held_out_accuracy(classifier) >= 0.97
    assert held_out_accuracy(classifier, parts.vae) >= 0.95
    assert psnr_by_background(parts.vae)["all"] >= 30.0
