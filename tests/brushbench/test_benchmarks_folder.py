"""A plain folder of pictures and masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brushbench import masks
from brushbench.benchmarks.base import brush_hole
from brushbench.benchmarks.folder import Folder
from brushbench.errors import BadRecordError, DataError, UnknownNameError

HEIGHT, WIDTH = 20, 32
HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[4:9, 6:20] = True


def save_picture(path: Path, pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(len(path.stem)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("zebra", "apple"):
        save_picture(tmp_path / "images" / f"{name}.png")
        save_picture(tmp_path / "masks" / f"{name}.png", masks.hole_to_white(HOLE))
    (tmp_path / "captions.json").write_text(json.dumps({"apple": "an apple", "zebra.png": "a zebra"}))
    return tmp_path


def test_pictures_and_masks_load_in_the_order_of_their_names(root: Path) -> None:
    made = Folder(root)
    assert list(made.keys) == [("apple", "brush"), ("zebra", "brush")]
    assert [sample.prompt for sample in made] == ["an apple", "a zebra"]
    for sample in made:
        np.testing.assert_array_equal(sample.hole, HOLE)


def test_flat_masks_make_the_split_that_is_asked_for(root: Path) -> None:
    assert [split for _, split in Folder(root, holes="inside").keys] == ["inside"] * 2
    with pytest.raises(UnknownNameError, match="'inside'"):
        Folder(root, holes="insid")  # type: ignore[arg-type]


def test_a_folder_of_masks_a_split(root: Path) -> None:
    for split, hole in [("outside", ~HOLE), ("inside", HOLE)]:
        for name in ("zebra", "apple"):
            save_picture(root / "masks" / split / f"{name}.PNG", masks.hole_to_white(hole))
    made = Folder(root)
    assert made.manifest["splits"] == ["inside", "outside", "brush"]
    np.testing.assert_array_equal(made[2].hole, ~HOLE)
    with pytest.raises(DataError, match="both would be the split 'inside'"):
        Folder(root, holes="inside")


def test_without_masks_the_brush_holes_are_seeded(tmp_path: Path) -> None:
    save_picture(tmp_path / "cat.png")  # no images/ either
    (tmp_path / "cat.txt").write_text("a cat\n")
    made = Folder(tmp_path)
    assert list(made.keys) == [("cat", "brush")]
    assert made[0].prompt == "a cat"
    np.testing.assert_array_equal(made[0].hole, brush_hole("cat", HEIGHT, WIDTH))
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match="holds no mask"):
        Folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.csv", "file,prompt\napple.png,an apple\nzebra,a zebra\n"),
        ("captions.txt", "zebra\ta zebra\n\napple.png\tan apple\n"),
    ],
)
def test_captions_in_other_forms(root: Path, name: str, content: str) -> None:
    (root / "captions.json").unlink()
    (root / name).write_text(content)
    assert [sample.prompt for sample in Folder(root)] == ["an apple", "a zebra"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions.json", "{", "cannot be read as captions"),
        ("captions.json", '{"apple": 3}', "expected an object"),
        ("captions.csv", "a,b\n1,2\n", "its columns are a, b, expected name, caption"),
        ("captions.txt", "apple an apple\n", "line 1 is 'apple an apple'"),
    ],
)
def test_caption_files_that_are_none_are_refused(root: Path, name: str, content: str, words: str) -> None:
    (root / "captions.json").unlink()
    (root / name).write_text(content)
    with pytest.raises(DataError, match=words):
        Folder(root)


def test_bad_pictures_are_named(root: Path) -> None:
    (root / "masks" / "apple.png").unlink()
    with pytest.raises(BadRecordError, match=r"'apple': the mask .*apple.png is missing"):
        Folder(root)
    kept = Folder(root, skip_bad=True)
    assert [name for name, _ in kept.keys] == ["zebra"]

    save_picture(root / "masks" / "apple.png", masks.hole_to_white(HOLE[:, :-1]))
    with pytest.raises(BadRecordError, match=r"'apple': the mask .*is 20 x 31, its picture 20 x 32"):
        Folder(root)
    save_picture(root / "masks" / "apple.png", np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    with pytest.raises(BadRecordError, match=r"'apple': the hole is empty \(.*apple.png marks no pixel.*\)"):
        Folder(root)
    (root / "images" / "apple.png").unlink()
    with pytest.raises(BadRecordError, match="'apple': it has a caption but its picture is missing"):
        Folder(root)


def test_a_picture_without_caption_or_of_two_formats_is_bad(root: Path) -> None:
    (root / "captions.json").write_text('{"zebra": "a zebra"}')
    with pytest.raises(BadRecordError, match="'apple': the caption is missing, and the method reads it"):
        Folder(root).with_captions()
    save_picture(root / "images" / "apple.jpg")
    with pytest.raises(
        BadRecordError, match=r"'apple': there are two pictures of that name, apple\.jpg and apple\.png"
    ):
        Folder(root)


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No picture in"):
        Folder(tmp_path)
    with pytest.raises(DataError, match="No folder"):
        Folder(tmp_path / "nowhere")


def test_a_line_of_captions_without_a_name_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("caption,name\none,a\ntwo\n")
    with pytest.raises(
        DataError, match=r"captions\.csv cannot be read as captions: line 3 of captions.csv has no 'name'"
    ):
        Folder(tmp_path)
