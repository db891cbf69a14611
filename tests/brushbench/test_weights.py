"""Finding, reading and checking weight files."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from brushbench import assets
from brushbench.errors import MissingWeightsError, WeightsError
from brushbench.weights import (
    Needs,
    WeightFile,
    assemble,
    find_place,
    is_hub_id,
    locate,
    materialise,
    read_json,
    read_shapes,
    read_tensors,
    resolve,
    sha256_file,
)

NEEDS = Needs(
    what="the toy model",
    files=("toy.pt", "toy.safetensors"),
    size="3 bytes",
    licence="MIT",
    source="toys/model (hub)",
    hub=("toys/model",),
    tiny="toy",
)


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def hub_cache(tmp_path, repository: str, name: str, data: bytes):
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / name).write_bytes(data)
    return folder / "snapshots" / "abc" / name


def test_hash_follows_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    assert sha256_file(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"three")
    assert sha256_file(path) == hashlib.sha256(b"three").hexdigest()


def test_a_file_a_folder_and_the_order_in_it(tmp_path):
    for name in ("toy.safetensors", "toy.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(b"x")
        assert resolve(tmp_path / name, NEEDS) == WeightFile(tmp_path / name)
        assert resolve(tmp_path, NEEDS).path.name == name  # each comes before the ones made earlier
    with pytest.raises(MissingWeightsError, match=r"weights\.safetensors, toy\.pt, toy\.safetensors"):
        resolve(assets.path("data"), NEEDS)


def test_caches_are_looked_in_without_the_network(tmp_path):
    assert locate(NEEDS) is None
    with pytest.raises(MissingWeightsError, match="weights=toys/model to download it") as caught:
        resolve(None, NEEDS)
    assert "3 bytes, MIT" in str(caught.value)
    cached = hub_cache(tmp_path, "toys/model", "toy.pt", b"x")
    assert resolve(None, NEEDS).path == resolve("toys/model", NEEDS).path == cached
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "other.pt").write_bytes(b"x")
    other = Needs(what="other", files=("other.pt",), size="", licence="", source="")
    assert resolve(None, other).path.name == "other.pt"


def test_a_hub_id_is_fetched_with_what_belongs_to_it(monkeypatch, tmp_path):
    asked = []

    def snapshot(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        (tmp_path / "toy.pt").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, repository: ["toy.pt", "toy.safetensors"]
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(MissingWeightsError, match="when the metric is used"):
        resolve("else/where", NEEDS, download=False)
    assert not asked
    assert resolve("else/where", NEEDS).path == tmp_path / "toy.pt"
    [(repository, patterns)] = asked
    assert repository == "else/where"
    assert "toy.pt" in patterns
    assert "config.json" in patterns
    assert "toy.safetensors" not in patterns


def test_a_hub_that_fails_or_has_nothing_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository: ["readme.md"])
    with pytest.raises(MissingWeightsError, match="offers none of"):
        resolve("else/where", NEEDS)

    def unreachable(self, repository):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    with pytest.raises(MissingWeightsError, match="no route"):
        resolve("else/where", NEEDS)


def test_nonsense_and_a_missing_tiny_model(tmp_path):
    with pytest.raises(MissingWeightsError, match="neither a file, a folder nor a hub id"):
        resolve(tmp_path / "nowhere", NEEDS)
    with pytest.raises(MissingWeightsError, match="tiny model"):
        resolve("tiny", NEEDS)


def test_tiny_is_marked(monkeypatch, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    monkeypatch.setattr(assets, "path", lambda name: tmp_path if name == "data/tiny/metrics/toy" else None)
    assert resolve("tiny", NEEDS).tiny
    assert resolve("tiny", NEEDS).describe()["tiny"] is True


@pytest.mark.parametrize("wrap", [False, True])
def test_reads_both_forms_alike(tmp_path, wrap):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3} if wrap else tensors, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        found, shapes = read_tensors(tmp_path / name), read_shapes(tmp_path / name)
        assert found.keys() == shapes.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)
        assert all(shapes[key].shape == tensors[key].shape and shapes[key].is_meta for key in tensors)


class Runs:
    """A pickle that runs a command when it is read carelessly."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path, new_format):
    trap = tmp_path / "sprung"
    torch.save({"a": Runs(trap)}, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match="run code"):
        read_tensors(tmp_path / "x.pt")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 cut off")
    for read in (read_tensors, read_shapes):
        with pytest.raises(WeightsError, match=r"damaged|cannot be read"):
            read(tmp_path / name)


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="expected a state dict"):
        read_tensors(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "y.pt")


def test_assemble_uses_every_key_once_and_checks_shapes():
    expected = {"ab": torch.zeros(4), "c": torch.zeros(2, 1)}
    found = {"a": torch.ones(1), "b": torch.ones(3), "t": torch.ones(1, 2)}

    def recipe(name):
        return (("a", "b"), lambda *parts: torch.cat(parts)) if name == "ab" else (("t",), lambda t: t.T)

    made = assemble(expected, found, recipe, what="toy")
    assert {name: tuple(t.shape) for name, t in made.items()} == {"ab": (4,), "c": (2, 1)}
    for change, complaint in (
        ({"b": None}, r"1 missing \(b\)"),
        ({"extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        ({"t": torch.ones(1, 3)}, r"t \(3, 1\) instead of \(2, 1\)"),
        ({"b": torch.ones(3, 3)}, "of another shape"),
    ):
        changed = {key: value for key, value in {**found, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=complaint):
            assemble(expected, changed, recipe, what="toy")
    assemble(expected, {**found, "extra": torch.zeros(1)}, recipe, what="toy", spare=lambda key: key == "extra")


def test_materialise_casts_freezes_and_refuses_nan():
    with torch.device("meta"):
        model = torch.nn.Linear(2, 1)
    tensors = {"weight": torch.ones(1, 2, dtype=torch.float16), "bias": torch.zeros(1, dtype=torch.float16)}
    materialise(model, tensors, what="toy", device=torch.device("cpu"), dtype=torch.float32)
    assert model(torch.ones(1, 2)).item() == 2
    assert model.weight.dtype == torch.float32
    assert not model.weight.requires_grad
    tensors["bias"] = torch.tensor([float("nan")])
    with pytest.raises(WeightsError, match="NaN or infinity in bias"):
        materialise(model, tensors, what="toy", device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("text", ["not json", "[1, 2]"])
def test_a_bad_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


# Tensors that are no plain numbers ------------------------------------------------------------------------------------

STRANGE = {
    "float8": lambda: torch.zeros(2, 3).to(torch.float8_e4m3fn),
    "complex": lambda: torch.zeros(2, 3, dtype=torch.complex64),
    "sparse": lambda: torch.zeros(2, 3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.zeros(2, 3, device="meta"),
    "uint8": lambda: torch.zeros(2, 3, dtype=torch.uint8),
    "int8": lambda: torch.zeros(2, 3, dtype=torch.int8),
    "one value as a million": lambda: torch.zeros(1).expand(1000, 1000),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
def test_a_tensor_of_a_strange_kind_is_refused_by_its_name(tmp_path, kind):
    torch.save({"good": torch.zeros(1), "bad.weight": STRANGE[kind]()}, tmp_path / "x.pt")
    for read in (read_tensors, read_shapes):
        with pytest.raises(WeightsError, match=r"bad\.weight is|holds more than tensors"):
            read(tmp_path / "x.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.complex64])
def test_safetensors_of_a_strange_type_are_refused_by_name(tmp_path, dtype):
    save_file({"good": torch.zeros(1), "bad.weight": torch.zeros(2, 3).to(dtype)}, tmp_path / "x.safetensors")
    for read in (read_tensors, read_shapes):
        with pytest.raises(WeightsError, match=r"bad\.weight is"):
            read(tmp_path / "x.safetensors")


def test_whole_numbers_in_place_of_weights_are_refused():
    with pytest.raises(WeightsError, match=r"w torch\.int64 instead of a float"):
        assemble({"w": torch.zeros(2)}, {"w": torch.zeros(2, dtype=torch.int64)}, what="toy")


def test_json_nested_without_end_is_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="not readable JSON"):
        read_json(tmp_path / "config.json")


def test_one_function_finds_files_folders_trainings_and_hub_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five places told hub ids apart, each by a rule of its own; the output of a training was taken nowhere."""

    def download(hub_id: str) -> str:
        return f"snapshots/{hub_id}"

    monkeypatch.chdir(tmp_path)
    assert find_place("owner/name", download) == Path("snapshots/owner/name")
    (tmp_path / "owner" / "name" / "model").mkdir(parents=True)
    assert find_place("owner/name", download) == Path("owner/name")  # what is here wins
    (tmp_path / "owner" / "name" / "model" / "config.json").touch()
    assert find_place("owner/name", download) == Path("owner/name/model")  # a training's output
    (tmp_path / "owner" / "name" / "config.json").touch()
    (tmp_path / "owner" / "name" / "model" / "training.json").touch()
    assert find_place("owner/name", download) == Path("owner/name/model")  # whatever else the trainer wrote
    (tmp_path / "owner" / "name" / "model" / "training.json").unlink()
    (tmp_path / "owner" / "name" / "model_index.json").touch()
    assert find_place("owner/name", download) == Path("owner/name")  # a pipeline with a part of that name
    assert find_place(tmp_path / "weights.safetensors", download) == tmp_path / "weights.safetensors"
    assert [is_hub_id(text) for text in ("./a", "a/b/c", "~/a", "a", "/a/b", "a,b/c")] == [False] * 6


def test_a_hub_id_that_cannot_be_downloaded_is_one_sentence() -> None:
    def download(hub_id: str) -> str:
        raise RuntimeError("no network")

    with pytest.raises(MissingWeightsError, match=r"owner/name could not be downloaded from the hub \(RuntimeError\)"):
        find_place("owner/name", download)
