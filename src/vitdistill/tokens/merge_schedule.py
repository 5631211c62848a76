"""How many tokens each block merges: what `--teacher_merge` means.

This file is imported to print help texts, so it imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitdistill.errors import UserError

_REMEDY = (
    "Give a number such as 8, one that falls to 0 over the blocks such as 8:-1, or one for each block such as 4,0,2"
)


@dataclass(frozen=True)
class MergeSchedule:
    """Tokens that each block merges into others (ToMe, Bolya et al., 2023).

    Attributes:
        amounts: of the first blocks; one for all of them where there is but one and `slope` is given.
        slope: None where each block has its own amount; else from -1 (from twice the amount in the first block to none
            in the last) over 0 (the same in all) to 1 (from none to twice).

    Example:
        >>> MergeSchedule.parse("2:-1").per_block(4)
        (4, 2, 1, 0)
    """

    amounts: tuple[int, ...]
    slope: float | None = None

    @classmethod
    def parse(cls, merge: "int | str | Sequence[int] | MergeSchedule") -> "MergeSchedule":
        """Read a number (8), a number with its slope (8:-1), or one for each block (4,0,2,1).

        Raises:
            UserError: when it is none of these.
        """
        if isinstance(merge, MergeSchedule):
            return merge
        if isinstance(merge, bool):
            raise UserError("Tokens to merge must be a number", merge, _REMEDY)
        text = ",".join(map(str, merge)) if isinstance(merge, list | tuple) else str(merge)
        number, separator, slope = text.partition(":")
        try:
            amounts = tuple(int(part) for part in number.split(","))
            inclined = float(slope) if separator else 0.0
        except ValueError:
            raise UserError("Tokens to merge must be whole numbers", repr(merge), _REMEDY) from None
        if any(amount < 0 for amount in amounts):
            raise UserError("Tokens to merge must not be negative", merge, _REMEDY)
        if not -1 <= inclined <= 1:  # not a number, among others
            raise UserError("The slope of tokens to merge must lie between -1 and 1", slope, _REMEDY)
        if separator and len(amounts) > 1:
            raise UserError("Only one number of tokens has a slope", repr(merge), _REMEDY)
        several = len(amounts) > 1 or isinstance(merge, list | tuple)
        return cls(amounts, None if several else inclined)

    def __str__(self) -> str:
        if self.slope is None:
            return ",".join(map(str, (*self.amounts, 0) if len(self.amounts) == 1 else self.amounts))
        return f"{self.amounts[0]}:{self.slope:g}" if self.slope else str(self.amounts[0])

    def per_block(self, depth: int) -> tuple[int, ...]:
        """Tokens to merge in each of `depth` blocks; blocks without an amount merge none.

        Raises:
            UserError: when there are amounts for more blocks.
        """
        if self.slope is None:
            if len(self.amounts) > depth:
                raise UserError(f"Tokens to merge must be given for at most {depth} blocks", str(self), _REMEDY)
            return self.amounts + (0,) * (depth - len(self.amounts))
        (amount,) = self.amounts
        first = int(amount * (1 - self.slope))
        step = (2 * amount - 2 * first) / max(1, depth - 1)
        return tuple(int(first + step * block) for block in range(depth))


def tokens_left(merges: Sequence[int], tokens: int, protected: int) -> list[int]:
    """Tokens that leave each block: it merges at most half of those that may be merged.

    Args:
        merges: tokens to merge in each block.
        tokens: that enter the first block.
        protected: of these, special tokens, which are never merged.

    Example:
        >>> tokens_left([16] * 12, 197, 1)[-1]
        11
    """
    left = []
    for merge in merges:
        tokens -= merged_of(merge, tokens, protected)
        left.append(tokens)
    return left


def merged_of(merge: int, tokens: int, protected: int) -> int:
    """Of the tokens to merge, those that are merged."""
    return max(0, min(merge, (tokens - protected) // 2))


def check_merge(merge: "int | str | Sequence[int] | MergeSchedule | None") -> None:
    """Refuse what is no schedule.

    Raises:
        UserError: as `MergeSchedule.parse`.
    """
    if merge is not None:
        MergeSchedule.parse(merge)


# str first: as a number YAML reads 8:1 in base 60, as 481.
Merge = Annotated[str | int, check_merge]
