"""The model card that a trained branch carries: what it was trained on and how, and how to load and measure it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from brushbench.text import markdown
from brushbench.types import JSON

__all__ = ["model_card"]


def model_card(recipe: Mapping[str, JSON]) -> str:
    """Return the card of a branch, a ``README.md`` as the hub reads it.

    Args:
        recipe: what ``recipe.json`` holds: settings, data and hashes.
    """
    from huggingface_hub import ModelCardData

    front = ModelCardData(library_name="diffusers", pipeline_tag="image-to-image", tags=["inpainting", "brushnet"])
    rows = "\n".join(f"| {markdown(key)} | {markdown(_text(value))} |" for key, value in sorted(recipe.items()))
    return f"""---
{front.to_yaml()}
---

# A BrushNet branch

Trained with `brushbench train brushnet` beside a frozen text-to-image U-Net (Ju et al., BrushNet, ECCV 2024). It
belongs to the base model whose weights are named below.

```python
from brushnet import BrushNetModel, StableDiffusionBrushNetPipeline

pipe = StableDiffusionBrushNetPipeline.from_pretrained("BASE", brushnet=BrushNetModel.from_pretrained("THIS FOLDER"))
```

To measure it: `brushbench eval --model 'brushnet,checkpoint=THIS FOLDER,base=BASE' --bench BENCHMARK`.

## Training

| setting | value |
|---|---|
{rows}

## Measured

Nothing yet. `brushbench leaderboard RUN --format markdown` prints the tables that belong here.
"""


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
