"""Code of others: the forms it comes in, what it does to the process, and that it cannot end it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import brushbench
from brushbench.errors import EndedEarlyError, UsageError
from brushbench.evaluation.sources import Method, NoPicture
from brushbench.registry import build, parse_spec, resolve
from brushbench.types import Sample
from tests.hostile.corpus import command_line, good_folder

HEAD = """
import os, sys, random, signal, warnings
import numpy as np
from brushbench import Capabilities


class Method:
    capabilities = Capabilities(text=False, batch=4)

    def describe(self):
        return {"method": "toy"}

    def inpaint(self, requests):
        return [request.image for request in requests]
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a plug-in file, and return the spec of its class."""
    monkeypatch.chdir(tmp_path)

    def write(body: str = "", name: str = "mine.py", head: str = HEAD) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(head + dedent(body))
        return f"{file}:Method"

    return write


def construct(spec: str) -> Any:
    return build("model", parse_spec(spec), {"device": "cpu"})


def make_sample(name: str = "a") -> Sample:
    hole = np.zeros((8, 8), dtype=bool)
    hole[2:4, 2:4] = True
    return Sample(name, np.full((8, 8, 3), 90, np.uint8), hole, "", "inside")


def ask(method: Any, *names: str) -> list[Any]:
    samples = [make_sample(name) for name in names or ("a",)]
    return Method(method).answers(samples, [0] * len(samples), "")


# Forms ----------------------------------------------------------------------------------------------------------------


def test_a_wrapper_with_kwargs_is_built_and_its_options_passed_on(write: Callable[..., str]) -> None:
    spec = write("""
        class Method(Method):
            def __init__(self, steps=5, **kwargs):
                self.got = steps, kwargs
    """)
    assert construct(spec).got == (5, {})
    assert construct(f"{spec},steps=7,scale=0.5,fast=true,place=a/b").got == (
        7,
        {"scale": 0.5, "fast": True, "place": "a/b"},
    )


def test_annotations_for_the_type_checker_only_do_not_matter(write: Callable[..., str]) -> None:
    spec = write(
        """
        if TYPE_CHECKING:
            from torch import dtype as Dtype
        class Method(Method):
            def __init__(self, steps: int = 5, kind: Dtype | None = None, scale: "float" = 1.0):
                self.got = steps, kind, scale
        """,
        head="from __future__ import annotations\nfrom typing import TYPE_CHECKING\n" + HEAD,
    )
    assert construct(f"{spec},steps=3,kind=half,scale=0.5").got == (3, "half", 0.5)
    with pytest.raises(UsageError, match="is not a int"):
        construct(f"{spec},steps=many")


def test_two_files_each_have_the_helper_beside_them(write: Callable[..., str]) -> None:
    body = """
        import helper
        class Method(Method):
            def describe(self):
                import later
                return {"level": helper.LEVEL, "later": later.LEVEL}
    """
    specs = [write(body, f"{folder}/mine.py") for folder in ("one", "two")]
    for level, spec in enumerate(specs):
        for name in ("helper", "later"):
            Path(spec.partition(":")[0]).with_name(f"{name}.py").write_text(f"LEVEL = {level}")
    methods = [construct(spec) for spec in specs]
    assert [Method(method).describe() for method in methods] == [{"level": i, "later": i} for i in (0, 1)]
    assert "helper" not in sys.modules
    assert not {str(Path(spec).parent) for spec in specs} & set(sys.path)


def test_a_package_in_the_current_folder_is_found(write: Callable[..., str]) -> None:
    write("from pkg_of_mine import VALUE", "pkg_of_mine/inner.py")
    Path("pkg_of_mine/__init__.py").write_text("VALUE = 1")
    assert resolve("model", "pkg_of_mine.inner:Method").__name__ == "Method"
    with pytest.raises(UsageError, match="No module 'no_such_thing'"):
        resolve("model", "no_such_thing:Method")


def test_a_file_runs_once_until_it_or_its_helper_changes(write: Callable[..., str]) -> None:
    spec = write("import helper, builtins\nbuiltins.times = getattr(builtins, 'times', 0) + 1")
    helper = Path("helper.py")
    helper.write_text("LEVEL = 1")
    import builtins

    for _ in range(3):
        resolve("model", spec)
    assert builtins.times == 1  # type: ignore[attr-defined]
    helper.write_text("LEVEL = 22")
    resolve("model", spec)
    assert builtins.times == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import no_such_helper", r"cannot be imported: ModuleNotFoundError: No module named 'no_such_helper' \(mine"),
        ("1 / 0", r"cannot be imported: ZeroDivisionError: division by zero \(mine\.py, line 15\)"),
        ("def f(:", r"cannot be imported: SyntaxError"),
        ("class Method(Method):\n    def __init__(self): self.x = {}['k']", r"constructed: KeyError: 'k' \(mine\.py"),
        ("class Method(Method):\n    def __init__(self, a): pass", "needs a: write"),
    ],
)
def test_code_that_fails_is_one_sentence_with_its_line(write: Callable[..., str], body: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        construct(write(body))


# The process ----------------------------------------------------------------------------------------------------------


def state() -> dict[str, Any]:
    return {
        "cwd": Path.cwd(), "environment": dict(os.environ), "path": list(sys.path), "filters": list(warnings.filters),
        "random": random.getstate(), "numpy": np.random.get_state()[1].tolist(), "errors": np.geterr(),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(), "dtype": torch.get_default_dtype(), "threads": torch.get_num_threads(),
        "device": torch.get_default_device(), "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "pixels": Image.MAX_IMAGE_PIXELS, "cv2": cv2.getNumThreads(), "interrupt": signal.getsignal(signal.SIGINT),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "stdout": sys.stdout,
    }  # fmt: skip


CHANGES = """
    os.chdir("/"); os.environ["CHANGED"] = "yes"; sys.path.insert(0, "/nowhere"); warnings.simplefilter("error")
    random.seed(3); np.random.seed(3); np.seterr(all="raise"); sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch, cv2, PIL.Image, PIL.ImageFile
    torch.manual_seed(3); torch.set_default_dtype(torch.float64); torch.set_num_threads(1)
    torch.set_default_device("meta"); torch.use_deterministic_algorithms(True)
    PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True; PIL.Image.MAX_IMAGE_PIXELS = None; cv2.setNumThreads(1)
"""


@pytest.fixture
def threads() -> Iterator[None]:
    now = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(now)


@pytest.mark.usefixtures("threads")
def test_what_a_method_changes_of_the_process_changes_nothing_of_the_run(write: Callable[..., str]) -> None:
    """Case adapter_global_state: chdir wrote the run elsewhere, Pillow's flag scored a cut picture as whole."""
    body = f"""
def change():
{CHANGES}
change() if "import" in __file__ else None
class Method(Method):
    def __init__(self):
        change() if "init" in __file__ else None
    def inpaint(self, requests):
        change() if "call" in __file__ else None
        return [request.image for request in requests]
    def describe(self):
        return {{"changed": os.environ.get("CHANGED", "no"), "folder": os.getcwd()}}
"""
    before = state()
    for place in ("import", "init", "call"):
        method = construct(write(body, f"{place}.py"))
        assert state() == before, place
        ask(method)
        assert state() == before, place
        # What it changed is still its own.
        assert Method(method).describe() == {"changed": "yes", "folder": "/"}
        assert state() == before, place


def test_images_of_a_method_that_changes_the_folder_were_written_there(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread commits one batch while the next is generated, with the working folder that the method left."""
    body = """
import time
class Method(Method):
    def inpaint(self, requests):
        os.chdir("/")
        time.sleep(0.2)
        return [request.image for request in requests]
"""
    monkeypatch.chdir(tmp_path)
    bench = brushbench.load_benchmark("shapes", "inside", 3)
    brushbench.evaluate(construct(write(body)), bench, out="runs/x", metrics="psnr", batch_size=1)
    assert len(list(tmp_path.glob("runs/x/pictures/inside/0/*.png"))) == 3


def test_torch_that_a_method_imports_first_is_left_as_torch_comes(write: Callable[..., str]) -> None:
    import subprocess

    spec = write("import torch\ntorch.set_default_dtype(torch.float64); torch.set_num_threads(1)")
    code = f"""
import os; os.environ["OMP_NUM_THREADS"] = "2"
import sys
from brushbench.registry import resolve
assert "torch" not in sys.modules
resolve("model", {spec!r})
import torch
assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float32, 2)
"""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root)})


ENDINGS = [
    "sys.exit(0)",
    "os._exit(0)",
    "raise SystemExit",
    "__import__('posix')._exit(0)",
    "__import__('ctypes').CDLL(None)._exit(0)",
    "__import__('ctypes').pythonapi.Py_Exit(0)",
    "os.execv('/bin/true', ['true'])",
    "raise GeneratorExit",
    "raise BaseException",
]


@pytest.mark.parametrize("leave", ENDINGS)
def test_code_that_ends_the_process_does_not(write: Callable[..., str], leave: str) -> None:
    """Issue 14: an adapter that calls os._exit(0) gave exit 0 with 2 of 3 pictures."""
    with pytest.raises(EndedEarlyError, match="ended the process"):
        construct(write(leave, "a.py"))
    with pytest.raises(EndedEarlyError, match="ended the process"):
        construct(write(f"class Method(Method):\n    def __init__(self): {leave}", "b.py"))
    method = construct(
        write(
            f"""
            class Method(Method):
                def inpaint(self, requests):
                    if any(request.id == "bad" for request in requests):
                        {leave}
                    return [request.image for request in requests]
            """,
            "c.py",
        )
    )
    good, bad = ask(method, "good", "bad")
    assert isinstance(bad, NoPicture)
    assert "ended the process" in bad.reason
    assert good.shape == (8, 8, 3)
    assert ctypes.CDLL(None)._exit  # outside of a plug-in's code it may be looked up


def test_a_process_that_a_method_forks_may_end_as_it_likes(write: Callable[..., str]) -> None:
    method = construct(
        write("""
            class Method(Method):
                def inpaint(self, requests):
                    child = os.fork()
                    if child == 0:
                        os._exit(7)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                    return [request.image for request in requests]
        """)
    )
    assert ask(method)[0].shape == (8, 8, 3)


STRANGE = {
    "an error that cannot say its message": (
        "def inpaint(self, requests):\n    raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
        3,
        "all failed (E (2 times))",
    ),
    "a description within itself": (
        "def describe(self):\n    d = {}\n    d['d'] = d\n    return d",
        2,
        "nested without end",
    ),
    "half a character in a description": ("def describe(self): return {'a': '\\ud800'}", 0, "2 ok"),
    "a multiple of 10^9": ("capabilities = Capabilities(text=False, multiple=10**9)", 3, "at most 8192 per side"),
    "capabilities in words": ("capabilities = Capabilities(text='yes')", 2, "text is 'yes', expected True or False"),
    "an exit from a constructor": ("def __init__(self): raise GeneratorExit", 3, "ended the process: GeneratorExit"),
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_method_is_one_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, code, says = STRANGE[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "mine.py").write_text(
        "from brushbench import Capabilities\nclass Mine:\n    capabilities = Capabilities(text=False)\n"
        "    def describe(self): return {}\n    def inpaint(self, requests): return [r.image for r in requests]\n"
        + indent(body, "    ")
    )
    good_folder(tmp_path / "d")
    line = ["eval", "-m", "mine.py:Mine", "--name", "m", "--bench", "d", "--metrics", "psnr", "--variants", "raw"]
    for _ in range(2):  # the record reads back
        done = command_line(line, monkeypatch)
        assert done.exit == code, done.output
        assert says in done.output
        assert "Traceback" not in done.output
