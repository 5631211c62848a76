"""Bipartite soft matching against the authors' code, and what holds of any matching."""

import pytest
import torch

from vitdistill.errors import UserError
from vitdistill.tokens.merge import Matching, match, merge_tokens, sources, traced, unmerge
from vitdistill.tokens.merge_schedule import MergeSchedule, check_merge, tokens_left


def test_the_authors_matching(golden) -> None:
    case = golden("tome_merge_a")
    metric, tokens = case.inputs["metric"], case.inputs["x"]
    for name, run in case.hyper["runs"].items():
        protected = int(run["cls"]) + int(run["dist"])
        matching = match(metric, run["r"], protected)
        merged, size = merge_tokens(tokens, None, matching)
        case.check(f"{name}_tokens", merged)
        case.check(f"{name}_size", size[..., None])
        case.check(f"{name}_source", sources(matching.place, matching.left))
        if name != "distill":
            case.check(f"{name}_unmerged", unmerge(merged, matching.place))
        if name != "over":
            again = match(case.inputs["metric_second"][:, : matching.left], case.hyper["second_round_r"], protected)
            merged, size = merge_tokens(merged, size, again)
            case.check(f"{name}_second_tokens", merged)
            case.check(f"{name}_second_size", size[..., None])
    # With a distillation token theirs does not put back the order of the tokens.
    assert case.expected.keys() - case.checked == {"distill_unmerged"}


def test_unmerging_puts_every_token_back_in_its_place(golden) -> None:
    """Also with a distillation token, where the authors' copy leaves the order of the output."""
    case = golden("tome_merge_a")
    matching = match(case.inputs["metric"], 3, protected=2)
    merged, _ = merge_tokens(case.inputs["x"], None, matching)
    back = unmerge(merged, matching.place)
    means = torch.einsum("bnm,bmd->bnd", sources(matching.place, 10).float(), case.inputs["x"])
    means = means / sources(matching.place, 10).sum(-1, keepdim=True)
    for row, places in enumerate(matching.place):
        torch.testing.assert_close(back[row], means[row][places])
    assert torch.equal(back[:, :2], case.inputs["x"][:, :2])
    assert not torch.allclose(back, case.expected["distill_unmerged"])


def drawn(tokens: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, tokens, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("tokens", "protected"), [(9, 0), (10, 1), (9, 2), (12, 5), (3, 2), (1, 1)])
def test_special_tokens_stay_first_and_alone(tokens: int, protected: int) -> None:
    matching = match(drawn(tokens), 100, protected)
    assert matching.left == tokens - (tokens - protected) // 2
    group = sources(matching.place, matching.left)
    assert torch.equal(group[:, :protected, :protected], torch.eye(protected).long().expand(2, -1, -1))
    assert bool((group[:, :protected, protected:] == 0).all()) and bool((group.sum(1) == 1).all())
    assert bool((group.sum(2) >= 1).all())


def test_merging_nothing_changes_nothing() -> None:
    tokens = drawn(7)
    matching = match(tokens, 0, protected=1)
    merged, size = merge_tokens(tokens, None, matching)
    assert torch.equal(merged, tokens) and bool((size == 1).all()) and matching.left == 7


def test_tracing_goes_through_several_matchings_and_keeps_the_mean() -> None:
    tokens, size, place, first = drawn(16), None, None, drawn(16)
    for round_number in range(3):
        matching = match(drawn(tokens.shape[1], seed=round_number), 3, protected=1)
        tokens, size = merge_tokens(tokens, size, matching)
        place = traced(place, matching)
    group = sources(place, tokens.shape[1]).float()
    assert torch.equal(group.sum(2), size) and float(size.sum()) == 32
    torch.testing.assert_close(tokens, group @ first / size[..., None])


def test_halves_are_matched_and_averaged_in_float32() -> None:
    metric = drawn(17, dim=32).bfloat16()
    assert all(map(torch.equal, match(metric, 5, 1)[:1], match(metric.float(), 5, 1)[:1]))
    merged, size = merge_tokens(metric, None, match(metric, 5, 1))
    assert merged.dtype == torch.bfloat16 and size.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(match(metric.float(), 5, 1).place, match(metric, 5, 1).place)


def test_no_gradient_goes_through_the_matching_and_one_through_the_mean() -> None:
    metric, tokens = drawn(8).requires_grad_(), drawn(8).requires_grad_()
    merged, _ = merge_tokens(tokens, None, match(metric, 3))
    merged.sum().backward()
    assert metric.grad is None and bool((tokens.grad > 0).all())


def test_two_of_one_place_are_weighted_by_their_size() -> None:
    tokens = torch.tensor([[[1.0], [4.0], [9.0]]])
    merged, size = merge_tokens(tokens, torch.tensor([[1.0, 3.0, 1.0]]), Matching(torch.tensor([[0, 0, 1]]), 2))
    assert merged.tolist() == [[[3.25], [9.0]]] and size.tolist() == [[4.0, 1.0]]


# --- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("merge", "per_block"),
    [
        (3, (3, 3, 3, 3)),
        ("3", (3, 3, 3, 3)),
        ("2:-1", (4, 2, 1, 0)),
        ("2:1", (0, 1, 2, 4)),
        ("8:0.5", (4, 6, 9, 12)),
        ("8:0", (8, 8, 8, 8)),
        ("4,0,2", (4, 0, 2, 0)),
        ((5,), (5, 0, 0, 0)),
        (MergeSchedule((1,), 0.0), (1, 1, 1, 1)),
    ],
)
def test_schedules(merge: object, per_block: tuple[int, ...]) -> None:
    schedule = MergeSchedule.parse(merge)
    assert schedule.per_block(4) == per_block
    assert MergeSchedule.parse(str(schedule)).per_block(4) == per_block


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("many", "whole numbers; got 'many'"),
        (-1, "must not be negative; got -1"),
        ("8:2", "slope of tokens to merge must lie between -1 and 1; got 2"),
        ("8:nan", "slope"),
        ("8,4:1", "Only one number"),
        (2.5, "whole numbers; got 2.5"),
        (True, "must be a number; got True"),
    ],
)
def test_bad_schedules(unchecked: None, merge: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_merge(merge)
    assert "\n" not in str(caught.value)


def test_a_schedule_of_more_blocks_than_there_are() -> None:
    with pytest.raises(UserError, match="at most 2 blocks; got 1,2,3"):
        MergeSchedule.parse("1,2,3").per_block(2)
    assert MergeSchedule.parse(4).per_block(1) == (4,)


@pytest.mark.parametrize(("merge", "left"), [(1, 185), (8, 101), (13, 41), (16, 11), (18, 6), (20, 4), (24, 2)])
def test_tokens_left_of_a_vit(merge: int, left: int) -> None:
    """A block merges no more than half of the patches."""
    assert tokens_left([merge] * 12, 197, 1)[-1] == left
