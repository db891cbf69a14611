"""The short forms: a metric as a function, and a metric called on arrays."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench.errors import UnusableError, UsageError
from brushbench.metrics.seam import Seam
from brushbench.types import Sample, Unscored
from tests.brushbench.test_scoring import Half

CODE = '''
import brushbench

def redness(picture, sample):
    """Mean red of the hole."""
    return picture[sample.hole, 0].mean()

@brushbench.metric(higher_is_better=False, region="hole", unit="levels", display=("x10", 10.0))
def greenness(picture, sample, channel=1):
    if sample.id.endswith("1"):
        return brushbench.Unscored("odd")
    return picture[sample.hole, channel].mean()

def strange(picture, sample):
    return "red" if sample.id.endswith("1") else 1

def broken(picture, sample):
    raise ValueError("no paint")

def psnr(picture, sample):
    return 1.0

def one(picture):
    return 1.0

def three(picture, sample, weights):
    return 1.0

def other(image, reference):
    return 1.0
'''


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_a_function_is_a_metric(file, tmp_path):
    shapes = brushbench.load_benchmark("shapes", split="inside", limit=3)
    names = [f"{file}:{name}" for name in ("redness", "greenness", "strange", "broken")]
    run = brushbench.evaluate(Half(), shapes, out=tmp_path / "r", metrics=["psnr@standard", *names], variants="raw")
    values = {name: group["value"].tolist() for name, group in run.scores.groupby("metric")}
    assert values["redness"] == [63.0] * 3  # half of the hole's grey
    reasons = {name: group["reason"].tolist() for name, group in run.scores.groupby("metric")}
    assert reasons["greenness"] == ["", "odd", ""]
    assert reasons["strange"][1] == "the metric returned a str, expected one float, Scored or Unscored per picture"
    assert set(reasons["broken"]) == {"the metric failed: ValueError: no paint"}
    header = run.metrics["greenness@standard"]
    facts = {"higher_is_better": False, "region": "hole", "unit": "levels", "display": ["x10", 10.0]}
    assert {key: header[key] for key in facts} == facts
    assert list(header["code"]) == ["mine.py"]
    assert run.metrics["redness@standard"]["higher_is_better"] is True
    file.write_text(CODE.replace("return picture[sample.hole, 0].mean()", "return 7"))
    again = brushbench.evaluate(Half(), shapes, out=tmp_path / "r", metrics=[names[0]], variants="raw")
    assert again.scores[again.scores["metric"] == "redness"]["value"].tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("one", r"its parameters are \(picture\)\. Write def one\(picture, sample\)"),
        ("three", r"its parameters are \(picture, sample, weights\)"),
        ("other", r"its parameters are \(image, reference\)"),
        ("psnr", "has the name of the built-in metric 'psnr'"),
        ("nothing", "has no class and no function 'nothing'"),
        ("CODE", "has no class and no function 'CODE'"),
    ],
)
def test_a_function_that_is_no_metric_is_refused(file, name, sentence):
    with pytest.raises(UsageError, match=sentence):
        brushbench.load_metric(f"{file}:{name}")


def test_functions_of_the_system_are_no_metrics():
    for name in ("os:system", "os:rename", "shutil:move", "subprocess:run"):
        with pytest.raises(UsageError, match=r"no metric|no class and no function"):
            brushbench.load_metric(name)


def test_a_metric_scores_one_array():
    rng = np.random.default_rng(0)
    picture, reference = rng.integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    hole = np.zeros((40, 50), dtype=bool)
    hole[5:20, 10:30] = True
    for name in ("psnr", "mse", "ssim"):
        metric = brushbench.load_metric(name)
        [expected] = metric([picture], [Sample("s", reference, hole, "", "inside")])
        assert metric(picture, reference, hole=hole) == expected
        assert metric(picture, reference, hole=hole.astype(np.uint8) * 255) == expected
        [whole] = metric([picture], [Sample("s", reference, ~hole & hole, "", "inside")])
        assert metric(picture, reference) == whole != expected
    lpips = brushbench.load_metric("lpips", weights="tiny", device="cpu")
    assert lpips(picture, reference, hole=hole) > 0
    clip = brushbench.load_metric("clip_score", weights="tiny", device="cpu")
    assert clip(picture, prompt="a red circle") == clip([picture], [Sample("s", picture, hole, "a red circle", "x")])[0]
    assert isinstance(Seam()(picture, hole=hole), float)
    assert isinstance(brushbench.load_metric("psnr")(picture, reference[:30]), Unscored)


def test_a_wrong_call_on_arrays_is_one_sentence():
    picture = np.zeros((40, 50, 3), dtype=np.uint8)
    sample = Sample("s", picture, picture[..., 0] > 0, "", "inside")
    psnr = brushbench.load_metric("psnr")
    with pytest.raises(UnusableError, match="float64"):
        psnr(picture, picture / 255.0)
    with pytest.raises(UnusableError, match="hole"):
        psnr(picture, picture, hole=np.zeros((8, 8), dtype=bool))
    assert "float64" in psnr(picture / 255.0, picture).reason
    for call in (
        lambda: psnr([picture], [sample], hole=sample.hole),
        lambda: psnr(Image.fromarray(picture), Image.fromarray(picture)),
        lambda: psnr([picture]),
        lambda: psnr(picture, sample),
        lambda: psnr([picture], sample),
    ):
        with pytest.raises(UsageError, match="takes lists of pictures and samples, or one picture"):
            call()
    with pytest.raises(UsageError, match="2 pictures and 1 samples"):
        psnr([picture] * 2, [sample])
    with pytest.raises(UsageError, match=r"expected a brushbench\.Sample"):
        psnr([picture], ["sample"])
