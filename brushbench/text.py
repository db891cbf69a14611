"""Untrusted text on its way out: one function per output, used for every name, id, split, reason and metadata value.

A run or a benchmark may come from someone else. What it names is shown as text, on one line, in every output: it
cannot move the cursor, colour a terminal, open a table cell, run as a formula, or become markup.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

__all__ = ["LONGEST", "csv_cell", "html", "latex", "markdown", "message", "plot_label", "terminal"]

LONGEST = 1000  # characters of one name or remark in any output
LONGEST_MESSAGE = 20_000
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, bidirectional marks, surrogates, line separators
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "[": "{[}", "]": "{]}", "-": "{-}",
}  # fmt: skip
_NOT_IN_LATEX = set("«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ")  # pdfLaTeX without T1 fonts stops at these, and from U+0180 on


def terminal(text: object) -> str:
    r"""Return text as one line of visible characters; what is not visible is written out, such as ``\x1b``.

    Give the result to rich as ``rich.text.Text`` or through ``rich.markup.escape``, never as markup.
    """
    plain = str(text)
    if len(plain) > LONGEST:
        plain = f"{plain[:LONGEST]}… ({len(plain)} characters)"
    return "".join(map(_visible, re.sub(r"[\t\n\r\f\v ]+", " ", plain)))


def message(text: object) -> str:
    """Return a message for a person, whose own line ends stay; what names in it hide is written out."""
    lines = str(text)[:LONGEST_MESSAGE].split("\n")
    return "\n".join("".join(map(_visible, line)) for line in lines)


def markdown(text: object) -> str:
    """Return text for a Markdown cell or sentence: no new row, cell, emphasis, link or HTML."""
    plain = re.sub(r"([\\`*\[\]|~])", r"\\\1", terminal(text))
    plain = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", plain)  # inside a word it emphasises nothing
    plain = re.sub(r"(?i)\b(https?|ftp|mailto):", r"\1&#58;", plain)
    return re.sub(r"(?i)\bwww\.", "www&#46;", plain).replace("@", "&#64;")


def csv_cell(text: object) -> str:
    """Return text for a CSV cell: no formula in a spreadsheet, no second line. The csv module adds the quotes."""
    plain = terminal(text)
    return f"'{plain}" if plain.lstrip().startswith(_FORMULA) else plain


def latex(text: object) -> str:
    """Return text for LaTeX: no command; characters that pdfLaTeX has no letter for are named, such as [U+4E2D]."""
    return "".join(map(_latex_character, terminal(text)))


def html(text: object) -> str:
    """Return text for HTML, in an element or a quoted attribute."""
    return escape(terminal(text), quote=True)


def plot_label(text: object, limit: int = 24) -> str:
    """Return text as Matplotlib should show it: short, printable, its dollars no mathematics."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))
    clean = clean if len(clean) <= limit else f"{clean[: limit - 1]}…"
    return clean.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def _latex_character(character: str) -> str:
    if ord(character) >= 0x180 or character in _NOT_IN_LATEX:
        return f"{{[}}U+{ord(character):04X}{{]}}"
    return _LATEX.get(character, character)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
