from __future__ import annotations

from huggingface_hub import ModelCard

from brushbench.training.card import model_card


def test_the_hub_reads_the_card_and_the_recipe_stands_in_it_as_text() -> None:
    card = ModelCard(
        model_card({"model": "brushnet", "masks": "random", "data": "a|b\n# <b>not a heading</b>", "steps": 3})
    )
    assert card.data.library_name == "diffusers"
    assert card.data.tags == ["inpainting", "brushnet"]
    assert "| masks | random |" in card.text
    assert "<b>" not in card.text
    assert "\n# " not in card.text.partition("## Training")[2]
