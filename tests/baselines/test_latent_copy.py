"""latent-copy: what is pasted, at which noise level, and that nothing of the truth or of a neighbour gets in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.latent_copy import LatentCopy
from baselines.latents import encode_scaled, reduce_hole
from baselines.presets import SCHEDULERS, make_scheduler
from brushbench.errors import MissingWeightsError, UnknownNameError, UsageError
from brushbench.evaluation.sources import Method
from brushbench.registry import Spec, build
from brushbench.types import Inpainter
from tests.baselines.tiny_bases import make_request, make_sample, save_base, save_xl_base

GREY = 127


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def ours(folder):
    """Two UniPC steps; for tests that leave the method as it is."""
    return method(folder)


def method(folder, **options):
    return LatentCopy(base=str(folder), device="cpu", **{"steps": 2, **options})


def differ(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class Recorded:
    """A U-Net that knows the truth: its prediction is the very noise in the latents, for one true picture."""

    def __init__(self, pipe, clean, noise):
        self.pipe, self.clean, self.noise, self.seen = pipe, clean, noise, []
        pipe.unet.forward = self

    def __call__(self, sample, timestep, **_):
        self.seen.append(sample[: len(sample) // 2].clone())
        return (torch.cat([self.noise, self.noise]),)


# Not the ancestral one: its fresh noise at every step is not the initial noise.
@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS.keys() - {"euler_a"}))
def test_pasted_latents_have_the_running_noise_level(folder, scheduler, monkeypatch):
    """With a model that predicts the true noise the latents are right by themselves: pasting must change nothing."""
    ours = method(folder, scheduler=scheduler, steps=4)
    request = make_request()
    seen = {}
    for paste in (True, False):
        if not paste:
            monkeypatch.setattr("baselines.latent_copy._paste", lambda *_: lambda *_: {})
        clean = encode_scaled(ours.pipe.vae, [request.image])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(request.seed))
        # Schedulers start at pure noise; let that noise hold as much of the picture as the first level asks for.
        recorder = Recorded(ours.pipe, clean, noise)
        monkeypatch.setattr("baselines.diffusion.draw_noise", lambda *_, n=noise: n)
        start = start_of(scheduler, ours.pipe, clean, noise, steps=4)
        monkeypatch.setattr(type(ours.pipe), "prepare_latents", lambda *_, s=start, **__: s)
        ours.inpaint([request])
        seen[paste] = recorder.seen
    assert len(seen[True]) == len(seen[False]) >= 4
    for pasted, free in zip(seen[True], seen[False], strict=True):
        assert torch.allclose(pasted, free, atol=2e-4 * float(free.abs().max())), scheduler


def start_of(name, pipe, clean, noise, steps):
    scheduler = make_scheduler(name, pipe.scheduler)
    scheduler.set_timesteps(steps)
    return scheduler.add_noise(clean, noise, scheduler.timesteps[:1])


def test_last_latents_are_the_clean_ones_where_kept_and_the_models_in_the_hole(ours, monkeypatch):
    request = make_request()
    ended = {}
    monkeypatch.setattr(
        "baselines.diffusion.decode_scaled", lambda vae, latents: ended.update(x=latents) or [request.image]
    )
    ours.inpaint([request])
    clean = encode_scaled(ours.pipe.vae, [request.image])
    hole = torch.from_numpy(request.hole.reshape(16, 4, 16, 4).any(axis=(1, 3)))
    same = (ended["x"] == clean).all(dim=1)[0]
    assert torch.equal(same, ~hole)


def test_the_two_reductions_of_the_hole():
    hole = np.zeros((64, 64), dtype=bool)
    hole[5, 9] = hole[8, 12] = True  # inside one block, and at another's top-left pixel
    places = {}
    for reduce in ("any", "nearest"):
        latent = reduce_hole([hole], 4, reduce)
        assert latent.shape == (1, 1, 16, 16)
        places[reduce] = [tuple(place) for place in latent[0, 0].nonzero().tolist()]
    assert places == {"any": [(1, 2), (2, 3)], "nearest": [(2, 3)]}


def test_truth_under_the_hole_does_not_matter(ours):
    sample = make_sample()
    other = sample.image.copy()
    other[sample.hole] = 255 - other[sample.hole]
    first = sample.request(5)
    second = type(sample)(sample.id, other, sample.hole, sample.prompt, sample.split).request(5)
    assert (first.image[first.hole] == GREY).all()
    assert np.array_equal(ours.inpaint([first])[0], ours.inpaint([second])[0])


def test_a_picture_depends_on_its_own_request_alone(ours):
    requests = [make_request(0), make_request(1, 48, 64), make_request(2)]
    together = Method(ours).ask(requests)
    assert [picture.shape for picture in together] == [request.image.shape for request in requests]
    for picture, request in zip(together, requests, strict=True):
        assert picture.dtype == np.uint8
        assert differ(picture, ours.inpaint([request])[0]) <= 1
    again = ours.inpaint([make_request(0)])[0]
    assert np.array_equal(again, ours.inpaint([make_request(0)])[0])
    other_seed = make_sample(0).request(101)
    assert differ(again, ours.inpaint([other_seed])[0]) > 1


def test_the_global_generator_is_left_alone(folder):
    ours = method(folder, scheduler="euler_a")
    state = torch.get_rng_state()
    first = ours.inpaint([make_request()])[0]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    assert np.array_equal(first, ours.inpaint([make_request()])[0])


def test_odd_sizes_come_back_at_their_own_size(ours):
    (picture,) = Method(ours).ask([make_request(0, 50, 61)])
    assert picture.shape == (50, 61, 3)


def test_negative_prompt_and_guidance_matter(ours, monkeypatch):
    plain = ours.inpaint([make_request()])[0]
    assert differ(plain, ours.inpaint([make_request(negative="a blue circle")])[0]) > 0
    monkeypatch.setattr(ours, "guidance", 1.0)
    assert differ(plain, ours.inpaint([make_request()])[0]) > 0


def test_sdxl_base(tmp_path):
    ours = LatentCopy(base=str(save_xl_base(tmp_path)), steps=2, device="cpu")
    assert type(ours.pipe).__name__ == "StableDiffusionXLPipeline"
    requests = [make_request(0, 32, 32), make_request(1, 32, 32, negative="a blue square")]
    together = Method(ours).ask(requests)
    assert differ(together[1], ours.inpaint(requests[1:])[0]) <= 1


def test_description_names_settings_and_weights_but_no_place(folder, tmp_path):
    ours = build("model", Spec("baselines.latent_copy:LatentCopy", {"base": str(folder), "steps": "7"}))
    assert isinstance(ours, Inpainter)
    text = ours.describe()
    assert (text["steps"], text["guidance"], text["scheduler"], text["dtype"]) == (7, 4.0, "unipc", "float32")
    assert set(text["weights"]) == {"unet", "vae", "text_encoder"}
    assert all(len(digest) == 64 for files in text["weights"].values() for digest in files.values())
    assert str(folder) not in str(text)
    assert ours.capabilities.native_size is None
    assert method(folder, size="native").capabilities.native_size == 64


def test_wrong_options_are_refused_in_one_sentence(folder, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'sd15'"):
        LatentCopy(preset="sd16")
    with pytest.raises(UnknownNameError, match="scheduler"):
        method(folder, scheduler="ddimm")
    with pytest.raises(UsageError, match="steps is 0"):
        method(folder, steps=0)
    with pytest.raises(UsageError, match="guidance is nan"):
        method(folder, guidance=float("nan"))
    with pytest.raises(MissingWeightsError, match="base=FOLDER"):
        LatentCopy(base=str(tmp_path / "nothing"))
    with pytest.raises(UnknownNameError, match="dtype"):
        method(folder, dtype="float8")
