"""dino_similarity, remove and cfd on small random models: plain loops as oracle, ends of the scale, refusals."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, MaskGenerationPipeline, SamConfig, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

import brushbench
from brushbench.errors import MissingWeightsError, UsageError, WeightsError
from brushbench.evaluation import choose_columns
from brushbench.features import Features
from brushbench.metrics.base import PublishedDefectWarning
from brushbench.metrics.sam import SamBackbone
from brushbench.types import Sample
from tests.reference.metric_folders import make_sample, random_pictures, random_state

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet
SIDE, PATCH = 64, 8  # of the small Segment Anything
VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "output_channels": 16, "image_size": SIDE,
    "patch_size": PATCH, "num_pos_feats": 8, "global_attn_indexes": [0], "window_size": 0,
}  # fmt: skip
PROMPT = {"hidden_size": 16, "image_size": SIDE, "patch_size": PATCH}
DECODER = {
    "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 8,
}  # fmt: skip


def save(model, folder, change=lambda state: None):
    """Save a model with random weights, some of them changed, as `save_pretrained` does."""
    state = random_state(model, 0)
    change(state)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    return folder


def sure_of_its_masks(state):
    """Let one mask of each point be thought good, and be stable, as those of a trained model are."""
    state["mask_decoder.iou_prediction_head.proj_out.weight"] *= 0.01
    state["mask_decoder.iou_prediction_head.proj_out.bias"][:] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    for name, tensor in state.items():
        if "hypernetworks" in name and "proj_out" in name:
            tensor *= 1000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with dinov2/ (256 patches, a fused gate as ViT-g's) and sam/."""
    root = tmp_path_factory.mktemp("removal")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "use_swiglu_ffn": True}
        save(Dinov2Model(Dinov2Config(image_size=224, patch_size=14, **sizes)), root / "dinov2")
        config = SamConfig(vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER)
        save(SamModel(config), root / "sam", sure_of_its_masks)
    return root


def disc(height, width, row, column, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


# Plain loops ----------------------------------------------------------------------------------------------------------


def cosine(one, other):
    return float(np.dot(one, other) / np.sqrt(np.dot(one, one) * np.dot(other, other)))


def dino_tokens(folder, image):
    """The tokens of PIL's 224x224 image."""
    pixels = ((np.asarray(image) / 255 - MEAN) / STD).transpose(2, 0, 1)
    with torch.no_grad():
        model = Dinov2Model.from_pretrained(folder / "dinov2")
        return model(torch.tensor(pixels, dtype=torch.float32)[None]).last_hidden_state[0].double().numpy()


def as_processed(image):
    """Shortest side to 256, the middle 224x224."""
    shortest = min(image.size)
    image = image.resize([256 * side // shortest for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    return image.crop((left, top, left + 224, top + 224))


def sam_maps(folder, picture):
    """The feature map (C, 8, 8): the longer side to 64, normalised, padded with zeros."""
    height, width = picture.shape[:2]
    size = [int(side * SIDE / max(height, width) + 0.5) for side in (width, height)]
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    square = np.zeros((3, SIDE, SIDE))
    square[:, : size[1], : size[0]] = ((resized / 255 - MEAN) / STD).transpose(2, 0, 1)
    with torch.no_grad():
        model = SamModel.from_pretrained(folder / "sam")
        return model.get_image_embeddings(torch.tensor(square, dtype=torch.float32)[None])[0].double().numpy()


def naive_remove(folder, picture, hole):
    """Cells whose centre lies in the image, in the hole or not."""
    maps, (height, width) = sam_maps(folder, picture), hole.shape
    tall, wide = (int(side * SIDE / max(height, width) + 0.5) for side in (height, width))
    inside, outside = [], []
    for row in range(SIDE // PATCH):
        for column in range(SIDE // PATCH):
            y, x = (row + 0.5) * PATCH, (column + 0.5) * PATCH
            if y < tall and x < wide:
                is_hole = hole[int(y * height / tall), int(x * width / wide)]
                (inside if is_hole else outside).append(maps[:, row, column])
    return cosine(np.mean(inside, axis=0), np.mean(outside, axis=0))


def naive_published_remove(folder, picture, hole):
    """The mask squeezed to the grid; cells of exactly 255 against all others."""
    small = np.asarray(Image.fromarray(np.uint8(255) * hole.astype(np.uint8)).resize((SIDE // PATCH,) * 2))
    cells = sam_maps(folder, picture).reshape(16, -1).T
    inside = small.ravel() == 255
    return cosine(cells[inside].mean(axis=0), cells[~inside].mean(axis=0))


def naive_cfd(folder, picture, hole, masks, published):
    """METRICS2, section 5, region by region."""
    height, width = hole.shape
    masks = sorted(masks, key=lambda mask: -mask.sum())
    kept = []
    for mask in masks:
        if all((mask & k).sum() / (mask | k).sum() <= 0.8 and (mask & k).sum() / mask.sum() <= 0.9 for k in kept):
            kept.append(mask)

    def feature(image, mask, second_term=False, smooth=False):
        if published:  # processed again after it was resized, and indexed with the mask and True at its end
            tokens = dino_tokens(folder, as_processed(Image.fromarray(image).resize((224, 224))))
            levels = Image.fromarray(np.uint8(255) * mask.astype(np.uint8))
            levels = levels.resize((224, 224), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
            levels = [levels.getpixel((14 * (i % 16) + 7, 14 * (i // 16) + 7)) for i in range(256)]
            chosen = [*levels, 1] if second_term else [i for i, level in enumerate([*levels, 255]) if level]
        else:
            tokens = dino_tokens(folder, Image.fromarray(image).resize((224, 224)))
            chosen = [
                1 + 16 * i + j for i in range(16) for j in range(16)
                if mask[int((i + 0.5) * mask.shape[0] / 16), int((j + 0.5) * mask.shape[1] / 16)]
            ]  # fmt: skip
        return np.mean([tokens[i] / np.linalg.norm(tokens[i]) for i in chosen], axis=0)

    def cut_out(mask):
        rows, columns = np.nonzero(mask)
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        white = picture.copy()
        white[~mask] = 255
        return white[box], mask[box]

    parts, scores = cv2.connectedComponents(hole.astype(np.uint8)), []
    for label in range(1, parts[0]):
        part = parts[1] == label
        rows, columns = np.nonzero(part)
        tall, wide = rows.max() + 1 - rows.min(), columns.max() + 1 - columns.min()
        box = np.zeros_like(part)
        for y in range(max(0, rows.min() - tall // 3), min(height, rows.max() + 1 + tall // 3 + published)):
            for x in range(max(0, columns.min() - wide // 3), min(width, columns.max() + 1 + wide // 3 + published)):
                box[y, x] = not part[y, x]
        score = 1 - cosine(feature(picture, part), feature(picture, box))
        inside = [mask for mask in kept if not (mask & ~part).any()]
        crossing = [mask & part for mask in kept if (mask & ~part).any() and (mask & part).any()]
        for mask in inside:
            near = np.zeros_like(part)
            for other in crossing:  # three times two pixels on each side
                distance = np.abs(np.argwhere(other)[:, None] - np.argwhere(mask)[None]).max(axis=-1).min()
                if distance <= 6:
                    near |= other
            if near.any():
                border, own = feature(*cut_out(near), True), feature(*cut_out(mask), True, smooth=True)
                score += mask.sum() / sum(m.sum() for m in inside) * (1 - cosine(border, own))
        scores.append(score)
    return np.mean(scores)


# Values ---------------------------------------------------------------------------------------------------------------


def load(name, folders, protocol="standard"):
    place = {"dino_similarity": folders / "dinov2", "remove": folders / "sam", "cfd": folders}[name]
    return brushbench.load_metric(name, protocol, weights=place, device="cpu")


def test_dino_similarity_is_the_cosine_of_class_tokens_of_the_holes_box(folders):
    picture, reference = random_pictures(0, (90, 120), (90, 120))
    hole = np.zeros((90, 120), dtype=bool)
    hole[10:70, 30:90] = True
    [score] = load("dino_similarity", folders)([picture], [make_sample(reference, hole)])
    one, other = (dino_tokens(folders, as_processed(Image.fromarray(p[10:70, 30:90])))[0] for p in (picture, reference))
    assert score == pytest.approx(cosine(one, other), abs=1e-6)
    assert score < 0.999  # another image is told apart
    assert load("dino_similarity", folders)([reference], [make_sample(reference, hole)]) == pytest.approx([1])


@pytest.mark.parametrize("size", [(96, 96), (96, 65), (50, 96)])
def test_remove_compares_cells_by_their_centres_and_without_padding(folders, size):
    [picture] = random_pictures(1, size)
    hole = disc(*size, 20, 30, 17)
    [score] = load("remove", folders)([picture], [make_sample(picture, hole)])
    assert score == pytest.approx(naive_remove(folders, picture, hole), abs=1e-6)


def test_the_published_remove_counts_full_cells_alone_and_its_mask_slips_where_an_image_is_not_square(folders):
    pictures = random_pictures(2, (96, 96), (96, 64))
    holes = [disc(*picture.shape[:2], 40, 30, 24) for picture in pictures]
    samples = [make_sample(p, h) for p, h in zip(pictures, holes, strict=True)]
    scores = load("remove", folders, "published")(pictures, samples)
    expected = [naive_published_remove(folders, p, h) for p, h in zip(pictures, holes, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-6)
    mended = load("remove", folders)(pictures, samples)
    assert min(np.abs(np.subtract(scores, mended))) > 1e-3


@pytest.mark.parametrize(
    ("place", "box"),
    [((50, 60, 20), (15, 25, 71)), ((25, 60, 20), (0, 35, 51)), ((70, 75, 18), (40, 45, 61))],
    ids=["16 pixels more", "as far as the nearest side", "beyond the far side"],
)
def test_the_published_crop_is_a_square_around_the_hole(folders, place, box):
    [picture] = random_pictures(3, (100, 110))
    hole = disc(100, 110, *place)
    top, left, side = box
    crop = slice(top, top + side), slice(left, left + side)
    [score] = load("remove", folders, "published-crop")([picture], [make_sample(picture, hole)])
    assert score == pytest.approx(naive_published_remove(folders, picture[crop], hole[crop]), abs=1e-6)


def regions():
    """Two holes, and masks: in them, across their borders, doubles, and one elsewhere."""
    hole = disc(90, 120, 40, 40, 28) | disc(90, 120, 60, 100, 15)
    masks = [
        disc(90, 120, 40, 40, 8), disc(90, 120, 50, 46, 4), disc(90, 120, 41, 40, 8),  # the third repeats the first
        disc(90, 120, 40, 58, 16), disc(90, 120, 22, 30, 12), disc(90, 120, 80, 20, 9), disc(90, 120, 60, 100, 5),
        disc(90, 120, 70, 104, 8), disc(90, 120, 40, 40, 2),
        disc(90, 120, 55, 96, 3), disc(90, 120, 54, 106, 3),  # six and seven pixels from the line above's first
    ]  # fmt: skip
    return hole, masks


@pytest.mark.filterwarnings("ignore::brushbench.metrics.base.PublishedDefectWarning")
@pytest.mark.parametrize("protocol", ["standard", "published"])
def test_cfd_is_context_and_hallucination_per_part_of_the_hole(folders, monkeypatch, protocol):
    [picture] = random_pictures(4, (90, 120))
    hole, masks = regions()
    monkeypatch.setattr(SamBackbone, "masks", lambda self, store, image: masks)
    metric = load("cfd", folders, protocol)
    [score] = metric([picture], [make_sample(picture, hole)])
    published = protocol == "published"
    assert score == pytest.approx(naive_cfd(folders, picture, hole, masks, published), abs=1e-6)
    without = naive_cfd(folders, picture, hole, [], published)
    assert score > without + 1e-3  # the second term is seen
    monkeypatch.setattr(SamBackbone, "masks", lambda self, store, image: [])
    assert metric([picture], [make_sample(picture, hole)]) == pytest.approx([without], abs=1e-6)


def test_cfd_finds_its_masks_with_transformers_own_generator(folders):
    """On a random model every mask spans the image, so that one is left of each image's 1024."""
    [picture] = random_pictures(5, (90, 120))
    hole = disc(90, 120, 45, 60, 40)
    processor = SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    generator = MaskGenerationPipeline(model=SamModel.from_pretrained(folders / "sam"), image_processor=processor)
    masks = [np.asarray(mask) for mask in generator(Image.fromarray(picture))["masks"]]
    metric = load("cfd", folders)
    found = metric._sam.masks(Features(), picture)
    assert [mask.dtype for mask in found] == [bool] * len(masks)
    assert found
    assert np.array_equal(found, masks)
    [score] = metric([picture], [make_sample(picture, hole)])
    assert score == pytest.approx(naive_cfd(folders, picture, hole, masks, False), abs=1e-6)


# The ends of the scale ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Models that see one cell and one colour channel at a time: black and white are opposite."""
    root = tmp_path_factory.mktemp("plain")

    def without_context(state):
        for name, tensor in state.items():
            gone = ("position", "pos_embed", "cls_token", "layer_scale", "bias", "lin2.weight", "attn.proj.weight")
            if any(part in name for part in gone):
                tensor.zero_()
            elif "projection.weight" in name:
                tensor[:, 1:] = 0  # red alone
            elif name.endswith("neck.conv2.weight"):
                centre = tensor[:, :, 1, 1].clone()
                tensor.zero_()
                tensor[:, :, 1, 1] = centre

    def with_a_mean(state):
        """The class token is a linear map of the patches' mean."""
        without_context(state)
        for name, tensor in state.items():
            if "layer_scale1" in name:
                tensor.fill_(1)
            elif "q_proj" in name or "k_proj" in name:
                tensor.zero_()

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    save(Dinov2Model(Dinov2Config(image_size=224, **sizes)), root / "dinov2", without_context)
    save(Dinov2Model(Dinov2Config(image_size=224, **sizes)), root / "mean" / "dinov2", with_a_mean)
    config = SamConfig(vision_config=VISION, prompt_encoder_config=PROMPT, mask_decoder_config=DECODER)
    save(SamModel(config), root / "sam", without_context)  # it is sure of no mask
    return root


def test_the_ends_of_the_scale(plain):
    hole = np.zeros((128, 128), dtype=bool)
    hole[32:96, 32:96] = True
    flat = np.full((128, 128, 3), 90, dtype=np.uint8)
    worst = np.where(hole[..., None], np.uint8(0), np.full((128, 128, 3), 255, np.uint8))
    sample = make_sample(flat, hole)
    assert load("remove", plain)([flat, worst], [sample] * 2) == pytest.approx([1, -1], abs=1e-3)
    assert load("cfd", plain)([flat, worst], [sample] * 2) == pytest.approx([0, 2], abs=0.02)
    white = make_sample(np.full_like(flat, 255), hole)
    assert load("dino_similarity", plain / "mean")([white.image, worst], [white] * 2) == pytest.approx(
        [1, -1], abs=1e-3
    )


def test_the_batch_and_the_store_do_not_matter(folders, monkeypatch):
    monkeypatch.setattr(SamBackbone, "masks", lambda self, store, image: [image[..., 0] > 128, image[..., 1] > 128])
    pictures = random_pictures(6, (64, 64), (64, 90), (64, 64))
    samples = [make_sample(p[::-1].copy(), disc(*p.shape[:2], 30, 30, 14)) for p in pictures]
    for name in ("dino_similarity", "remove", "cfd"):
        metric, store = load(name, folders), Features()
        alone = [metric([p], [s])[0] for p, s in zip(pictures, samples, strict=True)]
        assert metric(pictures, samples, store) == pytest.approx(alone, abs=1e-6)
        assert metric(pictures, samples, store) == pytest.approx(alone, abs=1e-6)


def test_a_hole_smaller_than_a_cell_counts(folders, monkeypatch):
    [picture] = random_pictures(7, (96, 96))
    hole = np.zeros((96, 96), dtype=bool)
    hole[2, 3] = True  # no centre of a cell
    monkeypatch.setattr(SamBackbone, "masks", lambda self, store, image: [])
    for name in ("dino_similarity", "remove", "cfd"):
        [score] = load(name, folders)([picture], [make_sample(picture, hole)])
        assert isinstance(score, float)
    maps = sam_maps(folders, picture).reshape(16, -1)
    [score] = load("remove", folders)([picture], [make_sample(picture, hole)])
    assert score == pytest.approx(cosine(maps[:, 0], maps.mean(axis=1)), abs=1e-6)
    assert "fills no cell" in load("remove", folders, "published")([picture], [make_sample(picture, hole)])[0].reason


# Refusals -------------------------------------------------------------------------------------------------------------


def test_what_has_no_score_has_a_reason(folders):
    [picture] = random_pictures(8, (64, 64))
    nothing = np.zeros((64, 64), dtype=bool)
    other = Sample("s", picture[:32], disc(32, 64, 16, 16, 9), "x", "inside")
    for name in ("dino_similarity", "remove", "cfd"):
        metric = load(name, folders)
        assert metric([picture], [make_sample(picture, nothing)])[0].reason == "there is no hole"
        assert "the reference 64x32" in metric([picture], [other])[0].reason
        if name != "dino_similarity":
            assert "nothing kept" in metric([picture], [make_sample(picture, ~nothing)])[0].reason


def test_they_are_computed_where_they_are_named():
    names = {"dino_similarity": 1, "remove": 3, "cfd": 2}
    assert not set(names) & {name for name, _ in choose_columns("auto")}
    for name, protocols in names.items():
        assert choose_columns(name) == [(name, "standard")]
        metric = brushbench.metrics.plugins.metric_class(name)
        assert len(metric.protocols) == protocols
    with pytest.raises(UsageError, match="It has standard, published"):
        choose_columns("cfd@freeinpaint")


def test_the_record_names_both_models_and_their_licences_are_listed(folders):
    described = load("cfd", folders).describe()["weights"]
    for name in ("dinov2", "sam"):
        from brushbench.weights import sha256_file

        assert described[name]["sha256"] == sha256_file(folders / name / "model.safetensors")
    needs = brushbench.metrics.plugins.metric_class("cfd").needs
    assert [need.licence for need in needs] == ["Apache-2.0", "Apache-2.0"]


def test_missing_weights_say_what_to_do_and_it_works(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=r"weights=facebook/dinov2-giant\+facebook/sam-vit-huge") as caught:
        brushbench.load_metric("cfd")
    assert "two folders or files joined by +, or one folder that holds dinov2/ and sam/" in str(caught.value)
    joined = f"{folders / 'dinov2'}+{folders / 'sam' / 'model.safetensors'}"
    for remedy in (joined, folders):
        assert brushbench.load_metric("cfd", weights=remedy).available(remedy) is None
    (tmp_path / "dinov2").mkdir()
    for incomplete in (tmp_path, "facebook/dinov2-giant"):
        with pytest.raises(MissingWeightsError, match="does not name both models"):
            brushbench.load_metric("cfd", weights=incomplete)
    for name, hub in (("dino_similarity", "facebook/dinov2-base"), ("remove", "facebook/sam-vit-huge")):
        with pytest.raises(MissingWeightsError, match=f"Pass weights={hub} to download it"):
            brushbench.load_metric(name)


def test_a_hub_id_is_downloaded_with_its_config(folders, tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot_download(repository, allow_patterns):
        assert {"model.safetensors", "config.json"} <= set(allow_patterns)
        return str(folders / {"facebook/dinov2-giant": "dinov2", "facebook/sam-vit-huge": "sam"}[repository])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository: ["model.safetensors"])
    metric = brushbench.load_metric("cfd", weights="facebook/dinov2-giant+facebook/sam-vit-huge", device="cpu")
    assert metric.describe()["weights"] == load("cfd", folders).describe()["weights"]


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(folders, tmp_path, capfd):
    place = shutil.copytree(folders / "dinov2", tmp_path / "dinov2")
    state = load_file(place / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "layernorm.weight"}, place / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing_keys \(such as layernorm.weight\)"):
        brushbench.load_metric("dino_similarity", weights=place)
    save_file({**state, "layernorm.weight": torch.ones(9)}, place / "model.safetensors")
    with pytest.raises(WeightsError, match="1 mismatched_keys"):
        brushbench.load_metric("dino_similarity", weights=place)
    save_file({**state, "head.weight": torch.ones(9)}, place / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 unexpected_keys \(such as head.weight\)"):
        brushbench.load_metric("dino_similarity", weights=place)
    save_file({**state, "layernorm.weight": torch.full((16,), float("nan"))}, place / "model.safetensors")
    [picture] = random_pictures(9, (64, 64))
    with pytest.raises(WeightsError, match="NaN or infinity"):
        brushbench.load_metric("dino_similarity", weights=place)(
            [picture], [make_sample(picture, picture[..., 0] > 90)]
        )
    save_file(state, place / "model.safetensors")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "model_type": "sam"}))
    with pytest.raises(WeightsError, match="has the model_type 'sam', expected 'dinov2'"):
        brushbench.load_metric("dino_similarity", weights=place)
    (place / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(WeightsError, match=r"is no config of DINOv2 ViT-B/14"):
        brushbench.load_metric("dino_similarity", weights=place)
    (place / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no config.json. Put the one of DINOv2"):
        brushbench.load_metric("dino_similarity", weights=place)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_the_published_cfd_warns_of_its_defects_and_reads_16_patches_a_side(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(SamBackbone, "masks", lambda self, store, image: [])
    [picture] = random_pictures(8, (64, 64))
    with pytest.warns(PublishedDefectWarning, match="shifted by one token"):
        load("cfd", folders, "published")([picture], [make_sample(picture, disc(64, 64, 30, 30, 14))])
    other = Dinov2Model(Dinov2Config(image_size=224, patch_size=28, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2))  # fmt: skip
    other.save_pretrained(tmp_path / "dinov2")
    joined = f"{tmp_path / 'dinov2'}+{folders / 'sam'}"
    with pytest.raises(WeightsError, match="reads 16x16 patches, this DINOv2 has 8x8"):
        brushbench.load_metric("cfd", "published", weights=joined)
    assert brushbench.load_metric("cfd", weights=joined).protocol == "standard"
