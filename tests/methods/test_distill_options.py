"""Options of the terms that `--distill` names."""

import pytest

from vitdistill.errors import UserError, near
from vitdistill.methods.terms.options import Attention, Manifold


@pytest.mark.parametrize(
    ("options", "name"),
    [(Manifold, "weight"), (Manifold, "intra"), (Manifold, "inter"), (Manifold, "random")]
    + [(Attention, "weight"), (Attention, "cls_weight")],
)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_drive_the_student_away_are_refused(
    options: type[Manifold | Attention], name: str, value: float
) -> None:
    with pytest.raises(UserError, match=rf"--terms\.{options.__name__.lower()}\.{name} must be 0 or more; got {value}"):
        options(**{name: value})
    options(**{name: 0.0})


def test_names_that_begin_so_are_nearest() -> None:
    known = ["rdnet_small", "nest_small", "deit_small_distilled_patch16_224", "deit_small_patch16_224"]
    assert near("deit_smal", known) == "Did you mean 'deit_small_patch16_224' or 'deit_small_distilled_patch16_224'?"
