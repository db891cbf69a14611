"""What every benchmark shares: order, limit, laziness, the manifest, and pictures of every kind."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brushbench import masks
from brushbench.benchmarks import base, layout_of
from brushbench.errors import BadRecordError, DataError, UnknownNameError, UsageError
from brushbench.files import path_inside

HEIGHT, WIDTH = 24, 40


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def make_record(folder: Path, name: str, prompt: str = "a caption", **changes) -> base.Record:
    path = folder / f"{name}.png"
    Image.fromarray(picture(len(name))).save(path)
    inside = np.zeros((HEIGHT, WIDTH), dtype=bool)
    inside[3:9, 5:30] = True
    holes = {
        "inside": base.RLEHole(masks.encode_rle(inside, "pie"), "pie", "inner"),
        "outside": base.RLEHole(masks.encode_rle(~inside, "brushdata"), "brushdata", "outer"),
        "brush": base.BrushHole(name),
    }
    return base.Record(**{"id": name, "prompt": prompt, "image": base.ImageFile(path), "holes": holes, **changes})


def make(folder: Path, names: tuple[str, ...] = ("b", "a", "c"), **options) -> base.LazyBenchmark:
    records = [make_record(folder, name) for name in names]
    return base.LazyBenchmark("made", records, splits=("inside", "outside", "brush"), **options)


def test_samples_come_split_by_split_in_manifest_order(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert list(made.keys) == [(name, split) for split in ("inside", "outside", "brush") for name in ("b", "a", "c")]
    assert len(made) == 9
    assert [(sample.id, sample.split) for sample in made] == list(made.keys)
    sample = made[3]
    assert (sample.id, sample.split, sample.prompt) == ("b", "outside", "a caption")
    assert sample.image.dtype == np.uint8
    np.testing.assert_array_equal(sample.image, picture(1))
    np.testing.assert_array_equal(sample.hole, ~made[0].hole)
    assert made[-1].id == "c"
    with pytest.raises(IndexError):
        made[9]


def test_the_same_picture_has_the_same_id_and_brush_hole_whatever_is_chosen(tmp_path: Path) -> None:
    alone = make(tmp_path, split="brush", limit=1)
    assert list(alone.keys) == [("b", "brush")]
    np.testing.assert_array_equal(alone[0].hole, make(tmp_path)[6].hole)
    np.testing.assert_array_equal(alone[0].hole, base.brush_hole("b", HEIGHT, WIDTH))
    assert (base.brush_hole("b", HEIGHT, WIDTH) != base.brush_hole("a", HEIGHT, WIDTH)).any()


def test_limit_counts_pictures_for_every_split(tmp_path: Path) -> None:
    assert list(make(tmp_path, limit=2, split="brush,inside").keys) == [
        ("b", "inside"), ("a", "inside"), ("b", "brush"), ("a", "brush"),
    ]  # fmt: skip
    assert len(make(tmp_path, limit=99)) == 9
    with pytest.raises(UsageError, match="limit is 0"):
        make(tmp_path, limit=0)


def test_an_unknown_split_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'outside'"):
        make(tmp_path, split="inside,outsid")
    with pytest.raises(UnknownNameError):
        make(tmp_path, split="")


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    real = base.ImageFile.decode
    monkeypatch.setattr(base.ImageFile, "decode", lambda self, data: decoded.append(self.path.stem) or real(self, data))
    made = make(tmp_path)
    assert made.manifest["images"] == 3
    assert decoded == []
    made[1]
    next(iter(made))
    assert decoded == ["a", "b"]


def test_the_manifest_tells_what_was_loaded(tmp_path: Path) -> None:
    manifest = make(tmp_path, split="inside,brush", limit=2).manifest
    assert {key: manifest[key] for key in manifest if key != "sha256"} == {
        "name": "made", "images": 2, "splits": ["inside", "brush"], "counts": {"inside": 2, "brush": 2},
        "skipped": [], "licence": "not stated",
    }  # fmt: skip
    assert len(manifest["sha256"]) == 64


def test_the_hash_covers_everything_a_sample_is_made_of(tmp_path: Path) -> None:
    def hash_of(record: base.Record, **options) -> str:
        made = base.LazyBenchmark("made", [record], splits=("inside", "outside", "brush"), **options)
        return made.manifest["sha256"]

    record = make_record(tmp_path, "a")
    reference = hash_of(record)
    assert hash_of(make_record(tmp_path, "a")) == reference
    longer = dict(record.holes, inside=base.RLEHole([5, 9], "pie", "inner"))
    others = [
        make_record(tmp_path, "a", prompt="another caption"),
        make_record(tmp_path, "a", holes=longer),
        make_record(tmp_path, "a", meta={"style": "oil"}),
        make_record(tmp_path, "b"),
    ]
    hashes = [hash_of(other) for other in others] + [hash_of(record, split="inside")]
    Image.fromarray(picture(77)).save(tmp_path / "a.png")
    hashes.append(hash_of(record))
    assert len({reference, *hashes}) == 7


def test_a_picture_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.manifest["images"] == 3
    Image.fromarray(picture(99)).save(tmp_path / "b.png")
    with pytest.raises(BadRecordError, match="'b': the picture changed since the run was planned"):
        made[0]
    assert made[1].id == "a"


def test_a_benchmark_can_be_pickled(tmp_path: Path) -> None:
    made = make(tmp_path)
    copied = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert copied.manifest == made.manifest
    np.testing.assert_array_equal(copied[8].hole, made[8].hole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "cut \ud83d"}, "its caption holds half of a character"),
        ({"meta": {"style": "\udc00"}}, "its style holds half of a character"),
        ({"holes": {}}, "no hole for the split 'inside'"),
        ({"id": "a/b"}, "its id cannot name a file"),
        ({"id": ".."}, "its id cannot name a file"),
        ({"id": ""}, "its id cannot name a file"),
        ({"id": "a\ud800"}, "its id cannot name a file"),
        ({"id": "\u65e5" * 100}, "its id is too long to name a file"),  # nine bytes a letter in the file's name
    ],
)
def test_bad_records_are_refused_or_counted(tmp_path: Path, changes: dict, words: str) -> None:
    records = [make_record(tmp_path, "good"), make_record(tmp_path, "bad", **changes)]
    with pytest.raises(BadRecordError, match=words):
        base.LazyBenchmark("made", records, splits=("inside",))
    made = base.LazyBenchmark("made", records, splits=("inside",), skip_bad=True)
    assert list(made.keys) == [("good", "inside")]
    assert [skipped["record"] for skipped in made.manifest["skipped"]] == [changes.get("id", "bad")]
    assert words in made.manifest["skipped"][0]["reason"]


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecordError, match="'a': its id occurs twice"):
        make(tmp_path, ("a", "b", "a"))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    records = [make_record(tmp_path, "bad", holes={})]
    with pytest.raises(DataError, match=r"no usable record \(1 skipped: bad: it has no hole for the split 'inside'\)"):
        base.LazyBenchmark("made", records, splits=("inside",), skip_bad=True)


def test_limit_counts_bad_records_too(tmp_path: Path) -> None:
    records = [make_record(tmp_path, "bad", holes={}), make_record(tmp_path, "a"), make_record(tmp_path, "b")]
    made = base.LazyBenchmark("made", records, splits=("inside",), limit=2, skip_bad=True)
    assert list(made.keys) == [("a", "inside")]


# Pictures -------------------------------------------------------------------------------------------------------------


def load(path: Path) -> np.ndarray:
    source = base.ImageFile(path)
    image = source.decode(source.data())
    assert source.size() == image.shape[:2]
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    return image


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "RGB"])
def test_opaque_pictures_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.repeat(np.linspace(0, 255, 7).round().astype(np.uint8)[None], 5, axis=0)
    source = Image.fromarray(grey)
    if mode == "1":
        source = source.point(lambda level: 255 * (level > 99))
        grey = np.asarray(source)
    saved = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else source.convert(mode)
    assert saved.mode == mode
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    saved.save(path)
    np.testing.assert_array_equal(load(path), np.repeat(grey[:, :, None], 3, axis=2))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert load(tmp_path / "x.png").tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]


def test_a_turned_jpeg_is_set_upright(tmp_path: Path) -> None:
    source = Image.fromarray(np.full((16, 32, 3), [200, 30, 30], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    source.save(tmp_path / "x.jpg", exif=exif)
    assert load(tmp_path / "x.jpg").shape == (32, 16, 3)


def png_header(height: int, width: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 100) + b"IDAT"  # and no pixels


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing. Put it there"),
        (b"", "cannot be decoded"),
        (b"this is no picture", "cannot be decoded"),
        (png_header(4, 4), "cannot be decoded"),
        (png_header(4097, 4096), "is 4097 x 4096, more than 16777216 pixels.*set BRUSHBENCH_MAX_PIXELS"),
        (png_header(10**5, 10**5), "larger than Pillow opens"),
    ],
)
def test_unusable_pictures_are_refused_in_one_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(base.UnusableError, match=words):
        load(path)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(base.UnusableError, match="floating-point"):
        load(tmp_path / "x.tif")


def test_a_picture_cut_short_is_found_when_loaded_and_skipped_when_asked(tmp_path: Path) -> None:
    records = [make_record(tmp_path, "good"), make_record(tmp_path, "cut")]
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    made = base.LazyBenchmark("made", records, splits=("inside",))
    with pytest.raises(BadRecordError, match=r"'cut': the picture .*cut.png cannot be decoded"):
        made[1]
    kept = base.LazyBenchmark("made", records, splits=("inside",), skip_bad=True)
    assert list(kept.keys) == [("good", "inside")]


@pytest.mark.parametrize(
    "relative", ["../x.png", "images/../../x.png", "/etc/passwd", "C:\\x.png", "..\\x.png", "\\x.png", "", " "]
)
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(base.UnusableError, match="leads outside the folder"):
        path_inside(tmp_path, relative)


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    Image.fromarray(masks.hole_to_white(np.eye(5, dtype=bool))).save(tmp_path / "m.png")
    assert base.MaskFile(tmp_path / "m.png").draw(5, 5).sum() == 5
    with pytest.raises(base.UnusableError, match=r"is 5 x 5, its picture 5 x 6"):
        base.MaskFile(tmp_path / "m.png").draw(5, 6)
    with pytest.raises(base.UnusableError, match="too small for a brush hole"):
        base.BrushHole("a").check(7, 99)


def test_layouts_are_told_apart(tmp_path: Path) -> None:
    assert layout_of(tmp_path) == "folder"
    (tmp_path / "BrushDench").mkdir()
    (tmp_path / "BrushDench" / "mapping_file.json").touch()
    assert layout_of(tmp_path) == "brushbench"
    (tmp_path / "annotations_natural.csv").touch()
    assert layout_of(tmp_path) == "editbench"
    with pytest.raises(DataError, match="No folder"):
        layout_of(tmp_path / "nowhere")


def test_benchmarks_load_no_torch() -> None:
    code = (
        "import sys, brushbench.benchmarks.brushbench, brushbench.benchmarks.folder; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_caption_is_asked_for_by_methods_that_read_it_alone(tmp_path: Path) -> None:
    records = [make_record(tmp_path, "bare", prompt=" "), make_record(tmp_path, "told")]
    made = base.LazyBenchmark("made", records, splits=("inside", "outside"))
    assert len(made) == 4
    with pytest.raises(BadRecordError, match="'bare': the caption is missing, and the method reads it"):
        made.with_captions()
    skipping = base.LazyBenchmark("made", records, splits=("inside", "outside"), skip_bad=True)
    assert skipping.manifest["images"] == 2
    rest = skipping.with_captions()
    assert list(rest.keys) == [("told", "inside"), ("told", "outside")]
    assert rest.manifest["skipped"] == [{"record": "bare", "reason": "the caption is missing, and the method reads it"}]
    alone = base.LazyBenchmark("made", records[1:], splits=("inside", "outside"))
    assert rest.manifest["sha256"] == alone.manifest["sha256"] != skipping.manifest["sha256"]
    assert alone.with_captions() is alone
    with pytest.raises(DataError, match="no usable record"):
        base.LazyBenchmark("made", records[:1], splits=("inside",), skip_bad=True).with_captions()
