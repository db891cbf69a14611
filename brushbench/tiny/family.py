"""The embedded family ``data/tiny``: which trainings it is made of, and the manifest that says what belongs to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from brushbench.errors import MissingWeightsError
from brushbench.weights import sha256_file

__all__ = ["FAMILY", "collect"]

# Where a model lies in the family, and the training it comes from. The folder of the aesthetic head holds its CLIP too.
FAMILY = {
    "base": "text_to_image",
    "base/vae": "vae",  # the same weights as in the base, with the log of their training
    "attributes": "attributes",
    "brushnet_segmentation": "brushnet_segmentation",
    "brushnet_random": "brushnet_random",
    "sd_inpainting": "sd_inpainting",
    "controlnet": "controlnet",
    "powerpaint": "powerpaint",
    "metrics/clip": "metrics/aesthetic",
    "metrics/hps": "metrics/hps",
    "metrics/image_reward": "metrics/image_reward",
    "metrics/lpips": "metrics/lpips",
}
MANIFEST, CARD = "manifest.json", "README.md"


def collect(runs: Path, into: Path) -> list[Path]:
    """Copy every trained model under ``runs`` into the family, with its log, and write ``manifest.json``.

    Args:
        runs: folder of trainings; a model is taken from ``runs/NAME/model``. Those that are not there stay as they are.
        into: the family.

    Returns:
        The folders copied.

    Raises:
        MissingWeightsError: no model of the family under ``runs``.
    """
    found = {name: runs / source for name, source in FAMILY.items() if (runs / source / "model").is_dir()}
    if not found:
        raise MissingWeightsError(f"{runs} holds none of {', '.join(FAMILY.values())}. Train one, then collect.")
    for name, training in found.items():
        shutil.rmtree(into / name, ignore_errors=True)
        shutil.copytree(training / "model", into / name, copy_function=shutil.copyfile)
        if (training / "log.csv").is_file():  # a training of fewer steps than a row has none
            shutil.copyfile(training / "log.csv", into / name / "log.csv")
        for sheet in sorted((training / "pictures").glob("*.png"))[-1:]:
            shutil.copyfile(sheet, into / name / "contact_sheet.png")
    files = sorted(path for path in into.rglob("*") if path.is_file() and path.name not in (MANIFEST, CARD))
    manifest = {
        "licence": "Apache-2.0",
        "files": {path.relative_to(into).as_posix(): sha256_file(path) for path in files},
    }
    (into / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return [into / name for name in found]
