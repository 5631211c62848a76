"""The words that everything else speaks: inputs, token grids, tokens, captures, outputs, steps.

Shape legend, used in every jaxtyping annotation of the package:

    b  batch            n  patches of a grid        m  tokens, special tokens included
    k  kept patches     h  attention heads          d  channels (of a head where q, k, v are meant)
    ch colour channels  *pixels  height width, or frames height width
    c  classes          s  special tokens (class, distillation, register, detection)
    q  detection tokens

Patch coordinates: outside `models/`, patches are numbered 0..N-1 of a `TokenGrid`, row by row, frame by frame; special
tokens are never counted. A selection is an integer tensor of shape (b, k) in these coordinates.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
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
        shape: one input without its batch dimension: (channels, height, width), or (channels, frames, height, width);
            of sound (1, mel bins, frames).
        mean: per channel, of the statistics that inputs are normalised with: pixels in 0..1, or log-mel energies.
        std: per channel, goes with `mean`: an input is (x - mean) / std. Of sound it is twice the standard deviation of
            the data, by which AST divides.
        patch: frames, height and width of a patch in pixels; None where patches overlap or are not known.
        sound: whether it takes log-mel spectrograms, whose height is frequency and whose width is time, and not pixels.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: tuple[int, int, int] | None = None
    sound: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[-2], self.shape[-1]

    @property
    def frames(self) -> int | None:
        """Frames of a clip; None for images."""
        return self.shape[1] if len(self.shape) == 4 else None


class Tokens(NamedTuple):
    """Tokens of a pass.

    Attributes:
        all: every token, special ones first.
        specials: how many special tokens there are.
    """

    all: Float[Tensor, "b m d"]
    specials: int

    @property
    def special(self) -> Float[Tensor, "b s d"]:
        """Class, distillation and register tokens."""
        return self.all[:, : self.specials]

    @property
    def patches(self) -> Float[Tensor, "b n d"]:
        """Tokens of patches, in the order of the grid or of the selection."""
        return self.all[:, self.specials :]


class QKV(NamedTuple):
    """Queries, keys and values of one block, special tokens first, after any q/k norm and before scaling.

    Attributes:
        q: of CaiT's class-attention blocks, of the class token alone; of Segmenter's decoder, of its special tokens.
        k: of all tokens.
        v: of all tokens.
        specials: how many special tokens stand before the patches in k and v.
    """

    q: Float[Tensor, "b h m_q d"]
    k: Float[Tensor, "b h m d"]
    v: Float[Tensor, "b h m d"]
    specials: int


# Where a pass can be looked into. "attention" and "ffn" are what a block's branch adds to the tokens (after LayerScale,
# before drop path), "attention_residual" the tokens after attention was added, "output" those that leave the block.
# "decoder" lies behind the last block: the last attention of a head that is a transformer itself (Segmenter).
# "final" are the tokens behind the norm that follows the last block, where that is not part of the head (Segmenter).
Point = Literal["qkv", "attention", "attention_residual", "ffn", "output", "decoder", "final"]


@dataclass(frozen=True)
class Capture:
    """What a pass hands out. Two captures are combined with `|`.

    Attributes:
        points: (block, point) pairs; blocks count from 0, negative ones from the end, and answer under the numbers by
            which they were asked for.
        head: False stops the pass behind the last point; what lies behind it is not computed.

    Example:
        >>> Capture.at(-1, "qkv") | Capture.at(3, "output", head=False)
        Capture(points=frozenset({(3, 'output'), (-1, 'qkv')}), head=True)
    """

    points: frozenset[tuple[int, Point]] = frozenset()
    head: bool = True

    @classmethod
    def at(cls, block: int, point: Point, *, head: bool = True) -> "Capture":
        """One point of one block."""
        return cls(frozenset({(block, point)}), head)

    @classmethod
    def union(cls, captures: Iterable["Capture"]) -> "Capture":
        """All points of all captures; up to the head where any of them needs it."""
        captures = list(captures)
        return cls(frozenset().union(*(one.points for one in captures)), any(one.head for one in captures))

    def __or__(self, other: "Capture") -> "Capture":
        return Capture.union((self, other))


NOTHING = Capture()


@dataclass
class Output:
    """One pass of a network.

    Attributes:
        prediction: what the head says, class scores (b, c) of a classifier, or (b, c, height, width) of one that
            labels pixels; None when the pass stopped before it.
        distilled: class scores of a second head, where a student trains two (distilled DeiT, UperNet).
        final: the tokens that enter the head, after the final norm; None when the pass stopped early or the network
            does not show them.
        captured: the asked (block, point) pairs: `QKV` for "qkv" and "decoder", `Tokens` for all others.
        grid: the network's patches; None for networks that have none.
        kept: the patches that entered the blocks, in coordinates of `grid`; None for all of them.
    """

    prediction: Tensor | None = None
    distilled: Float[Tensor, "b c *pixels"] | None = None
    final: Tokens | None = None
    captured: dict[tuple[int, Point], Tokens | QKV] = field(default_factory=dict)
    grid: TokenGrid | None = None
    kept: Int[Tensor, "bm k"] | None = None

    def tokens(self, block: int, point: Point = "output") -> Tokens:
        """The tokens captured at a point of a block."""
        captured = self.captured[block, point]
        assert isinstance(captured, Tokens)
        return captured

    def qkv(self, block: int) -> QKV:
        """The queries, keys and values captured of a block."""
        captured = self.captured[block, "qkv"]
        assert isinstance(captured, QKV)
        return captured

    def first(self, rows: int) -> "Output":
        """The same pass over the first `rows` inputs alone."""
        return self.map(lambda tensor: tensor[:rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Output":
        """The same pass with each of its tensors changed; the first dimension of all is the batch."""
        return self._combined((self,), lambda tensors: change(tensors[0]))

    @classmethod
    def joined(cls, parts: tuple[Any, ...]) -> "Output":
        """One pass out of passes over the parts of a batch."""
        return parts[0]._combined(parts, torch.cat)

    def _combined(self, parts: tuple[Any, ...], combine: Callable[..., Tensor]) -> "Output":
        def each(values: tuple[Any, ...]) -> Any:
            if values[0] is None or isinstance(values[0], Tensor):
                return None if values[0] is None else combine(values)
            fields = zip(*values, strict=True)  # of `Tokens` or `QKV`
            return type(values[0])(*(one[0] if isinstance(one[0], int) else each(one) for one in fields))

        return Output(
            prediction=each(tuple(part.prediction for part in parts)),
            distilled=each(tuple(part.distilled for part in parts)),
            final=each(tuple(part.final for part in parts)),
            captured={asked: each(tuple(part.captured[asked] for part in parts)) for asked in self.captured},
            grid=self.grid,
            kept=each(tuple(part.kept for part in parts)),
        )


@dataclass
class Step:
    """One training step of a method.

    Attributes:
        loss: scalar to call `backward()` on.
        terms: the named, unweighted parts of the loss, detached scalars.
        prediction: the student's prediction, where it makes one.
        kept: patches that the masked network saw, in its own coordinates: the teacher's, or the student's where that is
            masked. None when it saw all. Where inputs keep different numbers, rows are filled up with -1.
        teacher_prediction: the (masked) teacher's prediction, where it makes one.
        measured: what else of the step is worth averaging over an epoch, by name; detached scalars.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    prediction: Tensor | None = None
    kept: Int[Tensor, "b k"] | None = None
    teacher_prediction: Tensor | None = None
    measured: Mapping[str, float | Tensor] = field(default_factory=dict)
