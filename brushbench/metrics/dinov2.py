"""The DINOv2 that metrics stand on: stock transformers, 224x224 pixels, features of patches and of the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench.errors import WeightsError
from brushbench.stock import StockModel
from brushbench.weights import Needs

if TYPE_CHECKING:
    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Picture

    Floats = npt.NDArray[np.float64]

__all__ = ["DINOV2_BASE", "DINOV2_GIANT", "SIDE", "Dinov2Backbone", "as_published", "normalised", "squeezed"]

FILES = ("model.safetensors", "pytorch_model.bin")
DINOV2_BASE, DINOV2_GIANT = (
    Needs(
        what=f"DINOv2 {size}",
        files=FILES,
        size=bytes_,
        licence="Apache-2.0",
        source=f"{repository} (hub), with config.json",
        hub=(repository,),
    )
    for size, bytes_, repository in (
        ("ViT-B/14", "0.35 GB", "facebook/dinov2-base"),
        ("ViT-g/14", "4.5 GB", "facebook/dinov2-giant"),
    )
)
SIDE = 224  # of the image that the model sees, in pixels


class Dinov2Backbone(StockModel):
    """One DINOv2: features after its last layer norm."""

    kind: ClassVar[str] = "dinov2"

    def classes(self) -> tuple[Any, Any]:
        """Return transformers' classes of the config and the model."""
        from transformers import Dinov2Config, Dinov2Model

        return Dinov2Config, Dinov2Model

    @property
    def grid(self) -> int:
        """Patches along a side of the image.

        Raises:
            WeightsError: patches that do not divide the image.
        """
        size = self.config.patch_size
        if not isinstance(size, int) or not 0 < size <= SIDE or SIDE % size:
            raise WeightsError(f"The patches of {self.what} are {size} wide, expected a divisor of {SIDE} such as 14.")
        return SIDE // size

    def embeddings(self, store: Features, pixels: npt.NDArray[np.float32]) -> Floats:
        """Return the class token (B, D) of normalised pixels (B, 3, 224, 224): the model's pooled output."""
        return store.images(f"{self.key} class", pixels, lambda: self._run(store, pixels)[:, 0])

    def patches(self, store: Features, pixels: npt.NDArray[np.float32]) -> Floats:
        """Return every token of one image, the class token first: (1 + N, D) of normalised pixels (3, 224, 224)."""
        return store.images(f"{self.key} tokens", pixels, lambda: self._run(store, pixels[None])[0])

    def _run(self, store: Features, pixels: npt.NDArray[np.float32]) -> Floats:
        import torch

        model = self.model(store)
        with torch.inference_mode():
            states = model(torch.from_numpy(pixels).to(self.device, self.dtype)).last_hidden_state
        array: Floats = states.double().cpu().numpy()
        return array


def as_published(picture: Picture) -> npt.NDArray[np.float32]:
    """Return what DINOv2's published processor makes of an image: shortest side to 256, the middle 224x224."""
    return _processed(picture, True)


def normalised(picture: Picture) -> npt.NDArray[np.float32]:
    """Return a whole image at 224x224: nothing is cut off."""
    return _processed(squeezed(picture), False)


def squeezed(picture: Picture) -> Picture:
    """Bring an image to 224x224 with Pillow's bicubic, whatever its shape."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _processed(picture: Picture, resized: bool) -> npt.NDArray[np.float32]:
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    processor = BitImageProcessorPil(
        do_resize=resized,
        do_center_crop=resized,
        size={"shortest_edge": 256},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    made = processor(np.ascontiguousarray(picture), return_tensors="np", input_data_format="channels_last")
    pixels: npt.NDArray[np.float32] = np.ascontiguousarray(made["pixel_values"][0], dtype=np.float32)
    return pixels
