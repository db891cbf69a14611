"""Folders as people have them: metadata tables, masks beside pictures, captions of every encoding, odd names."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from brushbench import compare, evaluate, load_benchmark, masks
from brushbench.benchmarks.folder import Folder
from brushbench.errors import BadRecordError, ConfigMismatchError, RunError, UnknownNameError
from brushbench.evaluation import Scoring, rescore
from brushbench.leaderboard import make_tables, open_runs, render
from brushbench.training.checkpoints import check_identity
from brushbench.training.streams import BenchmarkPictures

HEIGHT, WIDTH = 20, 32
HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[4:9, 6:20] = True


def save_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def picture_at(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def mask_at(path: Path, rows: int) -> None:
    hole = np.zeros((HEIGHT, WIDTH), dtype=bool)
    hole[:rows] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, masks.hole_to_white(hole))


def rows_marked(made: Folder) -> dict[str, int]:
    return {sample.id: int(sample.hole.any(axis=1).sum()) for sample in made}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("place", ["", "images", "train"])
def test_the_layout_of_datasets_is_read(tmp_path: Path, form: str, place: str) -> None:
    folder = tmp_path / place
    table = pd.DataFrame(
        {
            "file_name": ["b.png", "a.png"],
            "text": ["the b, with a comma", "the a"],
            "mask": ["holes/1.png", "holes/2.png"],
            "style": ["oil", "pen"],
        }
    )
    for name in ("a", "b"):
        picture_at(folder / f"{name}.png", ord(name))
    for rows in (1, 2):
        mask_at(folder / "holes" / f"{rows}.png", rows)
    path = folder / f"metadata.{form}"
    if form == "csv":
        table.to_csv(path, index=False)
    elif form == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    made = Folder(tmp_path, holes="inside")
    before = "train_" if place == "train" else ""
    assert rows_marked(made) == {f"{before}a": 2, f"{before}b": 1}
    assert [sample.prompt for sample in made] == ["the a", "the b, with a comma"]
    assert [sample.meta for sample in made] == [{"style": "pen"}, {"style": "oil"}]
    assert made.splits == ("inside",)


def test_a_mask_column_for_each_split_makes_the_splits(tmp_path: Path) -> None:
    picture_at(tmp_path / "a.png")
    mask_at(tmp_path / "in.png", 3)
    mask_at(tmp_path / "out.png", 5)
    (tmp_path / "metadata.csv").write_text("file_name,text,inside_mask,outside_mask\na.png,x,in.png,out.png\n")
    made = Folder(tmp_path)
    assert [(sample.id, sample.split, int(sample.hole.any(axis=1).sum())) for sample in made] == [
        ("a", "inside", 3), ("a", "outside", 5),
    ]  # fmt: skip


@pytest.mark.parametrize("deep", [True, False])
def test_a_mask_beside_its_picture_is_found_and_is_no_picture(tmp_path: Path, deep: bool) -> None:
    folder = tmp_path / "images" if deep else tmp_path
    for name in ("a", "b"):
        picture_at(folder / f"{name}.png")
        mask_at(folder / f"{name}_mask.png", ord(name) - 90)
    picture_at(folder / "only_mask.png")
    assert rows_marked(Folder(tmp_path, skip_bad=True)) == {"a": 7, "b": 8}
    with pytest.raises(BadRecordError, match=r"'only_mask': the mask .*only_mask_mask\.png is missing"):
        Folder(tmp_path)
    (folder / "only_mask.png").unlink()
    mask_at(tmp_path / "masks" / "a.png", 4)
    with pytest.raises(BadRecordError, match=r"'a': there are two masks of that name, a\.png and a_mask\.png"):
        Folder(tmp_path)


def test_masks_of_another_size_are_brought_to_the_pictures_on_request_alone(tmp_path: Path) -> None:
    picture_at(tmp_path / "a.png")
    hole = np.zeros((2 * HEIGHT, 2 * WIDTH), dtype=bool)
    hole[:10] = True
    (tmp_path / "masks").mkdir()
    save_picture(tmp_path / "masks" / "a.png", masks.hole_to_white(hole))
    with pytest.raises(BadRecordError, match=r"is 40 x 64, its picture 20 x 32 .*, or set resize_masks=true"):
        Folder(tmp_path)
    made = load_benchmark(f"{tmp_path},resize_masks=true")  # the remedy, as the command line takes it
    assert rows_marked(made) == {"a": 5}
    strict = Folder(tmp_path, resize_masks=True)
    assert made.manifest["sha256"] == strict.manifest["sha256"]
    save_picture(tmp_path / "masks" / "a.png", masks.hole_to_white(hole[::2, ::2]))
    assert Folder(tmp_path).manifest["sha256"] != Folder(tmp_path, resize_masks=True).manifest["sha256"]


@pytest.mark.parametrize(("reading", "flip"), [("white", False), ("black", True), ("alpha", False)])
def test_what_marks_the_hole_is_chosen_by_name(tmp_path: Path, reading: str, flip: bool) -> None:
    picture_at(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    marked = np.dstack([masks.hole_to_white(HOLE)] * 3)
    if reading == "alpha":
        marked = np.dstack([marked, masks.hole_to_white(~HOLE)])
    save_picture(tmp_path / "masks" / "a.png", marked)
    made = load_benchmark(f"{tmp_path},masks={reading}")
    np.testing.assert_array_equal(made[0].hole, ~HOLE if flip else HOLE)
    with pytest.raises(UnknownNameError, match="Known: alpha, black, white"):
        Folder(tmp_path, masks="green")


def test_captions_in_the_encodings_of_notepad_are_read_right_or_named(tmp_path: Path) -> None:
    texts = {
        "plain": "a café".encode(),
        "bom": "a café".encode("utf-8-sig"),
        "utf16": "a café".encode("utf-16"),
        "windows": "a café\r\n".encode(),
    }
    for name, data in texts.items():
        picture_at(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.TXT").write_bytes(data)
    assert {sample.prompt for sample in Folder(tmp_path)} == {"a café"}
    (tmp_path / "plain.TXT").write_bytes("a café".encode("cp1252"))
    with pytest.raises(BadRecordError, match=r"'plain': the caption file .* is not UTF-8 \(byte 0xe9 at place 5\)"):
        Folder(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["captions.json", "captions.csv", "captions.txt", "metadata.csv", "metadata.jsonl"])
def test_tables_in_every_marked_encoding_are_read(tmp_path: Path, name: str, encoding: str) -> None:
    picture_at(tmp_path / "a.png")
    content = {
        "captions.json": '{"a.png": "café"}',
        "captions.csv": "name,caption\na,café\n",
        "captions.txt": "a\tcafé\n",
        "metadata.csv": "file_name,text\na.png,café\n",
        "metadata.jsonl": '{"file_name": "a.png", "text": "café"}\n',
    }[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert [sample.prompt for sample in Folder(tmp_path)] == ["café"]


def test_names_of_other_systems_find_their_pictures(tmp_path: Path) -> None:
    accented = unicodedata.normalize("NFD", "café")
    picture_at(tmp_path / "images" / f"{accented}.PNG")
    picture_at(tmp_path / "images" / "deep" / "b.JPEG")
    (tmp_path / "images" / f"._{accented}.PNG").write_bytes(b"\0\5\x16\7")
    (tmp_path / "CAPTIONS.CSV").write_text(
        "file_name,text\nimages\\deep\\b.jpeg,two\n./café.png,one\n", encoding="utf-8"
    )
    assert [(sample.id, sample.prompt) for sample in Folder(tmp_path)] == [("café", "one"), ("deep_b", "two")]


def test_a_caption_is_given_once_or_twice_the_same(tmp_path: Path) -> None:
    picture_at(tmp_path / "a.png")
    (tmp_path / "captions.json").write_text('{"a": "one"}')
    (tmp_path / "a.txt").write_text("one\n")
    assert Folder(tmp_path)[0].prompt == "one"
    (tmp_path / "a.txt").write_text("two\n")
    with pytest.raises(BadRecordError, match=r"two captions, 'one' \(captions\.json\) and 'two' \(a\.txt\)"):
        Folder(tmp_path)


def test_extra_columns_of_a_caption_file_leave_the_hash_alone(tmp_path: Path) -> None:
    picture_at(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("name,caption\na,x\n")
    before = Folder(tmp_path).manifest["sha256"]
    (tmp_path / "captions.csv").write_text("name,caption,width\na,x,32\n")
    assert Folder(tmp_path).manifest["sha256"] == before


def test_folders_are_told_apart_by_their_titles(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        picture_at(tmp_path / name / "a.png")
    assert [Folder(tmp_path / name).title for name in ("cats", "dogs")] == ["folder cats", "folder dogs"]


names = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0\ud800\n\r\t,\"'"), min_size=1, max_size=12)


@given(names.filter(lambda name: name.strip(" .") == name and not name.startswith(".")), st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_every_caption_reaches_its_picture_whatever_the_form(name: str, caption: str) -> None:
    caption = caption.replace("\0", "").replace("\ufeff", "")
    if any("\ud800" <= letter <= "\udfff" for letter in caption) or name.lower().endswith("_mask"):
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        picture_at(root / f"{name}.png")
        spoken = unicodedata.normalize("NFC", name)
        forms = {
            "captions.json": json.dumps({spoken: caption}),
            "metadata.jsonl": json.dumps({"file_name": f"{name}.png", "text": caption}),
        }
        for file, content in forms.items():
            (root / file).write_text(content, encoding="utf-8")
            made = Folder(root)
            assert [(sample.id, sample.prompt) for sample in made] == [(spoken, caption.strip())]
            (root / file).unlink()


def test_tables_of_two_folders_do_not_bear_the_same_title(tmp_path: Path) -> None:
    for seed, name in enumerate(("cats", "dogs")):
        picture_at(tmp_path / name / "a.png", seed)
        evaluate("copy", tmp_path / name, out=tmp_path / "runs" / name, metrics="psnr", variants="raw")
    shown = render(make_tables(open_runs([tmp_path / "runs"])), "markdown")
    assert "folder cats, brush" in shown
    assert "folder dogs, brush" in shown


def test_a_field_of_a_record_that_is_called_prompt_variant_opens_no_table_per_record(tmp_path: Path) -> None:
    for i in range(3):
        picture_at(tmp_path / "d" / f"{i}.png", i)
    rows = "".join(f"{i}.png,x,{i}\n" for i in range(3))
    (tmp_path / "d" / "metadata.csv").write_text(f"file_name,text,prompt_variant\n{rows}")
    run = evaluate("copy", tmp_path / "d", out=tmp_path / "run", metrics="psnr", variants="raw")
    assert set(run.scores["prompt_variant"]) == {"caption"}
    assert load_benchmark(tmp_path / "d")[1].meta == {"field_prompt_variant": "1"}


def test_a_folder_of_masks_under_another_name_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    picture_at(tmp_path / "images" / "a.png")
    mask_at(tmp_path / "mask" / "a.png", 3)
    (tmp_path / "caption.json").write_text('{"a": "x"}')
    (tmp_path / "notes.md").write_text("mine")
    assert [note.partition(" is not read. ")[2] for note in Folder(tmp_path).notes] == [
        "If it is meant to be, rename it to captions.json.",
        "If it is meant to be, rename it to masks.",
    ]
    (tmp_path / "mask").rename(tmp_path / "masks")
    assert rows_marked(Folder(tmp_path)) == {"a": 3}


CAPTIONS = {
    "captions.json": '{{"a": "one", "b": "{}"}}',
    "captions.jsonl": '{{"name": "a", "caption": "one"}}\n{{"name": "b", "caption": "{}"}}\n',
    "captions.csv": "name,caption\na,one\nb,{}\n",
    "captions.txt": "a\tone\nb\t{}\n",
    "images/metadata.jsonl": '{{"file_name": "a.png", "text": "one"}}\n{{"file_name": "b.png", "text": "{}"}}\n',
    "images/b.txt": "{}",
}


@pytest.mark.parametrize("file", CAPTIONS)
def test_scores_and_images_of_other_captions_are_refused(file: str, tmp_path: Path) -> None:
    """Whatever file the captions are in, they are part of what a run was made on: its content, not its place."""
    for seed, name in enumerate("ab"):
        picture_at(tmp_path / "d" / "images" / f"{name}.png", seed)
    captions = tmp_path / "d" / file
    captions.write_text(CAPTIONS[file].format("two"))
    run = evaluate("copy", tmp_path / "d", out=tmp_path / "run", metrics="psnr", variants="raw")
    trained_on = BenchmarkPictures(load_benchmark(tmp_path / "d")).identity()
    captions.write_text(CAPTIONS[file].format("three"))
    with pytest.raises(RunError, match="was made on other data than 'folder' holds now"):
        rescore(run.path, scoring=Scoring("mse"))
    with pytest.raises(ConfigMismatchError, match=r"benchmark\.sha256"):
        evaluate("copy", tmp_path / "d", out=run.path, metrics="psnr")
    with pytest.raises(ConfigMismatchError, match="data_sha256 was"):  # a training
        check_identity(run.path, trained_on, BenchmarkPictures(load_benchmark(tmp_path / "d")).identity())
    other = evaluate("copy", tmp_path / "d", out=tmp_path / "other", metrics="psnr", variants="raw")
    assert len(make_tables([run, other])) == 2  # never one table
    with pytest.raises(RunError, match="cannot be paired by sample: data of folder"):
        compare(run, other)
