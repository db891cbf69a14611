"""What the trainers' messages advise works: each is carried out as it stands there, in one step of training."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from brushbench import assets
from brushbench.errors import BrushbenchError, DataError
from brushbench.metrics.attribute_classifier import load_classifier
from brushbench.training.brushdata import BrushData
from tests.baselines.single_file import write_single_file
from tests.baselines.tiny_bases import save_base
from tests.brushbench.conftest import Command
from tests.brushbench.test_brushdata import record, write_tar

COMMON = "--cpu --batch-size 1 --max-steps 1 --picture-every 0"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model."""
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first training is kept, for those that begin with one."""
    return tmp_path_factory.mktemp("kept") / "out"


@pytest.fixture
def train(brushbench: Command, small: Path) -> Command:
    """Train a branch beside that base, one step; later options win."""
    return lambda options, code=0: brushbench(
        f"train brushnet --base {small} --masks random --out out {COMMON} {options}", code
    )


def spoil(tmp_path: Path) -> None:
    next((tmp_path / "out" / "checkpoints").iterdir()).write_bytes(b"x")


# what is done first, the command that is refused, what the message advises, and the commands that follow the advice
ADVICE: dict[str, tuple[Callable[[Path], object] | None, str, int, str, list[str]]] = {
    "a folder in use": (
        lambda _: None, "", 2, "Continue it with --resume, or train into another --out.",
        ["--resume --max-steps 2", "--out other"],
    ),
    "other settings": (
        lambda _: None, "--resume --max-steps 2 --seed 3", 3, "Give the same ones again, or train into another --out.",
        ["--resume --max-steps 2", "--max-steps 2 --seed 3 --out other"],
    ),
    "no checkpoint can be read": (spoil, "--resume", 5, "Train into another --out.", ["--out other"]),
    "a file": (None, "--out d/captions.json", 2, "Give a folder.", ["--out other"]),
    "no 8-bit Adam": (
        None, "--adam-8bit", 2, "Run pip install 'brushbench[adam8bit]', or leave --adam-8bit out.", [""],
    ),
    "no branch to go on from": (
        lambda _: None, "--out other --init-from nothing", 5, "expected one, or a hub id",
        ["--out other --max-steps 2 --init-from out/model"],
    ),
    "an unknown base": (
        None, "--base nothing", 2, "a folder of a stock pipeline", ["--base tiny --resolution 64"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_the_advice_of_a_trainer_works(
    case: str, train: Command, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    first, refused, code, advice, instead = ADVICE[case]
    if first is not None:
        if not kept.exists():
            train("")
            shutil.copytree(tmp_path / "out", kept)
        shutil.copytree(kept, tmp_path / "out", dirs_exist_ok=True)
        first(tmp_path)
    assert advice in train(refused, code)
    for options in instead:
        assert "out/model" in train(options).replace("other/model", "out/model")


def test_a_stage_that_is_over_is_continued(train: Command) -> None:
    told = train("--max-steps 3 --max-minutes 0")
    assert "This stage is over before the training is: continue with --resume." in told
    assert "Step 3 of 3" in train("--max-steps 3 --resume")


def test_a_base_is_given_as_a_folder_or_a_file(train: Command, small: Path, tmp_path: Path) -> None:
    told = train(f"--base {tmp_path / 'nothing'}", 5)
    folder, file = re.findall(r"Pass (--base) FOLDER, .* or (--base) FILE\.safetensors", told)[0]
    train(f"{folder} {small}")
    single = write_single_file(small, tmp_path / "single.safetensors")
    for config in ("model_index.json", "scheduler", "tokenizer", "unet", "vae", "text_encoder"):  # their configurations
        (shutil.copytree if (small / config).is_dir() else shutil.copy)(small / config, tmp_path / config)
    train(f"{file} {single} --out other")


def test_the_tars_of_brushdata_are_named_as_the_message_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "shards" / "0.tar", {n: record(n) for n in range(2)})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for wrong, advice in (
        (str(tmp_path / "empty"), "Give the folder of BrushData's shards."),
        ("nothing", "Give the folder of BrushData's shards."),
        ("owner/unreachable", "Check the name and the network, or give the folder of BrushData's tars."),
    ):
        with pytest.raises(DataError, match=re.escape(advice)):
            BrushData(wrong)
    assert len(BrushData(tmp_path / "shards").take(0, 2)) == 2
    whole = (tmp_path / "shards" / "0.tar").read_bytes()
    (tmp_path / "shards" / "0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match="Check the tars"):
        BrushData(tmp_path / "shards").take(0, 1)
    (tmp_path / "shards" / "0.tar").write_bytes(whole)
    BrushData(tmp_path / "shards").take(0, 1)


@pytest.mark.slow
def test_what_the_embedded_models_start_from_is_trained_as_the_messages_say(
    brushbench: Command, tmp_path: Path
) -> None:
    """One step each, in the order in which each message sends to the one before."""
    tiny = "train tiny"
    told = brushbench(f"{tiny} text-to-image --vae nothing --out runs/text_to_image {COMMON}", 5)
    assert "Train one (brushbench train tiny vae --out DIR) and pass DIR/model." in told
    brushbench(f"{tiny} vae --out runs/vae {COMMON}")
    brushbench(f"{tiny} text-to-image --vae runs/vae/model --out runs/text_to_image {COMMON}")
    told = brushbench(f"{tiny} text-to-image --out x {COMMON}", 2)
    assert "Give either the autoencoder to start on (--vae) or the pipeline to go on from (--init-from)." in told
    told = brushbench(f"{tiny} text-to-image --init-from nothing --out x {COMMON}", 5)
    assert "Train one with brushbench train tiny text-to-image." in told
    base = "runs/text_to_image/model"
    brushbench(f"{tiny} text-to-image --init-from {base} --out more {COMMON} --max-steps 2")
    for method in ("controlnet", "sd-inpainting"):
        wrong = f"{tiny} {method} --base {base} --init-from runs/vae --out x {COMMON}"
        assert "Give the model/ of such a training." in brushbench(wrong, 2)
        brushbench(f"{tiny} {method} --base {base} --out runs/{method} {COMMON}")
        brushbench(
            f"{tiny} {method} --base {base} --init-from runs/{method}/model --out more-{method} {COMMON} --max-steps 2"
        )
    told = brushbench(f"{tiny} collect empty --into family", 5)
    assert "Train one, then collect." in told
    assert "Copied" in brushbench(f"{tiny} collect runs --into family")


@pytest.mark.slow
def test_what_a_judge_starts_from_is_trained_as_the_messages_say(brushbench: Command, tmp_path: Path) -> None:
    judges = f"train tiny judges {COMMON} --batch-size 2 --cache-scenes 4"
    told = brushbench(f"{judges} --which hps --clip nothing --out new", 5)
    (which,) = re.findall(
        r"Train one first: brushbench train tiny judges (--which clip), and pass it as --clip\.", told
    )
    brushbench(f"{judges} {which} --out new")
    brushbench(f"{judges} --which hps --clip new/clip/model --out new")
    told = brushbench(f"{judges} --which image_reward --init-from nothing --out new", 5)
    assert "Give a trained image_reward." in told
    brushbench(f"{judges} --which image_reward --out new")
    brushbench(f"{judges} --which image_reward --init-from new/image_reward/model --out more --max-steps 2")


@pytest.mark.slow
def test_a_classifier_of_other_classes_is_trained_anew(brushbench: Command, tmp_path: Path) -> None:
    old = shutil.copytree(assets.path("data/tiny/attributes"), tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    for change in ({"width": 3}, {"colours": ["red"]}):
        (old / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BrushbenchError, match=r"Train it anew\."):
            load_classifier(old)
    brushbench(f"train tiny attributes --out new --cache-scenes 2 {COMMON}")
    load_classifier(tmp_path / "new" / "model")
