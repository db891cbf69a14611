"""LPIPS against the reference package, on a small random backbone file."""

from __future__ import annotations

import warnings

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.features import Features
from brushbench.metrics.lpips import LPIPS
from brushbench.types import Unscored
from tests.reference.metric_folders import make_sample

SIZE = (40, 53)


@pytest.fixture(scope="module")
def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return squeezenet1_1(weights=None)


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    """The form of torchvision's checkpoint: a pickled state dict with the classifier in it."""
    path = tmp_path_factory.mktemp("lpips") / "squeezenet1_1-b8a52dc0.pth"
    torch.save(backbone.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    reference = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    picture = np.clip(reference.astype(int) + rng.integers(-60, 60, (*SIZE, 3)), 0, 255).astype(np.uint8)
    hole = np.zeros(SIZE, dtype=bool)
    hole[10:30, 15:40] = True
    return picture, reference, hole


def package_distance(backbone, a: np.ndarray, b: np.ndarray, spatial: bool) -> np.ndarray:
    """The distance by the lpips package, of float (H, W, 3) in -1..1."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package calls torchvision in an old way
        model = lpips.LPIPS(net="squeeze", pnet_rand=True, spatial=spatial, verbose=False).eval()
    taps = iter(backbone.features)
    for number in range(1, 8):
        for layer in getattr(model.net, f"slice{number}"):
            layer.load_state_dict(next(taps).state_dict())
    tensors = [torch.from_numpy(x).permute(2, 0, 1)[None].float() for x in (a, b)]
    with torch.no_grad():
        return model(*tensors).double().numpy()[0, 0]


def test_published_protocol_equals_the_package_on_blackened_holes(backbone, weights, case):
    picture, reference, hole = case
    a, b = (np.where(hole[..., None], -1, x / 127.5 - 1) for x in (picture, reference))
    expected = package_distance(backbone, a, b, spatial=False).item()
    [score] = LPIPS("brushnet-paper", weights)([picture], [make_sample(reference, hole)])
    assert score == pytest.approx(expected, rel=1e-4)


def test_standard_equals_the_packages_map_over_kept_pixels(backbone, weights, case):
    picture, reference, hole = case
    filled = np.where(hole[..., None], reference, picture)
    full = package_distance(backbone, filled / 127.5 - 1, reference / 127.5 - 1, spatial=True)
    [score] = LPIPS("standard", weights)([picture], [make_sample(reference, hole)])
    assert score == pytest.approx(full[~hole].mean(), rel=1e-4)


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_identity_hole_and_order(weights, case, protocol):
    picture, reference, hole = case
    metric, sample = LPIPS(protocol, weights), make_sample(reference, hole)
    painted = np.where(hole[..., None], 255 - reference, reference)
    nearer = ((picture.astype(int) + 3 * reference.astype(int)) // 4).astype(np.uint8)
    same, only_hole, near, far = metric([reference, painted, nearer, picture], [sample] * 4)
    assert same == only_hole == 0
    assert 0 < near < far


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_batch_size_and_shared_references_change_nothing(weights, case, protocol):
    picture, reference, hole = case
    samples = [make_sample(reference, hole), make_sample(reference), make_sample(reference[:32], hole[:32])]
    pictures = [picture, picture, picture[:32]]
    store = Features()
    together = LPIPS(protocol, weights)(pictures, samples, store)
    again = LPIPS(protocol, weights)(pictures, samples, store)
    alone = [LPIPS(protocol, weights)([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
    assert together == again
    assert together == pytest.approx(alone, rel=1e-5)
    assert store.computed["reference"] == store.shared["reference"] == 2  # a batch per size, once
    assert store.computed["model"] == 1


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_a_batch_scores_each_picture_by_itself(weights, protocol, monkeypatch):
    rng = np.random.default_rng(2)
    references, pictures = rng.integers(0, 256, (2, 5, *SIZE, 3), dtype=np.uint8)
    holes = rng.random((5, *SIZE)) < 0.3
    holes[3] = True  # nothing is kept of one of them
    samples = [make_sample(r, h) for r, h in zip(references, holes, strict=True)]
    metric = LPIPS(protocol, weights)
    together = metric(list(pictures), samples)
    assert metric._most(pictures[0]) >= 5
    monkeypatch.setattr("brushbench.metrics.lpips.CPU_PIXELS", 1)
    assert metric._most(pictures[0]) == 1
    alone = LPIPS(protocol, weights)(list(pictures), samples)
    assert [isinstance(score, Unscored) for score in together] == [protocol == "standard" and i == 3 for i in range(5)]
    for one, other in zip(together, alone, strict=True):
        assert one == other or one == pytest.approx(other, rel=1e-5)
    assert len({score for score in together if isinstance(score, float)}) >= 4
    backwards = LPIPS(protocol, weights)(list(pictures[::-1]), samples[::-1])[::-1]
    assert [s for s in backwards if isinstance(s, float)] == pytest.approx(
        [s for s in together if isinstance(s, float)], rel=1e-5
    )


def test_half_precision_is_near(weights, case):
    picture, reference, hole = case
    sample = make_sample(reference, hole)
    full, half = (LPIPS(weights=weights, dtype=d)([picture], [sample])[0] for d in ("float32", "bfloat16"))
    assert half != full
    assert half == pytest.approx(full, rel=0.1)


def test_nothing_kept(weights, case):
    picture, reference, hole = case
    everything = make_sample(reference, np.ones_like(hole))
    assert LPIPS("brushnet-paper", weights)([picture], [everything]) == [0.0]
    [score] = LPIPS("standard", weights)([picture], [everything])
    assert isinstance(score, Unscored)


def test_too_small_and_another_size(weights, case):
    picture, reference, _ = case
    small, other = LPIPS("standard", weights)(
        [picture[:16], picture[:32]], [make_sample(reference[:16]), make_sample(reference)]
    )
    assert "17x17" in small.reason
    assert "53x32" in other.reason
    [smallest] = LPIPS("standard", weights)([picture[:17, :17]], [make_sample(reference[:17, :17])])
    assert smallest > 0


def test_missing_backbone_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError) as caught:
        LPIPS()
    for reason in (LPIPS.available(), str(caught.value)):
        assert "squeezenet1_1-b8a52dc0.pth" in reason
        assert "weights=" in reason
        assert str(tmp_path / "hub" / "checkpoints") in reason


def test_backbone_is_found_in_the_cache_of_torch(monkeypatch, tmp_path, weights, case):
    picture, reference, _ = case
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / weights.name).write_bytes(weights.read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert LPIPS.available() is None
    assert LPIPS()([picture], [make_sample(reference)]) == LPIPS(weights=weights)([picture], [make_sample(reference)])


def test_wrong_weights_are_named(tmp_path, backbone):
    wrong = {name: value for name, value in backbone.state_dict().items() if name != "features.3.squeeze.bias"}
    wrong["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    wrong["strange"] = torch.zeros(1)
    save_file(wrong, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"features\.3\.squeeze\.bias") as caught:
        LPIPS(weights=tmp_path)
    assert "strange" in str(caught.value)
    assert "(64, 3, 5, 5) instead of (64, 3, 3, 3)" in str(caught.value)


def test_describe_names_the_weights_and_not_their_place(weights):
    described = LPIPS("standard", weights).describe()
    assert described["weights"]["sha256"] == LPIPS("standard", weights).weights.sha256
    assert str(weights.parent) not in str(described)
    assert LPIPS("standard", weights).describe() != LPIPS("brushnet-paper", weights).describe()


def test_no_random_numbers_are_used(weights):
    before = torch.get_rng_state()
    LPIPS(weights=weights)(
        [np.zeros((32, 32, 3), dtype=np.uint8)], [make_sample(np.zeros((32, 32, 3), dtype=np.uint8))]
    )
    assert torch.equal(before, torch.get_rng_state())
