"""Captions, metadata and names that are damaged, doubled, of another encoding, or that lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from tests.hostile.corpus import Hostile, good_folder
from tests.hostile.pictures import check, generate, linked, socketed

DEEP = 100_000
LONG = "x" * 10_000_000


def write(name: str, content: bytes | str, root: Path, command: Callable[[Path], list[str]] = generate) -> list[str]:
    good_folder(root / "d")
    (root / "d" / "captions.json").unlink()
    (root / "d" / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return command(root)


def parquet(columns: dict[str, list[object]]) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


GOOD = '{"bad": "a", "good": "b"}'
FILES: dict[str, list[tuple[str, bytes | str, str]]] = {
    "captions.json": [
        ("nothing", b"", "cannot be read as captions"),
        ("cut", GOOD[:9], "cannot be read as captions"),
        ("a list", "[1]", "expected an object"),
        ("a number", "7", "expected an object"),
        ("numbers for captions", '{"bad": 1}', "expected an object"),
        ("nested captions", '{"bad": {"en": "x"}}', "expected an object"),
        ("a JSON bomb", "[" * DEEP + "]" * DEEP, "cannot be read as captions"),
        ("a nested object bomb", '{"a":' * DEEP + "1" + "}" * DEEP, "cannot be read as captions"),
        ("a number of 5,000 digits", '{"bad": ' + "9" * 5000 + "}", "cannot be read as captions"),
        ("cp1252", '{"bad": "café"}'.encode("cp1252"), "is not UTF-8 .byte 0xe9"),
        ("UTF-16 without a mark", GOOD.encode("utf-16-le"), "NUL.*Save it as UTF-8"),
        ("UTF-16 cut", GOOD.encode("utf-16")[:-1], "is not UTF-16"),
        ("a caption twice", '{"bad": "a", "bad": "b"}', "'bad': it has two captions"),
        ("a caption for two spellings", '{"bad": "a", "bad.png": "b"}', "'bad': it has two captions"),
        (
            "a caption cut in a character",
            '{"bad": "a \\ud83d"}',
            "'bad': its caption holds half of a character .U.D83D",
        ),
        ("a picture that is missing", '{"gone": "x"}', "'gone': it has a caption but its picture is missing"),
        ("a name that climbs", '{"../../etc/passwd": "x"}', "passwd.*its picture is missing|leads outside"),
        ("a name of 5,000 letters", json.dumps({"n" * 5000: "x"}), "picture is missing|too long"),
        ("a name that is NUL", '{"a\\u0000b": "x"}', "picture is missing|cannot name a file"),
        ("a name with a lone surrogate", '{"\\ud800": "x"}', "picture is missing|cannot name a file"),
        ("an empty name", '{"": "x"}', "picture is missing|cannot name a file"),
    ],
    "captions.csv": [
        ("nothing", b"", "its columns are none, expected name, caption"),
        ("other columns", "a,b\n1,2\n", "its columns are a, b, expected name, caption"),
        ("no caption column", "name,style\nbad,x\n", "expected name, caption"),
        ("semicolons", "name;caption\nbad;x\n", "its columns are name;caption"),
        ("a comma without quotes", "name,caption\nbad,a cat, on a mat\n", "line 2 has more fields"),
        ("a line without a name", "caption,name\nx,bad\ny\n", "line 3 of captions.csv has no 'name'"),
        ("a column twice", "name,caption,caption\nbad,a,b\n", "two columns 'caption'"),
        ("a name twice", "name,caption\nbad,a\nbad.png,b\n", "'bad': it has two captions"),
        ("a field of 10 MB", f"name,caption\nbad,{LONG}\n", "field larger than field limit"),
        ("cp1252", "name,caption\nbad,café\n".encode("cp1252"), "is not UTF-8"),
        ("NUL", b"name,caption\nbad,a\0b\n", "NUL"),
        ("a path out of the folder", "name,caption\n../../x,y\n", "picture is missing|leads outside"),
    ],
    "captions.txt": [
        ("no tab", "bad a thing\n", "line 1 is 'bad a thing', expected NAME, a tab"),
        ("no tab in 10 MB", LONG, "line 1 is 'xxx.*\\.\\.\\.', expected NAME"),
        ("a name twice", "bad\ta\nbad\tb\n", "'bad': it has two captions"),
        ("latin-1", "bad\tcafé\n".encode("latin-1"), "is not UTF-8"),
    ],
    "images/bad.txt": [
        ("cp1252", "café".encode("cp1252"), "'bad': the caption file .*is not UTF-8 .byte 0xe9 at place 3"),
        ("UTF-16 without a mark", "a fox".encode("utf-16-le"), "'bad': the caption file .*NUL"),
        ("half a character", b"\xed\xa0\xbd", "'bad': the caption file .*is not UTF-8"),
    ],
    "metadata.jsonl": [
        ("no JSON", "file_name: bad.png\n", "line 1 is no JSON"),
        ("a list", "[1]\n", "line 1 holds a list"),
        ("no name", '{"text": "x"}\n', "line 1 of metadata.jsonl has no 'file_name'"),
        ("a name that is a list", '{"file_name": ["a"]}\n', "line 1 of metadata.jsonl has no 'file_name'"),
        ("a path out of the folder", '{"file_name": "../x.png"}\n', "leads outside the folder"),
        ("an absolute path", '{"file_name": "/etc/passwd"}\n', "leads outside the folder"),
        ("a drive", '{"file_name": "C:\\\\x.png"}\n', "leads outside the folder"),
        ("a mask out of the folder", '{"file_name": "images/bad.png", "mask": "../m.png"}\n', "leads outside"),
        ("a mask of numbers", '{"file_name": "images/bad.png", "mask": [1, 2]}\n', "its 'mask' is a list, expected"),
        ("two masks", '{"file_name": "images/bad.png", "mask": "masks/good.png"}\n', "'bad': there are two masks"),
        (
            "a caption that is a list",
            '{"file_name": "images/bad.png", "text": ["a"]}\n',
            "'bad': .*its 'text' is a list",
        ),
        (
            "a picture that is missing",
            '{"file_name": "images/no.png", "text": "a"}\n',
            "'no': the picture .*is missing",
        ),
        ("a JSON bomb", "[" * DEEP + "\n", "cannot be read"),
        (
            "a surrogate in a field",
            '{"file_name": "images/bad.png", "style": "\\udc00"}\n',
            "'bad': its style holds half",
        ),
    ],
    "metadata.csv": [
        ("no name", "text\nx\n", "its columns are text"),
        ("another encoding", "file_name,text\nimages/bad.png,é\n".encode("cp1252"), "is not UTF-8"),
        ("a comma without quotes", "file_name,text\nimages/bad.png,a, b\n", "line 2 has more fields"),
    ],
    "metadata.parquet": [
        ("no Parquet", b"PAR1", "no Parquet file"),
        ("cut", parquet({"file_name": ["images/bad.png"], "text": ["x"]})[:-20], "no Parquet file"),
        ("no name", parquet({"text": ["x"]}), "row 1 of metadata.parquet has no 'file_name'"),
        ("a path out of the folder", parquet({"file_name": ["../x.png"], "text": ["x"]}), "leads outside the folder"),
    ],
}


def both(root: Path, names: tuple[str, str]) -> list[str]:
    good_folder(root / "d")
    (root / "d" / "captions.json").unlink()
    for name, text in zip(names, ('{"bad": "a"}', "name,caption\nbad,b\n"), strict=True):
        (root / "d" / name).write_text(text)
    return generate(root)


def in_place_of(root: Path, name: str) -> list[str]:
    shutil.rmtree(good_folder(root / "d") / name)
    (root / "d" / name).write_text("a file")
    return generate(root)


def special(make: Callable[[Path], object], name: str, root: Path) -> list[str]:
    good_folder(root / "d")
    path = root / "d" / name
    path.unlink(missing_ok=True)
    make(path)
    return generate(root)


def rename(root: Path, folder: str, names: list[str], command: Callable[[Path], list[str]] = generate) -> list[str]:
    """Put copies of a good file under other names."""
    source = good_folder(root / "d") / folder / "good.png"
    for name in names:
        Image.open(source).save(root / "d" / folder / name, "BMP" if name.lower().endswith("bmp") else "PNG")
    return command(root)


def uncaptioned(root: Path, method: str) -> list[str]:
    good_folder(root / "d")
    (root / "d" / "captions.json").unlink()
    return ["generate", "-m", method, "--bench", str(root / "d"), "--out", str(root / "runs")]


READER = """
from brushbench import Capabilities
class Reader:
    capabilities = Capabilities(text=True, batch=4)
    def describe(self): return {"method": "reader"}
    def inpaint(self, requests): return [request.image for request in requests]
"""


def read_by_mine(root: Path) -> list[str]:
    (root / "mine.py").write_text(READER)
    return uncaptioned(root, f"{root / 'mine.py'}:Reader")


def decomposed(root: Path) -> list[str]:
    good_folder(root / "d")
    accented = unicodedata.normalize("NFD", "café")
    for folder in ("images", "masks"):
        (root / "d" / folder / "bad.png").rename(root / "d" / folder / f"{accented}.png")
    (root / "d" / "captions.json").write_text('{"café": "x", "good": "y"}', encoding="utf-8")
    return check(root)


def lying_about(root: Path) -> list[str]:
    good_folder(root / "d")
    for folder in ("images", "masks"):
        for name in ("._bad.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (root / "d" / folder / name).write_bytes(b"\0\5\x16\7" + bytes(100))
    return check(root)


def huge_caption(root: Path) -> list[str]:
    good_folder(root / "d")
    (root / "d" / "captions.json").write_text(json.dumps({"bad": LONG}))
    return generate(root)


def inputs() -> Iterator[Hostile]:
    for name, cases in FILES.items():
        for what, content, says in cases:
            yield Hostile(f"{name}: {what}", partial(write, name, content), 5, f"error: .*{says}")


MAKERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "named pipe"),
    "a folder": (Path.mkdir, "a folder"),
    "/dev/zero": (linked("/dev/zero"), "a device"),
    "a socket": (socketed, "a socket"),
    "a link to nothing": (linked("nowhere"), "is a link to nowhere"),
}
INPUTS = [
    *inputs(),
    *(
        Hostile(f"{name} that is {what}", partial(special, make, name), 5, says)
        for name in ("captions.json", "metadata.csv", "images/bad.txt")
        for what, (make, says) in MAKERS.items()
    ),
    *(
        Hostile(f"{name}/ that is a file", partial(in_place_of, name=name), 5, f"{name} is no folder. Make it one")
        for name in ("images", "masks")
    ),
    Hostile("two caption files", partial(both, names=("captions.json", "captions.csv")), 5, "Keep one of them"),
    Hostile("captions larger than the limit", huge_caption, 5, "larger than 1000000 bytes",
            environment={"BRUSHBENCH_MAX_BYTES": "1000000"}),
    Hostile("two masks of a name", partial(rename, folder="masks", names=["bad.bmp"]), 5, "'bad': there are two masks"),
    Hostile("two pictures of a name", partial(rename, folder="images", names=["bad.bmp"]), 5, "two pictures of that"),
    Hostile("a picture of two cases", partial(rename, folder="images", names=["bad.PNG"]), 5, "two pictures of that"),
    Hostile("a picture without a mask", partial(rename, folder="images", names=["x.png"]), 5, "the mask .*missing"),
    Hostile("captions that nobody reads", partial(uncaptioned, method="telea"), 0, "2 ok"),
    Hostile("captions that somebody reads", read_by_mine, 5,
            "'bad': the caption is missing, and the method reads it.*such as telea"),
    Hostile("a name that macOS took apart", decomposed, 0, "bad records: 0"),
    Hostile("what macOS and Windows leave behind", lying_about, 0, "images: 2.*bad records: 0"),
]  # fmt: skip
