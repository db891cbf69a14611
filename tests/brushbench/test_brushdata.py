"""BrushData's tars: exact holes of pictures that are not square, a seeded order, broken records counted."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from brushbench.errors import DataError
from brushbench.training import brushdata
from brushbench.training.brushdata import BrokenRecordError, BrushData, identify, read_record

HEIGHT, WIDTH = 20, 13


def naive_column_major(mask):
    """1-based runs down the columns, pixel by pixel."""
    runs, number = [], 0
    height, width = mask.shape
    for x in range(width):
        for y in range(height):
            number += 1
            if not mask[y, x]:
                continue
            if runs and runs[-2] + runs[-1] == number:
                runs[-1] += 1
            else:
                runs += [number, 1]
    return runs


def picture(number, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def masks(number):
    rng = np.random.default_rng(1000 + number)
    first = np.zeros((HEIGHT, WIDTH), dtype=bool)
    first[3:9, 2 : 5 + number % 4] = True  # taller than wide, off centre: a transposed reading cannot pass
    return [first, rng.random((HEIGHT, WIDTH)) > 0.8]


def png(image):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")  # lossless, so that pixels can be compared; published ones are JPEG
    return data.getvalue()


def record(number, **changes):
    """The published columns, numbers as ASCII bytes; a change of None leaves a column out."""
    columns = {
        "image": png(picture(number)),
        "caption": f"caption {number}".encode(),
        "segmentation": json.dumps({"mask": [naive_column_major(m) for m in masks(number)], "label": ["a"]}).encode(),
        "height": str(HEIGHT).encode(),
        "width": str(WIDTH).encode(),
        "aesthetic_score": b"5.25",
        "original_key": b"000000000",
        "url": b"http://example.org/1.jpg",
        **changes,
    }
    return {name: data for name, data in columns.items() if data is not None}


def write_tar(path, records):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for number, columns in records.items():
            for name, data in columns.items():
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    write_tar(tmp_path / "00000.tar", {n: record(n) for n in range(5)})
    write_tar(tmp_path / "00001.tar", {n: record(n) for n in range(5, 9)})
    return tmp_path


def number_of(found):
    return int(found.caption.split()[1])


def test_pictures_captions_and_holes_are_exact_though_the_picture_is_not_square(folder):
    data = BrushData(folder, seed=3)
    seen = data.take(0, 9)
    assert sorted(map(number_of, seen)) == list(range(9))
    for found in seen:
        number = number_of(found)
        assert np.array_equal(found.image, picture(number))
        assert found.masks.dtype == np.bool_
        assert np.array_equal(found.masks, np.stack(masks(number)))
    assert data.skipped == {}


def test_jpeg_as_published():
    smooth = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(smooth).save(data, "JPEG")
    assert np.abs(read_record(record(0, image=data.getvalue())).image.astype(int) - 90).max() <= 2


def test_stream_goes_round_in_another_order_and_starts_anywhere(folder):
    data = BrushData(folder, seed=3)
    whole = [number_of(found) for found in data.take(0, 27)]
    epochs = [whole[i : i + 9] for i in (0, 9, 18)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert [number_of(found) for found in BrushData(folder, seed=3).take(11, 4)] == whole[11:15]
    assert [number_of(found) for found in data.take(2, 3)] == whole[2:5]  # backwards
    assert [number_of(found) for found in BrushData(folder, seed=4).take(0, 27)] != whole


BROKEN = {
    "image is missing": {"image": None},
    "image cannot be decoded": {"image": b"no picture"},
    "caption is missing": {"caption": None},
    "caption is empty": {"caption": b"  "},
    "caption is not UTF-8": {"caption": b"\xff\xfe"},
    "height is missing": {"height": None},
    "height is not a number": {"height": b"tall"},
    "width is not the picture's": {"width": b"14"},
    "segmentation is missing": {"segmentation": None},
    "segmentation is not JSON with a list of masks": {"segmentation": b"{"},
    "segmentation does not fit the picture": {"segmentation": b'{"mask": [[1, 9999]]}'},
    "segmentation marks nothing": {"segmentation": b'{"mask": []}'},
}


@pytest.mark.parametrize("reason", BROKEN)
def test_every_broken_record_has_its_reason(reason):
    with pytest.raises(BrokenRecordError, match=reason):
        read_record(record(0, **BROKEN[reason]))


@pytest.mark.parametrize(
    "segmentation", [b"[1]", b'{"mask": 3}', b"{}", b'{"mask": [[0, 2]]}', b'{"mask": [[1, 2, 3]]}']
)
def test_other_segmentations_are_refused(segmentation):
    with pytest.raises(BrokenRecordError, match="segmentation"):
        read_record(record(0, segmentation=segmentation))


def test_broken_records_are_passed_over_and_counted_once(tmp_path):
    records = {n: record(n) for n in range(3)}
    for number, (_, changes) in enumerate(BROKEN.items(), start=3):
        records[number] = record(number, **changes)
    # The first record of the tar lacks columns: ``datasets`` would infer the layout from it.
    write_tar(tmp_path / "00000.tar", dict(sorted(records.items(), reverse=True)))
    data = BrushData(tmp_path)
    seen = data.take(0, len(records))
    assert {number_of(found) for found in seen} == {0, 1, 2}
    assert sum(data.skipped.values()) >= len(BROKEN)
    # One epoch counts each broken record once, however often it is looked at.
    data = BrushData(tmp_path)
    for place in range(len(records) - 2):
        data.take(place, 1)
    counted = dict(data.skipped)
    data.take(0, 2)
    assert dict(data.skipped) == counted
    assert set(counted) <= set(BROKEN)


def test_places_do_not_shift_when_a_record_is_broken(tmp_path):
    good = {n: record(n) for n in range(6)}
    write_tar(tmp_path / "whole" / "0.tar", good)
    whole = [number_of(found) for found in BrushData(tmp_path / "whole", seed=1).take(0, 6)]
    lost = whole[2]
    write_tar(tmp_path / "holed" / "0.tar", {**good, lost: record(lost, caption=None)})
    holed = BrushData(tmp_path / "holed", seed=1)
    assert [number_of(found) for found in holed.take(0, 6)] == [*whole[:2], whole[3], *whole[3:]]
    assert holed.skipped == {"caption is missing": 1}
    assert number_of(BrushData(tmp_path / "holed", seed=1).take(3, 1)[0]) == whole[3]


def test_brush_holes_need_no_segmentation():
    found = read_record(record(0, segmentation=None), with_masks=False)
    assert found.masks.shape == (0, HEIGHT, WIDTH)


def test_what_is_no_brushdata_is_refused_in_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no \.tar"):
        BrushData(tmp_path)
    with pytest.raises(DataError, match="neither a folder"):
        BrushData(tmp_path / "nowhere")
    monkeypatch.setattr(brushdata, "PATIENCE", 5)
    write_tar(tmp_path / "0.tar", {n: {"jpg": b"1", "txt": b"2"} for n in range(3)})
    with pytest.raises(DataError, match=r"5 records .* another layout"):
        BrushData(tmp_path).take(0, 1)
    (tmp_path / "0.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="Check the tars"):
        BrushData(tmp_path).take(0, 1)


# ------------------------------------------------------------------------------------------- identity by content


def test_moved_tars_are_the_same_data_and_changed_ones_are_not(tmp_path):
    for name, first in (("a", 0), ("moved/b", 0), ("changed", 1)):
        (tmp_path / name).mkdir(parents=True)
        write_tar(tmp_path / name / "00000.tar", {n: record(first + n) for n in range(3)})
    told = {name: identify(str(tmp_path / name)) for name in ("a", "moved/b", "changed")}
    assert told["a"] == told["moved/b"] != told["changed"]
    assert identify(str(tmp_path / "a" / "00000.tar")) != identify(str(tmp_path / "changed" / "00000.tar"))
    (tmp_path / "a" / "00000.tar").rename(tmp_path / "a" / "00001.tar")
    assert identify(str(tmp_path / "a")) != told["a"]  # the order of the records follows the names


@pytest.mark.parametrize("place", [0, 5_000, -1])
def test_one_changed_byte_of_a_large_tar_s_hashed_pieces_changes_the_identity(tmp_path, monkeypatch, place):
    monkeypatch.setattr(brushdata, "PIECES", 4)
    monkeypatch.setattr(brushdata, "PIECE", 2_000)
    data = bytearray(np.random.default_rng(0).integers(0, 256, 15_000, dtype=np.uint8).tobytes())
    (tmp_path / "a.tar").write_bytes(data)
    before = identify(str(tmp_path))
    data[place] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    assert identify(str(tmp_path)) != before


class Opened:
    """A pickle that would write a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("column", ["image", "caption", "segmentation", "height"])
@pytest.mark.parametrize("kind", ["pickle", "cut", "empty", "text"])
def test_a_damaged_member_costs_its_own_record_only(tmp_path, column, kind):
    whole = record(1)[column]
    contents = {
        "pickle": pickle.dumps(Opened(tmp_path / "witness")),
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"\x00 quota exceeded",
    }
    write_tar(tmp_path / "data" / "0.tar", {0: record(0), 1: record(1, **{column: contents[kind]}), 2: record(2)})
    data = BrushData(tmp_path / "data", seed=3)
    found = {number_of(one) for one in data.take(0, 8) if one.caption.startswith("caption ")}
    assert {0, 2} <= found
    assert not (tmp_path / "witness").exists()
    if column != "caption" or kind in ("pickle", "empty"):
        assert found == {0, 2}
        assert sum(data.skipped.values()) >= 1


def test_members_that_are_not_asked_for_are_not_decoded(tmp_path):
    """A broken .json or .npy beside the columns used to end the whole stream."""
    foreign = {"json": b"{", "npy": b"no array", "pth": pickle.dumps(Opened(tmp_path / "witness")), "cls": b"x"}
    write_tar(tmp_path / "data" / "0.tar", {n: record(n, **foreign) for n in range(3)})
    assert sorted(map(number_of, BrushData(tmp_path / "data").take(0, 3))) == [0, 1, 2]
    assert not (tmp_path / "witness").exists()


def test_a_hub_id_without_network_is_one_sentence(monkeypatch):
    import huggingface_hub

    class Unreachable:
        def dataset_info(self, name):
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(DataError, match=r"owner/unreachable could not be looked up .*ConnectionError.*give the folder"):
        BrushData("owner/unreachable")


def test_a_data_set_on_the_hub_is_streamed_at_one_revision(monkeypatch):
    import huggingface_hub

    class Hub:
        def dataset_info(self, name):
            return type("Info", (), {"sha": "abc123"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert BrushData("owner/pinned")._files == ["hf://datasets/owner/pinned@abc123/**.tar"]
    assert identify("owner/pinned") == {"data_sha256": "abc123"}
