"""The five conditioning channels against a naive encoder and a pixelwise resize, in every accepted form."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from brushnet import encode_conditioning
from brushnet.conditioning import draw_noise, keep_from_white, masked_pixels, picture_size, vae_factor
from tests.brushnet.tiny_pipelines import generator, make_picture, make_vae
from tests.reference.naive_pipeline import naive_conditioning


@pytest.fixture(scope="module")
def vae():
    return make_vae()


@pytest.fixture
def picture():
    return make_picture()


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)[None]


IMAGES = {
    "pil": Image.fromarray,
    "pil list": lambda a: [Image.fromarray(a)],
    "uint8 HWC": lambda a: a,
    "uint8 NHWC": lambda a: a[None],
    "float NHWC": lambda a: (a / 255.0)[None],
    "float HWC list": lambda a: [(a / 255).astype(np.float32)],
    "tensor NCHW": as_tensor,
    "tensor CHW": lambda a: as_tensor(a)[0],
    "uint8 tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1)[None],
    "half tensor": lambda a: as_tensor(a).double(),
}
MASKS = {
    "pil L": lambda h: Image.fromarray(h.astype(np.uint8) * 255),
    "pil RGB": lambda h: Image.fromarray(h.astype(np.uint8) * 255).convert("RGB"),
    "pil 1": Image.fromarray,
    "bool HW": lambda h: h,
    "bool NHW": lambda h: h[None],
    "uint8 HWC": lambda h: np.repeat(h[..., None].astype(np.uint8) * 255, 3, axis=2),
    "float HW1": lambda h: h[..., None].astype(float),
    "float NHW": lambda h: h[None].astype(float),
    "bool tensor HW": torch.from_numpy,
    "bool tensor NHW": lambda h: torch.from_numpy(h)[None],
    "float tensor N1HW": lambda h: torch.from_numpy(h).float()[None, None],
    "float tensor 3HW": lambda h: torch.from_numpy(h).float()[None].repeat(3, 1, 1),
}


@pytest.mark.parametrize("form", IMAGES)
def test_every_form_of_picture_gives_the_naive_conditioning(vae, picture, form):
    image, hole = picture
    ours = encode_conditioning(vae, IMAGES[form](image), hole)
    torch.testing.assert_close(ours, naive_conditioning(vae, image, hole), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", MASKS)
def test_every_form_of_mask_gives_the_naive_conditioning(vae, picture, form):
    image, hole = picture
    ours = encode_conditioning(vae, Image.fromarray(image), MASKS[form](hole))
    torch.testing.assert_close(ours, naive_conditioning(vae, image, hole), rtol=0, atol=1e-6)


def test_what_lies_in_the_hole_does_not_matter(vae, picture):
    image, hole = picture
    other = image.copy()
    other[hole] = 255 - other[hole]
    for size in ({}, {"height": 24, "width": 40}):
        ours, theirs = (encode_conditioning(vae, Image.fromarray(a), hole, **size) for a in (image, other))
        assert torch.equal(ours, theirs)


def test_the_hole_is_blacked_out_before_the_picture_is_resized():
    image = np.full((33, 47, 3), 255, np.uint8)
    hole = np.zeros((33, 47), bool)
    hole[10:20, 11:31] = True
    black_first = image.copy()
    black_first[hole] = 0
    expected = Image.fromarray(black_first).resize((24, 16), Image.Resampling.LANCZOS)

    pixels, _ = masked_pixels(Image.fromarray(image), hole, 8, height=16, width=24)

    np.testing.assert_allclose(
        pixels[0].permute(1, 2, 0).numpy(), np.asarray(expected).astype(np.float32) / 127.5 - 1, atol=1e-6
    )
    assert len(pixels.unique()) > 2  # the edge is soft: blacking after the resize would leave it hard


def test_a_pil_mask_is_resized_smoothly_then_thresholded_and_an_array_by_nearest_neighbour():
    image, hole = make_picture(3, 40, 48)
    soft = Image.fromarray(hole.astype(np.uint8) * 255)
    _, keep = masked_pixels(Image.fromarray(image), soft, 8, height=16, width=24)
    levels = np.asarray(soft.resize((24, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(keep[0, 0].numpy() == 1, levels <= 127)

    _, keep = masked_pixels(image, hole, 8, height=16, width=24)
    rows, columns = (np.arange(16) * 40 // 16), (np.arange(24) * 48 // 24)
    np.testing.assert_array_equal(keep[0, 0].numpy() == 0, hole[np.ix_(rows, columns)])


def test_127_keeps_and_128_repaints(vae):
    image = np.zeros((32, 32, 3), np.uint8)
    grey = np.full((32, 32), 127, np.uint8)
    grey[:16] = 128
    keep = encode_conditioning(vae, image, grey)[:, 4:]
    assert keep[0, 0, :2].sum() == 0
    assert keep[0, 0, 2:].min() == 1
    assert torch.equal(keep_from_white(torch.tensor([127 / 255, 0.5, 1.0]).reshape(3, 1, 1, 1)).flatten().bool(),
                       torch.tensor([True, False, False]))  # fmt: skip


@pytest.mark.parametrize(("row", "column", "seen"), [(8, 16, True), (8, 17, False), (9, 16, False)])
def test_each_latent_takes_the_top_left_pixel_of_its_block(vae, row, column, seen):
    hole = np.zeros((32, 32), bool)
    hole[row, column] = hole[0, 0] = True
    keep = encode_conditioning(vae, np.zeros((32, 32, 3), np.uint8), hole)[0, 4]
    assert (keep[1, 2] == 0) == seen


@pytest.mark.parametrize(("levels", "factor"), [(4, 8), (3, 4), (1, 1)])
def test_the_factor_is_the_vaes_own(levels, factor):
    vae = make_vae(levels)
    image, hole = make_picture(1, 24, 32)
    conditioning = encode_conditioning(vae, image, hole)
    assert vae_factor(vae) == factor
    assert conditioning.shape == (1, 5, 24 // factor, 32 // factor)
    torch.testing.assert_close(conditioning, naive_conditioning(vae, image, hole), rtol=0, atol=1e-6)


def test_sizes_round_down_without_and_obey_with_height_and_width(vae):
    image, hole = make_picture(0, 45, 39)
    assert encode_conditioning(vae, Image.fromarray(image), hole).shape[2:] == (5, 4)
    assert encode_conditioning(vae, image, hole, height=64, width=24).shape[2:] == (8, 3)
    assert picture_size(Image.fromarray(image), 8) == (40, 32)


def test_batches_equal_their_parts(vae):
    pairs = [make_picture(seed) for seed in range(3)]
    images, holes = [Image.fromarray(image) for image, _ in pairs], [hole for _, hole in pairs]
    whole = encode_conditioning(vae, images, holes)
    parts = torch.cat([encode_conditioning(vae, image, hole) for image, hole in zip(images, holes, strict=True)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)
    doubled = encode_conditioning(vae, images, holes, batch_size=6)
    assert torch.equal(doubled, whole.repeat_interleave(2, dim=0))
    one_mask = encode_conditioning(vae, images, holes[0])
    assert torch.equal(one_mask[0, 4], one_mask[2, 4])


@pytest.mark.parametrize("size", [(64, 64), (32, 24), (33, 32)])
def test_a_mask_of_another_size_was_stretched_in_silence(vae, size):
    image, hole = make_picture(0, 32, 32)
    other = Image.fromarray(hole).convert("L").resize(size)
    for mask in (other, np.asarray(other)):
        with pytest.raises(ValueError, match=rf"mask is {size[1]}x{size[0]} pixels and its image 32x32; .*mask.resize"):
            encode_conditioning(vae, image, mask)
    with pytest.raises(ValueError, match="its image 16x32"):  # one mask, but not for both
        encode_conditioning(vae, [Image.fromarray(image), Image.fromarray(image[:16])], hole, height=32, width=32)
    picture = Image.fromarray(image)
    as_advised = other.resize(picture.size, Image.Resampling.NEAREST)
    assert encode_conditioning(vae, picture, as_advised).shape == (1, 5, 4, 4)


def test_the_posterior_is_drawn_only_from_the_generators_that_are_given(vae, picture):
    image, hole = picture
    before = torch.random.get_rng_state()
    mode = encode_conditioning(vae, image, hole)
    ours = encode_conditioning(vae, image, hole, [generator(1), generator(2)], batch_size=2)
    assert torch.equal(torch.random.get_rng_state(), before)

    posterior = vae.encode(masked_pixels(image, hole, 8)[0]).latent_dist
    for row, seed in enumerate((1, 2)):
        noise = torch.randn(1, 4, 4, 4, generator=generator(seed))
        expected = (posterior.mean + posterior.std * noise) * vae.config.scaling_factor
        torch.testing.assert_close(ours[row : row + 1, :4], expected, rtol=0, atol=1e-6)
    assert not torch.equal(ours[:1, :4], mode[:, :4])
    assert torch.equal(ours[:1, 4], mode[:, 4])


def test_noise_of_a_list_does_not_depend_on_the_batch_and_of_one_generator_is_one_draw():
    alone = draw_noise((1, 4, 3, 5), [generator(8)])
    assert torch.equal(draw_noise((2, 4, 3, 5), [generator(7), generator(8)])[1:], alone)
    assert torch.equal(draw_noise((2, 4, 3, 5), generator(7)), torch.randn(2, 4, 3, 5, generator=generator(7)))
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        draw_noise((3, 4, 3, 5), [generator(7), generator(8)])


def test_a_half_precision_vae_that_asks_for_it_encodes_in_float32(picture):
    image, hole = picture
    expected = naive_conditioning(make_vae().half().float(), image, hole)
    vae = make_vae().half()
    assert vae.config.force_upcast
    ours = encode_conditioning(vae, image, hole)
    assert (ours.dtype, next(vae.parameters()).dtype) == (torch.float16, torch.float16)
    assert torch.equal(ours, expected.half())


def test_a_vae_whose_weights_are_stored_in_another_type_encodes_in_the_one_it_computes_in(vae, picture):
    stored = make_vae()
    stored.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    ours = encode_conditioning(stored, *picture)
    assert ours.dtype == torch.float32
    assert (ours - encode_conditioning(vae, *picture)).abs().max() < 0.1


@pytest.mark.parametrize(("value", "words"), [(False, "nothing is repainted"), (True, "keeps nothing")])
def test_a_mask_that_keeps_all_or_nothing_is_a_warning(vae, picture, value, words):
    with pytest.warns(UserWarning, match=words):
        encode_conditioning(vae, picture[0], np.full((32, 32), value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_conditioning(vae, *picture)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"height": 30}, ValueError, "height=30; expected a positive multiple of 8"),
        ({"width": 0}, ValueError, "width=0"),
        ({"image": "cat.png"}, TypeError, "image is a str"),
        ({"image": []}, ValueError, "empty list"),
        ({"image": np.zeros((32, 32), np.uint8)}, ValueError, "image has shape"),
        ({"image": torch.zeros(1, 4, 32, 32)}, ValueError, "3 colour channels"),
        ({"image": np.zeros((4, 32, 3), np.uint8), "hole": np.ones((4, 32))}, ValueError, "at least 8 per side"),
        ({"image": np.full((32, 32, 3), 7.0)}, ValueError, r"values in \[7, 7\]; .* clip to 0..1"),
        ({"image": np.full((32, 32, 3), np.nan)}, ValueError, "without NaN"),
        ({"image": torch.full((1, 3, 32, 32), -1.0)}, ValueError, "0..1"),
        ({"hole": np.zeros((32, 32), np.int64) + 255}, ValueError, "mask has values"),
        ({"hole": torch.zeros(2, 32, 32)}, ValueError, "1 or 3 colour channels"),
        ({"hole": np.zeros((2, 32, 32), bool), "image": np.zeros((3, 32, 32, 3))}, ValueError, "3 images and 2 masks"),
        ({"image": np.zeros((2, 32, 32, 3)), "batch_size": 3}, ValueError, "2 pictures or masks for 3"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_sentence(vae, picture, change, error, words):
    arguments = {"image": picture[0], "hole": picture[1]} | change
    with pytest.raises(error, match=words):
        encode_conditioning(vae, **arguments)


def test_nan_in_the_vae_is_named(picture):
    vae = make_vae()
    vae.encoder.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"VAE's latents .* NaN"):
        encode_conditioning(vae, *picture)
