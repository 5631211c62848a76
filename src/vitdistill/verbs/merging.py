"""Merging tokens beside the other options of a verb: what it excludes, and which masks cost as much."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitdistill.errors import UserError
from vitdistill.methods.selection.amounts import amount_of
from vitdistill.methods.terms.options import LOGITS
from vitdistill.tokens.merge_schedule import MergeSchedule

if TYPE_CHECKING:
    from vitdistill.models.backbone import Backbone

ROWS = 24  # of a table of equal costs, at most


def check_alone(merge: int | str | None, keep: Any, terms: Sequence[str] = (LOGITS,)) -> None:
    """Refuse merging beside masks, and beside what looks at the tokens of patches.

    Args:
        merge: tokens to merge; None for none.
        keep: patches that the same network sees.
        terms: names of what a student learns from it.

    Raises:
        UserError: with the option to change.
    """
    if merge is None:
        return
    MergeSchedule.parse(merge)
    amount = amount_of(keep)
    if amount.below_all or str(amount) != "1.0":
        raise UserError(
            "--teacher_merge and --keep below 1.0 are two ways to save the teacher's work, of which it takes one",
            f"--keep {keep}",
            "Add --keep 1.0, or leave out --teacher_merge",
        )
    if list(terms) != [LOGITS]:
        raise UserError(
            "A teacher that merges tokens gives class scores alone: its tokens are not those of the patches",
            f"--distill {'+'.join(terms)}",
            "Use --distill logits, or masks (--keep 0.5)",
        )


def equal_keep(costs: Sequence[int], macs: int) -> int:
    """The number of kept patches at which a masked network costs nearest to a number of multiply-accumulates.

    Args:
        costs: of `masked_costs`.
        macs: to be met.
    """
    return 1 + min(range(len(costs)), key=lambda place: abs(costs[place] - macs))


def masked_costs(whole: "Backbone") -> list[int]:
    """Multiply-accumulates of a network that sees 1, 2, ... and all patches: a quadratic, so three of them tell all."""
    patches = whole.grid.count
    first, *others = (whole.macs(kept).total for kept in range(1, min(patches, 3) + 1))
    if len(others) < 2:
        return [first, *others]
    slope, bend = others[0] - first, others[1] - 2 * others[0] + first
    return [first + slope * more + bend * more * (more - 1) // 2 for more in range(patches)]


def equal_costs(whole: "Backbone", asked: str) -> list[dict[str, Any]]:
    """A row for each number of tokens that all blocks merge, and one for what was asked.

    Args:
        whole: the network that merges.
        asked: tokens to merge.

    Returns:
        merge, tokens (left in the end), gmacs, share (of the whole network's cost) and keep (patches of a masked
        network that costs as much).

    Raises:
        UserError: when the network cannot merge.
    """
    from vitdistill.models.merged import Merged

    def row(merge: str) -> dict[str, Any]:
        merged = Merged.over(whole, merge)
        macs = merged.macs().total
        return {
            "merge": merge,
            "tokens": merged.tokens_left()[-1],
            "gmacs": macs / 1e9,
            "share": macs / total,
            "keep": equal_keep(masked, macs),
        }

    total, masked = whole.macs().total, masked_costs(whole)
    most = max(1, 2 * whole.grid.count // whole.depth)  # half of the blocks then merge all there is
    step = -(-most // ROWS)
    names = [str(merge) for merge in range(step, most + 1, step)]
    if asked not in names:
        places = [place for place, name in enumerate(names) if asked.isdecimal() and int(name) > int(asked)]
        names.insert(places[0] if places else len(names), asked)
    return [row(name) for name in names]
