"""Merged tokens: what is exact, what is kept, and what the U-Net gets back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from brushnet.acceleration import Speed, prepare_unet
from brushnet.token_merging import grid_of, plan_merging
from tests.brushnet.test_acceleration import STEPS, latents_of
from tests.brushnet.tiny_pipelines import make_pipe


def random_tokens(rows: int = 2, height: int = 6, width: int = 4, channels: int = 8) -> torch.Tensor:
    return torch.randn(rows, height * width, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("step", range(4))
def test_attention_over_cells_of_equal_tokens_is_the_same_at_a_quarter_of_them(step: int) -> None:
    cells = random_tokens(height=3, width=2)
    tokens = cells.view(2, 3, 2, 8).repeat_interleave(2, 1).repeat_interleave(2, 2).reshape(2, 24, 8)
    merging = plan_merging(tokens, (6, 4), 75, step)
    few = merging.merge(tokens)
    assert few.shape == (2, 6, 8)
    attended = merging.unmerge(F.scaled_dot_product_attention(few, few, few))
    assert torch.allclose(attended, F.scaled_dot_product_attention(tokens, tokens, tokens), atol=1e-6)


def test_a_group_is_the_mean_of_its_tokens_and_the_others_stay() -> None:
    tokens = random_tokens()
    merging = plan_merging(tokens, (6, 4), 25)
    back = merging.unmerge(merging.merge(tokens))
    assert merging.merge(tokens).shape[1] == 24 - 6
    for row in range(2):
        groups: dict[int, list[int]] = {int(place): [int(place)] for place in merging.destinations}
        for source, into in zip(merging.merged[row], merging.into[row], strict=True):
            groups[int(merging.destinations[into])].append(int(merging.sources[source]))
        assert sum(map(len, groups.values())) == 6 + 6
        for members in groups.values():
            mean = tokens[row, members].mean(dim=0)
            assert all(torch.allclose(back[row, member], mean, atol=1e-6) for member in members)
        alone = merging.sources[merging.kept[row]]
        assert torch.equal(back[row, alone], tokens[row, alone])


def test_those_most_alike_are_merged_first_and_rows_do_not_touch() -> None:
    tokens = random_tokens()
    merging = plan_merging(tokens, (6, 4), 25)
    unit = F.normalize(tokens, dim=-1)
    likeness = (unit[:, merging.sources] @ unit[:, merging.destinations].mT).max(dim=-1).values
    assert (likeness.gather(1, merging.merged).min(1).values >= likeness.gather(1, merging.kept).max(1).values).all()
    alone = plan_merging(tokens[1:], (6, 4), 25)
    assert torch.equal(alone.merge(tokens[1:])[0], merging.merge(tokens)[1])


def test_the_corner_goes_round_and_sides_may_be_odd() -> None:
    tokens = random_tokens(height=5, width=3)
    corners = [plan_merging(tokens, (5, 3), 40, step).destinations.tolist() for step in range(5)]
    assert corners[0] == [0, 2, 6, 8, 12, 14]
    assert corners[3] == [4, 10]
    assert corners[4] == corners[0]
    assert sorted(corners[0] + corners[1] + corners[2] + corners[3]) == list(range(15))
    assert plan_merging(tokens, (5, 3), 75).merge(tokens).shape[1] == 6


def test_the_grid_of_tokens_is_that_of_latents_or_a_power_of_two_smaller() -> None:
    assert grid_of(64 * 48, (64, 48)) == (64, 48)
    assert grid_of(33 * 24, (65, 48)) == (33, 24)
    assert grid_of(77, (64, 48)) is None
    assert grid_of(4, (1, 4)) is None


def test_the_largest_self_attentions_are_merged_in_every_step() -> None:
    pipe = make_pipe()
    exact, _ = latents_of(make_pipe(), Speed())
    made, left_out = latents_of(pipe, Speed.parse("merge-50"))
    assert left_out["merge"] > 0
    assert left_out["merge"] % STEPS == 0
    assert torch.isfinite(made).all()
    assert not torch.equal(made, exact)
    assert (made - exact).abs().max() < 1.5 * exact.abs().max()
    again, _ = latents_of(pipe, Speed())
    assert torch.equal(again, exact)  # nothing is left behind


def test_merging_is_refused_where_it_does_nothing_or_cannot_work() -> None:
    for text, problem in (
        ("merge-80", "merge is 80, expected 1 to 75"),
        ("merge-0", "merge is 0, expected 1 to 75"),
        ("merge", "got 'merge'"),
    ):
        with pytest.raises(ValueError, match=problem):
            Speed.parse(text)
    with pytest.raises(ValueError, match=r"'merge' changes attention that 'compiled' has fixed\. Leave one out"):
        prepare_unet(make_pipe().unet, Speed.parse("merge-50+compiled"))
    prepare_unet(make_pipe().unet, Speed.parse("merge-50"))
    plain = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="no attention, and 'merge' does nothing"):
        prepare_unet(plain, Speed.parse("merge-50"))
    assert str(Speed.parse("merge-50+branch-2")) == "branch-2+merge-50"
