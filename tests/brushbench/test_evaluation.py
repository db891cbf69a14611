from __future__ import annotations

import json
import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench.engines.shard import Shard
from brushbench.errors import DataError, RunError, UnknownNameError, UsageError
from brushbench.evaluation import Scoring, rescore, score_images
from brushbench.evaluation.plan import make_plan
from brushbench.types import sample_seed

PIXEL = "psnr,mse@standard,ssim"


def load_toys() -> ModuleType:
    spec = spec_from_file_location("toys", Path(__file__).with_name("toys.py"))
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = load_toys()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_benchmark(tmp_path_factory.mktemp("data") / "BrushBench", pictures=3)


def evaluate(data: Path, out: Path, **toy: str) -> brushbench.Run:
    return brushbench.evaluate(toys.Noise(**toy), data, out=out, metrics=PIXEL, batch_size=2)


def test_the_plan_covers_every_sample_once_and_no_batch_crosses_a_split() -> None:
    keys = [(str(i), split) for split in ("inside", "brush") for i in range(5)]
    plan = make_plan(keys, batch_size=2, repeats=2)
    assert sorted(i for batch in plan for i in batch.indexes) == sorted(list(range(10)) * 2)
    assert all({keys[i][1] for i in batch.indexes} == {batch.split} for batch in plan)
    assert [batch.number for batch in plan] == list(range(12))
    assert len({batch.name for batch in plan}) == 12
    shards = [Shard(i, 3).take(plan) for i in (1, 2, 3)]
    assert sorted(b.number for shard in shards for b in shard) == list(range(12))


def test_a_sample_has_the_same_seed_in_any_batch_and_another_in_another_repeat() -> None:
    assert sample_seed(1234, "a") == sample_seed(1234, "a", 0)
    assert len({sample_seed(r, s, k) for r in (1, 2) for s in ("a", "b") for k in (0, 1)}) == 8
    assert 0 <= sample_seed(2**63 - 1, "a") < 2**63


def test_every_picture_is_made_and_scored(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    assert run.pictures() == {"planned": 9, "ok": 9, "black": 0, "missing": 0, "failed": 0}
    scores = run.scores
    assert len(scores) == 9 * 2 * 4  # samples x (raw, blended) x (psnr twice, mse, ssim)
    assert set(scores["variant"]) == {"raw", "blended"}
    assert scores["value"].notna().all()
    raw, blended = (scores[(scores.variant == v) & (scores.metric == "psnr")].value.mean() for v in ("raw", "blended"))
    assert blended > raw


def test_the_answer_does_not_leak(data: Path) -> None:
    sample = brushbench.load_benchmark(data)[0]
    request = sample.request(1)
    assert (request.image[sample.hole] == 127).all()
    assert (request.image[sample.keep] == sample.image[sample.keep]).all()
    other = type(sample)(
        **{**vars(sample), "image": np.where(sample.hole[..., None], 255 - sample.image, sample.image)}
    )
    assert (other.request(1).image == request.image).all()


@pytest.mark.parametrize(("toy", "state"), [("fail", "failed"), ("black", "black"), ("wrong", "failed")])
def test_what_went_wrong_is_counted_and_never_averaged_in(toy: str, state: str, data: Path, tmp_path: Path) -> None:
    whole = evaluate(data, tmp_path / "whole")
    run = evaluate(data, tmp_path / "r", **{toy: "000000001"})
    assert run.pictures()[state] == 3
    unscored = run.scores[run.scores.value.isna()]
    assert set(unscored["sample"]) == {"000000001"}
    assert len(unscored) == 3 * 2 * 4
    assert unscored["reason"].str.startswith(f"{state}: ").all()
    left = whole.scores[(whole.scores["sample"] != "000000001") & (whole.scores.metric == "ssim")]
    summary = run.summary()
    assert math.isclose(
        summary[(summary.metric == "ssim") & (summary.split == "inside") & (summary.variant == "raw")]["mean"].item(),
        left[(left.split == "inside") & (left.variant == "raw")].value.mean(),
    )
    assert (summary["missing"] == 1).all()
    assert (summary["n"] == 2).all()


def test_a_method_that_fails_from_the_start_stops_the_run_and_writes_no_picture(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="out of paint"):
        evaluate(data, tmp_path / "r", fail="all")
    assert not list((tmp_path / "r").glob("batches/*"))


def test_failed_pictures_are_made_again_when_asked(data: Path, tmp_path: Path) -> None:
    method = toys.Noise(fail="000000001")
    brushbench.evaluate(method, data, out=tmp_path / "r", metrics=PIXEL, batch_size=2)
    description = method.describe()
    method.fail = ""
    method.describe = lambda: description
    run = brushbench.evaluate(method, data, out=tmp_path / "r", metrics=PIXEL, batch_size=2, retry_failed=True)
    assert run.pictures()["ok"] == 9
    assert run.scores["value"].notna().all()


def test_scoring_again_adds_a_column_and_leaves_the_others_alone(data: Path, tmp_path: Path) -> None:
    whole = evaluate(data, tmp_path / "whole").scores
    brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics="psnr@standard", batch_size=2)
    before = brushbench.Run.open(tmp_path / "r").scores
    run = rescore(tmp_path / "r", data=data, scoring=Scoring("ssim,mse@standard,psnr@brushnet-paper"))
    after = run.scores
    psnr = after[(after.metric == "psnr") & (after.protocol == "standard")].reset_index(drop=True)
    assert psnr.equals(before)
    assert after.equals(whole)


def test_scores_of_other_data_are_refused(data: Path, tmp_path: Path) -> None:
    evaluate(data, tmp_path / "r")
    other = toys.write_benchmark(tmp_path / "BrushBench", pictures=4)
    with pytest.raises(RunError, match="other data"):
        rescore(tmp_path / "r", data=other)


def test_a_picture_that_was_changed_after_the_run_is_noticed(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    file = sorted(run.path.glob("pictures/*/*/*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    with pytest.raises(RunError, match="changed after it was committed"):
        rescore(run.path, data=data, scoring=Scoring("ssim"))


def test_unknown_names_fail_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'psnr'"):
        brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics="psrn")
    with pytest.raises(UsageError, match="no protocol 'paper'"):
        brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics="psnr@paper")
    with pytest.raises(UnknownNameError, match="Did you mean 'blended'"):
        brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", variants="blendet")
    with pytest.raises(UnknownNameError, match="Did you mean 'inside'"):
        brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", split="insid")
    assert not (tmp_path / "r").exists()


def test_a_missing_weight_is_shown_with_the_way_to_get_it_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    heard: list[str] = []
    run = brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics="psnr,lpips", notify=heard.append)
    assert any(line.startswith("lpips@standard is unavailable") and "weights" in line for line in heard)
    assert set(run.scores["metric"]) == {"psnr"}
    assert "unavailable" in run.metrics["lpips@standard"]


def test_a_metric_of_one_s_own_scores_and_its_cut_captions_are_counted(data: Path, tmp_path: Path) -> None:
    metric = f"{Path(toys.__file__)}:Brightness"
    run = brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", metrics=[metric], variants="raw")
    assert run.metrics["bright@standard"]["captions_cut"] == 1
    unscored = run.scores[run.scores.value.isna()]
    assert set(unscored["sample"]) == {"000000001"}
    assert set(unscored["reason"]) == {"odd"}
    assert run.scores[run.scores["sample"] == "000000002"]["value"].notna().all()


# Pictures made elsewhere ----------------------------------------------------------------------------------------------


def export(run: brushbench.Run, folder: Path) -> Path:
    for file in run.path.glob("pictures/*/0/*.png"):
        target = folder / file.parts[-3] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


def test_pictures_made_elsewhere_score_like_the_run_that_made_them(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    benchmark = brushbench.load_benchmark(data)
    images = export(run, tmp_path / "images")
    scored = score_images(images, benchmark, name="mine", out=tmp_path / "mine", scoring=Scoring(PIXEL))
    assert scored.scores.equals(run.scores)


def test_pictures_that_are_missing_damaged_or_of_another_size_are_counted(data: Path, tmp_path: Path) -> None:
    images = export(evaluate(data, tmp_path / "r"), tmp_path / "images")
    (images / "inside" / "000000000.png").unlink()
    (images / "brush" / "000000001.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(images / "outside" / "000000002.png")
    scoring = Scoring("mse@standard", variants="raw")
    scored = score_images(images, brushbench.load_benchmark(data), name="m", out=tmp_path / "m", scoring=scoring)
    assert scored.pictures() == {"planned": 9, "ok": 6, "black": 0, "missing": 1, "failed": 2}
    reasons = " ".join(scored.scores[scored.scores.value.isna()]["reason"])
    assert "no picture 000000000.png" in reasons
    assert "cannot be decoded" in reasons
    assert "is 8 x 8, expected 48 x 40 (height x width)" in reasons


def test_pictures_of_16_bit_are_scaled_and_not_clipped(data: Path, tmp_path: Path) -> None:
    """Pillow's own conversion turns everything above 255 of 65535 white."""
    benchmark = brushbench.load_benchmark(data, split="inside")
    (tmp_path / "deep").mkdir()
    for sample in benchmark:
        grey = sample.image[..., 0].astype(np.uint16) * 257
        Image.fromarray(grey).save(tmp_path / "deep" / f"{sample.id}.png")
    run = score_images(tmp_path / "deep", benchmark, name="deep", out=tmp_path / "r", scoring=Scoring("psnr@standard"))
    assert run.scores["value"].min() > 15


def test_a_folder_without_one_picture_of_the_benchmark_is_refused(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")  # its own folder holds SPLIT/REPEAT/ID.png, one level too deep
    with pytest.raises(DataError, match=r"holds no picture of 'brushbench'.*inside/000000000\.png"):
        score_images(run.path / "pictures", brushbench.load_benchmark(data), name="m", out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_pictures_that_were_all_wrong_may_be_mended_and_scored_in_the_same_folder(data: Path, tmp_path: Path) -> None:
    """The sentence said that nothing was written, and run.json was there to refuse the mended pictures."""
    benchmark = brushbench.load_benchmark(data, split="inside")
    for size in ((8, 8), (40, 48)):
        (tmp_path / "images").mkdir(exist_ok=True)
        for sample, _ in benchmark.keys:
            Image.new("RGB", size, "grey").save(tmp_path / "images" / f"{sample}.png")
        if size == (8, 8):
            with pytest.raises(RunError, match=r"is 8 x 8, expected 48 x 40 .* Nothing was written"):
                score_images(tmp_path / "images", benchmark, name="m", out=tmp_path / "m")
    run = score_images(tmp_path / "images", benchmark, name="m", out=tmp_path / "m", scoring=Scoring("mse@standard"))
    assert run.pictures()["ok"] == 3


@pytest.mark.parametrize("file", ["run.json", "metrics.json", "scores.parquet", "batches/inside-0-000000.json"])
@pytest.mark.parametrize("content", ["{", "7"])
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(data: Path, tmp_path: Path, file: str, content: str) -> None:
    run = evaluate(data, tmp_path / "r")
    (run.path / file).write_text(content)

    def read() -> None:
        opened = brushbench.Run.open(run.path)
        assert opened.metrics
        opened.summary()
        opened.pictures()

    with pytest.raises(RunError, match=file):
        read()


def test_a_run_json_without_its_settings_is_refused(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    (run.path / "run.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match=r"run\.json says nothing of config, capabilities, benchmark, plan"):
        brushbench.Run.open(run.path)


def test_a_run_is_scored_again_from_another_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's folder was noted as it was typed, relative to where one stood."""
    monkeypatch.chdir(data.parent)
    run = brushbench.evaluate(toys.Noise(), data.name, out=tmp_path / "r", metrics="mse@standard")
    monkeypatch.chdir(tmp_path)
    assert len(rescore(run.path, scoring=Scoring("ssim")).scores) == 2 * 9 * 2


def test_a_run_without_a_name_is_refused(data: Path, tmp_path: Path) -> None:
    for name in ("", ".", ".."):
        with pytest.raises(UsageError, match="name"):
            brushbench.evaluate(toys.Noise(), data, out=tmp_path / "r", name=name)


def test_a_folder_that_cannot_be_made_is_one_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/r cannot be written \(Not a directory\)\. Make it writable, or name"):
        evaluate(data, tmp_path / "file" / "r")


def test_a_flat_folder_serves_one_split_only(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    flat = run.path / "pictures" / "brush" / "0"
    with pytest.raises(DataError, match="--split"):
        score_images(flat, brushbench.load_benchmark(data), name="m", out=tmp_path / "m")
    one = brushbench.load_benchmark(data, split="brush")
    scored = score_images(flat, one, name="m", out=tmp_path / "m", scoring=Scoring("mse@standard"))
    assert scored.pictures()["ok"] == 3


def test_run_json_carries_what_a_reviewer_asks_for(data: Path, tmp_path: Path) -> None:
    run = evaluate(data, tmp_path / "r")
    header = json.loads((run.path / "run.json").read_text())
    assert header["config"]["seed"] == 1234
    assert header["benchmark"]["sha256"]
    assert {"torch", "diffusers", "numpy", "brushbench"} <= set(header["software"])
    assert {"git", "machine"} <= set(header["where"])
    assert header["method"]["method"] == "noise"
