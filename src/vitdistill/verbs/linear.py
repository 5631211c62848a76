"""What a training of a linear classifier on a frozen student refuses, told by the values of its options alone."""

from collections.abc import Mapping
from typing import Any

from vitdistill.errors import UserError
from vitdistill.methods.terms.options import LOGITS
from vitdistill.verbs.arguments import is_fresh


def check_linear_only(values: Mapping[str, Any]) -> None:
    """Refuse what a frozen student cannot learn, or has no effect on one.

    Raises:
        UserError: when a term compares what the frozen body computes, an option is for fine-tuning, or the body has
            random weights.
    """
    others = [name for name in values["terms"].named(values["distill"]) if name != LOGITS]
    if others:
        raise UserError(
            "With --linear_only true only class scores can be learned: all else that is compared is frozen",
            f"--distill {values['distill']}",
            "Use --distill logits",
        )
    if values["optim"].layer_decay is not None:
        layer_decay = f"{values['optim'].layer_decay:g}"
        raise UserError("--optim.layer_decay has no effect with --linear_only true", layer_decay, "Leave it out")
    if is_fresh(values["student"], values["pretrained"]):
        raise UserError(
            "--linear_only true needs a student with trained weights",
            values["student"],
            "Add --pretrained true, or give name@weights-file or a run directory",
        )
