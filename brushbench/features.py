"""What metrics compute once and share: models, embeddings of pictures and captions, features of references.

A :class:`Features` lives as long as one scoring. Every key names the weights by their SHA-256 and the input by its
exact content, so two metrics share a pass exactly where weights and pixel tensors are equal, and fall back to passes of
their own where they are not.

What is remembered never changes a score: pictures are embedded and remembered as whole batches and captions one at a
time, so a value does not depend on what was asked before, and a resumed scoring gives the bytes of an uninterrupted
one. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy.typing as npt
    from torch import Tensor

__all__ = ["Features", "digest"]

T = TypeVar("T")
MIB = 1 << 20


def digest(*parts: npt.NDArray[Any] | str) -> str:
    """Return a name for exact content: shape, dtype and bytes of arrays, and text."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            hasher.update(f"text {len(data)}\0".encode() + data)
        else:
            hasher.update(f"{part.dtype} {part.shape}\0".encode())
            hasher.update(np.ascontiguousarray(part).data)
    return hasher.hexdigest()


class _Recent(Generic[T]):
    """A memory of limited size that forgets what was used longest ago."""

    def __init__(self, limit: int, size: Callable[[T], int]) -> None:
        self.limit, self.size, self.held = limit, size, 0
        self.items: OrderedDict[tuple[str, ...], T] = OrderedDict()

    def get(self, key: tuple[str, ...], compute: Callable[[], T]) -> tuple[T, bool]:
        """Return the value and whether it was remembered."""
        if key in self.items:
            self.items.move_to_end(key)
            return self.items[key], True
        value = compute()
        self.items[key] = value
        self.held += self.size(value)
        while self.held > self.limit and len(self.items) > 1:
            self.held -= self.size(self.items.popitem(last=False)[1])
        return value, False


class Features:
    """Models and features that metrics share.

    Attributes:
        low_memory: whether a model is dropped when another is asked for.
        computed: how often each kind of feature was computed: ``image``, ``text``, ``reference``, ``model``.
        shared: how often each kind was remembered instead.
    """

    def __init__(
        self, low_memory: bool = False, embedding_bytes: int = 256 * MIB, reference_bytes: int = 512 * MIB
    ) -> None:
        """Start empty.

        Args:
            low_memory: keep one model at a time.
            embedding_bytes: limit for embeddings of pictures and captions (3 KB each for ViT-L/14).
            reference_bytes: limit for LPIPS features of references (36 MB each at 512x512).
        """
        self.low_memory = low_memory
        self.computed: Counter[str] = Counter()
        self.shared: Counter[str] = Counter()
        self._models: dict[str, Any] = {}
        self._made: dict[Hashable, Any] = {}
        self._embeddings: _Recent[npt.NDArray[np.float64]] = _Recent(embedding_bytes, lambda array: array.nbytes)
        self._references: _Recent[list[Tensor]] = _Recent(reference_bytes, lambda maps: sum(m.nbytes for m in maps))

    def model(self, key: str, build: Callable[[], T]) -> T:
        """Return the model of that key, built at the first call; every metric with the same key gets the same one.

        Args:
            key: architecture, weight SHA-256, device and dtype.
            build: makes it.
        """
        if key not in self._models:
            if self.low_memory:
                self._models.clear()
            self._models[key] = build()
            self.computed["model"] += 1
        found: T = self._models[key]
        return found

    def drop_models(self) -> None:
        """Let go of every model; what was computed with them is still remembered."""
        self._models.clear()

    def once(self, key: Hashable, build: Callable[[], T]) -> T:
        """Return what ``build`` made at the first call with that key, such as a metric whose weights are checked."""
        if key not in self._made:
            self._made[key] = build()
        found: T = self._made[key]
        return found

    def images(
        self, key: str, batch: npt.NDArray[Any], compute: Callable[[], npt.NDArray[np.float64]], *also: str
    ) -> npt.NDArray[np.float64]:
        """Return the embeddings of a batch of pictures, remembered as a whole.

        Args:
            key: of the model.
            batch: the pixels that the model sees, (B, …).
            compute: makes (B, D) of them.
            also: other inputs that the result depends on, such as captions.
        """
        return self._remember("image", (key, digest(batch, *also)), compute)

    def text(
        self, key: str, ids: Sequence[int], compute: Callable[[], npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        """Return the embedding (D,) of one caption's token ids."""
        return self._remember("text", (key, digest(np.asarray(ids, dtype=np.int64))), compute)

    def reference(self, key: str, content: str, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return the feature maps of one reference.

        Args:
            key: of the model.
            content: :func:`digest` of all that the maps depend on: the image, and the hole where it matters.
            compute: makes them.
        """
        maps, known = self._references.get((key, content), compute)
        (self.shared if known else self.computed)["reference"] += 1
        return maps

    def _remember(
        self, kind: str, key: tuple[str, str], compute: Callable[[], npt.NDArray[np.float64]]
    ) -> npt.NDArray[np.float64]:
        value, known = self._embeddings.get((kind, *key), compute)
        (self.shared if known else self.computed)[kind] += 1
        return value
