"""A BrushBench folder written by hand: exact holes at the published size and at others, a sentence a bad record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushbench.benchmarks.base import brush_hole
from brushbench.benchmarks.brushbench import BrushBench
from brushbench.errors import BadRecordError, DataError
from tests.reference import naive_rle

SIZES = [(512, 512), (48, 80), (80, 48), (9, 8)]


def rectangle(height: int, width: int) -> tuple[np.ndarray, list[int], list[int]]:
    """Return an inside hole and the run lengths of it and of its complement, written out by hand: 1-based, along rows.

    The hole is rows 2 to 4, columns 3 to 6 of the picture.
    """
    hole = np.zeros((height, width), dtype=bool)
    hole[2:5, 3:7] = True
    begin = [row * width + 3 + 1 for row in (2, 3, 4)]
    inside = [number for start in begin for number in (start, 4)]
    outside = [1, begin[0] - 1]
    outside += [begin[0] + 4, width - 4, begin[1] + 4, width - 4]
    outside += [begin[2] + 4, height * width - begin[2] - 3]
    return hole, inside, outside


def write(folder: Path, height: int = 48, width: int = 80, count: int = 2) -> dict[str, dict[str, Any]]:
    """Write pictures and return the mapping, not yet written."""
    (folder / "images").mkdir(parents=True)
    _, inside, outside = rectangle(height, width)
    mapping = {}
    for number in range(count):
        name = f"{number:09d}"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        mapping[name] = {
            "image": f"images/{name}.png", "caption": f"picture number {number}",
            "inpainting_mask": inside, "outpainting_mask": outside,
        }  # fmt: skip
    return mapping


def save(folder: Path, mapping: object) -> Path:
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_folder_written_by_hand_loads_with_exact_holes(tmp_path: Path, height: int, width: int) -> None:
    bench = BrushBench(save(tmp_path, write(tmp_path, height, width)))
    hole, inside, outside = rectangle(height, width)
    assert len(bench) == 6
    samples = {(sample.id, sample.split): sample for sample in bench}
    for number, name in enumerate(["000000000", "000000001"]):
        np.testing.assert_array_equal(samples[name, "inside"].hole, hole)
        np.testing.assert_array_equal(samples[name, "outside"].hole, ~hole)
        np.testing.assert_array_equal(samples[name, "brush"].hole, brush_hole(name, height, width))
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for split in ("inside", "outside", "brush"):
            np.testing.assert_array_equal(samples[name, split].image, pixels)
            assert samples[name, split].prompt == f"picture number {number}"
    np.testing.assert_array_equal(naive_rle.decode(inside, height, width, first=1, columns=False), hole)
    np.testing.assert_array_equal(naive_rle.decode(outside, height, width, first=1, columns=False), ~hole)


def test_outside_is_read_and_not_derived_from_inside(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    mapping["000000000"]["outpainting_mask"] = [1, 7]
    assert BrushBench(save(tmp_path, mapping), split="outside")[0].hole.sum() == 7


def test_a_stored_brush_hole_wins(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    mapping["000000000"]["brush_mask"] = [2, 5]
    bench = BrushBench(save(tmp_path, mapping), split="brush")
    assert bench[0].hole.sum() == 5
    np.testing.assert_array_equal(bench[1].hole, brush_hole("000000001", 48, 80))


@pytest.mark.parametrize("where", [".", "BrushBench", "BrushDench"])
def test_the_folder_is_found_by_itself_and_under_both_spellings(tmp_path: Path, where: str) -> None:
    folder = tmp_path / where
    save(folder, write(folder))
    for root in (folder, tmp_path, folder / "mapping_file.json", str(tmp_path)):
        assert len(BrushBench(root)) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("file_name", ["mapping_file.json", "mapping_file_list.json"])
def test_a_list_with_image_id_is_the_same_benchmark(tmp_path: Path, file_name: str) -> None:
    mapping = write(tmp_path)
    reference = BrushBench(save(tmp_path, mapping)).manifest
    (tmp_path / "mapping_file.json").unlink()
    records = [{"image_id": name, **fields} for name, fields in mapping.items()]
    (tmp_path / file_name).write_text(json.dumps(records))
    assert BrushBench(tmp_path).manifest == reference


def test_numbers_as_image_id_become_text(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    records = [{**fields, "image_id": number} for number, fields in enumerate(mapping.values())]
    assert [name for name, _ in BrushBench(save(tmp_path, records), split="inside").keys] == ["0", "1"]


def test_bare_picture_names_are_looked_for_in_images(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    mapping["000000000"]["image"] = "000000000.png"
    assert BrushBench(save(tmp_path, mapping))[0].image.shape == (48, 80, 3)


def test_extra_fields_travel_as_text(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    mapping["000000000"] |= {"category": "animal", "score": 0.5, "natural": True, "boxes": [1, 2], "note": None}
    bench = BrushBench(save(tmp_path, mapping))
    assert bench[0].meta == {"category": "animal", "score": "0.5", "natural": "True"}
    assert bench[1].meta == {}


def test_captions_are_kept_to_the_letter(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    mapping["000000000"]["caption"] = " a caf\u00e9, at night \U0001f319"
    assert BrushBench(save(tmp_path, mapping))[0].prompt == " a caf\u00e9, at night \U0001f319"


def test_only_the_holes_of_the_chosen_splits_are_needed(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    for fields in mapping.values():
        del fields["outpainting_mask"], fields["inpainting_mask"]
    assert len(BrushBench(save(tmp_path, mapping), split="brush")) == 2
    with pytest.raises(BadRecordError, match="'inpainting_mask' is missing"):
        BrushBench(tmp_path, split="brush,inside")


# Bad records ----------------------------------------------------------------------------------------------------------

PIXELS = 48 * 80


def _break_file(content: bytes | None):
    def change(folder: Path, fields: dict[str, Any]) -> None:
        path = folder / "images" / "000000001.png"
        path.unlink() if content is None else path.write_bytes(content)

    return change


def _gigantic(folder: Path, fields: dict[str, Any]) -> None:
    Image.new("1", (4100, 4100)).save(folder / "images" / "000000001.png")


def _cut_short(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "images" / "000000001.png"
    path.write_bytes(path.read_bytes()[:900])


def _resized(folder: Path, fields: dict[str, Any]) -> None:
    Image.new("RGB", (20, 20)).save(folder / "images" / "000000001.png")


def _set(key: str, value: object):
    return lambda folder, fields: fields.__setitem__(key, value)


BAD_RECORDS = {
    "missing file": (_break_file(None), r"the picture .*000000001.png is missing. Put it there"),
    "no picture field": (_set("image", None), r"'image' is missing. Write the path"),
    "path that no system takes": (
        _set("image", "a" * 5000 + ".png"),
        r"cannot be opened \(File name too long\). Name",
    ),
    "path that is no text": (_set("image", "\ud800.png"), r"the picture .* cannot be opened"),
    "undecodable picture": (_break_file(b"no picture"), r"cannot be decoded \(.*Replace it by an intact"),
    "picture cut short": (_cut_short, r"cannot be decoded \(.*Replace it by an intact"),
    "gigantic picture": (
        _gigantic,
        r"is 4100 x 4100, more than 16777216 pixels. Replace it by a smaller one",
    ),
    "path outside the folder": (_set("image", "../secret.png"), r"leads outside the folder .*Write a path relative"),
    "absolute path": (_set("image", "/etc/passwd"), r"leads outside the folder .*Write a path relative"),
    "caption cut in a character": (_set("caption", "a \ud83d"), r"its caption holds half of a character \(U\+D83D\)"),
    "caption that is no text": (_set("caption", ["a", "b"]), r"the caption is missing: its 'caption' is a list. Write"),
    "missing hole": (_set("outpainting_mask", None), r"'outpainting_mask' is missing. Write its run lengths"),
    "odd length": (_set("inpainting_mask", [1, 2, 3]), r"inpainting_mask: run lengths have odd length 3.*Correct"),
    "negative": (_set("inpainting_mask", [-4, 2]), r"inpainting_mask: run .*is negative.*Correct inpainting_mask"),
    "zero in a 1-based format": (_set("inpainting_mask", [0, 2]), r"out of range.*48 x 80.*Correct inpainting_mask"),
    "out of range": (_set("outpainting_mask", [PIXELS, 2]), r"outpainting_mask: .*out of range.*Correct outpainting"),
    "hole of another size": (_resized, r"outpainting_mask: .*out of range.*20 x 20.*Correct outpainting"),
    "overlapping": (_set("inpainting_mask", [5, 9, 8, 2]), r"overlap: pixel 8 .*Correct inpainting_mask"),
    "no integers": (_set("inpainting_mask", [1, 2.5]), r"hold 2.5 at place 1.*Correct inpainting_mask"),
    "no list": (_set("inpainting_mask", "1 2"), r"run lengths are str.*Correct inpainting_mask"),
    "hole empty": (_set("inpainting_mask", []), r"the hole is empty \(inpainting_mask marks no pixel\). Mark"),
    "hole full": (_set("outpainting_mask", [1, PIXELS]), r"the hole is the whole picture \(outpainting_mask.*Keep"),
    "bad stored brush hole": (_set("brush_mask", [1, 2, 3]), r"brush_mask: run lengths have odd length"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_every_kind_of_bad_record_gives_its_sentence(tmp_path: Path, kind: str) -> None:
    mapping = write(tmp_path, count=3)
    change, sentence = BAD_RECORDS[kind]
    change(tmp_path, mapping["000000001"])
    save(tmp_path, mapping)

    with pytest.raises(BadRecordError, match=sentence) as caught:
        list(BrushBench(tmp_path))
    message = str(caught.value)
    assert message.startswith("Record '000000001': ")
    assert message.endswith(", or pass --skip-bad (in Python skip_bad=True) to leave it out.")
    assert "\n" not in message

    kept = BrushBench(tmp_path, skip_bad=True)
    assert [sample.id for sample in kept] == ["000000000", "000000002"] * 3
    assert kept.manifest["counts"] == {"inside": 2, "outside": 2, "brush": 2}
    assert kept.manifest["skipped"] == [{"record": "000000001", "reason": caught.value.problem}]


def test_a_record_that_is_no_object_is_bad(tmp_path: Path) -> None:
    mapping: dict[str, Any] = write(tmp_path)
    mapping["000000001"] = [1, 2]
    with pytest.raises(BadRecordError, match="'000000001': it is a list, not an object"):
        BrushBench(save(tmp_path, mapping))
    records: list[Any] = [{"image_id": "a", **mapping["000000000"]}, {"image": "x"}, 5]
    with pytest.raises(BadRecordError, match="'number 2': it has no 'image_id'"):
        BrushBench(save(tmp_path, records))
    assert len(BrushBench(tmp_path, skip_bad=True).manifest["skipped"]) == 2


def test_an_id_written_twice_is_not_swallowed(tmp_path: Path) -> None:
    fields = json.dumps(write(tmp_path)["000000000"])
    (tmp_path / "mapping_file.json").write_text(f'{{"a": {fields}, "b": {fields}, "a": {fields}}}')
    with pytest.raises(BadRecordError, match=r"'a': its id occurs twice in mapping_file\.json"):
        BrushBench(tmp_path)
    assert [name for name, _ in BrushBench(tmp_path, skip_bad=True, split="inside").keys] == ["b"]


def test_published_run_lengths_on_enlarged_pictures_are_noticed(tmp_path: Path) -> None:
    """Copies of BrushBench at 1024 x 1024 exist; on them 512 x 512 run lengths are in range and all wrong."""
    mapping = write(tmp_path, 512, 512, count=1)
    Image.new("RGB", (1024, 1024)).save(tmp_path / "images" / "000000000.png")
    with pytest.raises(
        BadRecordError, match=r"is written for 512 x 512, the picture is 1024 x 1024 .*Bring the picture"
    ):
        BrushBench(save(tmp_path, mapping))


def test_a_mapping_saved_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """Editors on Windows write one; it is no fault of the records."""
    mapping = write(tmp_path)
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping), encoding="utf-8-sig")
    assert len(BrushBench(tmp_path)) == 6


def test_a_bad_record_behind_the_limit_does_no_harm(tmp_path: Path) -> None:
    mapping = write(tmp_path)
    del mapping["000000001"]["caption"]
    assert len(BrushBench(save(tmp_path, mapping), limit=1)) == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON file"),
        ('"text"', "holds a str, expected"),
        ("{}", "no usable record"),
        ("[]", "no usable record"),
        ("[" + "1" * 5000 + "]", "is no JSON file"),  # Python refuses the number, and not as a JSON error
    ],
)
def test_mapping_files_that_are_none_are_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(DataError, match=words):
        BrushBench(tmp_path)


def test_a_missing_benchmark_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"It holds no mapping_file.json.*given out on request at https://forms.gle"):
        BrushBench(tmp_path)
    with pytest.raises(DataError, match=r"There is no such folder.*the benchmark 'folder'"):
        BrushBench(tmp_path / "nowhere")
