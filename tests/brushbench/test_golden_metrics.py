"""Cases recorded from the published script and the packages it used; run all with ``--golden DIR``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import brushbench
from brushbench.types import Unscored
from tests.reference.metric_folders import make_sample, read_picture, weight_folder

KINDS = {  # a case is known by what it records, not by its folder's name
    "pixel": lambda case: "rle" in case,
    "clip": lambda case: "aesthetic" in case,
    "hps": lambda case: "create_call" in case,
    "image_reward": lambda case: "mlp_input" in case,
    "tokens": lambda case: "vocab_sha256" in case,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a recorded case of the kind that the test's argument names."""
    for kind, is_kind in KINDS.items():
        if f"{kind}_case" in metafunc.fixturenames:
            files = sorted((metafunc.config.getoption("--golden") / "metrics").glob("*/case.json"))
            folders = [file.parent for file in files if is_kind(json.loads(file.read_text()))]
            metafunc.parametrize(f"{kind}_case", folders, ids=[folder.name for folder in folders], scope="module")


def read_case(folder: Path) -> dict:
    return json.loads((folder / "case.json").read_text())


def decode(rle: list[int], shape: tuple[int, int]) -> np.ndarray:
    """1-based starts, row by row."""
    flat = np.zeros(shape[0] * shape[1], dtype=bool)
    for start, length in zip(rle[::2], rle[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(shape)


@pytest.mark.parametrize("name", ["psnr", "mse", "lpips"])
def test_pixel_metrics(pixel_case, tmp_path, name):
    case = read_case(pixel_case)
    weights = weight_folder(pixel_case, tmp_path) if name == "lpips" else None
    metric = brushbench.load_metric(name, protocol="brushnet-paper", weights=weights)
    source = read_picture(pixel_case, "src")
    results = case["results"]
    pictures = [read_picture(pixel_case, result["gen"]) for result in results]
    samples = [make_sample(source, decode(case["rle"][result["mask"]], case["shape"])) for result in results]
    for result, score in zip(results, metric(pictures, samples), strict=True):
        if result[name] == "nan":
            assert isinstance(score, Unscored)
        else:
            assert score == pytest.approx(result[name], abs=case["tolerance"]), result
    whole = metric([pictures[1]], [make_sample(source)])
    if name == "lpips":
        assert whole == pytest.approx([results[1]["lpips_no_mask"]], abs=case["tolerance"])


@pytest.mark.parametrize("name", ["psnr", "mse", "lpips"])
def test_pixel_metrics_at_512(pixel_case, tmp_path, name):
    case = read_case(pixel_case)
    big = case["big"]
    weights = weight_folder(pixel_case, tmp_path) if name == "lpips" else None
    metric = brushbench.load_metric(name, protocol="brushnet-paper", weights=weights)
    hole = np.zeros((512, 512), dtype=bool)
    hole[100:300, 150:400] = True
    sample = make_sample(read_picture(pixel_case, big["src"]), hole)
    assert metric([read_picture(pixel_case, big["gen"])], [sample]) == pytest.approx([big[name]], abs=case["tolerance"])


def test_published_gap_is_in_the_recorded_numbers(pixel_case):
    """The recorded PSNR lies 10 log10(3) below the usual one: whoever repairs brushnet-paper fails here."""
    case = read_case(pixel_case)
    usual = brushbench.load_metric("psnr", protocol="standard")
    source = read_picture(pixel_case, "src")
    for result in case["results"]:
        sample = make_sample(source, decode(case["rle"][result["mask"]], case["shape"]))
        [score] = usual([read_picture(pixel_case, result["gen"])], [sample])
        if result["psnr"] == 1000:
            assert score == math.inf
        elif result["psnr"] != "nan":
            assert score - result["psnr"] == pytest.approx(10 * math.log10(3), abs=1e-3)
