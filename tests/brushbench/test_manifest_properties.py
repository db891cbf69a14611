"""Mapping files and metadata tables of every content: read exactly, or refused by name, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from brushbench.benchmarks.brushbench import BrushBench
from brushbench.benchmarks.folder import Folder
from brushbench.errors import BrushbenchError
from tests.reference import naive_rle

HEIGHT, WIDTH = 12, 9
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
holes = arrays(np.bool_, (HEIGHT, WIDTH)).filter(lambda hole: hole.any() and not hole.all())
words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r\ufeff"), min_size=1, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["..", "/"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
HOLES = ("inpainting_mask", "outpainting_mask", "brush_mask")
FIELDS = ("image", "caption", *HOLES, "image_id", "prompt_variant", "style")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252")


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        Image.fromarray(PIXELS).save(Path(folder) / "images" / "a.png")
        yield Path(folder)


@given(holes, holes, words, words)
@settings(max_examples=60, deadline=None)
def test_every_manifest_is_read_as_it_was_written(
    root: Path, inside: np.ndarray, outside: np.ndarray, caption: str, style: str
) -> None:
    entry: dict = {"image": "images/a.png", "caption": caption, "style": style}
    for key, hole in (("inpainting_mask", inside), ("outpainting_mask", outside)):
        entry[key] = naive_rle.encode(hole, first=1, columns=False)
    (root / "mapping_file.json").write_text(json.dumps({"a": entry}))
    made = BrushBench(root, split="inside,outside")
    for sample, hole in zip(made, (inside, outside), strict=True):
        np.testing.assert_array_equal(sample.hole, hole)
        np.testing.assert_array_equal(sample.image, PIXELS)
        assert (sample.prompt, sample.meta) == (caption, {"style": style})


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=5), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_manifest_of_anything_is_a_named_record_and_never_another_error(
    root: Path, changes: dict, listed: bool, skip_bad: bool
) -> None:
    entry = {"image": "images/a.png", "caption": "x", "inpainting_mask": [1, 5], "outpainting_mask": [7, 5], **changes}
    content = [{"image_id": "a", **entry}] if listed else {"a": entry}
    (root / "mapping_file.json").write_text(json.dumps(content))
    try:
        made = BrushBench(root, skip_bad=skip_bad)
        assert made.manifest["images"] == 1
        samples = list(made)
    except BrushbenchError:
        return
    assert all(sample.hole.any() and not sample.hole.all() for sample in samples)
    assert "prompt_variant" not in samples[0].meta


@given(
    st.lists(st.tuples(words, words), min_size=1, max_size=3),
    st.sampled_from(ENCODINGS),
)
@settings(max_examples=80, deadline=None)
def test_a_table_of_any_text_is_read_or_named(rows: list[tuple[str, str]], encoding: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["file_name", "text", "style"])
    writer.writerows([["a.png", caption, style] for caption, style in rows])
    try:
        content = buffer.getvalue().encode(encoding)
    except UnicodeEncodeError:
        return
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(PIXELS).save(Path(folder) / "a.png")
        (Path(folder) / "metadata.csv").write_bytes(content)
        try:
            (sample,) = Folder(Path(folder))
        except BrushbenchError:
            stated = {caption.strip() for caption, _ in rows}
            assert len(stated) > 1 or encoding == "cp1252"
            return
        assert sample.prompt in {caption.strip() for caption, _ in rows}
