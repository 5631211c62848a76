"""Options of the terms that have names on the command line.

To add a term: write it in a file of its own, its options here as a frozen dataclass whose `build` makes it, and one
line in `Terms`. This file is imported to print help texts, so it imports no torch.
"""

from dataclasses import dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitdistill.errors import UserError, near

if TYPE_CHECKING:
    from vitdistill.methods.terms.term import Term
    from vitdistill.models.backbone import Backbone
    from vitdistill.models.network import Network
    from vitdistill.models.teacher import Teacher

LOGITS = "logits"


def _check_weights(term: str, options: Any, names: str) -> None:
    """Refuse weights that would drive the student away from its teacher."""
    for name in names.split():
        if not (isfinite(value := getattr(options, name)) and value >= 0):
            raise UserError(f"--terms.{term}.{name} must be 0 or more", value)


@dataclass(frozen=True)
class Manifold:
    """How similar patches are to one another (manifold distillation).

    Args:
        weight: of the three losses together.
        intra: weight of patches within an image.
        inter: weight of images at the same position.
        random: weight of random patches of the batch.
        rows: how many random patches.
        student_blocks: blocks of the student, from 0; by default its first four and its last four.
        teacher_blocks: blocks of the teacher, one for each; by default its first four and its last four (of CaiT's
            trunk).
    """

    weight: float = 1.0
    intra: float = 4.0
    inter: float = 0.1
    random: float = 0.2
    rows: int = 192
    student_blocks: list[int] | None = None
    teacher_blocks: list[int] | None = None

    def __post_init__(self) -> None:
        _check_weights("manifold", self, "weight intra inter random")

    def check(self) -> None:
        """
        Raises:
            UserError: when a number is out of range, as its term would.
        """
        if self.rows < 2:
            raise UserError("--terms.manifold.rows must be at least 2", self.rows)

    def build(self, student: "Network", teacher: "Teacher") -> "Term":
        """
        Raises:
            UserError: when the networks do not go together.
        """
        from vitdistill.methods.terms.manifold import ManifoldTerm

        own, other = _on_patches("manifold", student), _on_patches("manifold", teacher.network)
        count = min(_trunk(own), _trunk(other), 8)
        return ManifoldTerm(
            own,
            other,
            student_blocks=_ends(_trunk(own), count) if self.student_blocks is None else self.student_blocks,
            teacher_blocks=_ends(_trunk(other), count) if self.teacher_blocks is None else self.teacher_blocks,
            rows=self.rows,
            weight=self.weight,
            intra=self.intra,
            inter=self.inter,
            random=self.random,
        )


@dataclass(frozen=True)
class Attention:
    """Where the class token looks, and its final feature (attention distillation).

    Args:
        weight: of the attention.
        cls_weight: of the class token's final feature; 0 leaves it out.
        blocks: all compares every block of the student, last the last one; of a deeper or shallower teacher evenly
            spaced ones, last with last.
        reduce: sum or mean over the blocks.
        temperature: of the aggregation of heads, where head counts differ.
    """

    weight: float = 0.1
    cls_weight: float = 1.0
    blocks: Literal["all", "last"] = "all"
    reduce: Literal["sum", "mean"] = "sum"
    temperature: float = 10.0

    def __post_init__(self) -> None:
        _check_weights("attention", self, "weight cls_weight")

    def check(self) -> None:
        """
        Raises:
            UserError: when a number is out of range, as its term would.
        """
        if not self.temperature > 0:
            raise UserError("--terms.attention.temperature must be positive", self.temperature)

    def build(self, student: "Network", teacher: "Teacher") -> "Term":
        """
        Raises:
            UserError: when the networks do not go together.
        """
        from vitdistill.methods.terms.attention import AttentionTerm

        own, other = _on_patches("attention", student), _on_patches("attention", teacher.network)
        mine, theirs = _class_blocks(own), _class_blocks(other)
        if self.blocks == "last":
            mine, theirs = mine[-1:], theirs[-1:]
        else:
            count = min(len(mine), len(theirs))
            mine, theirs = _spread(mine, count), _spread(theirs, count)
        return AttentionTerm(
            own,
            other,
            student_blocks=mine,
            teacher_blocks=theirs,
            weight=self.weight,
            cls_weight=self.cls_weight,
            reduce=self.reduce,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class Tokens:
    """Patches and detection tokens of a detector (token matching).

    Args:
        weight: of the loss.
        root: take the square root of the sum of distances, as ViDT's code does.
        det_matching: index compares detection token i with detection token i, hungarian those that predict alike.
    """

    weight: float = 4.0
    root: bool = True
    det_matching: Literal["index", "hungarian"] = "index"

    def __post_init__(self) -> None:
        _check_weights("tokens", self, "weight")

    def check(self) -> None:
        """Nothing that is not checked by type."""

    def build(self, student: "Network", teacher: "Teacher") -> "Term":
        """
        Raises:
            UserError: when the networks do not go together.
        """
        from vitdistill.methods.terms.tokens import TokensTerm

        return TokensTerm(student, teacher, weight=self.weight, root=self.root, det_matching=self.det_matching)


@dataclass(frozen=True)
class Detections:
    """Classes and boxes that a detector finds.

    Args:
        weight: of class and box losses together.
        det_matching: hungarian compares detection tokens that predict alike, index token i with token i.
    """

    weight: float = 1.0
    det_matching: Literal["index", "hungarian"] = "hungarian"

    def __post_init__(self) -> None:
        _check_weights("detections", self, "weight")

    def check(self) -> None:
        """Nothing that is not checked by type."""

    def build(self, student: "Network", teacher: "Teacher") -> "Term":
        """
        Raises:
            UserError: when the networks do not go together.
        """
        from vitdistill.methods.terms.detections import DetectionsTerm

        return DetectionsTerm(student, teacher, weight=self.weight, det_matching=self.det_matching)


@dataclass(frozen=True)
class Terms:
    """Options of each term that `--distill` can name.

    Args:
        manifold: how similar patches are to one another.
        attention: where the class token looks.
        tokens: patches and detection tokens of a detector.
        detections: classes and boxes that a detector finds.
    """

    manifold: Manifold = Manifold()
    attention: Attention = Attention()
    tokens: Tokens = Tokens()
    detections: Detections = Detections()

    def named(self, text: str) -> tuple[str, ...]:
        """The terms in "logits+manifold".

        Raises:
            UserError: for an unknown name, one named twice, numbers of a named term that are out of range, or options
                of a term that is not named.
        """
        names = parse_terms(text)
        for field in fields(self):
            if field.name in names:
                getattr(self, field.name).check()
            elif getattr(self, field.name) != field.default:
                raise UserError(
                    f"--terms.{field.name} has no effect unless --distill names {field.name}", text, "Leave it out"
                )
        return names


def parse_terms(text: str) -> tuple[str, ...]:
    """The names in "logits+manifold".

    Raises:
        UserError: for an unknown name, or one named twice.

    Example:
        >>> parse_terms("logits+manifold")
        ('logits', 'manifold')
    """
    known = (LOGITS, *(field.name for field in fields(Terms)))
    names = tuple(name.strip().lower() for name in str(text).split("+"))
    for name in names if any(names) else ():
        if name not in known:
            raise UserError(
                f"distill must be some of {', '.join(known)}, joined by +", repr(name or text), near(name, known)
            )
    if not any(names) or len(set(names)) < len(names):
        raise UserError(f"distill must name at least one of {', '.join(known)}, each once", repr(text))
    return names


def check_terms(text: str) -> str:
    """
    Raises:
        UserError: as `parse_terms`.
    """
    parse_terms(text)
    return text


def check_alpha(alpha: float) -> None:
    """
    Raises:
        UserError: when it is no share.
    """
    if not 0 <= alpha <= 1:
        raise UserError("alpha must lie in [0, 1]", alpha)


def check_tau(tau: float) -> None:
    """
    Raises:
        UserError: when it is no temperature.
    """
    if not tau > 0:
        raise UserError("tau must be positive", tau)


TermNames = Annotated[str, check_terms]
Alpha = Annotated[float, check_alpha]
Tau = Annotated[float, check_tau]


# --- which blocks ------------------------------------------------------------------------------------------------


def _on_patches(name: str, network: "Network") -> "Backbone":
    from vitdistill.models.backbone import Backbone

    if not isinstance(network, Backbone) or not network.maskable:
        raise UserError(
            f"--distill {name} needs networks that show their patches in every block",
            network.name,
            "Choose a ViT, DeiT or CaiT, or --distill logits",
        )
    return network


def _trunk(network: Any) -> int:
    """Blocks in which all patches are tokens that change: all but CaiT's class-attention blocks."""
    return int(getattr(network, "trunk_depth", network.depth))


def _class_blocks(network: Any) -> list[int]:
    """Blocks in which there is a class token: all, but of CaiT the class-attention blocks alone."""
    first = network.trunk_depth if hasattr(network, "trunk_depth") else 0
    return list(range(first, network.depth))


def _ends(depth: int, count: int) -> list[int]:
    """The first half and the last half of so many blocks."""
    first = (count + 1) // 2
    return [*range(first), *range(depth - (count - first), depth)]


def _spread(blocks: list[int], count: int) -> list[int]:
    """So many of the blocks, evenly spaced, the last one among them."""
    return [blocks[-1 - round(step * len(blocks) / count)] for step in range(count)][::-1]
