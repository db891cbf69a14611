"""What messages on data advise works: each remedy is tried on its own copy of the folder that was refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushbench import load_benchmark
from brushbench.errors import BrushbenchError
from brushbench.masks import encode_rle
from tests.brushbench import toys
from tests.brushbench.test_benchmarks_editbench import COLUMNS
from tests.hostile.corpus import good_folder

Change = Callable[[Path], object]
Remedy = tuple[Change, dict[str, Any]]
HOLE = np.zeros((24, 32), dtype=bool)
HOLE[6:18, 8:24] = True


def picture(file: Path, height: int = 24, width: int = 32, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def mask(file: Path, hole: np.ndarray = HOLE, transparent: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    white = Image.fromarray(hole)
    if transparent:
        picture = Image.new("RGBA", white.size, "black")
        picture.putalpha(Image.fromarray(~hole).convert("L"))
        picture.save(file)
    else:
        white.save(file)


def jsonl(file: Path, **columns: object) -> None:
    file.write_text(json.dumps(columns))


def mapping(root: Path, **changes: object) -> None:
    """Change the first record of a mapping file; None leaves a field out."""
    file = root / "mapping_file.json"
    records = json.loads(file.read_text())
    first = next(iter(records))
    records[first] = {k: v for k, v in {**records[first], **changes}.items() if v is not None}
    file.write_text(json.dumps(records))


def rename_record(root: Path, name: str) -> None:
    file = root / "mapping_file.json"
    records = list(json.loads(file.read_text()).values())
    file.write_text(json.dumps({name: records[0], "b": records[1]}))


def as_list(root: Path, key: str) -> None:
    file = root / "mapping_file.json"
    file.write_text(json.dumps([{key: f"r{i}", **r} for i, r in enumerate(json.loads(file.read_text()).values())]))


def keep(root: Path) -> None:
    """Leave the folder as it is: the remedy is an option."""


def whole(root: Path) -> None:
    """Bring every file back that the folder had: fetched again, corrected, restored."""
    shutil.rmtree(root)
    shutil.copytree(root.with_name("whole"), root)


def move_into(folder: Path, into: str) -> None:
    (folder / into).mkdir(exist_ok=True)
    for file in list(folder.glob("*.png")):
        file.rename(folder / into / file.name)


def strip(root: Path) -> None:
    """Pictures alone, without masks and captions."""
    shutil.rmtree(root / "masks")
    (root / "captions.json").unlink()


def large_background(root: Path) -> None:
    """A background written for the published size beside a larger picture."""
    hole = np.ones((512, 512), dtype=bool)
    hole[:8] = False
    picture(root / "images" / "000000000.png", 600, 600)
    mapping(root, outpainting_mask=encode_rle(hole, "brushbench"), inpainting_mask=encode_rle(~hole, "brushbench"))


GOOD, CAPTIONS = "images/good.png", "captions.json"
# the layout, what is done to a good folder, options, what the message advises, and the remedies, each with its options
ADVICE: dict[str, tuple[str, Change, dict[str, Any], str, list[Remedy]]] = {
    "images is a file": (
        "folder", lambda r: (shutil.move(r / "images", r / "kept"), (r / "images").touch()), {},
        "Make it one, or move it away.",
        [(lambda r: ((r / "images").unlink(), shutil.move(r / "kept", r / "images")), {}),
         (lambda r: ((r / "images").unlink(), [f.rename(r / f.name) for f in (r / "kept").iterdir()]), {})],
    ),
    "masks is a file": (
        "folder", lambda r: (shutil.rmtree(r / "masks"), (r / "masks").touch()), {},
        "Make it one, or move it away to use seeded brush holes.",
        [(whole, {}), (lambda r: (r / "masks").unlink(), {})],
    ),
    "masks is empty": (
        "folder", lambda r: [f.unlink() for f in (r / "masks").iterdir()], {},
        "Put masks there, or remove it to use seeded brush holes.",
        [(whole, {}), (lambda r: (r / "masks").rmdir(), {})],
    ),
    "no folder": (
        "folder", shutil.rmtree, {}, "Give the folder that holds images/ or the pictures themselves.",
        [(lambda r: shutil.copytree(r.with_name("whole"), r), {}), (lambda r: picture(r / "a.png"), {})],
    ),
    "no picture": (
        "folder", lambda r: ([f.unlink() for f in (r / "images").iterdir()], (r / CAPTIONS).unlink()), {},
        "files there.", [(whole, {})],
    ),
    "two caption files": (
        "folder", lambda r: (r / "captions.csv").write_text("name,caption\ngood,x"), {}, "Keep one of them.",
        [(lambda r: (r / "captions.csv").unlink(), {}), (lambda r: (r / CAPTIONS).unlink(), {})],
    ),
    "two metadata files": (
        "folder", lambda r: [(r / "images" / f"metadata.{kind}").write_text(text) for kind, text in
                             {"csv": "file_name,x\ngood.png,1", "jsonl": '{"file_name": "good.png"}'}.items()], {},
        "Keep one of them.", [(lambda r: (r / "images" / "metadata.csv").unlink(), {})],
    ),
    "a path that leads out": (
        "folder", lambda r: jsonl(r / "metadata.jsonl", file_name="../x.png"), {},
        "Write a path relative to that folder",
        [(lambda r: jsonl(r / "metadata.jsonl", file_name=GOOD), {})],
    ),
    "a mask of 300 letters": (
        "folder",
        lambda r: ((r / "masks" / "good.png").unlink(), jsonl(r / "metadata.jsonl", file_name=GOOD, mask="x" * 300)),
        {}, "Name a file that exists",
        [(lambda r: (mask(r / "a.bmp"), jsonl(r / "metadata.jsonl", file_name=GOOD, mask="a.bmp")), {})],
    ),
    "a mask that is no path": (
        "folder", lambda r: jsonl(r / "metadata.jsonl", file_name=GOOD, mask=3), {},
        "Write paths relative to that folder.",
        [(lambda r: jsonl(r / "metadata.jsonl", file_name=GOOD, mask="masks/good.png"), {})],
    ),
    "masks of two kinds": (
        "folder", lambda r: shutil.copytree(r / "masks", r / "masks" / "brush"), {},
        "Move the masks into one of inside/, outside/, brush/.",
        [(lambda r: move_into(r / "masks", "inside"), {}), (lambda r: move_into(r / "masks", "brush"), {})],
    ),
    "two masks of a name": (
        "folder", lambda r: mask(r / "masks" / "good.bmp"), {}, "Rename or remove one",
        [(lambda r: (r / "masks" / "good.bmp").unlink(), {}),
         (lambda r: (r / "masks" / "good.bmp").rename(r / "masks" / "other.bmp"), {})],
    ),
    "two pictures of a name": (
        "folder", lambda r: (strip(r), picture(r / "images" / "good.bmp")), {}, "Rename or remove one",
        [(lambda r: (r / "images" / "good.bmp").unlink(), {}),
         (lambda r: (r / "images" / "good.bmp").rename(r / "images" / "other.bmp"), {})],
    ),
    "a caption of no picture": (
        "folder", lambda r: (r / GOOD).unlink(), {}, "Put good.png into", [(lambda r: picture(r / GOOD), {})],
    ),
    "two captions": (
        "folder", lambda r: (r / "images" / "good.txt").write_text("another"), {}, "Keep one of them",
        [(lambda r: (r / "images" / "good.txt").unlink(), {}), (lambda r: (r / CAPTIONS).unlink(), {})],
    ),
    "a missing mask": (
        "folder", lambda r: (r / "masks" / "good.png").unlink(), {}, "Put it there",
        [(lambda r: mask(r / "masks" / "good.png"), {})],
    ),
    "a mask of another size": (
        "folder", lambda r: mask(r / "masks" / "good.png", HOLE[::2, ::2]), {},
        "Bring the mask to the picture's size, or set resize_masks=true",
        [(lambda r: mask(r / "masks" / "good.png"), {}), (keep, {"resize_masks": "true"})],
    ),
    "a transparent mask": (
        "folder", lambda r: [mask(r / "masks" / f"{n}.png", transparent=True) for n in ("good", "bad")], {},
        "Save it without transparency, white = hole, or set the option masks to alpha: transparent = hole",
        [(whole, {}), (keep, {"masks": "alpha"})],
    ),
    "no transparent mask": (
        "folder", keep, {"masks": "alpha"}, "Save it with a transparent hole, or set the option masks to white",
        [(lambda r: [mask(r / "masks" / f"{n}.png", transparent=True) for n in ("good", "bad")], {"masks": "alpha"}),
         (keep, {"masks": "white"})],
    ),
    "an empty hole": (
        "folder", lambda r: mask(r / "masks" / "good.png", HOLE & False), {}, "Mark at least one pixel", [(whole, {})],
    ),
    "a hole of everything": (
        "folder", lambda r: mask(r / "masks" / "good.png", HOLE | True), {}, "Keep at least one pixel", [(whole, {})],
    ),
    "a picture too small for a brush hole": (
        "folder", lambda r: (strip(r), [picture(f, 6, 6) for f in (r / "images").iterdir()]), {},
        "Give it sides of at least 8 pixels, or a mask of its own",
        [(lambda r: [picture(f, 8, 8) for f in (r / "images").iterdir()], {}),
         (lambda r: [mask(r / "masks" / f"{n}.png", HOLE[4:10, 5:11]) for n in ("good", "bad")], {})],
    ),
    "a picture that is cut": (
        "folder", lambda r: (r / GOOD).write_bytes((r / GOOD).read_bytes()[:40]), {}, "Replace it by an intact",
        [(whole, {})],
    ),
    "a folder in place of a picture": (
        "folder", lambda r: ((r / GOOD).unlink(), (r / GOOD).mkdir()), {}, "Put a regular file there", [(whole, {})],
    ),
    "a link to nothing": (
        "folder", lambda r: ((r / GOOD).rename(r / "kept"), (r / GOOD).symlink_to(r / "away.png")), {},
        "Restore that file, or put a copy of it in place of the link",
        [(lambda r: (r / "kept").rename(r / "away.png"), {}),
         (lambda r: ((r / GOOD).unlink(), (r / "kept").rename(r / GOOD)), {})],
    ),
    "captions of another encoding": (
        "folder", lambda r: (r / CAPTIONS).write_bytes('{"good": "é", "bad": "b"}'.encode("cp1252")), {},
        "Save it as UTF-8",
        [(lambda r: (r / CAPTIONS).write_text('{"good": "é", "bad": "b"}', "utf-8"), {})],
    ),
    "captions of UTF-16 without a mark": (
        "folder", lambda r: (r / CAPTIONS).write_bytes('{"good": "a"}'.encode("utf-16-le")), {}, "Save it as UTF-8",
        [(lambda r: (r / CAPTIONS).write_text('{"good": "a"}', "utf-8"), {})],
    ),
    "captions that are a list": (
        "folder", lambda r: (r / CAPTIONS).write_text("[]"), {}, "Correct it there.", [(whole, {})],
    ),
    "captions with commas": (
        "folder", lambda r: ((r / CAPTIONS).unlink(), (r / "captions.csv").write_text("name,caption\ngood,a, b")), {},
        'write captions with commas in "quotes"',
        [(lambda r: (r / "captions.csv").write_text('name,caption\ngood,"a, b"'), {})],
    ),
    "a caption that is a number": (
        "folder", lambda r: ((r / CAPTIONS).unlink(), jsonl(r / "metadata.jsonl", file_name=GOOD, text=5)), {},
        "Write a sentence as its 'text'", [(lambda r: jsonl(r / "metadata.jsonl", file_name=GOOD, text="five"), {})],
    ),
    "nothing usable": (
        "folder", lambda r: [f.write_bytes(b"x") for f in (r / "images").iterdir()], {"skip_bad": "true"},
        "Check that the folder is complete.", [(whole, {"skip_bad": "true"})],
    ),
    "a limit of nothing": ("folder", keep, {"limit": 0}, "Leave it out to use every picture.", [(keep, {})]),
    # BrushBench's layout
    "a record that is no object": (
        "brushbench", lambda r: (r / "mapping_file.json").write_text('{"a": 3}'), {},
        "Write an object with 'image' and 'caption'", [(whole, {})],
    ),
    "no picture's path": (
        "brushbench", lambda r: mapping(r, image=None), {}, "Write the path of the picture",
        [(lambda r: mapping(r, image="images/000000000.png"), {})],
    ),
    "a caption that is none": (
        "brushbench", lambda r: mapping(r, caption=3), {}, "Write a sentence as its 'caption'",
        [(lambda r: mapping(r, caption="three"), {})],
    ),
    "half of a character": (
        "brushbench", lambda r: mapping(r, caption="\ud83d"), {}, "Write its caption anew",
        [(lambda r: mapping(r, caption="x"), {})],
    ),
    "no mask": (
        "brushbench", lambda r: mapping(r, inpainting_mask=None), {}, "Write its run lengths, or choose other splits",
        [(whole, {}), (keep, {"split": "outside,brush"})],
    ),
    "run lengths that are none": (
        "brushbench", lambda r: mapping(r, inpainting_mask=[1]), {}, "Correct inpainting_mask", [(whole, {})],
    ),
    "a background of the published size": (
        "brushbench", large_background, {}, "Bring the picture to 512 x 512",
        [(lambda r: picture(r / "images" / "000000000.png", 512, 512), {})],
    ),
    "no JSON": (
        "brushbench", lambda r: (r / "mapping_file.json").write_text("{"), {}, "Fetch it again, or correct it there.",
        [(whole, {})],
    ),
    "no mapping": (
        "brushbench", lambda r: (r / "mapping_file.json").write_text("3"), {}, "Check that it is the mapping file.",
        [(whole, {})],
    ),
    "a list without ids": (
        "brushbench", lambda r: as_list(r, "name"), {}, "Give it an 'image_id' of its own",
        [(lambda r: (whole(r), as_list(r, "image_id")), {})],
    ),
    "one id for two": (
        "brushbench", lambda r: (r / "mapping_file.json").write_text('{"a": {}, "a": {}}'), {},
        "Give every record its own id", [(whole, {})],
    ),
    "an id with a slash": (
        "brushbench", lambda r: rename_record(r, "a/b"), {}, "Write an id of 1 to 200 characters without slashes",
        [(lambda r: rename_record(r, "a_b"), {}), (lambda r: rename_record(r, "a" * 200), {})],
    ),
    "an id of many bytes": (
        "brushbench", lambda r: rename_record(r, "é" * 60), {}, "Shorten it",
        [(lambda r: rename_record(r, "é" * 30), {})],
    ),
    # EditBench's two layouts
    "pictures that are not square": (
        "google", lambda r: (picture(r / "references_natural" / "1.png"), mask(r / "masks_natural" / "1.png")), {},
        "Set side=0 to keep every picture's own size", [(keep, {"side": 0})],
    ),
    "half of EditBench": (
        "google", lambda r: (r / "annotations_generated.csv").unlink(), {},
        "Or set kind=natural to use that half alone.",
        [(keep, {"kind": "natural"}), (whole, {})],
    ),
    "a table of other columns": (
        "google", lambda r: (r / "annotations_natural.csv").write_text("a,b\n1,2\n"), {}, "Fetch it again.",
        [(whole, {})],
    ),
    "options of the other layout": (
        "editbench", keep, {"kind": "natural", "mask_key": "inpainting_mask"}, "Leave them out.",
        [(keep, {"mask_key": "inpainting_mask"})],
    ),
    "BrushBench as EditBench": (
        "editbench", keep, {},
        "Load it as brushbench, or choose one of its masks, such as mask_key=inpainting_mask.",
        [(keep, {"name": "brushbench"}), (keep, {"mask_key": "inpainting_mask"})],
    ),
    "several masks": (
        "editbench", lambda r: mapping(r, inpainting_mask=None, a_mask=[1, 3]), {},
        "Choose one, such as mask_key=outpainting_mask", [(keep, {"mask_key": "outpainting_mask"})],
    ),
    "a mask that is not there": (
        "editbench", lambda r: mapping(r, inpainting_mask=None), {"mask_key": "inpainting_mask"},
        "Write its run lengths, or name another field by mask_key",
        [(whole, {"mask_key": "inpainting_mask"}), (keep, {"mask_key": "outpainting_mask"})],
    ),
}  # fmt: skip


def google(root: Path) -> None:
    for kind in ("natural", "generated"):
        picture(root / f"references_{kind}" / "1.png", 32, 32)
        mask(root / f"masks_{kind}" / "1.png", np.pad(HOLE, ((0, 8), (0, 0))))
        with (root / f"annotations_{kind}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, [1, "full", "simple", "rich"]])


def load(root: Path, layout: str, name: str = "", **options: Any) -> None:
    """Load a benchmark and decode every sample."""
    known = "editbench" if layout == "google" else layout
    list(load_benchmark(name or known, root=str(root), **options))


@pytest.mark.parametrize("case", ADVICE)
def test_the_remedies_for_data_work(case: str, tmp_path: Path) -> None:
    layout, spoil, options, advice, remedies = ADVICE[case]
    make = {"folder": good_folder, "google": google}.get(layout, lambda root: toys.write_benchmark(root, pictures=2))
    make(tmp_path / "whole")
    load(tmp_path / "whole", layout, **({"mask_key": "inpainting_mask"} if layout == "editbench" else {}))
    for mend, changed in remedies:
        root = shutil.copytree(tmp_path / "whole", tmp_path / "d")
        spoil(root)
        with pytest.raises(BrushbenchError) as refused:
            load(root, layout, **options)
        assert advice in " ".join(str(refused.value).split())
        mend(root)
        load(root, layout, **changed)
        shutil.rmtree(root)


def test_a_file_over_a_limit_is_replaced_or_the_limit_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = good_folder(tmp_path / "d")
    picture(root / GOOD, 80, 80)
    mask(root / "masks" / "good.png", np.eye(80, dtype=bool))
    for name, most, enough in (("BRUSHBENCH_MAX_PIXELS", 1000, 6400), ("BRUSHBENCH_MAX_BYTES", 4000, 30000)):
        monkeypatch.setenv(name, str(most))
        with pytest.raises(BrushbenchError, match=f"Replace it by a smaller one, or set {name} to allow it"):
            load(root, "folder")
        monkeypatch.setenv(name, str(enough))
        load(root, "folder")
        monkeypatch.setenv(name, "many")
        with pytest.raises(BrushbenchError, match=r"Correct the variable, or unset it\."):
            load(root, "folder")
        monkeypatch.delenv(name)
        load(root, "folder")
        monkeypatch.setenv(name, str(most))
        load(good_folder(tmp_path / name), "folder")  # smaller ones
        monkeypatch.delenv(name)


def test_a_bad_record_is_left_out_as_the_message_says(tmp_path: Path) -> None:
    root = good_folder(tmp_path / "d")
    (root / GOOD).write_bytes(b"x")
    with pytest.raises(BrushbenchError, match=r"or pass --skip-bad \(in Python skip_bad=True\) to leave it out\."):
        load(root, "folder")
    assert len(load_benchmark(root, skip_bad=True)) == 1


def test_a_picture_that_changed_is_restored_or_begins_a_new_run(tmp_path: Path) -> None:
    benchmark = load_benchmark(good_folder(tmp_path / "d"))
    assert benchmark.manifest["images"] == 2
    before = (tmp_path / "d" / GOOD).read_bytes()
    picture(tmp_path / "d" / GOOD, seed=9)
    with pytest.raises(BrushbenchError, match="Restore it or start a new run"):
        list(benchmark)
    list(load_benchmark(tmp_path / "d"))
    (tmp_path / "d" / GOOD).write_bytes(before)
    list(benchmark)
