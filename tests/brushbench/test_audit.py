"""The audit: metrics whose answer is known find, miss and invert damage as they must."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from brushbench.audit_tables import render
from brushbench.cli import app
from brushbench.errors import UsageError
from brushbench.evaluation import Scoring
from brushbench.evaluation.audit import CHANGES, audit
from brushbench.evaluation.damages import DAMAGES, ORDERS
from brushbench.types import Sample

CODE = '''
import numpy as np

def sees_all(picture, sample):
    """Minus the distance to the reference."""
    return -float(np.abs(picture.astype(float) - sample.image).mean())

def inverts(picture, sample):
    return float(np.abs(picture.astype(float) - sample.image).mean())

def sees_nothing(picture, sample):
    return 1.0

def reads(picture, sample):
    return -float(len(sample.prompt) % 7 != int(sample.id) % 7)
'''


@pytest.fixture
def samples():
    """Ten noisy pictures; each caption is as long as its id says, which only ``reads`` looks at."""
    rng = np.random.default_rng(0)
    hole = np.zeros((32, 48), dtype=bool)
    hole[8:20, 10:30] = True
    return [
        Sample(str(i), rng.integers(40, 200, (32, 48, 3), dtype=np.uint8), hole, "x" * (i % 7), "inside")
        for i in range(10)
    ]


class Listed(list):
    """A list of samples as a benchmark."""

    name, metric_weights = "listed", None


def test_known_metrics_get_their_verdicts(samples, tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    names = [f"{tmp_path / 'mine.py'}:{name}" for name in ("sees_all", "inverts", "sees_nothing", "reads")]
    result = audit(Listed(samples), Scoring(names))
    assert not result.unavailable
    verdicts = {(f.metric.removesuffix("@standard"), f.damage): f for f in result.findings}
    assert len(verdicts) == 4 * len({**DAMAGES, **ORDERS})
    of_the_question = {"another image's caption", "hole moved"}
    for damage in DAMAGES:
        changed = damage not in of_the_question
        assert verdicts["sees_all", damage].verdict == ("detects" if changed else "blind"), damage
        assert verdicts["inverts", damage].verdict == ("inverted" if changed else "blind"), damage
        nothing = verdicts["sees_nothing", damage]
        assert (nothing.verdict, nothing.worse, nothing.better, nothing.largest) == ("blind", 0, 0, 0.0)
        expected = "detects" if damage == "another image's caption" else "blind"
        assert verdicts["reads", damage].verdict == expected, damage
    whole = verdicts["sees_all", "grey hole"]
    assert (whole.worse, whole.n) == (10, 10)
    assert whole.low == pytest.approx(0.7225, abs=1e-4)  # Wilson by hand: 10 of 10
    assert result.columns["sees_all@standard"].identical == 0
    assert result.columns["sees_all@standard"].worst[0] == "black image"
    data = json.loads(render(result, "json"))
    assert data["findings"][0]["damage"] == "blur 1"
    table = render(result).split("\n\n")[1].splitlines()
    assert len(table) == 2 + len(DAMAGES) + len(ORDERS)
    assert "**0/10 inverted**" in table[2]
    assert r"\textbf{0/10 inverted}" in render(result, "latex")


def test_an_order_compares_two_damages_sample_by_sample(samples, tmp_path):
    """A grey fill was put before generated content by ``boundary`` and ``aesthetic``: no damage alone shows that."""
    code = """
import numpy as np

def likes_flat(picture, sample):
    return -float(picture[sample.hole].std())
"""
    (tmp_path / "mine.py").write_text(code)
    result = audit(Listed(samples), Scoring([f"{tmp_path / 'mine.py'}:likes_flat"]))
    verdicts = {f.damage: f.verdict for f in result.findings if f.damage in ORDERS}
    assert verdicts["grey hole, against blended content"] == "inverted"


@pytest.mark.parametrize(
    ("region", "asked"),
    [
        ("keep", {"whole"}),
        ("hole", {"hole"}),
        ("boundary", {"hole"}),
        ("whole", {"hole", "whole"}),
    ],
)
def test_a_metric_is_asked_for_damage_of_what_it_judges(samples, tmp_path, region, asked):
    code = f"import brushbench\n@brushbench.metric(region='{region}')\ndef mine(picture, sample):\n    return 0.0\n"
    (tmp_path / "mine.py").write_text(code)
    result = audit(Listed(samples[:2]), Scoring([f"{tmp_path / 'mine.py'}:mine"]))
    found = {DAMAGES[f.damage].kind for f in result.findings if f.asked and f.damage in DAMAGES}
    assert found == asked
    assert all(f.asked == (region != "keep") for f in result.findings if f.damage in ORDERS)
    cells = render(result).splitlines()[4:]
    for finding, line in zip(result.findings, cells, strict=False):
        assert ("(0/2 too few)" in line) != finding.asked


def test_stability_finds_a_score_that_depends_on_its_neighbours(samples, tmp_path):
    code = """
from brushbench.metrics.base import BaseMetric

class Neighbours(BaseMetric):
    name, higher_is_better, region = "neighbours", True, "whole"

    def _score(self, pictures, samples, features):
        return [float(p.mean()) + 0.5 * (len(pictures) == 1) for p in pictures]
"""
    (tmp_path / "mine.py").write_text(code)
    result = audit(Listed(samples), Scoring([f"{tmp_path / 'mine.py'}:Neighbours"]), ["blur 1"])
    moved = {one.change: one for one in result.stability}
    assert list(moved) == list(CHANGES)
    assert moved["batch size"].largest == pytest.approx(0.5)
    assert moved["PNG"].largest == 0
    assert 0 < moved["1 grey level"].largest < 0.1
    assert moved["resized by 1 pixel"].largest > 0
    assert moved["PNG"].n == 10


def test_damage_of_the_hole_leaves_the_kept_pixels(samples):
    rng = np.random.default_rng(0)
    everywhere = {name for name, damage in DAMAGES.items() if damage.kind == "whole"}
    assert {"black image", "middle enlarged twice"} < everywhere
    everywhere.add("another image's content, blended")  # OpenCV blends over the border too
    for name, damage in DAMAGES.items():
        picture, sample = damage.make(samples[0], samples[1], rng)
        assert picture.dtype == np.uint8
        assert picture.shape == samples[0].image.shape
        if name not in everywhere:
            assert np.array_equal(picture[samples[0].keep], samples[0].image[samples[0].keep]), name
        assert not np.array_equal(picture, samples[0].image) or sample is not samples[0], name


def test_wrong_questions_are_one_sentence(samples):
    with pytest.raises(UsageError, match="Unknown damage 'rain'"):
        audit(Listed(samples), Scoring("psnr"), ["rain"])
    with pytest.raises(UsageError, match="two samples or more"):
        audit(Listed(samples[:1]), Scoring("psnr"))
    with pytest.raises(UsageError, match="samples of two pictures"):
        audit(Listed([samples[0]] * 3), Scoring("psnr"))


def test_the_command_writes_the_table(tmp_path):
    options = [
        "audit",
        "--bench",
        "shapes",
        "--limit",
        "3",
        "--metrics",
        "mse@standard,seam",
        "-o",
        str(tmp_path / "a.md"),
    ]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    table = (tmp_path / "a.md").read_text("utf-8")
    assert "| grey hole | (0/3 too few) |" in table  # of the kept pixels MSE sees nothing
    files = ["--json", str(tmp_path / "a.json"), "--heat-map", str(tmp_path / "a.png")]
    shown = CliRunner().invoke(app, [*options[:-2], "--format", "json", *files])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["findings"][0]["metric"] == "mse@standard"
    written = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert written["findings"] == json.loads(shown.stdout)["findings"]
    with Image.open(tmp_path / "a.png") as drawn:
        assert min(drawn.size) > 300
