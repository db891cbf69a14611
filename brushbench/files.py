"""Files from elsewhere, looked at before they are opened: what they are, how large they are, and how text is read."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from brushbench.errors import UnusableError, UsageError

__all__ = [
    "LIMITS",
    "decode_text",
    "is_file",
    "limit",
    "path_inside",
    "read_bytes",
    "read_text",
    "regular_file",
    "surrogate",
]

LIMITS = {
    "BRUSHBENCH_MAX_BYTES": 256 * 2**20,  # of one picture, mask, table or caption file
    "BRUSHBENCH_MAX_PIXELS": 4096 * 4096,  # height x width of one picture, before it is decoded
}
READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)  # which Windows alone has
MORE = 2**20  # bytes asked for where a file holds more than it said
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def limit(name: str) -> int:
    """Return one of the :data:`LIMITS`, or what the environment variable of that name sets.

    Raises:
        UsageError: the variable is no positive integer.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return LIMITS[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text) > 0):
        raise UsageError(f"{name}={text[:40]!r} is no positive whole number. Correct the variable, or unset it.")
    return int(text)


def regular_file(path: Path | str, what: str = "file") -> Path:
    """Return a path behind which a regular file lies; links to one are followed.

    Nothing is opened: opening a named pipe or a device may wait for ever, or read for ever.

    Args:
        path: of the file.
        what: what messages call it, such as ``picture``.

    Raises:
        UnusableError: nothing is there, or a folder, a named pipe, a socket, a device, a link to nothing, or a name
            that the system refuses.
    """
    _check_regular(path, what)
    return path if isinstance(path, Path) else Path(path)


def _check_regular(name: Path | str, what: str) -> None:
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - a Path takes longer than the call, and tables ask 30,000 times
    except FileNotFoundError:
        path = Path(name)
        if path.is_symlink():
            raise UnusableError(
                f"the {what} {path} is a link to {path.readlink()}, which does not exist",
                "Restore that file, or put a copy of it in place of the link",
            ) from None
        raise UnusableError(f"the {what} {path} is missing", "Put it there") from None
    except PermissionError as error:
        raise UnusableError(f"the {what} {name} cannot be read ({error.strerror})", "Make it readable") from None
    except (OSError, ValueError) as error:  # ValueError: NUL, or a lone surrogate
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = str(name) if len(str(name)) <= 200 else f"{str(name)[:200]}..."
        raise UnusableError(f"the {what} {shown!r} cannot be opened ({reason})", "Name a file that exists") from None
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in KINDS if is_kind(mode)), "of an unknown kind")
        raise UnusableError(f"the {what} {name} is {kind}, expected a file", "Put a regular file there")


def is_file(path: Path) -> bool:
    """Whether a regular file is there; a name that the system refuses, such as one of 5,000 letters, is not there."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_bytes(path: Path | str, what: str = "file") -> bytes:
    """Return a regular file's bytes.

    Raises:
        UnusableError: it is no regular file (:func:`regular_file`), is larger than ``BRUSHBENCH_MAX_BYTES``, or cannot
            be read.
    """
    _check_regular(path, what)
    most = limit("BRUSHBENCH_MAX_BYTES")
    try:
        file = os.open(path, READ)  # without Python's buffers: tables read tens of thousands of files
        try:
            size = min(os.fstat(file).st_size, most)
            data = os.read(file, size + 1)  # asked for `most` at once, Python would set that much memory aside
            # The file is larger than one call reads, or grew, or is one in /proc, which says 0.
            while len(data) != size and len(data) <= most and (more := os.read(file, max(size - len(data), MORE))):
                data += more
        finally:
            os.close(file)
    except OSError as error:
        raise UnusableError(f"the {what} {path} cannot be read ({error.strerror})", "Make it readable") from None
    if len(data) > most:
        raise UnusableError(
            f"the {what} {path} is larger than {most} bytes",
            "Replace it by a smaller one, or set BRUSHBENCH_MAX_BYTES to allow it",
        )
    return data


def read_text(path: Path | str, what: str = "file") -> str:
    """Return a text file's content: UTF-8, or what its byte order mark says.

    Raises:
        UnusableError: as :func:`read_bytes`, or it is neither.
    """
    return decode_text(read_bytes(path, what), f"the {what} {path}")


def decode_text(data: bytes, name: str) -> str:
    """Return text from its bytes: UTF-8 with or without byte order mark, or UTF-16 or UTF-32 with one.

    Nothing is guessed: without a mark, other encodings cannot be told apart.

    Args:
        data: the bytes.
        name: what messages call them.

    Raises:
        UnusableError: another encoding.
    """
    encoding = next((encoding for mark, encoding in BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        shown = f"byte 0x{data[error.start]:02x} at place {error.start}"
        raise UnusableError(f"{name} is not {encoding.upper()} ({shown})", "Save it as UTF-8") from None
    if "\0" in text:
        raise UnusableError(f"{name} holds the character NUL; perhaps it is UTF-16 without a mark", "Save it as UTF-8")
    return text


def surrogate(text: str) -> str | None:
    """Return the first lone surrogate of a text as ``U+D83D``, half of a character that no file can hold."""
    found = re.search("[\ud800-\udfff]", text)
    return f"U+{ord(found[0]):04X}" if found else None


def path_inside(folder: Path, relative: str) -> Path:
    r"""Join a path from a table to its folder, and refuse one that leads out of it.

    The check is of the text; links inside the folder are followed, so ``images`` may be a link to another disk. A
    path that Windows wrote, ``images\a.png``, is read as ``images/a.png`` unless a file of that very name is there.

    Raises:
        UnusableError: the path is empty, absolute or climbs out of the folder.
    """
    readings = (PurePosixPath(relative), PureWindowsPath(relative))
    if not relative.strip() or any(p.is_absolute() or p.drive or p.root or ".." in p.parts for p in readings):
        shown = relative if len(relative) <= 200 else f"{relative[:200]}..."
        raise UnusableError(
            f"the path {shown!r} leads outside the folder {folder}", "Write a path relative to that folder"
        )
    path = folder / relative
    return path if "\\" not in relative or is_file(path) else folder / relative.replace("\\", "/")
