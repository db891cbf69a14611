"""EditBench in Google's files and in the re-processed layout, written by hand."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushbench import masks
from brushbench.benchmarks.editbench import EditBench
from brushbench.errors import BadRecordError, DataError, UnknownNameError, UsageError

SIDE = 32
HOLE = np.zeros((SIDE, SIDE), dtype=bool)
HOLE[4:12, 8:24] = True
COLUMNS = ["aos", "prompt_full", "prompt_mask-simple", "prompt_mask-rich"]


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def google(tmp_path: Path) -> Path:
    for kind in ("natural", "generated"):
        for room in ("references", "masks"):
            (tmp_path / f"{room}_{kind}").mkdir()
        rows = []
        for number in (7, 3):
            Image.fromarray(pixels(number)).save(tmp_path / f"references_{kind}" / f"{number}.png")
            Image.fromarray(masks.hole_to_white(HOLE)).save(tmp_path / f"masks_{kind}" / f"{number}.png")
            rows.append([number, f"full {number}, {kind}", f"simple {number}", f"rich {number}"])
        write_table(tmp_path, kind, rows)
    return tmp_path


def write_table(folder: Path, kind: str, rows: list[list[Any]], columns: list[str] = COLUMNS) -> None:
    with (folder / f"annotations_{kind}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_natural_pictures_come_first_in_the_order_of_the_table(google: Path) -> None:
    made = EditBench(google, side=0)
    names = ["natural-7", "natural-3", "generated-7", "generated-3"]
    assert list(made.keys) == [(name, "brush") for name in names]
    sample = made[0]
    np.testing.assert_array_equal(sample.image, pixels(7))
    np.testing.assert_array_equal(sample.hole, HOLE)
    assert sample.prompt == "full 7, natural"
    assert sample.meta == {
        "kind": "natural", "prompt_variant": "full", "prompt_full": "full 7, natural",
        "prompt_mask-simple": "simple 7", "prompt_mask-rich": "rich 7",
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(made)).manifest == made.manifest  # noqa: S301


@pytest.mark.parametrize(("prompt", "start"), [("mask-simple", "simple"), ("mask-rich", "rich")])
def test_the_prompt_and_the_half_can_be_chosen(google: Path, prompt: Any, start: str) -> None:
    made = EditBench(google, prompt=prompt, kind="generated", side=0)
    assert [sample.prompt for sample in made] == [f"{start} 7", f"{start} 3"]
    assert made.manifest["sha256"] != EditBench(google, kind="generated", side=0).manifest["sha256"]


@pytest.mark.parametrize("side", [16, 64, 512])
def test_pictures_are_brought_to_one_side(google: Path, side: int) -> None:
    made = EditBench(google) if side == 512 else EditBench(google, side=side)
    image, hole = made[0].image, made[0].hole
    assert image.shape == (side, side, 3)
    expected = HOLE[::2, ::2] if side == 16 else np.kron(HOLE, np.ones((side // SIDE, side // SIDE), dtype=bool))
    np.testing.assert_array_equal(hole, expected)
    assert abs(image.mean() - pixels(7).mean()) < 3
    assert made.manifest["sha256"] != EditBench(google, side=0).manifest["sha256"]


def test_masks_are_read_as_told(google: Path) -> None:
    for path in google.glob("masks_*/*.png"):
        Image.fromarray(masks.hole_to_white(~HOLE)).save(path)
    np.testing.assert_array_equal(EditBench(google, masks="black", side=0)[0].hole, HOLE)
    np.testing.assert_array_equal(EditBench(google, side=0)[0].hole, ~HOLE)
    for path in google.glob("masks_*/*.png"):
        blacked = pixels(int(path.stem))
        blacked[HOLE] = 2
        Image.fromarray(blacked).save(path)
    np.testing.assert_array_equal(EditBench(google, masks="blacked", side=0)[0].hole, HOLE)


def test_bad_records_are_named(google: Path) -> None:
    (google / "masks_natural" / "3.png").unlink()
    with pytest.raises(BadRecordError, match=r"'natural-3': the mask .*3\.png is missing"):
        EditBench(google)
    assert len(EditBench(google, skip_bad=True)) == 3
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint8)).save(google / "masks_natural" / "3.png")
    with pytest.raises(BadRecordError, match=r"'natural-3': the hole is empty"):
        EditBench(google)
    Image.fromarray(masks.hole_to_white(HOLE[:, :-1])).save(google / "masks_natural" / "3.png")
    with pytest.raises(BadRecordError, match=r"'natural-3': .* is 32 x 31 .*, not square. Set side=0"):
        EditBench(google)
    with pytest.raises(BadRecordError, match=r"'natural-3': the mask .* is 32 x 31, its picture 32 x 32"):
        EditBench(google, side=0)
    write_table(google, "natural", [["../7", "a", "b", "c"]])
    with pytest.raises(BadRecordError, match=r"'natural-\.\./7': its id cannot name a file"):
        EditBench(google)
    write_table(google, "natural", [["7", "", "b", "c"]])
    with pytest.raises(BadRecordError, match="'natural-7': the caption is missing, and the method"):
        EditBench(google).with_captions()


def test_a_missing_half_or_column_is_named(google: Path) -> None:
    write_table(google, "generated", [[1, "a"]], ["aos", "prompt_full"])
    with pytest.raises(DataError, match="lacks the columns prompt_mask-rich, prompt_mask-simple"):
        EditBench(google)
    (google / "annotations_generated.csv").unlink()
    with pytest.raises(DataError, match=r"annotations_generated\.csv is missing.*kind=natural"):
        EditBench(google)
    assert len(EditBench(google, kind="natural")) == 2


def test_wrong_options_are_refused(google: Path) -> None:
    for options in ({"prompt": "ful"}, {"kind": "nature"}, {"masks": "whit"}, {"split": "inside"}):
        with pytest.raises(UnknownNameError):
            EditBench(google, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="side is -1"):
        EditBench(google, side=-1)


# The re-processed copy ------------------------------------------------------------------------------------------------


def reprocessed(folder: Path, **fields: Any) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1)).save(folder / "images" / "a.png")
    mapping = {"a": {"image": "images/a.png", "caption": "a full prompt", **fields}}
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder


RUNS = masks.encode_rle(HOLE, "brushbench")


@pytest.mark.parametrize("key", ["inpainting_mask", "mask", "random_mask"])
def test_the_mask_of_a_mapping_file_is_found_by_itself(tmp_path: Path, key: str) -> None:
    reprocessed(tmp_path / "EditBench", **{key: RUNS, "source": "natural"})
    made = EditBench(tmp_path)
    assert list(made.keys) == [("a", "brush")]
    np.testing.assert_array_equal(made[0].hole, HOLE)
    np.testing.assert_array_equal(made[0].image, pixels(1))
    assert made[0].prompt == "a full prompt"
    assert made[0].meta == {"source": "natural"}


def test_several_masks_need_a_choice(tmp_path: Path) -> None:
    root = reprocessed(tmp_path, mask_a_mask=[1, 2], mask_b_mask=[1, 3])
    with pytest.raises(BadRecordError, match=r"it has several masks, mask_a_mask, mask_b_mask\. Choose one"):
        EditBench(root)
    assert EditBench(root, mask_key="mask_b_mask")[0].hole.sum() == 3
    with pytest.raises(BadRecordError, match="'blob' is missing"):
        EditBench(root, mask_key="blob")


def test_brushbench_is_not_taken_for_editbench(tmp_path: Path) -> None:
    root = reprocessed(tmp_path, inpainting_mask=[1, 4], outpainting_mask=[1, 5])
    with pytest.raises(DataError, match=r"is BrushBench, not EditBench.*Load it as brushbench, or .*mask_key=inp"):
        EditBench(root)
    assert EditBench(root, mask_key="inpainting_mask")[0].hole.sum() == 4  # the remedy


def test_options_of_the_other_layout_are_refused(tmp_path: Path) -> None:
    root = reprocessed(tmp_path, mask=RUNS)
    with pytest.raises(UsageError, match="belong to Google's layout"):
        EditBench(root, prompt="mask-rich")


def test_nothing_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="EditBench is at https://imagen"):
        EditBench(tmp_path)
