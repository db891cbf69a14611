"""What is shared is shared exactly where it is equal, and forgetting changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brushbench.features import Features, digest


def test_digest_tells_content_shape_dtype_and_order_apart():
    a = np.arange(6, dtype=np.uint8)
    different = [
        (a,),
        (a.reshape(2, 3),),
        (a.astype(np.int8),),
        (a[::-1],),
        (a, "x"),
        ("x", a),
        ("ab", "c"),
        ("a", "bc"),
        (a, a),
    ]
    assert len({digest(*parts) for parts in different}) == len(different)
    assert digest(a.reshape(2, 3).T) == digest(np.ascontiguousarray(a.reshape(2, 3).T))


def test_batches_are_remembered_whole_and_by_model():
    store, made = Features(), []

    def compute():
        made.append(1)
        return np.zeros((2, 3))

    batch = np.zeros((2, 4), dtype=np.float32)
    for key, pixels, also in (
        ("a", batch, ()),
        ("a", batch, ()),
        ("b", batch, ()),
        ("a", batch[:1], ()),
        ("a", batch, ("p",)),
    ):
        store.images(key, pixels, compute, *also)
    assert len(made) == store.computed["image"] == 4
    assert store.shared["image"] == 1


def test_text_is_remembered_by_ids_and_apart_from_images():
    store = Features()
    first = store.text("a", [1, 2], lambda: np.ones(1))
    assert store.text("a", (1, 2), lambda: np.zeros(1)) is first
    assert store.text("a", [1, 2, 0], lambda: np.zeros(1))[0] == 0
    assert store.computed["text"] == 2
    assert store.computed["image"] == 0


def test_references_are_forgotten_when_they_take_too_much_room():
    store = Features(reference_bytes=100)

    def maps():
        return [torch.zeros(10)]  # 40 bytes

    for content in ("x", "y", "x", "z", "x", "y"):
        store.reference("key", content, maps)
    assert store.shared["reference"] == 2  # x twice; y was the one used longest ago when z came
    assert store.computed["reference"] == 4


def test_one_entry_larger_than_the_room_is_still_served():
    store = Features(reference_bytes=10)
    for _ in range(2):
        assert store.reference("key", "x", lambda: [torch.zeros(10)])[0].numel() == 10
    assert store.shared["reference"] == 1


@pytest.mark.parametrize(("low_memory", "built"), [(False, 2), (True, 3)])
def test_low_memory_keeps_one_model(low_memory, built):
    store = Features(low_memory=low_memory)
    assert [store.model(key, lambda key=key: key.upper()) for key in "abba"] == list("ABBA")
    assert store.computed["model"] == built
    assert len(store._models) == (1 if low_memory else 2)
