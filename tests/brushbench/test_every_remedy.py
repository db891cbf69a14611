"""Every remedy that a message names is tried: a new message fails here until a test carries its remedy out.

A remedy is a sentence that tells what to do. It is tried where a `test_remedies*.py` quotes it, for those tests carry
out what they quote; or by the test that is named here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERBS = (
    "Add Allow Bring Call Change Check Choose Clip Compile Complete Continue Convert Correct Crop Delete Derive "
    "Download Draw Export Fetch Finish Free Give Install Keep Leave Load Log Make Mend Move Name Open Pass Put Quote "
    "Reinstall Remove Rename Repair Replace Restore Return Run Save Say Score Set Shorten Show Take Train Unset Unwrap "
    "Upgrade Use Wait Write"
)
UPPER, LOWER = VERBS.replace(" ", "|"), VERBS.lower().replace(" ", "|")
REMEDY = re.compile(rf"(?:^|\. )((?:{UPPER})\b[^.;]*)|[;:] ((?:{LOWER})\b[^.;]*)")
HELP = {"Option", "Argument", "Typer", "command", "Listed", "_option", "Field", "say"}  # of no message that refuses

ELSEWHERE = {  # how a remedy begins: the test that carries it out
    "Compile it inside one": "brushnet/test_injection.py::test_unet_compiled_inside_an_injection_takes_residuals",
    "Free space there": "brushbench/test_run_growth.py::test_a_disk_that_fails_is_one_sentence_and_the_same_command",
    "Give an SD Inpainting's model": "brushbench/test_tiny_inpainters.py::test_sharing_needs_the_whole_u_net_of_an_sd",
    "Give one with patches of": "brushbench/test_metrics_removal.py::test_the_published_cfd_warns_of_its_defects",
    "Leave it out of the method": "baselines/test_speed.py::test_the_command_names_what_is_refused",
    "Give the tokenizer": "brushbench/test_metric_hps_v3.py::test_it_is_never_in_auto_and_refuses_what_does_not_fit",
    "Name it in `brushbench score": "brushbench/test_metric_sets.py::test_wrong_calls_are_one_sentence",
    "Pass weights=facebook/dinov2": "brushbench/test_metrics_removal.py::test_missing_weights_say_what_to_do_and",
    "Put the files of Qwen": "brushbench/test_metric_hps_v3.py::test_it_is_never_in_auto_and_refuses_what_does_not_fit",
    "show them with --metrics": "brushbench/test_audited_columns.py::test_a_small_judge_that_inverted_an_order_is_not",
    "Train it over this one": "brushbench/test_tiny_inpainters.py::test_the_leaderboard_sets_shared_blocks_into_the",
    "Train into another --out with": "brushbench/test_training_folders.py::test_advice_about_a_loss_that_is_no_number",
}
NOT_HERE = {  # how a remedy begins: why no test carries it out
    "Check the name, and log in": "needs an account of the hub",
    "Log in with `hf auth login`": "needs an account of the hub; its other half is tried",
    "Make it readable": "the tests may run as root, who reads everything",
    "Make it writable": "the tests may run as root, who writes everywhere",
    "Reinstall": "would change the installation that the tests run in",
    "Upgrade brushbench": "there is no newer release to upgrade to",
    "Write cuda:0 to cuda:": "needs two GPUs",
    "use a picture nearer to a square": "no shape is known for which no hole is found",
    "Give it a mask of its own": "no shape is known for which no hole is found",
    "Change it with --engine-option": "needs Slurm",
    "Choose another --split": "guards what the choice of a split refuses before",
    "Name its data with --data": "guards what the hash of the data refuses before",
    "Name the data the runs were made on": "guards what the hash of the data refuses before",
    "Return a dict of texts": "guards what the check of a description refuses before",
    "write its room first": "for who writes code of this repository",
    "pass its folder as --clip": "guards what the command's own default of --clip refuses before",
    "Write to FILE as well": "a text of --help",
}


def is_help(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in HELP


def parts(node: ast.AST) -> list[str] | None:
    """The literal parts of a text, between what is filled in; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]  # type: ignore[misc]
    return None


def texts(tree: ast.AST) -> Iterator[str]:
    """Texts of code, but for docstrings and help; what is filled in is a NUL."""
    if (found := parts(tree)) is not None:
        yield "".join(found)
        return
    for node in ast.iter_child_nodes(tree):
        if not is_help(node) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield from texts(node)


@cache
def remedies() -> tuple[tuple[str, str], ...]:
    return tuple(_remedies())


def _remedies() -> Iterator[tuple[str, str]]:
    for package in ("brushbench", "brushnet", "baselines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for text in texts(ast.parse(file.read_text("utf-8"))):
                for one in REMEDY.finditer(text):
                    if " " in (remedy := (one[1] or one[2]).strip()):
                        yield str(file.relative_to(ROOT)), remedy


def words(text: str) -> str:
    """Text without what a pattern escapes and a message quotes."""
    return " ".join(re.sub(r"[^A-Za-z0-9 ]+", "", text).split())


@cache
def quoted() -> str:
    files = [ast.parse(file.read_text("utf-8")) for file in (ROOT / "tests").rglob("test_remedies*.py")]
    return "\n".join(words(text) for tree in files for text in texts(tree))


def is_tried(remedy: str) -> bool:
    longest = max((words(part) for part in remedy.split("\0")), key=len)
    begins = " ".join(longest.split()[:4])
    return longest in quoted() or (begins.count(" ") == 3 and begins in quoted())


def test_every_remedy_that_a_message_names_is_tried() -> None:
    known = (*ELSEWHERE, *NOT_HERE)
    untried = [(file, one) for file, one in remedies() if not one.startswith(known) and not is_tried(one)]
    assert not untried, "Carry each out in a test_remedies*.py that quotes it."


def test_what_is_said_of_remedies_is_current() -> None:
    named = [one for _, one in remedies()]
    assert len(named) > 250
    for begins in (*ELSEWHERE, *NOT_HERE):
        assert any(one.startswith(begins) for one in named), begins
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8"), place
