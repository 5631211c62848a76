"""Which patches the teacher sees: criteria that rank them, one idea a file, and the selector that keeps some.

This file is imported to print help texts, so it imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from vitdistill.errors import UserError, near

if TYPE_CHECKING:
    from vitdistill.methods.selection.criterion import Attention, Criterion

# Who ranks the patches, by the name that `--criterion` takes. Those that look at attention can be mixed with chance, as
# "student+random".
CRITERIA = {
    "student": "vitdistill.methods.selection.attention:StudentAttention",
    "teacher": "vitdistill.methods.selection.attention:TeacherAttention",
    "network": "vitdistill.methods.selection.attention:NetworkAttention",
    "random": "vitdistill.methods.selection.random:Random",
    "auto": "vitdistill.methods.selection.auto:Auto",
}
ALONE = ("random", "auto")  # make no sense mixed with chance
MIXED = "+random"


def check_criterion(name: str) -> str:
    """
    Raises:
        UserError: for an unknown name.
    """
    known = [*CRITERIA, *(f"{each}{MIXED}" for each in CRITERIA if each not in ALONE)]
    if name not in known:
        raise UserError(f"criterion must be one of {', '.join(known)}", repr(name), near(str(name), known))
    return name


CriterionName = Annotated[str, check_criterion]


def make_criterion(name: str, attention: "Attention", random_share: float = 0.5) -> "Criterion":
    """A criterion by name.

    Args:
        name: one of `CRITERIA`, or such a name and "+random".
        attention: what it looks at.
        random_share: share of the kept patches drawn at random by the mixed criteria.

    Raises:
        UserError: for an unknown name, a missing third network, or a share outside [0, 1].
    """
    from vitdistill.methods.selection.criterion import MixedWithRandom

    check_criterion(name)
    if not 0 <= random_share <= 1:
        raise UserError("random_share must lie in [0, 1]", random_share)
    module, _, attribute = CRITERIA[name.removesuffix(MIXED)].partition(":")
    criterion: Any = getattr(import_module(module), attribute).of(attention)
    return MixedWithRandom(criterion, random_share) if name.endswith(MIXED) else criterion
