"""The words that everything else speaks: token grids, captures, step outputs.

Shape legend, used in every jaxtyping annotation of the package:

    b  batch            n  patches of a grid        m  tokens, prefix tokens included
    k  kept patches     h  attention heads          d  channels (of a head where q, k, v are meant)
    ch colour channels  *pixels  height width, or frames height width
    c  classes          p  prefix tokens (class, distillation, register)

Patch coordinates: outside `models/`, patches are numbered 0..N-1 of a `TokenGrid`, row by row, frame by frame;
prefix tokens are never counted. A selection is an integer tensor of shape (b, k) in these coordinates.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Patches of one input: `t` time steps (1 for images) x `h` rows x `w` columns."""

    t: int
    h: int
    w: int

    @property
    def count(self) -> int:
        """Number of patches N."""
        return self.t * self.h * self.w

    def __str__(self) -> str:
        return f"{self.h}x{self.w}" if self.t == 1 else f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class InputSpec:
    """What a network takes.

    Attributes:
        shape: one input without its batch dimension: (channels, height, width), or (channels, frames, height, width).
        mean: per channel, of the statistics that inputs in 0..1 are normalised with.
        std: per channel, goes with `mean`.
        patch: frames, height and width of a patch in pixels; None where patches overlap or are not known.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: tuple[int, int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[-2], self.shape[-1]

    @property
    def frames(self) -> int | None:
        """Frames of a clip; None for images."""
        return self.shape[1] if len(self.shape) == 4 else None


# A branch of a block: what self-attention or the MLP adds to the tokens, and the tokens after attention was added.
Part = Literal["attention", "attention_residual", "ffn"]


@dataclass(frozen=True)
class Capture:
    """What a backbone pass should hand out besides logits. Blocks are counted from 0, negative from the end.

    Attributes:
        qkv: blocks whose queries, keys and values are wanted.
        hidden: blocks whose output (before any final norm) is wanted.
        parts: (block, branch) pairs that are wanted.
        logits: False stops the pass after the last block that anything asks for; what lies behind it is not
            computed (in a block only asked for q, k, v, nothing after them is used).
    """

    qkv: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    parts: tuple[tuple[int, Part], ...] = ()
    logits: bool = True

    @property
    def hooked(self) -> tuple[int, ...]:
        """Blocks into which the pass looks, and which therefore run eagerly."""
        return (*self.qkv, *(block for block, _ in self.parts))


NOTHING = Capture()


class QKV(NamedTuple):
    """Queries, keys and values of one block, prefix tokens first, after any q/k norm and before scaling."""

    q: Float[Tensor, "b h m_q d"]
    k: Float[Tensor, "b h m d"]
    v: Float[Tensor, "b h m d"]


@dataclass
class BackboneOutput:
    """One pass of a backbone.

    Attributes:
        logits: class scores (b, c), or None when the pass stopped early.
        distilled_logits: scores of the distillation head, where a student trains two heads (distilled DeiT).
        qkv: per asked block (counted from 0).
        hidden: per asked block, the block's output tokens (b, m, d), prefix tokens first.
        parts: per asked (block, branch), its tokens (b, m, d), prefix tokens first.
        tokens: the tokens (b, m, d) that enter the head (after the final norm), or None when the pass stopped early.
    """

    logits: Float[Tensor, "b c"] | None = None
    distilled_logits: Float[Tensor, "b c"] | None = None
    qkv: dict[int, QKV] = field(default_factory=dict)
    hidden: dict[int, Float[Tensor, "b m d"]] = field(default_factory=dict)
    parts: dict[tuple[int, Part], Float[Tensor, "b m d"]] = field(default_factory=dict)
    tokens: Float[Tensor, "b m d"] | None = None


@dataclass
class StepOutput:
    """One training step of a method.

    Attributes:
        loss: scalar to call `backward()` on.
        terms: the named, unweighted parts of the loss, detached scalars.
        logits: the student's class scores where there are any.
        kept: patches that the teacher saw, in the teacher's patch coordinates; None when it saw all or there is none.
        teacher_logits: the (masked) teacher's class scores, where there are any.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    logits: Float[Tensor, "b c"] | None = None
    kept: Int[Tensor, "b k"] | None = None
    teacher_logits: Float[Tensor, "b c"] | None = None
