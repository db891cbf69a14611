from __future__ import annotations

from pathlib import Path

import pytest

from brushbench import registry
from brushbench.errors import UnknownNameError, UsageError
from brushbench.registry import Spec, build, parse_spec, resolve, with_preset

PLUGIN = '''
from pathlib import Path

class Mine:
    """A method."""
    def __init__(self, weights: Path, scale: float = 1.0, fast: bool = False, device: str = "cpu") -> None:
        self.weights, self.scale, self.fast, self.device = weights, scale, fast, device
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return f"{tmp_path / 'mine.py'}:Mine"


def test_a_spec_reads_back_as_it_was_written() -> None:
    text = "brushnet,checkpoint=runs/ck-1000,scale=0.8"
    assert parse_spec(text) == Spec("brushnet", {"checkpoint": "runs/ck-1000", "scale": "0.8"})
    assert str(parse_spec(text)) == text
    assert parse_spec("telea") == Spec("telea", {})


@pytest.mark.parametrize("text", ["", ",a=1", "telea,radius", "telea,=3", "telea,a=1,a=2"])
def test_a_malformed_spec_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(text)


def test_a_file_and_a_module_name_classes(plugin: str) -> None:
    assert resolve("model", plugin).__name__ == "Mine"
    assert resolve("model", "baselines.telea:Telea") is resolve("model", "telea")


def test_options_are_converted_by_the_constructor_s_annotations(plugin: str) -> None:
    mine = build(
        "model", Spec(plugin, {"weights": "w", "scale": "0.5", "fast": "true"}), {"device": "cuda", "dtype": "x"}
    )
    assert (mine.weights, mine.scale, mine.fast, mine.device) == (Path("w"), 0.5, True, "cuda")


def test_a_spec_s_own_option_beats_the_context(plugin: str) -> None:
    assert build("model", Spec(plugin, {"weights": "w", "device": "cpu"}), {"device": "cuda"}).device == "cpu"


def test_wrong_options_are_named(plugin: str) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        build("model", Spec(plugin, {"weights": "w", "scael": "1"}))
    with pytest.raises(UsageError, match="scale='big'"):
        build("model", Spec(plugin, {"weights": "w", "scale": "big"}))
    with pytest.raises(UsageError, match="needs weights"):
        build("model", Spec(plugin, {}))


@pytest.mark.parametrize(
    "name", ["no.such.module:Class", "baselines.telea:Nothing", "/no/such/file.py:Class", ":Class", "m:", ".m:C"]
)
def test_a_path_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        resolve("model", name)


@pytest.mark.parametrize("kind", ["model", "metric", "benchmark"])
def test_every_registered_name_resolves_and_has_a_sentence_about_itself(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        assert resolve(kind, name).__doc__, name


def test_a_preset_reaches_the_methods_that_take_one_and_only_those() -> None:
    assert str(with_preset(parse_spec("brushnet,scale=0.5"), "sd15")) == "brushnet,scale=0.5,preset=sd15"
    assert str(with_preset(parse_spec("brushnet,preset=sdxl"), "sd15")) == "brushnet,preset=sdxl"
    assert str(with_preset(parse_spec("telea"), "sd15")) == "telea"
    assert str(with_preset(parse_spec("brushnet"), None)) == "brushnet"
