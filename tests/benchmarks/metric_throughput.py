"""Pictures per CPU second of the published metrics, against the order of work of the published script.

Run ``python tests/benchmarks/metric_throughput.py`` on an idle machine (about 10 minutes on one core, 12 GB of memory,
4 GB of disk for random weights of full size), or with ``--tiny`` to see that it works. Both orders of work use the same
loaded models and give the same scores, which is checked; loading is left out. Exits with 1 below 1.48 times, what was
reached at first.

The published order (evaluate_brushnet.py): one picture at a time, every metric by itself: a ViT-L/14 pass for CLIP
similarity and another for the aesthetic score, the caption embedded anew for every picture, padded to 77 (HPS) and 35
(ImageReward) tokens, the reference's LPIPS features computed anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

sys.path.insert(0, str(Path(__file__).parents[2]))
from brushbench.features import Features
from brushbench.metrics import clip_model, hps, image_reward
from brushbench.metrics.aesthetic import Aesthetic
from brushbench.metrics.clip import ClipScore
from brushbench.metrics.hps import HpsV21
from brushbench.metrics.image_reward import ImageReward
from brushbench.metrics.lpips import LPIPS
from brushbench.metrics.mse import MSE
from brushbench.metrics.psnr import PSNR
from brushbench.types import Sample
from brushbench.weights import WeightFile
from tests.reference.metric_folders import random_clip, random_pictures, random_reward

PROTOCOL = "brushnet-paper"
FLOOR = 1.48
SAVINGS = {  # what a part's saving comes from
    "ViT-L/14 image, CLIP similarity": "batches",
    "ViT-L/14 image, aesthetic": "one pass serves both metrics",
    "ViT-L/14 caption": "once a caption, not once a picture",
    "ViT-H/14 image, HPS": "batches",
    "ViT-H/14 caption": "once a caption, without padding",
    "ImageReward": "batches, captions without padding",
    "LPIPS, picture": "",
    "LPIPS, reference": "once an (image, hole), where another method or variant asks again",
    "PSNR, MSE": "",
}


class Watch:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(SAVINGS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


# Weights of the published sizes ---------------------------------------------------------------------------------------


def random_file(build: Callable[[], Any], path: Path, rename: Callable[[str], str], extra: dict[str, Any]) -> None:
    """Write float16 weights of a model that was never built: one block of noise, repeated."""
    block = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build().state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        values = block.repeat(count // block.numel() + 1)[:count].reshape(shape)
        norm = name.endswith("weight") and len(shape) == 1
        state[rename(name)] = (values + 1 if norm else values).half()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state | extra, path)


def full_size_folders(root: Path) -> dict[str, Path]:
    nowhere = WeightFile(root / "nowhere")
    for name, architecture, width in (("clip", clip_model.PUBLISHED, 768), ("hps", hps.ARCHITECTURE, 0)):
        config = clip_model.find_config(nowhere, architecture)
        head = {"aesthetic.weight": torch.randn(1, width), "aesthetic.bias": torch.zeros(1)} if width else {}
        random_file(
            lambda config=config: clip_model.build_model(config), root / name / "weights.safetensors", str, head
        )
    config = image_reward.find_config(nowhere)
    random_file(
        lambda: image_reward.build_model(config),
        root / "reward" / "weights.safetensors",
        lambda name: image_reward.original_name(name)[0][0],
        {},
    )
    return {name: root / name for name in ("clip", "hps", "reward")}


def tiny_folders(root: Path) -> dict[str, Path]:
    return {
        "clip": random_clip(root / "clip"),
        "hps": random_clip(root / "hps", head=False, quick_gelu=False),
        "reward": random_reward(root / "reward"),
    }


def load_all(folders: dict[str, Path], root: Path) -> dict[str, Any]:
    backbone = root / "squeezenet1_1-b8a52dc0.pth"
    torch.save(squeezenet1_1(weights=None).state_dict(), backbone)
    return {
        "clip": ClipScore(PROTOCOL, folders["clip"]),
        "aesthetic": Aesthetic(PROTOCOL, folders["clip"]),
        "hps": HpsV21(PROTOCOL, folders["hps"]),
        "reward": ImageReward(PROTOCOL, folders["reward"]),
        "lpips": LPIPS(PROTOCOL, backbone),
        "psnr": PSNR(PROTOCOL),
        "mse": MSE(PROTOCOL),
    }


# The two orders of work -----------------------------------------------------------------------------------------------


def published(
    metrics: dict[str, Any], store: Features, picture: np.ndarray, sample: Sample, watch: Watch
) -> list[float]:
    """Score one picture as the published script does, with models that are already loaded."""
    vit_l = store.model(metrics["clip"]._clip.key, metrics["clip"]._clip._load)
    vit_h = store.model(metrics["hps"]._clip.key, metrics["hps"]._clip._load)
    reward = store.model(metrics["reward"]._key, metrics["reward"]._load)
    net, linear = store.model(metrics["lpips"]._key, metrics["lpips"]._load)
    scores = []
    with torch.inference_mode():
        with watch.part("ViT-L/14 image, CLIP similarity"):
            image = vit_l.encode_image(torch.from_numpy(metrics["clip"]._pixels(picture))[None])
        with watch.part("ViT-L/14 caption"):
            ids, _ = clip_model.transformers_ids(sample.prompt, 77, keep_end=False)  # padded to the longest: alone, not
            text = clip_model._encode_text(vit_l, torch.tensor([ids]))
        scores.append(max(100 * torch.cosine_similarity(image.double(), text.double()).item(), 0))
        with watch.part("ViT-L/14 image, aesthetic"):
            image = vit_l.encode_image(torch.from_numpy(metrics["aesthetic"]._pixels(picture))[None]).double().numpy()
        scores.append(float(clip_model.unit(image)[0] @ metrics["aesthetic"]._weight + metrics["aesthetic"]._bias))
        with watch.part("ViT-H/14 image, HPS"):
            image = vit_h.encode_image(torch.from_numpy(metrics["hps"]._pixels(picture))[None])
        with watch.part("ViT-H/14 caption"):
            ids, _ = clip_model.open_clip_ids(sample.prompt, 77)
            text = vit_h.encode_text(torch.tensor([ids + [0] * (77 - len(ids))]))
        scores.append(torch.cosine_similarity(image.double(), text.double()).item())
        with watch.part("ImageReward"):
            scores.append(published_reward(metrics["reward"], reward, picture, sample.prompt))
        with watch.part("LPIPS, reference"):
            theirs = metrics["lpips"]._maps(net, [metrics["lpips"]._prepared(sample.image, sample)])
        with watch.part("LPIPS, picture"):
            mine = metrics["lpips"]._maps(net, [metrics["lpips"]._prepared(picture, sample)])
            layers = [(((a - b) ** 2) * w).sum(1).double().mean() for a, b, w in zip(mine, theirs, linear, strict=True)]
            scores.append(float(sum(layers)))
    with watch.part("PSNR, MSE"):
        scores += metrics["psnr"]([picture], [sample]) + metrics["mse"]([picture], [sample])
    return scores


def published_reward(metric: Any, model: Any, picture: np.ndarray, prompt: str) -> float:
    side = metric._config["vision"]["image_size"]
    tokens = image_reward.make_tokenizer(metric._vocabulary)(
        prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    seen = model["vision"](torch.from_numpy(clip_model.cropped(picture, side, "even"))[None]).last_hidden_state
    read = model["text"](
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], encoder_hidden_states=seen
    ).last_hidden_state
    return (model["mlp"](read[:, 0]).item() - image_reward.MEAN) / image_reward.DEVIATION


def ours(
    metrics: dict[str, Any], store: Features, pictures: list[np.ndarray], samples: list[Sample], watch: Watch
) -> list[list[float]]:
    """Score a batch; captions and references are asked for first so that each part has a time of its own."""
    with watch.part("ViT-L/14 caption"):
        for sample in samples:
            metrics["clip"]._clip.text(store, metrics["clip"]._ids(sample.prompt)[0])
    with watch.part("ViT-H/14 caption"):
        for sample in samples:
            metrics["hps"]._clip.text(store, clip_model.open_clip_ids(sample.prompt, 77)[0])
    with watch.part("LPIPS, reference"), torch.inference_mode():
        lpips = metrics["lpips"]
        net, _ = store.model(lpips._key, lpips._load)
        most = lpips._most(pictures[0])
        for part in (samples[start : start + most] for start in range(0, len(samples), most)):
            store.reference(
                lpips._key,
                lpips._content(part),
                lambda part=part: lpips._maps(net, [lpips._prepared(sample.image, sample) for sample in part]),
            )
    columns = []
    for part, names in (
        ("ViT-L/14 image, CLIP similarity", ["clip"]),
        ("ViT-L/14 image, aesthetic", ["aesthetic"]),
        ("ViT-H/14 image, HPS", ["hps"]),
        ("ImageReward", ["reward"]),
        ("LPIPS, picture", ["lpips"]),
        ("PSNR, MSE", ["psnr", "mse"]),
    ):
        with watch.part(part):
            columns += [metrics[name](pictures, samples, store) for name in names]
    return [list(row) for row in zip(*columns, strict=True)]


# The comparison -------------------------------------------------------------------------------------------------------


def make_samples(count: int, side: int) -> tuple[list[np.ndarray], list[Sample]]:
    """Return pictures and samples: both splits of the same references, one caption a reference."""
    references = random_pictures(0, *[(side, side)] * count)
    pictures = random_pictures(1, *[(side, side)] * 2 * count)
    inside = np.zeros((side, side), dtype=bool)
    inside[side // 4 : side // 2, side // 3 : 3 * side // 4] = True
    samples = [
        Sample(str(i), reference, hole, f"a photo of {i + 2} dogs and a small red house by the river", split)
        for split, hole in (("inside", inside), ("outside", ~inside))
        for i, reference in enumerate(references)
    ]
    return pictures, samples


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it works; not judged")
    parser.add_argument("--images", type=int, default=4, help="references; each is scored in both splits (default 4)")
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pictures, samples = make_samples(options.images, 96 if options.tiny else 512)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        metrics = load_all((tiny_folders if options.tiny else full_size_folders)(root), root)
        models = Features()
        published(metrics, models, pictures[0], samples[0], Watch())  # load and warm up
        old, new = Watch(), Watch()
        expected = [published(metrics, models, p, s, old) for p, s in zip(pictures, samples, strict=True)]
        store = Features()
        store._models = models._models  # loading is left out on both sides
        found: list[list[float]] = []
        for start in range(0, len(pictures), options.batch_size):
            chunk = slice(start, start + options.batch_size)
            found += ours(metrics, store, pictures[chunk], samples[chunk], new)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    return report(old, new, len(pictures), judged=not options.tiny)


def report(old: Watch, new: Watch, count: int, judged: bool) -> int:
    """Print CPU seconds a picture by part, and the ratio."""
    print(f"CPU seconds a picture, {count} pictures, one thread")
    print(f"{'part':34}{'published':>10}{'ours':>10}{'saved':>10}  by")
    for part, reason in SAVINGS.items():
        before, after = old.seconds[part] / count, new.seconds[part] / count
        print(f"{part:34}{before:10.3f}{after:10.3f}{before - after:10.3f}  {reason}")
    ratio = old.total / new.total
    print(f"{'all':34}{old.total / count:10.3f}{new.total / count:10.3f}{(old.total - new.total) / count:10.3f}")
    print(
        f"pictures per CPU second: published {count / old.total:.4f}, ours {count / new.total:.4f}: {ratio:.2f} times"
    )
    if judged and ratio < FLOOR:
        print(f"below the {FLOOR} times that is asked for")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
