"""HPS against open_clip's own text tower and torchvision's resize, in both antialias settings."""

from __future__ import annotations

import warnings

import open_clip
import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from safetensors.torch import load_file

from brushbench.errors import WeightsError
from brushbench.features import Features
from brushbench.metrics.base import PublishedDefectWarning
from brushbench.metrics.clip_model import MEAN, STD, build_model
from brushbench.metrics.hps import HpsV2, HpsV21
from brushbench.types import Scored
from tests.reference.metric_folders import CLIP_CONFIG, make_sample, random_clip, random_pictures

PROMPTS = ("a small red cat", "Café &amp; “quotes” — it's 3 o'clock", "houses by the river " * 30, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_clip(tmp_path_factory.mktemp("hps"), head=False, quick_gelu=False)


def published_pixels(picture, antialias: bool) -> torch.Tensor:
    values = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    height, width = values.shape[1:]
    scale = 56 / max(height, width)
    size = [round(height * scale), round(width * scale)]
    small = tvf.resize(values, size, tvf.InterpolationMode.BICUBIC, antialias=antialias)
    left, top = (56 - size[1]) // 2, (56 - size[0]) // 2
    square = torch.nn.functional.pad(small, (left, 56 - size[1] - left, top, 56 - size[0] - top))
    return tvf.normalize(square, list(MEAN), list(STD))


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_equals_open_clip(folder, protocol):
    with torch.random.fork_rng():
        model = build_model({**CLIP_CONFIG, "quick_gelu": False}).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    pictures = random_pictures(1, (64, 64), (80, 61), (57, 90), (30, 21))
    with torch.no_grad():
        images = model.encode_image(torch.stack([published_pixels(p, protocol == "standard") for p in pictures]))
        texts = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(list(PROMPTS)))
    expected = torch.cosine_similarity(images, texts).tolist()
    metric = HpsV21(protocol, folder)
    samples = [make_sample(p, prompt=t) for p, t in zip(pictures, PROMPTS, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PublishedDefectWarning)
        scores = metric(pictures, samples)
        assert scores == pytest.approx(expected, abs=1e-5)
        alone = [HpsV21(protocol, folder)([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    assert alone == pytest.approx(expected, abs=1e-5)
    assert sum(isinstance(score, Scored) for score in scores) == 1


def test_antialias_is_the_difference_and_is_warned_of_once(folder):
    [picture] = random_pictures(2, (200, 200))
    sample, store = make_sample(picture), Features()
    paper, standard = HpsV21("brushnet-paper", folder), HpsV21("standard", folder)
    with pytest.warns(PublishedDefectWarning, match="without antialias") as caught:
        [a], [b] = paper([picture], [sample], store), paper([picture], [sample], store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [c] = standard([picture], [sample], store)
    assert len(caught) == 1
    assert a == b
    assert abs(a - c) > 1e-4
    assert paper.describe()["antialias"] is False
    assert store.computed == {"model": 1, "image": 2, "text": 1}


def test_versions_are_two_columns_with_files_of_their_own(folder, tmp_path):
    assert (HpsV2.name, HpsV21.name) == ("hps_v2", "hps_v2.1")
    state = load_file(folder / "weights.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"state_dict": {k: v.half() for k, v in state.items()}, "epoch": 1}, tmp_path / "HPS_v2.1_compressed.pt")
    [picture] = random_pictures(3, (64, 64))
    [half], [full] = (HpsV21(weights=w)([picture], [make_sample(picture)]) for w in (tmp_path, folder))
    assert half == pytest.approx(full, abs=1e-2)
    assert HpsV21.available(tmp_path) is None
    assert "HPS_v2_compressed.pt" in HpsV2.available(tmp_path)


def test_another_models_weights_are_refused(folder, tmp_path):
    other = random_clip(tmp_path, embed_dim=16)
    (other / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match="of another shape"):
        HpsV21(weights=other)
