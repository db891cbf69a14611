"""The Segment Anything that metrics stand on: stock transformers, the image's features and its automatic masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from brushbench.stock import StockModel
from brushbench.weights import Needs

if TYPE_CHECKING:
    import numpy.typing as npt

    from brushbench.features import Features
    from brushbench.types import Hole, Picture

__all__ = ["SAM_H", "SamBackbone"]

SAM_H = Needs(
    what="Segment Anything ViT-H",
    files=("model.safetensors", "pytorch_model.bin"),
    size="2.6 GB",
    licence="Apache-2.0",
    source="facebook/sam-vit-huge (hub), with config.json",
    hub=("facebook/sam-vit-huge",),
)


class SamBackbone(StockModel):
    """One Segment Anything. An image's longer side becomes 1024 pixels (Pillow's bilinear), the rest is padding."""

    kind: ClassVar[str] = "sam"

    def classes(self) -> tuple[Any, Any]:
        """Return transformers' classes of the config and the model."""
        from transformers import SamConfig, SamModel

        return SamConfig, SamModel

    @property
    def side(self) -> int:
        """Side in pixels of the square that the model sees, padding included."""
        return int(self.config.vision_config.image_size)

    @property
    def patch(self) -> int:
        """Side in pixels of one cell of the feature map."""
        return int(self.config.vision_config.patch_size)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the image inside that square (segment_anything/utils/transforms.py)."""
        scale = self.side / max(height, width)
        return int(height * scale + 0.5), int(width * scale + 0.5)

    def embedding(self, store: Features, picture: Picture) -> npt.NDArray[np.float64]:
        """Return the image encoder's features (C, side / patch, side / patch) of uint8 (H, W, 3)."""
        made = self._processor()(np.ascontiguousarray(picture), return_tensors="np", input_data_format="channels_last")
        pixels = np.ascontiguousarray(made["pixel_values"], dtype=np.float32)

        def compute() -> npt.NDArray[np.float64]:
            import torch

            values = self.model(store).get_image_embeddings(torch.from_numpy(pixels).to(self.device, self.dtype))
            array: npt.NDArray[np.float64] = values.double().cpu().numpy()
            return array

        maps: npt.NDArray[np.float64] = store.images(self.key, pixels, compute)[0]
        return maps

    def masks(self, store: Features, picture: Picture) -> list[Hole]:
        """Return the automatic masks, bool (H, W) each, of uint8 (H, W, 3).

        32x32 points, predicted IoU above 0.88, stability above 0.95, one of two boxes that overlap by 0.7: the
        defaults of ``SamAutomaticMaskGenerator``, which transformers' pipeline shares.
        """
        from PIL import Image
        from transformers import MaskGenerationPipeline

        generator = MaskGenerationPipeline(
            model=self.model(store), image_processor=self._processor(), device=self.device
        )
        return [np.asarray(mask, dtype=bool) for mask in generator(Image.fromarray(picture))["masks"]]

    def _processor(self) -> Any:
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

        square = {"height": self.side, "width": self.side}
        return SamImageProcessorPil(size={"longest_edge": self.side}, pad_size=square)
