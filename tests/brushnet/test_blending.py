"""Blending against a pixelwise oracle, the recorded picture, and what each mode promises."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from brushnet.blending import blend
from tests.reference.naive_blending import blend_pixelwise

if TYPE_CHECKING:
    from pathlib import Path

MODES = ("blur", "paste", "brushedit", "none")


@pytest.fixture
def case():
    rng = np.random.default_rng(7)
    original, generated = rng.integers(0, 256, (2, 40, 52, 3), dtype=np.uint8)
    hole = np.zeros((40, 52), dtype=bool)
    hole[12:25, 20:38] = True
    hole[0:4, 0:3] = True
    return original, generated, hole


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kernel", "sigma"), [(21, 0.0), (5, 2.0)])
def test_blend_agrees_with_the_pixelwise_oracle(case, mode, kernel, sigma):
    ours = blend(*case, mode, kernel, sigma).astype(int)
    naive = blend_pixelwise(*case, mode, kernel, sigma).astype(int)
    # The blurred hole has 8 bits: half of 1/255 of a difference of 255, and the truncation.
    assert np.abs(ours - naive).max() <= (1 if mode in ("blur", "brushedit") else 0)


def test_recorded_picture_is_bit_exact(golden_dir: Path):
    folder = golden_dir / "metrics" / "pixel_metrics"
    if not (folder / "blended_ellipse.png").is_file():
        pytest.skip("the golden folder holds no blended picture")
    facts = json.loads((folder / "case.json").read_text())
    recorded = facts["blend"]
    hole = np.zeros(facts["shape"][0] * facts["shape"][1], dtype=bool)
    runs = facts["rle"][recorded["mask"]]
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        hole[start - 1 : start - 1 + length] = True
    src, gen, out = (np.asarray(Image.open(folder / recorded[key])) for key in ("src", "gen", "out"))
    blended = blend(src, gen, hole.reshape(facts["shape"]), "blur", recorded["kernel"], recorded["sigma"])
    np.testing.assert_array_equal(blended, out)


def test_kept_region_beyond_half_a_kernel_is_exact_and_the_hole_is_generated(case):
    original, generated, hole = case
    blended = blend(*case)
    far = np.ones_like(hole)
    for y, x in np.argwhere(hole):
        far[max(0, y - 10) : y + 11, max(0, x - 10) : x + 11] = False
    assert far.any()
    np.testing.assert_array_equal(blended[far], original[far])
    np.testing.assert_array_equal(blended[hole], generated[hole])


def test_paste_takes_each_pixel_from_one_side(case):
    original, generated, hole = case
    pasted = blend(*case, "paste")
    np.testing.assert_array_equal(pasted[hole], generated[hole])
    np.testing.assert_array_equal(pasted[~hole], original[~hole])


def test_brushedit_mixes_half_of_the_generated_picture_far_from_the_hole():
    original = np.full((80, 80, 3), 100, np.uint8)
    generated = np.full((80, 80, 3), 200, np.uint8)
    hole = np.zeros((80, 80), bool)
    hole[:10, :10] = True
    assert (blend(original, generated, hole, "brushedit")[60:, 60:] == 150).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_picture_twice_stays_the_same_up_to_truncation(case, mode):
    original, _, hole = case
    blended = blend(original, original, hole, mode)
    assert (original.astype(int) - blended).max() <= 1
    assert blended is not original
    assert (original >= blended).all()


def test_an_empty_hole_keeps_and_a_full_hole_takes_everything(case):
    original, generated, hole = case
    np.testing.assert_array_equal(blend(original, generated, np.zeros_like(hole)), original)
    np.testing.assert_array_equal(blend(original, generated, np.ones_like(hole)), generated)


@pytest.mark.parametrize("mode", ["blur", "paste"])
def test_what_the_original_holds_in_the_hole_does_not_matter(case, mode):
    original, generated, hole = case
    hidden = original.copy()
    hidden[hole] = 0
    np.testing.assert_array_equal(blend(hidden, generated, hole, mode), blend(original, generated, hole, mode))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"mode": "soft"}, ValueError, "mode 'soft'"),
        ({"kernel": 20}, ValueError, "odd"),
        ({"kernel": 0}, ValueError, "odd"),
        ({"sigma": -1.0}, ValueError, "sigma"),
        ({"hole": np.zeros((40, 52), np.uint8)}, TypeError, "True = repaint"),
        ({"hole": np.zeros((52, 40), bool)}, ValueError, "Sizes differ"),
        ({"original": np.zeros((40, 52, 3))}, TypeError, "float64"),
        ({"generated": np.zeros((40, 52), np.uint8)}, ValueError, "RGB"),
    ],
)
def test_bad_input_gets_one_clear_sentence(case, change, error, words):
    arguments = dict(zip(("original", "generated", "hole"), case, strict=True)) | change
    with pytest.raises(error, match=words):
        blend(**arguments)


def test_importing_blend_loads_neither_torch_nor_opencv():
    code = "import sys; from brushnet import blend; sys.exit(bool({'torch', 'cv2', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
