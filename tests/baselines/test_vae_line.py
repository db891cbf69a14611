"""The vae line: diffusers' own round trip, at any size, of the reference and not of the request."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from baselines.vae import Vae
from brushbench.errors import MissingWeightsError
from brushbench.evaluation.sources import Method
from brushbench.types import ReferenceInpainter
from tests.baselines.tiny_bases import make_sample, save_base, save_xl_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def test_equals_stock_encode_and_decode(folder):
    sample = make_sample()
    ours = Vae(base=str(folder), device="cpu")
    assert isinstance(ours, ReferenceInpainter)
    assert ours.capabilities.needs_reference
    stock = AutoencoderKL.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        pixels = torch.from_numpy(sample.image.astype(np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        decoded = stock.decode(stock.encode(pixels).latent_dist.mode()).sample[0].permute(1, 2, 0).numpy()
    expected = np.round(np.clip((decoded + 1) / 2, 0, 1) * 255)
    assert np.abs(ours.inpaint_reference([sample])[0].astype(int) - expected).max() <= 1


def test_sizes_may_differ_and_neighbours_do_not_matter(folder):
    ours = Vae(base=str(folder), device="cpu")
    samples = [make_sample(0, 33, 50), make_sample(1), make_sample(2, 33, 50)]
    together = Method(ours).answers(samples, [0] * len(samples), "")
    assert [picture.shape for picture in together] == [sample.image.shape for sample in samples]
    for picture, sample in zip(together, samples, strict=True):
        (alone,) = Method(ours).answers([sample], [0], "")
        assert np.abs(picture.astype(int) - alone.astype(int)).max() <= 1


def test_any_base_and_its_identity(folder, tmp_path):
    ours = Vae(base=str(save_xl_base(tmp_path)), device="cpu")
    assert ours.inpaint_reference([make_sample(0, 32, 32)])[0].shape == (32, 32, 3)
    assert ours.describe() != Vae(base=str(folder), device="cpu").describe()
    with pytest.raises(MissingWeightsError, match="no-such"):
        Vae(base=str(tmp_path / "no-such"))
