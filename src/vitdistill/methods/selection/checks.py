"""What a selection refuses once the networks are known."""

from typing import Any

from vitdistill.errors import UserError
from vitdistill.methods.selection.amounts import Agree, Amount
from vitdistill.models.backbone import Backbone
from vitdistill.models.network import Network


def check_maskable(network: Network, amount: Amount) -> None:
    """
    Raises:
        UserError: when patches shall be left out of a network that cannot do without them, or more kept than it has.
    """
    # A network whose patches are not known counts as one patch, and half of one is rounded to all.
    patches = network.grid.count if isinstance(network, Backbone) else 1
    if (amount.smallest(patches) < patches or amount.below_all) and not network.maskable:
        raise UserError(
            f"{network.name} cannot leave out patches",
            f"keep {amount}",
            f"Use --keep 1.0, or choose a ViT, DeiT or CaiT ({network.why_whole})",
        )


def check_shares(network: Network, amount: Amount) -> None:
    """
    Raises:
        UserError: when a number of patches is asked for of inputs that differ in size.
    """
    schedule = getattr(amount, "schedule", None)
    if network.sized or schedule is None:
        return
    if any(float(keep) > 1 or str(keep).isdecimal() for _, keep in schedule.points):
        raise UserError(
            f"{network.name} takes images of any size, of which only a share of the patches can be kept",
            f"keep {amount}",
            "Give a fraction, such as --keep 0.5",
        )


def check_terms(terms: tuple[Any, ...], amount: Amount, *, auto: bool) -> None:
    """
    Args:
        terms: what the student learns from the teacher's pass.
        amount: how many patches are kept.
        auto: whether the criterion goes by the teacher's answers.

    Raises:
        UserError: when these shall decide and nobody asks for class scores, or when a term compares tokens of which
            inputs have different numbers.
    """
    told = f"--distill {'+'.join(type(term).__name__.removesuffix('Term').lower() for term in terms)}"
    if terms and (auto or isinstance(amount, Agree)) and not any(term.compares_predictions for term in terms):
        raise UserError(
            f"{'--criterion auto' if auto else '--keep agree'} needs the teacher's class scores",
            told,
            "Add logits to --distill, or give a number of patches and another criterion",
        )
    if amount.per_input and not all(term.compares_predictions for term in terms):
        raise UserError(
            "--keep mass keeps different numbers of patches, of which only class scores can be compared",
            told,
            "Use --distill logits, or another --keep",
        )
