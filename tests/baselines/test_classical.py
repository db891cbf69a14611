"""Methods without weights: exact background, no leak, no influence of neighbours."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from brushbench import Sample, load_inpainter
from brushbench.errors import UsageError

METHODS = ("telea", "ns", "copy")


def sample(name: str, seed: int, height: int = 40, width: int = 56) -> Sample:
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (5, 5), 0)
    hole = np.zeros((height, width), dtype=bool)
    hole[10:25, 12:30] = True
    return Sample(name, image, hole, "noise", "inside")


@pytest.mark.parametrize("name", METHODS)
def test_the_kept_pixels_are_exact_and_the_hole_depends_on_nothing_inside_it(name: str) -> None:
    method = load_inpainter(name)
    one = sample("a", 1)
    changed = one.image.copy()
    changed[one.hole] = 255 - changed[one.hole]
    twin = Sample("a", changed, one.hole, one.prompt, one.split)
    first, second = (method.inpaint([s.request(0)])[0] for s in (one, twin))
    assert (first == second).all()
    assert (first[one.keep] == one.image[one.keep]).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_result_does_not_depend_on_its_neighbours(name: str) -> None:
    method = load_inpainter(name)
    requests = [sample(str(i), i, 40 + i, 56).request(i) for i in range(3)]
    together = method.inpaint(requests)
    alone = [method.inpaint([request])[0] for request in requests]
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(("name", "method"), [("telea", cv2.INPAINT_TELEA), ("ns", cv2.INPAINT_NS)])
def test_the_two_opencv_methods_are_opencv_s(name: str, method: int) -> None:
    request = sample("a", 3).request(0)
    bgr = np.ascontiguousarray(request.image[..., ::-1])
    expected = cv2.inpaint(bgr, request.hole.astype(np.uint8) * 255, 5, method)[..., ::-1]
    assert (load_inpainter(f"{name},radius=5").inpaint([request])[0] == expected).all()


def test_copy_returns_the_grey_hole() -> None:
    one = sample("a", 4)
    (picture,) = load_inpainter("copy").inpaint([one.request(0)])
    assert (picture[one.hole] == 127).all()


def test_reference_lines_return_the_truth_and_its_jpeg() -> None:
    one = sample("a", 5)
    oracle, jpeg = load_inpainter("oracle"), load_inpainter("jpeg")
    assert oracle.capabilities.needs_reference
    assert jpeg.capabilities.needs_reference
    assert (oracle.inpaint_reference([one])[0] == one.image).all()
    buffer = io.BytesIO()
    Image.fromarray(one.image).save(buffer, "JPEG")  # Pillow's default, as the published script saves
    assert (jpeg.inpaint_reference([one])[0] == np.asarray(Image.open(buffer))).all()


@pytest.mark.parametrize(
    "spec", ["telea,radius=-5", "ns,radius=0.5", "telea,radius=1e30", "ns,radius=nan", "jpeg,quality=0"]
)
def test_a_setting_that_the_library_would_clip_in_silence_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to"):
        load_inpainter(spec)
