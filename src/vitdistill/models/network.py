"""The interface of any network, and of one that is known by its prediction alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.macs import Macs, check_kept, traced_macs
from vitdistill.types import NOTHING, Capture, InputSpec, Output

# timm's defaults for networks that carry no pretrained configuration.
DEFAULT_MEAN, DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module, ABC):
    """Anything that maps inputs to a prediction, behind one interface.

    Attributes:
        net: the untouched network; its `state_dict` is what gets exported.
        maskable: whether `keep` may be given, that is whether patches can be left out of the input.
        sized: whether inputs must have the size of `input`; a teacher without a stated size gets the student's inputs.
    """

    maskable = False
    sized = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net: Any = net

    @property
    def name(self) -> str:
        """timm's architecture name where there is one, else the class name."""
        return self._config.get("architecture") or type(self.net).__name__

    @property
    @abstractmethod
    def input(self) -> InputSpec:
        """What the network takes."""

    @property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 where there is none."""
        return int(self.net.num_classes)

    @property
    def _config(self) -> dict[str, Any]:
        return getattr(self.net, "pretrained_cfg", None) or {}

    @property
    def channels(self) -> int:
        """Colour channels of an input: those of the first convolution, as timm's configuration does not say."""
        convolutions = (module for module in self.net.modules() if isinstance(module, nn.Conv2d | nn.Conv3d))
        if (first := next(convolutions, None)) is not None:
            return first.in_channels
        return int(self._config.get("input_size", (3, 224, 224))[0])

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel that the network expects."""
        config, channels = self._config, self.channels
        return of_channels(config.get("mean", DEFAULT_MEAN), channels), of_channels(
            config.get("std", DEFAULT_STD), channels
        )

    @abstractmethod
    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """Run the network.

        Args:
            inputs: normalised with the statistics of `input`.
            keep: patches that enter the blocks, for networks that can leave patches out.
            capture: what to hand out besides the prediction.
        """

    def macs(
        self,
        kept: int | None = None,
        capture: Capture = NOTHING,
        *,
        layernorm: bool = True,
        size: tuple[int, int] | None = None,
    ) -> Macs:
        """Multiply-accumulates of one pass over one input, as the adapter runs it; see `models.macs`.

        By default they are counted by tracing, under `other`.

        Args:
            kept: patches that enter the blocks; None for all. The patch embedding always covers every patch, since
                positions are added before any is dropped.
            capture: where the pass stops.
            layernorm: whether LayerNorm counts.
            size: height and width in pixels, for networks without a fixed one (CNNs); others know theirs.

        Raises:
            UserError: when `kept` is not between 1 and the patches of the grid, or patches cannot be left out.
        """
        check_kept(self, kept)
        *channels, height, width = self.input.shape
        return traced_macs(self, (*channels, *(size or (height, width))), kept, layernorm=layernorm)

    def compile_blocks(self) -> None:  # nothing that could be compiled piece by piece
        """torch.compile what can be compiled piece by piece."""

    def cannot_leave_out(self) -> UserError:
        """What to raise when patches shall be left out of a network that cannot do without them."""
        return UserError(
            f"{self.name} cannot leave out patches, so it cannot be a masked teacher or masked student",
            remedy="Use it with every patch (--keep 1.0), or choose a ViT, DeiT or CaiT",
        )


class Opaque(Network):
    """A network of which only the prediction is known (a CNN, say): an unmasked teacher, or a student whose masks are
    ranked by someone else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.sized = "input_size" in self._config

    @property
    def input(self) -> InputSpec:
        _, height, width = self._config.get("input_size", (3, 224, 224))
        return InputSpec((self.channels, height, width), *self._statistics)

    @property
    def num_classes(self) -> int:
        classes = getattr(self.net, "num_classes", None)
        if classes is None:
            raise UserError(
                "A network given as a module must state its number of classes",
                type(self.net).__name__,
                "Set its attribute `num_classes`",
            )
        return int(classes)

    def forward(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """
        Raises:
            UserError: when anything but the prediction is asked for.
        """
        if keep is not None:
            raise self.cannot_leave_out()
        if capture.points or not capture.head:
            refuse_opaque(self)
        prediction = self.net(inputs)
        # Two heads: a distilled EfficientFormer, say.
        first, second = prediction if isinstance(prediction, tuple) else (prediction, None)
        return Output(prediction=first, distilled=second)


def of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for so many channels: of a grey network the mean of those of red, green and blue."""
    values = tuple(values)
    if len(values) == channels:
        return values
    return (sum(values) / len(values),) * channels


def refuse_opaque(network: Network) -> NoReturn:
    """
    Raises:
        UserError: since what is asked for needs tokens.
    """
    raise UserError(f"{network.name} hands out logits only", remedy="Choose a ViT, DeiT or CaiT")
