"""Measure the tiny family: autoencoder, classifier, text to image. Prints numbers beside the thresholds set for them.

    python tests/benchmarks/tiny_base.py --tiny data/tiny --sheet sheet.png

The thresholds were written before anything was measured. A missed one is reported and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from brushbench.metrics.attribute_accuracy import crop_box
from brushbench.metrics.attribute_classifier import crop_pictures, judge, load_classifier
from brushbench.tiny.attributes import held_out_accuracy
from brushbench.tiny.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    STYLES,
    TONES,
    UNSEEN_PAIRS,
    render,
    sample_scene,
)
from brushbench.tiny.text_to_image import generate, load_text_to_image
from brushbench.tiny.vae import decode_unscaled, encode_unscaled, psnr_by_background
from brushbench.training.loop import contact_sheet

THRESHOLDS = {
    "VAE, mean PSNR on held-out scenes, dB": 30.0,
    "classifier, held-out clean renders, %": 97.0,
    "classifier, held-out VAE round trips, %": 95.0,
    "text to image, colour and shape as named, %": 85.0,
}
PHRASES = {"plain": "plain {}", "gradient": "a {} gradient"}


def single_object_prompts(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str, str]]:
    """Return (prompt, colour, shape): pairs, sizes, styles, backgrounds and tones in turn."""
    prompts = []
    for i in range(count):
        colour, shape = pairs[i % len(pairs)]
        turn = i + i // len(pairs)
        size, style = list(SIZES)[turn % 3], STYLES[(turn // 3) % 2]
        background, tone = BACKGROUNDS[(turn // 6) % 6], list(TONES)[(i * 5 + turn // 36) % 6]
        ground = PHRASES.get(background, "{} " + background).format(tone)
        start = "a painting of a" if style == "painterly" else "a"
        prompts.append((f"{start} {size} {colour} {shape} on {ground}", colour, shape))
    return prompts


def find_object(picture: np.ndarray) -> np.ndarray | None:
    """Return the mask of the largest patch whose pixels are nearer to an object colour than to any background shade."""
    from skimage.measure import label

    shades = [np.array(tone) + lift for tone in TONES.values() for lift in (-0.2, -0.1, 0.0, 0.1, 0.2)]
    palette = np.array([*COLOURS.values(), *shades])
    nearest = np.square(picture[:, :, None, :] / 255.0 - palette).sum(axis=-1).argmin(axis=-1)
    best = None
    for colour in range(len(COLOURS)):
        patches = label(nearest == colour)
        for patch in range(1, patches.max() + 1):
            mask = patches == patch
            if mask.sum() >= 20 and (best is None or mask.sum() > best.sum()):
                best = mask
    return best


def follows(classifier, picture: np.ndarray, colour: str, shape: str) -> bool:
    """Say whether the picture's one object has the named colour and shape; a picture without an object does not."""
    mask = find_object(picture)
    return mask is not None and judge(classifier, crop_pictures([picture], [crop_box(mask)]))[0] == (colour, shape)


def ceiling(task, classifier, count: int = 210) -> float:
    """Return the share found right among round trips of rendered single objects: what a perfect base would reach."""
    scenes = (sample_scene(3, index, "held-out") for index in itertools.count())
    chosen = list(itertools.islice((scene for scene in scenes if len(scene.objects) == 1), count))
    pictures = decode_unscaled(task.vae, encode_unscaled(task.vae, np.stack([render(scene).image for scene in chosen])))
    things = [scene.objects[0] for scene in chosen]
    pairs = zip(pictures, things, strict=True)
    return float(np.mean([follows(classifier, picture, thing.colour, thing.shape) for picture, thing in pairs]))


def text_to_image(task, classifier, prompts, guidance: float, steps: int) -> tuple[np.ndarray, list[bool]]:
    """Return the pictures and whether each is as named."""
    parts = {"vae": task.vae, "tokenizer": task.tokenizer, "text_encoder": task.text_encoder, "unet": task.unet}
    pictures = generate(parts, [prompt for prompt, _, _ in prompts], seed=7, steps=steps, guidance=guidance)
    right = [follows(classifier, p, colour, shape) for p, (_, colour, shape) in zip(pictures, prompts, strict=True)]
    return pictures, right


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", type=Path, default=Path("data/tiny"))
    parser.add_argument("--base", type=Path, help="pipeline to measure (default: TINY/base)")
    parser.add_argument("--sheet", type=Path, default=Path("tiny_base.png"))
    parser.add_argument("--count", type=int, default=210, help="prompts of seen pairs")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=["vae", "classifier", "text"], action="append")
    options = parser.parse_args()
    parts = options.only or ["vae", "classifier", "text"]
    task = load_text_to_image(options.base or options.tiny / "base")
    classifier = load_classifier(options.tiny / "attributes")
    measured: dict[str, float] = {}

    if "vae" in parts:
        table = psnr_by_background(task.vae, 512)
        print("VAE PSNR, dB:", json.dumps({name: round(value, 2) for name, value in table.items()}))
        measured["VAE, mean PSNR on held-out scenes, dB"] = table["all"]
    if "classifier" in parts:
        measured["classifier, held-out clean renders, %"] = 100 * held_out_accuracy(classifier)
        measured["classifier, held-out VAE round trips, %"] = 100 * held_out_accuracy(classifier, task.vae)
    if "text" in parts:
        seen = [(c, s) for s in SHAPES for c in COLOURS if (c, s) not in UNSEEN_PAIRS]
        prompts = single_object_prompts(seen, options.count)
        pictures, right = text_to_image(task, classifier, prompts, options.guidance, options.steps)
        measured["text to image, colour and shape as named, %"] = 100 * float(np.mean(right))
        for word in (*SIZES, *SHAPES, *COLOURS, "painting"):
            chosen = [ok for ok, (prompt, _, _) in zip(right, prompts, strict=True) if f" {word} " in f"{prompt} "]
            print(f"  {word}: {100 * np.mean(chosen):.0f} % of {len(chosen)}")
        print(f"  a perfect base would reach: {100 * ceiling(task, classifier):.1f} %")
        unseen = single_object_prompts(sorted(UNSEEN_PAIRS), 30)
        strange, strange_right = text_to_image(task, classifier, unseen, options.guidance, options.steps)
        print(f"  unseen pairs: {100 * np.mean(strange_right):.0f} % of {len(unseen)}")
        Image.fromarray(contact_sheet(np.concatenate([pictures[:126], strange]), 18)).save(options.sheet, quality=90)
        for (prompt, _, _), ok in list(zip(prompts, right, strict=True))[:18]:
            print("  +" if ok else "  -", prompt)

    for name, value in measured.items():
        verdict = "reached" if value >= THRESHOLDS[name] else "MISSED "
        print(f"{verdict}  {name}: {value:.2f} (threshold {THRESHOLDS[name]})")
    return int(any(value < THRESHOLDS[name] for name, value in measured.items()))


if __name__ == "__main__":
    sys.exit(main())
