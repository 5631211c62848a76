"""How many patches are kept: what `--keep` means, one rule a class.

This file is imported to print help texts, so it imports no torch.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

from vitdistill.errors import UserError
from vitdistill.tokens.keep import KeepSchedule, check_keep, keep_count, tally

STEPS = 1000  # at which a schedule is looked at to add up its cost
RULES = ("agree", "budget", "mass")
_REMEDY = "Give a share in (0, 1], such as agree:0.9, mass:0.9, budget:0.5 or 'budget:0.5@1.0->0.25'"


class Amount:
    """How many patches are kept at a time.

    Attributes:
        follows: whether what the teacher answers in training decides, and not the training's progress alone.
        per_input: whether each input keeps a number of its own.
        below_all: whether it asks for less than all of any number of patches.
        constant: whether the count stays the same throughout.
    """

    follows = False
    per_input = False
    below_all = True
    constant = False

    def fit(self, cost: Callable[[int], float], patches: int) -> None:
        """Take note of what a pass over so many patches costs; called once the networks are known.

        Raises:
            UserError: when no number of patches will do.
        """

    def count(self, progress: float, patches: int) -> int:
        """Patches kept at a training progress in [0, 1], out of `patches`."""
        raise NotImplementedError

    def smallest(self, patches: int) -> int:
        """The fewest patches that may ever be kept."""
        return 1


class Scheduled(Amount):
    """A count, a fraction, or a schedule of them."""

    def __init__(self, schedule: KeepSchedule) -> None:
        self.schedule = schedule

    def count(self, progress: float, patches: int) -> int:
        return self.schedule.count(progress, patches)

    def smallest(self, patches: int) -> int:
        return min(keep_count(keep, patches) for _, keep in self.schedule.points)

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.schedule.constant

    @property
    def below_all(self) -> bool:  # type: ignore[override]
        return any(float(keep) < 1 for _, keep in self.schedule.points)

    def __str__(self) -> str:
        return str(self.schedule)


class Budget(Amount):
    """As many patches as meet a cost over the whole training: a schedule, scaled.

    Of the counts that the schedule gives, all are multiplied by the largest number with which the teacher's passes,
    and those that rank patches, cost no more than the share of a whole teacher's. A count ends at the whole grid, and
    at one patch.

    Example:
        >>> Budget(0.5, KeepSchedule.parse("1.0->0.25"))  # falls throughout, at half the whole teacher's cost
    """

    def __init__(self, share: float, schedule: KeepSchedule) -> None:
        self.share, self.schedule = share, schedule
        self.factor = 1.0

    def fit(self, cost: Callable[[int], float], patches: int) -> None:
        whole = cost(patches)
        known: dict[int, float] = {}
        schedule = tally(lambda progress: self.schedule.count(progress, patches), STEPS)

        def share_at(factor: float) -> float:
            total = 0.0
            for scheduled, steps in schedule.items():
                kept = _scaled(scheduled, factor, patches)
                known[kept] = known[kept] if kept in known else cost(kept)
                total += known[kept] * steps
            return total / (whole * STEPS)

        low, high = 0.0, float(patches)  # of one patch alone, and of all at every step
        if share_at(low) > self.share:
            raise UserError(
                "The budget must pay for one patch at every step",
                f"{self.share:g} of the whole teacher, of which one patch and its ranking cost {share_at(low):.3f}",
                "Give a higher one, or rank patches by --criterion student",
            )
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if share_at(middle) <= self.share else (low, middle)
        self.factor = low

    def count(self, progress: float, patches: int) -> int:
        return _scaled(self.schedule.count(progress, patches), self.factor, patches)

    def __str__(self) -> str:
        return f"budget:{self.share:g}@{self.schedule}"


def _scaled(count: int, factor: float, patches: int) -> int:
    return min(patches, max(1, math.floor(factor * count + 0.5)))


class Agree(Amount):
    """The fewest patches at which the masked teacher still names the class that the whole one names.

    `Ranked` asks now and then at several counts, and calls `follow`. Until it has heard enough, every patch is kept.
    Counts are sixteenths of the grid, so that kernels and compiled code meet few of them.

    Example:
        >>> amount = Agree(0.9)
        >>> amount.follow({8: 0.85, 12: 0.95}, patches=16)
        >>> amount.count(0.0, patches=16)
        10
    """

    follows = True
    PARTS = 8  # of the grid, at whose multiples the teacher is asked
    FINE = 16  # and at whose multiples a count may lie

    def __init__(self, share: float) -> None:
        self.share = share
        self.kept: int | None = None

    def __str__(self) -> str:
        return f"agree:{self.share:g}"

    def asked(self, patches: int) -> tuple[int, ...]:
        """The counts at which to ask."""
        counts = {math.ceil(part * patches / self.PARTS) for part in range(1, self.PARTS)}
        return tuple(sorted(count for count in counts if count < patches))

    def follow(self, agreement: Mapping[int, float], patches: int) -> None:
        """Keep as many patches as the answers ask for; the next count that was asked is reached along a straight line.

        Args:
            agreement: how much of it is certain at each count, ascending; what is missing counts as none.
            patches: in the grid, all of which agree with themselves.
        """
        # From all patches downwards, as long as every count agrees: one lucky answer at few patches means nothing.
        kept, certain = float(patches), 1.0
        for count in sorted(self.asked(patches), reverse=True):
            here = min(agreement.get(count, 0.0), certain)
            if here < self.share:
                if count in agreement and certain > here:  # between the two
                    kept -= (kept - count) * (certain - self.share) / (certain - here)
                break
            kept, certain = float(count), here
        fine = patches / self.FINE
        self.kept = min(patches, math.ceil(math.ceil(round(kept / fine, 6)) * fine))

    def count(self, progress: float, patches: int) -> int:
        return patches if self.kept is None else min(self.kept, patches)


class Mass(Amount):
    """Of each input the fewest patches that hold a share of the attention that ranks them.

    Attributes:
        kept: patches that the inputs of the last batch kept, on average.
    """

    follows = True
    per_input = True

    def __init__(self, share: float) -> None:
        self.share = share
        self.kept: int | None = None

    def __str__(self) -> str:
        return f"mass:{self.share:g}"

    def count(self, progress: float, patches: int) -> int:
        return patches if self.kept is None else min(self.kept, patches)


def amount_of(keep: "int | float | str | KeepSchedule | Amount") -> Amount:
    """What `--keep` says.

    Args:
        keep: a count, a fraction, a schedule ("1.0->0.5", "0:1.0,0.5:0.25"), or a rule ("agree:0.9", "mass:0.9",
            "budget:0.5", "budget:0.5@1.0->0.25").

    Raises:
        UserError: when it is none of these.
    """
    if isinstance(keep, Amount):
        return keep
    rule, _, rest = keep.partition(":") if isinstance(keep, str) else ("", "", "")
    if rule.strip() not in RULES:
        return Scheduled(KeepSchedule.parse(keep))
    share, at, schedule = rest.partition("@")
    if at and rule.strip() != "budget":
        raise UserError("Only a budget takes a schedule", keep, _REMEDY)
    if rule.strip() == "agree":
        return Agree(_share(share, keep))
    if rule.strip() == "mass":
        return Mass(_share(share, keep))
    return Budget(_share(share, keep), KeepSchedule.parse(schedule if at else 1.0))


def _share(text: str, keep: object) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UserError("The share of a keep rule must lie in (0, 1]", keep, _REMEDY)
    return share


def check_amount(keep: "int | float | str | KeepSchedule | Amount") -> None:
    """Refuse what no grid of patches can make sense of.

    Raises:
        UserError: when it is no count, fraction, schedule or rule.
    """
    amount = amount_of(keep)
    if isinstance(amount, Scheduled | Budget):
        check_keep(amount.schedule)


def check_known(keep: "int | float | str | KeepSchedule | Amount", criterion: object) -> None:
    """Refuse what only a training decides, where its cost shall be known before.

    Raises:
        UserError: naming the option.
    """
    what = f"--keep {keep}" if amount_of(keep).follows else "--criterion auto" if criterion == "auto" else None
    if what is not None:
        remedy = "Give a number of patches or a budget, and another criterion; run.json says what a run has cost"
        raise UserError(
            "What is kept must be known before the training", f"{what}, which goes by the answers in it", remedy
        )


def check_selection(
    keep: "int | float | str | KeepSchedule | Amount", criterion: object, order: str, mask: str
) -> None:
    """Refuse combinations of a selection's options that have no meaning.

    Raises:
        UserError: naming the options.
    """
    amount, auto = amount_of(keep), criterion == "auto"
    if mask == "student" and (amount.follows or auto):
        what = "--criterion auto" if auto else f"--keep {keep}"
        raise UserError(f"{what} asks what a masked teacher knows", "--mask student", "Leave out one of them")
    if mask == "student" and isinstance(amount, Budget):
        raise UserError(
            "--keep budget shares out what a masked teacher costs", "--mask student", "Leave out one of them"
        )
    if auto and order == "bottom":
        raise UserError(
            "--criterion auto takes what serves the teacher best", "--order bottom", "Leave out one of them"
        )
    if not isinstance(amount, Mass):
        return
    if criterion in ("random", "auto") or str(criterion).endswith("+random"):
        raise UserError(
            "--keep mass needs a criterion whose scores are shares of attention",
            f"--criterion {criterion}",
            "Use --criterion student, teacher or network",
        )
    if order == "bottom":
        raise UserError("--keep mass keeps what is attended to most", "--order bottom", "Leave out one of them")


Keep = Annotated[int | float | str, check_amount]
