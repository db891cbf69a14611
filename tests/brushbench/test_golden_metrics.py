"""Cases recorded from the published script and the packages it used; run all with ``--golden DIR``."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import brushbench
from brushbench import assets
from brushbench.features import Features
from brushbench.masks import tight_box
from brushbench.metrics import clip_local, clip_model, inpaint_reward, pick_score
from brushbench.metrics.base import PublishedDefectWarning
from brushbench.metrics.clip_model import cropped, open_clip_ids, transformers_ids
from brushbench.metrics.image_reward import make_tokenizer
from brushbench.types import Scored, Unscored
from brushbench.weights import sha256_file
from tests.reference.metric_folders import make_sample, read_picture, weight_folder

KINDS = {  # a case is known by what it records, not by its folder's name
    "pixel": lambda case: "rle" in case,
    "clip": lambda case: "aesthetic" in case,
    "hps": lambda case: "create_call" in case,
    "image_reward": lambda case: "mlp_input" in case and "mlp_hidden" not in case,
    "tokens": lambda case: "vocab_sha256" in case,
    "pick": lambda case: "logit_scale_exp" in case,
    "prefer": lambda case: "mlp_hidden" in case,
    "local": lambda case: "local_clip" in str(case.get("results")),
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


def load(name: str, folder: Path, protocol: str = "brushnet-paper"):
    return brushbench.load_metric(name, protocol=protocol, weights=folder)


def score_all(metric, folder: Path, case: dict, results: list[dict]) -> list[float]:
    """Score every recorded (picture, prompt) pair in one call."""
    pictures = [read_picture(folder, result["image"]) for result in results]
    samples = [make_sample(p, prompt=case["prompts"][r["prompt"]]) for p, r in zip(pictures, results, strict=True)]
    return metric(pictures, samples)


def subsampled(pixels: np.ndarray) -> np.ndarray:
    """Every 16th pixel, as recorded."""
    return pixels[:, ::16, ::16]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Lay out each recorded case once."""
    made: dict[Path, Path] = {}

    def lay_out(case_folder: Path) -> Path:
        if case_folder not in made:
            made[case_folder] = weight_folder(case_folder, tmp_path_factory.mktemp("weights"))
        return made[case_folder]

    return lay_out


def test_clip_similarity(clip_case, folders):
    case = read_case(clip_case)
    metric = load("clip_score", folders(clip_case))
    too_long = any(len(ids) > 77 for ids in case["hf_ids_untruncated"])
    with pytest.warns(PublishedDefectWarning, match="end token") if too_long else contextlib.nullcontext():
        scores = score_all(metric, clip_case, case, case["results"])
    assert scores == pytest.approx([r["clip_similarity"] for r in case["results"]], abs=case["tolerance"])
    cut = [len(case["hf_ids_untruncated"][r["prompt"]]) > 77 for r in case["results"]]
    assert [isinstance(score, Scored) for score in scores] == cut


def test_aesthetic(clip_case, folders):
    case = read_case(clip_case)
    pictures = [read_picture(clip_case, name) for name in case["aesthetic"]]
    scores = load("aesthetic", folders(clip_case))(pictures, [make_sample(p) for p in pictures])
    assert scores == pytest.approx(list(case["aesthetic"].values()), abs=case["tolerance"])


def test_clip_tokens(clip_case):
    case = read_case(clip_case)
    for prompt, hf, simple in zip(case["prompts"], case["hf_ids_untruncated"], case["openclip_ids"], strict=True):
        assert transformers_ids(prompt, 77, keep_end=False) == (hf[:77], len(hf) > 77)
        assert open_clip_ids(prompt, 77)[0] == simple


def test_clip_pixels_and_embeddings(clip_case, folders):
    case = read_case(clip_case)
    recorded = load_file(clip_case / "outputs.safetensors")
    clip, store = load("clip_score", folders(clip_case))._clip, Features()
    for name in case["aesthetic"]:
        picture = read_picture(clip_case, name)
        for halving, pixels, features in (
            ("down", "hf_pixel_sub16", "hf_image_features"),
            ("even", "openclip_pixel_sub16", "image_features"),
        ):
            seen = cropped(picture, clip.side, halving)
            np.testing.assert_allclose(subsampled(seen), recorded[f"{pixels}.{name}"], atol=1e-6)
            embedded = clip.images(store, seen[None])[0]
            assert cosine(embedded, recorded[f"{features}.{name}"]) == pytest.approx(1, abs=1e-6)
    for number, prompt in enumerate(case["prompts"]):
        for ids, features in (
            (transformers_ids(prompt, 77, keep_end=False)[0], "hf_text_features"),
            (open_clip_ids(prompt, 77)[0], "openclip_text_features"),
        ):
            assert cosine(clip.text(store, ids), recorded[f"{features}.{number}"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("protocol", ["standard", "brushnet-paper"])
def test_hps(hps_case, folders, protocol):
    case = read_case(hps_case)
    results = [r for r in case["results"] if r["antialias"] == (protocol == "standard")]
    metric = load("hps_v2.1", folders(hps_case), protocol)
    paper = protocol == "brushnet-paper"
    with pytest.warns(PublishedDefectWarning, match="antialias") if paper else contextlib.nullcontext():
        scores = score_all(metric, hps_case, case, results)
    assert scores == pytest.approx([r["hps"] for r in results], abs=case["tolerance"])
    recorded = load_file(hps_case / "outputs.safetensors")
    for name in {r["image"] for r in results}:
        suffix = f"{name}.antialias_{not paper}"
        seen = metric._pixels(read_picture(hps_case, name))
        np.testing.assert_allclose(subsampled(seen), recorded[f"pixel_sub16.{suffix}"], atol=1e-5)
        embedded = metric._clip.images(Features(), seen[None])[0]
        assert cosine(embedded, recorded[f"image_features.{suffix}"]) == pytest.approx(1, abs=1e-6)


def test_hps_tokens(hps_case):
    case = read_case(hps_case)
    assert [open_clip_ids(prompt, 77)[0] for prompt in case["prompts"]] == case["input_ids"]


def test_image_reward(image_reward_case, folders):
    case = read_case(image_reward_case)
    metric = load("image_reward", folders(image_reward_case))
    scores = score_all(metric, image_reward_case, case, case["results"])
    assert scores == pytest.approx([r["reward"] for r in case["results"]], abs=case["tolerance"])
    rank = case["inference_rank"]
    pairs = [{"image": image, "prompt": rank["prompt"]} for image in rank["images"]]
    assert score_all(metric, image_reward_case, case, pairs) == pytest.approx(rank["rewards"], abs=case["tolerance"])


def test_image_reward_inside(image_reward_case, folders):
    """Tokens, pixels, image embeddings (a wrong epsilon moves the reward by only 3e-4) and the text's first state."""
    case = read_case(image_reward_case)
    recorded = load_file(image_reward_case / "outputs.safetensors")
    metric = load("image_reward", folders(image_reward_case))
    model = metric._load()
    ids, mask = metric._tokens(case["prompts"])
    for found, expected in zip([*ids, *mask], [*case["input_ids"], *case["attention_mask"]], strict=True):
        assert found == expected[: len(found)]
        assert not any(expected[len(found) :])
    for name in {r["image"] for r in case["results"]}:
        seen = cropped(read_picture(image_reward_case, name), 224, "even")
        np.testing.assert_allclose(subsampled(seen), recorded[f"pixel_sub16.{name}"], atol=1e-6)
        with torch.inference_mode():
            embedded = model["vision"](torch.from_numpy(seen)[None]).last_hidden_state
            np.testing.assert_allclose(embedded[0, :4].numpy(), recorded[f"image_embeds_first4.{name}"], atol=2e-5)
            for number in range(len(case["prompts"])):
                states = model["text"](
                    input_ids=torch.tensor([case["input_ids"][number]]),
                    attention_mask=torch.tensor([case["attention_mask"][number]]),
                    encoder_hidden_states=embedded,
                ).last_hidden_state
                np.testing.assert_allclose(states[0, 0].numpy(), recorded[f"cls.{name}.{number}"], atol=2e-5)


def test_image_reward_tokens(tokens_case):
    case = read_case(tokens_case)
    vocabulary = assets.path("data/bert-base-uncased/vocab.txt")
    assert sha256_file(vocabulary) == case["vocab_sha256"]
    tokenizer = make_tokenizer(vocabulary)
    assert tokenizer.convert_tokens_to_ids([case["bos"][0], case["enc"][0]]) == [case["bos"][1], case["enc"][1]]
    for row in case["cases"]:
        found = tokenizer(row["prompt"], padding="max_length", truncation=True, max_length=case["max_length"])
        assert found["input_ids"] == row["input_ids"], row["prompt"]
        assert found["attention_mask"] == row["attention_mask"]


# Metrics of other papers ----------------------------------------------------------------------------------------------


def read_hole(folder: Path, name: str) -> np.ndarray:
    return read_picture(folder, name)[..., 0] > 0


def pick_scores(folder, folders):
    case = read_case(folder)
    return case, score_all(load("pick_score", folders(folder), "standard"), folder, case, case["results"])


def test_pick_score(pick_case, folders):
    case, scores = pick_scores(pick_case, folders)
    assert scores == pytest.approx([r["pickscore"] for r in case["results"]], abs=1e-4)
    cut = [len(case["input_ids"][r["prompt"]]) == 77 for r in case["results"]]
    assert [isinstance(score, Scored) for score in scores] == cut
    for prompt, ids in zip(case["prompts"], case["input_ids"], strict=True):
        assert transformers_ids(prompt, 77, keep_end=True)[0] == ids


def without_end(prompt: str, limit: int, keep_end: bool) -> tuple[list[int], bool]:
    return transformers_ids(prompt, limit, False)


def shifted(picture: np.ndarray, side: int, halving: str) -> np.ndarray:
    return np.roll(cropped(picture, side, halving), 1, axis=2)


@pytest.mark.parametrize(
    ("name", "wrong"), [("transformers_ids", without_end), ("unit", lambda vectors: vectors), ("cropped", shifted)]
)
def test_pick_scores_parity_check_sees_a_fault(pick_case, folders, monkeypatch, name, wrong):
    monkeypatch.setattr(pick_score, name, wrong)
    case, scores = pick_scores(pick_case, folders)
    assert scores != pytest.approx([r["pickscore"] for r in case["results"]], abs=1e-3)


def inpaint_rewards(folder, folders, protocol):
    case = read_case(folder)
    pictures = [read_picture(folder, r["image"]) for r in case["results"]]
    samples = [make_sample(read_picture(folder, r["masked"]), read_hole(folder, r["mask"])) for r in case["results"]]
    return case, load("inpaint_reward", folders(folder), protocol)(pictures, samples)


@pytest.mark.parametrize(("protocol", "recorded"), [("standard", "score_masked"), ("freeinpaint", "score_binary")])
def test_inpaint_reward(prefer_case, folders, protocol, recorded):
    case, scores = inpaint_rewards(prefer_case, folders, protocol)
    assert scores == pytest.approx([r[recorded]["eval"] for r in case["results"]], abs=1e-4)


def grey_hole(self, sample):
    return np.where(sample.hole[..., None], np.uint8(127), sample.image)


@pytest.mark.parametrize("protocol", ["standard", "freeinpaint"])
@pytest.mark.parametrize("fault", ["plain GELU", "grey hole", "layer norm first"])
def test_inpaint_rewards_parity_check_sees_a_fault(prefer_case, folders, monkeypatch, protocol, fault):
    if fault == "grey hole":
        monkeypatch.setattr(inpaint_reward.InpaintReward, "_given", grey_hole)
    elif fault == "plain GELU":
        right = clip_model.build_model
        monkeypatch.setattr(clip_model, "build_model", lambda config: right({**config, "quick_gelu": False}))
    else:
        build = inpaint_reward.build_model
        norm_first = lambda config: build({**config, "vit": {**config["vit"], "norm_first": True}})  # noqa: E731
        monkeypatch.setattr(inpaint_reward, "build_model", norm_first)
    case, scores = inpaint_rewards(prefer_case, folders, protocol)
    recorded = "score_masked" if protocol == "standard" else "score_binary"
    assert scores != pytest.approx([r[recorded]["eval"] for r in case["results"]], abs=1e-3)


def local_scores(folder, folders, protocol):
    case = read_case(folder)
    pictures = [read_picture(folder, r["image"]) for r in case["results"]]
    samples = [
        make_sample(p, read_hole(folder, r["mask"]), case["prompts"][r["prompt"]])
        for p, r in zip(pictures, case["results"], strict=True)
    ]
    too_long = any(len(ids) == 77 for ids in case["hf_ids"])
    with pytest.warns(PublishedDefectWarning, match="end token") if too_long else contextlib.nullcontext():
        return case, load("clip_score_local", folders(folder), protocol)(pictures, samples)


@pytest.mark.parametrize(("protocol", "recorded"), [("standard", "hdpainter_clip"), ("freeinpaint", "local_clip")])
def test_local_clip(local_case, folders, protocol, recorded):
    case, scores = local_scores(local_case, folders, protocol)
    assert scores == pytest.approx([r[recorded] for r in case["results"]], abs=1e-4)


@pytest.mark.parametrize(("protocol", "recorded"), [("standard", "hdpainter_clip"), ("freeinpaint", "local_clip")])
def test_local_clips_parity_check_sees_a_box_one_pixel_wider(local_case, folders, monkeypatch, protocol, recorded):
    def wider(hole):
        rows, columns = tight_box(hole)
        return rows, slice(columns.start, columns.stop + 1)

    monkeypatch.setattr(clip_local, "tight_box", wider)
    case, scores = local_scores(local_case, folders, protocol)
    assert scores != pytest.approx([r[recorded] for r in case["results"]], abs=1e-3)
