"""The audit: metrics whose answer is known find, miss and invert damage as they must."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from brushbench.cli import app
from brushbench.errors import UsageError
from brushbench.evaluation import Scoring
from brushbench.evaluation.audit import DAMAGES, audit, to_json, to_markdown
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
    findings, unavailable = audit(Listed(samples), Scoring(names))
    assert not unavailable
    verdicts = {(f.metric.removesuffix("@standard"), f.damage): f for f in findings}
    assert len(verdicts) == 4 * len(DAMAGES)
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
    rows = to_json(findings)
    assert json.loads(json.dumps(rows, allow_nan=False))[0]["damage"] == "blur 1"
    table = to_markdown(findings).splitlines()
    assert len(table) == 2 + len(DAMAGES)
    assert "**0/10 inverted**" in table[2]


def test_damage_of_the_hole_leaves_the_kept_pixels(samples):
    rng = np.random.default_rng(0)
    everywhere = {"black image", "middle enlarged twice"} | {name for name in DAMAGES if name.endswith("everywhere")}
    for name, damage in DAMAGES.items():
        picture, sample = damage(samples[0], samples[1], rng)
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
    assert "| grey hole | 0/3 too few |" in table  # of the kept pixels MSE sees nothing
    shown = CliRunner().invoke(app, [*options[:-2], "--format", "json"])
    assert json.loads(shown.stdout)[0]["metric"] == "mse@standard"
