from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import brushbench
from brushbench.errors import RunError, UnknownNameError, UsageError
from brushbench.gating import Policy, accept, accepted_names, load_policy
from brushbench.gating.accepted import noise_of, read_accepted
from brushbench.gating.planning import plan, proposal
from brushbench.runs import Run
from tests.brushbench.written_runs import write_run

RNG = np.random.default_rng(5)
BASE = RNG.normal(25, 3, 80)
NOISE = RNG.normal(0, 0.3, 80)


def psnr(folder: Path, gain: float = 0.0, name: str = "", n: int = 80, **more: object) -> Path:
    """A run whose PSNR is the accepted one's plus a gain and noise."""
    values = list((BASE + gain + (NOISE if gain else 0))[:n])
    return write_run(folder, name or folder.name, {"psnr": values}, **more)  # type: ignore[arg-type]


def with_policy(margin: float = 0.5, **more: object) -> Policy:
    return Policy.model_validate({"metrics": {"psnr": {"margin": margin, **more}}})


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    return psnr(tmp_path / "accepted")


@pytest.mark.parametrize(
    ("gain", "verdict", "code"),
    [(0.0, "pass", 0), (0.2, "pass", 0), (-0.2, "pass", 0), (-0.49, "inconclusive", 4), (-1.0, "fail", 1)],
)
def test_the_verdict_follows_the_change(gain: float, verdict: str, code: int, accepted: Path, tmp_path: Path) -> None:
    found = brushbench.gate(psnr(tmp_path / "new", gain), accepted, with_policy())
    assert (found.verdict, found.exit_code) == (verdict, code)
    check = found.checks[-1]
    assert check.n == 80
    assert ("WARN" in check.flags) == (gain == -0.2)
    if verdict == "inconclusive":
        assert check.needed
        assert str(check.needed) in check.detail
        again = {
            way: brushbench.gate(tmp_path / "new", accepted, with_policy(), inconclusive=way)
            for way in ("pass", "fail")
        }  # type: ignore[arg-type]
        assert {way: v.exit_code for way, v in again.items()} == {"pass": 0, "fail": 1}
        assert "INCONCLUSIVE, which this gate counts as pass" in again["pass"].sentence


def test_lower_is_better_is_turned(tmp_path: Path) -> None:
    for name, factor in (("old", 1.0), ("worse", 1.2), ("better", 0.8)):
        write_run(tmp_path / name, name, {"lpips": list(BASE / 1000 * factor)})
    verdicts = [brushbench.gate(tmp_path / name, tmp_path / "old").verdict for name in ("worse", "better")]
    assert verdicts == ["inconclusive", "pass"]
    policy = Policy.model_validate({"metrics": {"lpips": {"margin": 0.001}}})
    assert brushbench.gate(tmp_path / "worse", tmp_path / "old", policy).verdict == "fail"


def test_a_gate_of_63_samples_is_no_gate(tmp_path: Path) -> None:
    psnr(tmp_path / "old", n=63)
    found = brushbench.gate(psnr(tmp_path / "new", n=63), tmp_path / "old", with_policy())
    assert (found.verdict, found.exit_code) == ("not comparable", 3)
    assert "at least 64" in found.checks[-1].detail
    psnr(tmp_path / "old64", n=64)
    assert brushbench.gate(psnr(tmp_path / "new64", n=64), tmp_path / "old64", with_policy()).exit_code == 0


def test_other_questions_are_not_comparable_and_say_what_differs(accepted: Path, tmp_path: Path) -> None:
    others = {
        "data": psnr(tmp_path / "data", data="b"),
        "samples": psnr(tmp_path / "samples", n=70),
        "weights": psnr(tmp_path / "weights", headers={"psnr": {"weights": {"sha256": "2"}}}),
        "steps: 20 -> 10": psnr(tmp_path / "steps", method={"steps": 10}),
    }
    for word, folder in others.items():
        found = brushbench.gate(folder, accepted, with_policy())
        assert (found.verdict, found.exit_code) == ("not comparable", 3)
        assert word in " ".join(check.detail for check in found.checks)
    allowed = with_policy().model_copy(update={"same_settings": False})
    assert brushbench.gate(tmp_path / "steps", accepted, allowed).verdict == "pass"


def test_images_without_a_score_have_a_budget(accepted: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "new", "new", {"psnr": [None, None, *BASE[2:]]}, states=["failed", "black"] + ["ok"] * 78)
    found = brushbench.gate(tmp_path / "new", accepted, with_policy())
    results = {check.name: check.result for check in found.checks}
    assert (results["failed images"], results["black images"]) == ("not comparable", "fail")
    assert found.exit_code == 3
    spared = Policy.model_validate({"metrics": {"psnr": {"margin": 0.5}}, "budget": {"failed": 1, "black": 1}})
    assert brushbench.gate(tmp_path / "new", accepted, spared).verdict == "pass"


def test_a_metric_that_lost_scores_does_not_pass(accepted: Path, tmp_path: Path) -> None:
    """An image that is there and has no score any more is no smaller sample."""
    write_run(tmp_path / "new", "new", {"psnr": [None, *BASE[1:]]})
    found = brushbench.gate(tmp_path / "new", accepted, with_policy())
    assert found.exit_code == 3
    assert "1 accepted samples have no score now" in found.checks[-1].detail


def test_a_mean_that_hides_ruined_images_is_caught_by_the_tail_guard(accepted: Path, tmp_path: Path) -> None:
    ruined = BASE + 1.5
    ruined[:6] -= 15
    write_run(tmp_path / "new", "new", {"psnr": list(ruined)})
    assert brushbench.gate(tmp_path / "new", accepted, with_policy(3.0)).verdict == "pass"
    found = brushbench.gate(tmp_path / "new", accepted, with_policy(3.0, worst={"limit": 5.0, "share": 0.02}))
    assert found.verdict == "fail"
    assert "6 of 80 samples lost more than 5" in found.checks[-1].detail
    assert set(found.checks[-1].changed[:6]) == {"0", "1", "2", "3", "4", "5"}
    lenient = with_policy(3.0, worst={"limit": 5.0, "share": 0.06})
    assert brushbench.gate(tmp_path / "new", accepted, lenient).verdict == "inconclusive"


def test_among_many_columns_one_weak_failure_is_no_failure(tmp_path: Path) -> None:
    """Holm: each of twenty columns would fail by chance one time in twenty."""
    rng = np.random.default_rng(1)
    weak = rng.normal(0, 1, 80)
    weak += -0.5 - weak.mean() - 1.9 / np.sqrt(80) * weak.std()  # alone: just below the margin
    names = [f"m{i}" for i in range(20)]
    write_run(tmp_path / "old", "old", dict.fromkeys(names, [0.0] * 80))
    write_run(tmp_path / "new", "new", {**dict.fromkeys(names, [0.0] * 80), "m3": list(weak)})
    alone = Policy.model_validate({"metrics": {"m3": {"margin": 0.5}}})
    every = Policy.model_validate({"metrics": {name: {"margin": 0.5} for name in names}})
    assert brushbench.gate(tmp_path / "new", tmp_path / "old", alone).verdict == "fail"
    found = brushbench.gate(tmp_path / "new", tmp_path / "old", every)
    assert found.verdict == "inconclusive"
    assert "among 20 columns it may be chance" in " ".join(check.detail for check in found.checks)


def test_a_declared_no_op_that_changes_something_drifts_also_upwards(accepted: Path, tmp_path: Path) -> None:
    policy = with_policy().model_copy(update={"no_op": True})
    found = brushbench.gate(psnr(tmp_path / "new", 0.3), accepted, policy)
    assert (found.verdict, found.checks[-1].flags) == ("pass", ("DRIFT",))
    assert brushbench.gate(accepted, accepted, policy).checks[-1].flags == ()


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[metrics.psrn]\nmargin = 1", "Unknown metric of the policy.*'psrn'. Did you mean 'psnr'"),
        ('[metrics.psnr]\nmargin = 1\nsplits = ["insid"]', "Unknown split of the policy's psnr 'insid'"),
        ("[metrics.psnr]\nmargn = 1", "metrics.psnr.margn: Extra inputs"),
        ("[metrics.psnr]\nmargin = 0", "metrics.psnr.margin: .*greater than 0"),
        ("[metrics.psnr]\nmargin = nan", "metrics.psnr.margin"),
        ("[metrics.psnr]\nsplits = []", "metrics.psnr.splits"),
        ('[metrics.psnr]\nvariant = "rew"', "no variant 'rew'"),
        ("[metrics.psnr]\nworst = { limit = 1 }", "metrics.psnr.worst.share"),
        ("[budget]\nfaild = 1", "budget.faild"),
        ("[budget]\nfailed = -1", "budget.failed"),
        ("[metric.psnr]\nmargin = 1", "metric: Extra inputs"),
        ("margin = ", "is not TOML"),
        ('[metrics."psnr@brushnet-papers"]\nmargin = 1', "Unknown metric of the policy"),
    ],
)
def test_a_policy_that_says_nothing_we_know_is_refused_by_name(
    toml: str, said: str, accepted: Path, tmp_path: Path
) -> None:
    """A typo silently disables a threshold in other tools."""
    (tmp_path / "gate.toml").write_text(toml)
    with pytest.raises(UsageError, match=said):
        brushbench.gate(accepted, accepted, tmp_path / "gate.toml")


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(
        '[metrics.lpips]\nmargin = 0.004\nsplits = ["inside", "outside"]\nvariant = "blended"\n'
        'worst = { limit = 0.05, share = 0.02 }\n[metrics."image_reward@standard"]\nmargin = 0.1\n'
        "[budget]\nfailed = 0\n"
    )
    policy = load_policy(tmp_path / "gate.toml")
    assert policy.metrics["lpips"].worst.limit == 0.05  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")


# Accepted files -------------------------------------------------------------------------------------------------------


def test_an_accepted_file_is_what_the_run_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run.open(psnr(tmp_path / "run"))
    file = accept(run, "mine", "first", noise=Run.open(psnr(tmp_path / "other", 0.01, seed=7)))
    assert file == Path("reports/accepted/mine.json")
    assert accepted_names()["mine"] == file
    found = brushbench.gate(run, "mine")
    assert (found.verdict, found.checks[-1].mean, found.checks[-1].source) == ("pass", 0.0, "3 sd of the noise floor")
    assert brushbench.gate(psnr(tmp_path / "bad", -2.0), "mine").verdict == "fail"
    with pytest.raises(UsageError, match="--overwrite"):
        accept(run, "mine", "again")
    with pytest.raises(UsageError, match="names no file"):
        accept(run, "../mine", "x")
    with pytest.raises(UsageError, match="--reason is empty"):
        accept(run, "x", " ")
    with pytest.raises(UsageError, match="brushbench accept RUN --name"):
        brushbench.gate(run, "nobody")
    with pytest.raises(RunError, match="incomplete"):
        accept(Run.open(write_run(tmp_path / "h", "h", {"psnr": [1.0, None]}, states=["ok", "failed"])), "h", "x")


def test_an_accepted_file_of_600_samples_and_8_columns_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {f"metric_{i}": list(rng.normal(0, 10.0 ** (i - 4), 600)) for i in range(8)}
    run = Run.open(write_run(tmp_path / "r", "r", scores, ids=[f"{i:09d}" for i in range(600)]))
    file = accept(run, "big", "size", folder=tmp_path)
    assert file.stat().st_size <= 200_000
    for key, column in read_accepted(file).scores().columns.items():
        assert list(column.values()) == pytest.approx(scores[key.metric], rel=1e-5)
    assert len(file.read_text().splitlines()) > 20  # one line per column, to be reviewed


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"schema": 2}', b"\xff\xfe", "unknown", "short", "code"],
)
def test_a_damaged_accepted_file_is_one_sentence_and_runs_nothing(damage: bytes | str, tmp_path: Path) -> None:
    run = Run.open(psnr(tmp_path / "run"))
    file = accept(run, "a", "x", folder=tmp_path)
    record = json.loads(file.read_text())
    if damage == "unknown":
        file.write_text(json.dumps({**record, "extra": 1}))
    elif damage == "short":
        record["columns"][0]["scores"].pop()
        file.write_text(json.dumps(record))
    elif damage == "code":
        record["columns"][0]["scores"] = "__import__('os').system('false')"
        file.write_text(json.dumps(record))
    else:
        file.write_bytes(damage)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="damaged"):
        brushbench.gate(run, file)


# Noise and plans ------------------------------------------------------------------------------------------------------


def test_margins_are_proposed_from_two_seeds_or_from_repeats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    draws = [list(BASE + rng.normal(0, 0.4, 80)) for _ in range(2)]
    runs = [Run.open(write_run(tmp_path / str(i), "m", {"psnr": d}, seed=i)) for i, d in enumerate(draws)]
    repeated = Run.open(write_run(tmp_path / "r", "r", {"psnr": draws}))
    expected = 0.4 * np.sqrt(2 / 80)
    (floor,) = noise_of(*runs).values()
    assert floor == pytest.approx(expected, rel=0.25)
    (averaged,) = noise_of(repeated).values()
    assert averaged == pytest.approx(floor / np.sqrt(2))  # a mean of two repeats is steadier
    (tmp_path / "p.toml").write_text(proposal(noise_of(*runs)))
    assert load_policy(tmp_path / "p.toml").metrics["psnr"].margin == pytest.approx(3 * floor, rel=0.1)
    with pytest.raises(RunError, match="both have the seed 0"):
        noise_of(runs[0], runs[0])


def test_a_plan_says_what_margin_n_samples_hold(accepted: Path, tmp_path: Path) -> None:
    ((name, n, spread, margin, *held, needed),) = plan(psnr(tmp_path / "new", 0.01), accepted, with_policy(0.1))
    assert (name, n, margin) == ("psnr, inside", "80", "0.1")
    assert float(spread) == pytest.approx(0.3, rel=0.2)
    assert [float(h) for h in held] == pytest.approx(
        [2.486 * float(spread) / np.sqrt(k) for k in (64, 240, 600)], rel=0.01
    )
    assert int(needed) == pytest.approx((2.486 * float(spread) / 0.1) ** 2, rel=0.05)


# Outputs --------------------------------------------------------------------------------------------------------------


def test_words_code_and_files_come_from_one_value(accepted: Path, tmp_path: Path) -> None:
    found = brushbench.gate(psnr(tmp_path / "new", -1.0), accepted, with_policy())
    assert found.sentence.startswith("FAIL: new against accepted: psnr, inside")
    assert "### FAIL" in found.to_markdown()
    assert "| psnr, inside | FAIL |" in found.to_markdown()
    assert json.loads(found.to_json())["exit_code"] == 1
    suite = ElementTree.fromstring(found.to_junit()).find("testsuite")  # noqa: S314 our own
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    assert "lost most" in found.to_text()


def test_hostile_names_are_text_in_every_output(tmp_path: Path) -> None:
    hostile = "x\x1b[31m|<b>[red]"
    ids = [f"{hostile}{i}" for i in range(80)]
    old, new = (psnr(tmp_path / f, g, name=f"{hostile}{f}", ids=ids) for f, g in (("old", 0.0), ("new", -1.0)))
    found = brushbench.gate(new, old, with_policy())
    for shown in (found.to_text(), found.to_markdown(), found.to_junit(), found.to_json()):
        assert "\x1b" not in shown
    assert "<b>" not in found.to_markdown()
    ElementTree.fromstring(found.to_junit())  # noqa: S314


def test_unknown_names_are_one_sentence(accepted: Path) -> None:
    with pytest.raises(UnknownNameError):
        brushbench.gate(accepted, accepted, Policy.model_validate({"metrics": {"lpips": {"margin": 1}}}))
    own = write_run(accepted.parent / "own", "own", {"own": [1.0] * 80})
    with pytest.raises(UsageError, match="no default margin"):
        brushbench.gate(own, own, Policy.model_validate({"metrics": {"own": {}}}))
