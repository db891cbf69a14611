from __future__ import annotations

import csv
import io
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brushbench import text

HOSTILE = [
    "[red]x[/red] [/x]", "\x1b[2Jgone", "a\r\n| forged | 99 |", "<script>alert(1)</script>", "</title>",
    "=cmd|' /C x'!A0",
    "+1", "-1", "@SUM(A1)", "\ud83d", "\u202eevil", "a\u0000b", "**b** _i_ `c` [l](http://x) www.x.y", "&lt;",
    "\\input{x}",
    "$x$ % # & ~ ^ { }", "中文", "x" * 10_000_000, "\u2028", "\u200b", "\x9b31m",
]  # fmt: skip
OUTPUTS = [text.terminal, text.markdown, text.csv_cell, text.latex, text.html]


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_one_visible_line(output: object, hostile: str) -> None:
    shown = output(hostile)  # type: ignore[operator]
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in shown)
    assert len(shown) < 5000
    shown.encode("utf-8")


@given(st.text())
def test_any_text_is_one_visible_line(value: str) -> None:
    for output in OUTPUTS:
        shown = output(value)
        assert len(shown.splitlines()) <= 1
        shown.encode("utf-8")


def test_terminal_shows_what_was_hidden() -> None:
    assert text.terminal("\x1b[31mred\u202e\ud83d") == r"\x1b[31mred\u202e\ud83d"
    assert text.terminal("plain name, 64x64 é") == "plain name, 64x64 é"


def test_markdown_is_text_and_nothing_else() -> None:
    assert text.markdown("a|b") == r"a\|b"
    assert text.markdown("<b>") == "&lt;b&gt;"
    assert text.markdown("_x_ clip_score **b**") == r"\_x\_ clip_score \*\*b\*\*"
    assert text.markdown("[l](http://x)") == r"\[l\](http&#58;//x)"


@given(st.text())
def test_csv_cells_come_back_and_are_no_formula(value: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([text.csv_cell(value), "1"])
    ((cell, one),) = csv.reader(io.StringIO(buffer.getvalue()))
    assert one == "1"
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@given(st.text())
def test_latex_has_no_bare_special_character(value: str) -> None:
    shown = text.latex(value)
    for escaped in sorted(text._LATEX.values(), key=len, reverse=True):
        shown = shown.replace(escaped, "")
    assert not set(shown) & set("\\{}$&#%_^~")
    assert all(ord(c) < 0x180 for c in shown)


def test_a_name_stopped_pdflatex(tmp_path: Path) -> None:
    """Plain pdfLaTeX, without another font encoding; Debian's texlive-latex-base where it is installed."""
    pdflatex = shutil.which("pdflatex")
    if not pdflatex:
        pytest.skip("no pdflatex: the characters are checked by test_latex_has_no_bare_special_character alone")
    names = [*HOSTILE[:-4], *(chr(code) for code in range(0x20, 0x250)), "中文", "^^5c", "<<--``''", "[1] *"]
    rows = "\\\\\n".join(f"{text.latex(name)} & 1" for name in names)
    head, tail = r"\documentclass{article}\begin{document}\begin{tabular}{lr}", r"\end{tabular}\end{document}"
    (tmp_path / "t.tex").write_text(f"{head}\n{rows}\n{tail}", "utf-8")
    done = subprocess.run(
        [pdflatex, "-halt-on-error", "t.tex"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout[-800:]


@given(st.text())
def test_html_has_no_tag_and_no_open_quote(value: str) -> None:
    assert not set(text.html(value)) & set("<>\"'")
