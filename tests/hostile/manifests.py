"""Mapping files and tables of the published benchmarks, damaged or made by somebody who means no good."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.captions import DEEP, MAKERS
from tests.hostile.corpus import Hostile, save

SIDE = 16
INSIDE, OUTSIDE = [34, 4, 50, 4], [100, 40]
GOOD = {"image": "images/bad.png", "caption": "a thing", "inpainting_mask": INSIDE, "outpainting_mask": OUTSIDE}
Command = Callable[[Path], list[str]]


def generate(root: Path) -> list[str]:
    return ["generate", "-m", "copy", "--bench", str(root / "d"), "--out", str(root / "runs")]


def benchmark(root: Path, mapping: bytes | str, command: Command = generate) -> list[str]:
    rng = np.random.default_rng(2)
    for name in ("bad", "good"):
        save(root / "d" / "images" / f"{name}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    content = mapping if isinstance(mapping, bytes) else mapping.encode()
    (root / "d" / "mapping_file.json").write_bytes(content)
    return command(root)


def record(root: Path, changes: dict[str, Any], name: str = "bad", command: Command = generate) -> list[str]:
    good = {**GOOD, "image": "images/good.png"}
    return benchmark(root, json.dumps({name: {**GOOD, **changes}, "good": good}), command)


FILES = {
    "nothing": (b"", "is no JSON file"),
    "cut": (b'{"a": {"image": "x', "is no JSON file"),
    "text": (b"<html>", "is no JSON file"),
    "a number": (b"7", "holds a int, expected an object"),
    "null": (b"null", "holds a NoneType"),
    "a JSON bomb": (b"[" * DEEP, "is no JSON file"),
    "an object bomb": (b'{"a":' * DEEP, "is no JSON file"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "is no JSON file"),
    "another encoding": ('{"a": {"caption": "é"}}'.encode("cp1252"), "is not UTF-8"),
    "UTF-16 without a mark": ("{}".encode("utf-16-be"), "NUL"),
    "no record": (b"{}", "has no usable record"),
    "an empty list": (b"[]", "has no usable record"),
    "a list without ids": (b'[{"image": "images/bad.png"}]', "'number 1': it has no 'image_id'"),
    "an id twice": (b'{"a": {}, "a": {}}', "'a': its id occurs twice"),
    "records that are lists": (b'{"a": [1]}', "'a': it is a list, not an object"),
    "records that are null": (b'{"a": null}', "'a': it is a NoneType, not an object"),
    "records that are text": (b'{"a": "images/bad.png"}', "'a': it is a str, not an object"),
}
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"image": None}, "its 'image' is missing"),
    "a picture that is a list": ({"image": ["a.png"]}, "its 'image' is missing"),
    "a picture that is nowhere": ({"image": "images/no.png"}, "the picture .*no.png is missing"),
    "a path that climbs": ({"image": "../secret.png"}, "leads outside the folder"),
    "a path that climbs later": ({"image": "images/../../secret.png"}, "leads outside the folder"),
    "an absolute path": ({"image": "/etc/passwd"}, "leads outside the folder"),
    "a drive": ({"image": "C:\\x.png"}, "leads outside the folder"),
    "a share": ({"image": "\\\\host\\x.png"}, "leads outside the folder"),
    "a climbing path of Windows": ({"image": "..\\x.png"}, "leads outside the folder"),
    "a path of nothing": ({"image": " "}, "leads outside the folder"),
    "a path that is the folder": ({"image": "images"}, "is a folder, expected a file"),
    "a path of 5,000 letters": ({"image": "a" * 5000}, "File name too long"),
    "a path of 1 MB": ({"image": "a" * 10**6}, "File name too long"),
    "a path with NUL": ({"image": "a\0.png"}, "cannot be opened|null"),
    "a path with half a character": ({"image": "\ud800.png"}, "cannot be opened"),
    "a caption that is a number": ({"caption": 7}, "its 'caption' is a int"),
    "a caption that is a list": ({"caption": ["a"]}, "its 'caption' is a list"),
    "a caption cut in a character": ({"caption": "a \ud83d"}, "half of a character"),
    "half a character in a field": ({"style": "\udfff"}, "its style holds half of a character"),
    "no hole": ({"inpainting_mask": None}, "its 'inpainting_mask' is missing"),
    "a hole that is text": ({"inpainting_mask": "34 4"}, "run lengths are str"),
    "a hole of COCO": ({"inpainting_mask": {"size": [16, 16], "counts": "abc"}}, "run lengths are a dict"),
    "a hole of floats": ({"inpainting_mask": [34.0, 4.0]}, "hold 34.0 at place 0"),
    "a hole of texts": ({"inpainting_mask": ["34", "4"]}, "hold '34' at place 0"),
    "a hole of pairs": ({"inpainting_mask": [[34, 4]]}, "at place 0"),
    "a hole of truth": ({"inpainting_mask": [True, True]}, "hold True at place 0"),
    "a hole of odd length": ({"inpainting_mask": [34, 4, 50]}, "odd length 3"),
    "a hole before the picture": ({"inpainting_mask": [0, 4]}, "out of range"),
    "a hole behind the picture": ({"inpainting_mask": [250, 40]}, "out of range"),
    "a negative hole": ({"inpainting_mask": [34, -4]}, "is negative"),
    "a hole twice": ({"inpainting_mask": [34, 4, 36, 4]}, "overlap"),
    "a hole beyond 64 bit": ({"inpainting_mask": [2**70, 1]}, "out of range"),
    "an empty hole": ({"inpainting_mask": []}, "the hole is empty"),
    "a hole of the whole picture": ({"inpainting_mask": [1, 256]}, "the hole is the whole picture"),
    "a bad stored brush hole": ({"brush_mask": [1]}, "brush_mask: run lengths have odd length"),
}
NAMES = {
    "a slash": "a/b", "a backslash": "a\\b", "dots": "..", "a dot": ".", "nothing": "", "NUL": "a\0b",
    "half a character": "\ud800", "300 letters": "n" * 300, "100 letters of Japan": "日" * 100,
}  # fmt: skip
KEPT_NAMES = {
    "a device of Windows": "nul", "a device with a suffix": "aux.v1", "a printer": "LPT1", "a blank": "a b",
    "a quote": 'a"b', "a colon": "a:b", "a star": "*", "an option": "--help", "markup": "[red]a[x]",
    "an escape": "a\x1b[31mb", "a newline": "a\nb", "a tilde": "~", "a percent sign": "%2F", "a dot file": ".a",
    "right to left": "\u202ea",
}  # fmt: skip


def editbench(root: Path, table: str, command: tuple[str, ...] = ()) -> list[str]:
    (root / "d").mkdir()
    (root / "d" / "annotations_natural.csv").write_text(table)
    return ["generate", "-m", "copy", "--bench", "editbench,kind=natural", "--data", str(root / "d"),
            "--out", str(root / "runs"), *command]  # fmt: skip


def brushbench_as_editbench(root: Path) -> list[str]:
    return record(root, {}, command=lambda root: ["data", "check", "editbench", "--data", str(root / "d")])


def inputs() -> Iterator[Hostile]:
    for name, (content, says) in FILES.items():
        yield Hostile(f"mapping file: {name}", partial(benchmark, mapping=content), 5, f"error: .*{says}")
    for name, (changes, says) in FIELDS.items():
        yield Hostile(f"record: {name}", partial(record, changes=changes), 5, f"error: Record 'bad': .*{says}")
    for what, name in NAMES.items():
        yield Hostile(f"id: {what}", partial(record, changes={}, name=name), 5, "Record .*its id (cannot|is too)")
    for what, name in KEPT_NAMES.items():
        yield Hostile(f"id: {what}", partial(record, changes={}, name=name), 0, "6 ok")


def placed(root: Path, make: Callable[[Path], object], name: str, bench: str) -> list[str]:
    """Put something that is no regular file where a benchmark has a table."""
    record(root, {})
    path = root / "d" / name
    path.unlink(missing_ok=True)
    make(path)
    return ["generate", "-m", "copy", "--bench", bench, "--data", str(root / "d"), "--out", str(root / "runs")]


def whole(root: Path, make: Callable[[Path], object], bench: str) -> list[str]:
    """Give something that is no folder for one."""
    make(root / "d")
    return ["generate", "-m", "copy", "--bench", bench, "--data", str(root / "d"), "--out", str(root / "runs")]


HEAD = "aos,prompt_full,prompt_mask-simple,prompt_mask-rich\n"
INPUTS = [
    *inputs(),
    *(
        Hostile(f"{bench}: {name} that is {what}", partial(placed, make=make, name=name, bench=bench), 5, says)
        for bench, name in (("brushbench", "mapping_file.json"), ("editbench", "annotations_natural.csv"))
        for what, (make, says) in MAKERS.items()
    ),
    *(
        Hostile(f"{bench}: a folder that is {what}", partial(whole, make=make, bench=bench), 5, "error: ")
        for bench in ("brushbench", "editbench", "folder")
        for what, (make, _) in MAKERS.items()
        if what != "a folder"
    ),
    Hostile("a mapping with paths of Windows", partial(record, changes={"image": "images\\bad.png"}), 0, "6 ok"),
    Hostile("a field that is a prompt variant", partial(record, changes={"prompt_variant": 3}), 0, "6 ok"),
    Hostile("editbench: columns missing", partial(editbench, table="aos,prompt_full\n1,x\n"), 5, "lacks the columns"),
    Hostile("editbench: no row", partial(editbench, table=HEAD), 5, "has no usable record"),
    Hostile("editbench: an id that climbs", partial(editbench, table=f"{HEAD}../7,a,b,c\n"), 5, "cannot name a file"),
    Hostile("editbench: no pictures", partial(editbench, table=f"{HEAD}7,a,b,c\n"), 5, "'natural-7': .*is missing"),
    Hostile("BrushBench as EditBench", brushbench_as_editbench, 5, "is BrushBench, not EditBench"),
]
