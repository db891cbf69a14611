"""Benchmarks from Python objects: lists of samples, datasets, tables, and classes that are only shaped like one."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import brushbench
from brushbench.benchmarks.holes import brush_hole
from brushbench.benchmarks.memory import as_benchmark
from brushbench.errors import BadRecordError, DataError, UsageError
from brushbench.types import Benchmark, Sample
from tests.brushbench.toys import Noise

HEIGHT, WIDTH = 24, 32
HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[6:18, 8:24] = True


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def samples() -> list[Sample]:
    return [
        Sample(f"s{i}", pixels(i), HOLE, f"picture {i}", split) for split in ("inside", "outside") for i in range(3)
    ]


def table(kind: str, folder: Path) -> dict[str, list]:
    """Three rows with a mask, their pictures as paths, bytes, Pillow pictures or arrays."""
    made: dict[str, list] = {"image": [], "mask": [], "text": [], "id": [], "style": [], "prompt_variant": []}
    for i in range(3):
        image, mask = Image.fromarray(pixels(i)), Image.fromarray(HOLE.astype(np.uint8) * 255)
        paths = [str(folder / f"{name}{i}.png") for name in ("image", "mask")]
        image.save(paths[0])
        mask.save(paths[1])
        values = {
            "paths": paths,
            "bytes": [Path(path).read_bytes() for path in paths],
            "pillow": [image, mask],
            "arrays": [pixels(i), HOLE.astype(np.uint8) * 255],
        }[kind]
        made["image"].append(values[0])
        made["mask"].append(values[1])
        for name, value in (("text", f"picture {i}"), ("id", f"s{i}"), ("style", "oil"), ("prompt_variant", i)):
            made[name].append(value)
    return made


def check(made: Benchmark) -> None:
    assert list(made.keys) == [(f"s{i}", "brush") for i in range(3)]
    for i, sample in enumerate(made):
        np.testing.assert_array_equal(sample.image, pixels(i))
        np.testing.assert_array_equal(sample.hole, HOLE)
        assert sample.prompt == f"picture {i}"
        assert sample.meta == {"style": "oil", "field_prompt_variant": str(i)}


@pytest.mark.parametrize("kind", ["paths", "bytes", "pillow", "arrays"])
def test_a_dataframe_is_a_benchmark(tmp_path: Path, kind: str) -> None:
    check(as_benchmark(pd.DataFrame(table(kind, tmp_path))))


@pytest.mark.parametrize("kind", ["paths", "pillow"])
def test_a_dataset_is_a_benchmark(tmp_path: Path, kind: str) -> None:
    made = datasets.Dataset.from_dict(table(kind, tmp_path))
    if kind == "paths":
        made = made.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    check(as_benchmark(made))
    assert len(as_benchmark(made, limit=2)) == 2


def test_a_dataset_of_an_image_folder_is_a_benchmark(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        Image.fromarray(pixels(i)).save(tmp_path / f"s{i}.png")
        rows.append(f"s{i}.png,picture {i}\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(rows))
    dataset = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "c"))
    (made, folder) = as_benchmark(dataset), brushbench.load_benchmark(tmp_path)
    assert (
        [sample.prompt for sample in made] == [sample.prompt for sample in folder] == [f"picture {i}" for i in range(3)]
    )
    for ours, theirs in zip(made, folder, strict=True):
        np.testing.assert_array_equal(ours.image, theirs.image)
    np.testing.assert_array_equal(folder[0].hole, brush_hole("s0", HEIGHT, WIDTH))


def test_a_list_of_samples_is_evaluated_and_continued(tmp_path: Path) -> None:
    run = brushbench.evaluate(Noise(), samples(), out=tmp_path / "r", metrics="psnr", variants="raw")
    assert run.pictures()["ok"] == 6
    again = brushbench.evaluate(Noise(), samples(), out=tmp_path / "r", metrics="mse", variants="raw")
    assert set(again.scores["metric"]) == {"psnr", "mse"}
    other = [*samples()[:-1], Sample("s2", pixels(9), HOLE, "picture 2", "outside")]
    with pytest.raises(brushbench.errors.RunError):
        brushbench.evaluate(Noise(), other, out=tmp_path / "r", metrics="psnr")


def test_splits_and_limits_choose_from_a_list() -> None:
    assert list(as_benchmark(samples(), "outside", 2).keys) == [("s0", "outside"), ("s1", "outside")]
    assert as_benchmark(samples(), limit=2).manifest["counts"] == {"inside": 2, "outside": 2}


def test_the_hash_of_a_list_covers_everything() -> None:
    first = samples()[0]
    image, hole = first.image.copy(), HOLE.copy()
    image[0, 0, 0] ^= 1
    hole[0, 0] = True
    fields = vars(first)
    changes = [{"image": image}, {"hole": hole}, {"prompt": "x"}, {"id": "x"}, {"split": "brush"}, {"meta": {"a": "b"}}]
    hashes = {as_benchmark([Sample(**{**fields, **change})]).manifest["sha256"] for change in [{}, *changes]}
    assert len(hashes) == 7


def test_a_list_names_its_bad_records() -> None:
    first = samples()[0]
    with pytest.raises(BadRecordError, match="'s0': its id occurs twice in 'inside'"):
        as_benchmark([first, first])
    with pytest.raises(BadRecordError, match="its id cannot name a file"):
        as_benchmark([Sample("a/b", first.image, HOLE, "x", "inside")])
    with pytest.raises(BadRecordError, match="half of a character"):
        as_benchmark([Sample("a", first.image, HOLE, "\ud83d", "inside")])
    bare = as_benchmark([Sample("a", first.image, HOLE, "", "inside")])
    with pytest.raises(BadRecordError, match="'a': the caption is missing, and the method reads it"):
        bare.with_captions()
    with pytest.raises(DataError, match="holds no sample"):
        as_benchmark([])


class Shaped:
    """A benchmark of one's own that derives from nothing."""

    name = "shaped"

    def __init__(self, **manifest: object) -> None:
        self.samples = samples()
        self.keys = [(sample.id, sample.split) for sample in self.samples]
        self.manifest = {"name": "shaped", "sha256": "0" * 64, **manifest}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def test_an_object_that_is_only_shaped_like_a_benchmark_gets_every_default(tmp_path: Path) -> None:
    made = as_benchmark(Shaped())
    assert (made.title, made.spec, made.limit, made.skipped, made.metric_weights) == ("shaped", "", None, (), None)
    assert [sample.id for sample in made] == ["s0", "s1", "s2"] * 2
    assert made.with_captions() is made
    assert brushbench.evaluate(Noise(), Shaped(), out=tmp_path / "r", metrics="none").pictures()["ok"] == 6
    with pytest.raises(UsageError, match="has no 'sha256'"):
        as_benchmark(Shaped(sha256=None))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"a": 1}, "is a dict, expected a name, a folder"),
        (iter([]), "list_iterator, expected"),
        (7, "is a int, expected"),
        (np.zeros(3), "is a ndarray, expected"),
        ([1, 2], "Item 0 of the list is a int, expected a Sample"),
        (datasets.DatasetDict(), "is a datasets.DatasetDict, expected a Dataset. Choose a split"),
        (pd.DataFrame({"text": ["x"]}), "has the columns text; image or picture"),
        (pd.DataFrame({"image": []}), "has no row"),
    ],
)
def test_what_is_no_benchmark_is_one_sentence(data: object, words: str) -> None:
    with pytest.raises((UsageError, DataError), match=words):
        as_benchmark(data)


def test_a_loaded_benchmark_takes_no_second_limit_in_silence(tmp_path: Path) -> None:
    loaded = as_benchmark(samples(), limit=2)
    assert as_benchmark(loaded, limit=2) is loaded
    for options in ({"limit": 1}, {"split": "inside"}):
        with pytest.raises(UsageError, match="is loaded already"):
            as_benchmark(loaded, **options)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


CLEAR = encoded(Image.fromarray(np.dstack([pixels(0), HOLE * np.uint8(255)])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": "nowhere.png"}, "'s1': the picture nowhere.png is missing"),
        ({"image": b"no picture"}, "'s1': the picture cannot be decoded"),
        ({"image": None}, "'s1': its 'image' is a float"),
        ({"image": pixels(0).astype(float)}, r"'s1': the picture is float64"),
        ({"mask": "/dev/zero"}, "'s1': the mask /dev/zero is a device"),
        ({"mask": np.full((HEIGHT, WIDTH), 7)}, "'s1': the hole is int64 with values up to 7"),
        ({"mask": HOLE[1:]}, "'s1': its hole is 23 x 32, its picture 24 x 32"),
        (
            {"mask": encoded(Image.fromarray(np.dstack([pixels(0), HOLE * np.uint8(255)])))},
            "'s1': the mask: .*transparent",
        ),
        ({"mask": {}}, "'s1': its mask is a dict"),
        ({"text": 7}, "'s1': the caption is missing: its 'text' is a int"),
        ({"id": "a/b"}, "'a/b': its id cannot name a file"),
        ({"id": "s0"}, "'s0': its id occurs twice"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path: Path, change: dict, words: str) -> None:
    rows = pd.DataFrame(table("paths", tmp_path)).astype(object).to_dict("records")
    rows[1].update(change)
    with pytest.raises(BadRecordError, match=words):
        as_benchmark(pd.DataFrame(rows))


def test_a_row_without_a_mask_among_masks_gets_no_brush_hole_in_silence(tmp_path: Path) -> None:
    rows = pd.DataFrame(table("paths", tmp_path)).astype(object).to_dict("records")
    for absent in (None, float("nan")):
        rows[1]["mask"] = absent
        with pytest.raises(BadRecordError, match="'s1': its mask is missing"):
            as_benchmark(pd.DataFrame(rows))
    for row in rows:
        row["mask"] = None
    np.testing.assert_array_equal(as_benchmark(pd.DataFrame(rows))[0].hole, brush_hole("s0", HEIGHT, WIDTH))


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_a_limit_that_is_no_number_of_pictures_is_a_usage_error(limit: object) -> None:
    with pytest.raises(UsageError, match="expected a whole number from 1"):
        as_benchmark(samples(), limit=limit)  # type: ignore[arg-type]


def test_meta_that_is_no_text_is_named() -> None:
    first = samples()[0]
    with pytest.raises(BadRecordError, match="'s0': its style is a int, expected text"):
        as_benchmark([Sample("s0", first.image, HOLE, "x", "inside", {"style": 7})])
