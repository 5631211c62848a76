"""The interface of any network, and of one that is known by its prediction alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, NoReturn

from jaxtyping import Float, Int
from timm.layers import PatchEmbed
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.macs import Macs, check_kept, traced_macs
from vitdistill.models.record import record_of
from vitdistill.models.whole import why_whole
from vitdistill.types import NOTHING, Capture, InputSpec, Output

# timm's defaults for networks that carry no pretrained configuration.
DEFAULT_MEAN, DEFAULT_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# A parameter that has a row for each class: the module that holds it, its name there, and the dimension of the classes.
ClassParameter = tuple[nn.Module, str, int]


class Network(nn.Module, ABC):
    """Anything that maps inputs to a prediction, behind one interface.

    Attributes:
        net: the untouched network; its `state_dict` is what gets exported.
        maskable: whether `keep` may be given, that is whether patches can be left out of the input.
        sized: whether inputs must have the size of `input`; a teacher without a stated size gets the student's inputs.
        trains_body: whether training changes more than the classifier, so that gradients pass through the network.
        padded: whether the images of a batch may differ in size, and are then filled up with zeros at the right and at
            the bottom.
        reads_grid: whether the head reads the whole grid of patches, so that a pass up to it can leave none out.
        purpose: what it does other than naming the class of an input, after "which"; empty of all others.
        task: the name of the task that its head is for.
    """

    maskable = False
    sized = True
    trains_body = True
    padded = False
    reads_grid = False
    purpose = ""
    task = "classification"

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

    def fit(self, size: Sequence[int]) -> AbstractContextManager[None]:
        """Within the context, `input` and `grid` are those of inputs of a size.

        Of a network without a fixed size, that is; by default nothing changes. Whoever asks for the grid of inputs
        before the network sees them calls it; `forward` does so by itself.

        Args:
            size: height and width in pixels.

        Raises:
            UserError: when the network cannot take inputs of this size.
        """
        return nullcontext()

    @property
    def detections(self) -> int:
        """Objects that the network can find in one input; 0 of all but detectors."""
        return 0

    def named(self, prediction: Tensor) -> Int[Tensor, "b *things"] | None:
        """The class that a prediction names, of an input or of each thing in it; -1 where there is nothing to name.

        None where a prediction names nothing that could be compared from one pass to another.
        """
        return prediction.argmax(dim=1) if prediction.ndim == 2 else None

    def in_order(self, prediction: Tensor, order: Int[Tensor, "c"]) -> Tensor:
        """A prediction for classes in another order.

        Args:
            prediction: of the network.
            order: which of the network's classes each class is.
        """
        return prediction.index_select(1, order)

    def fixed(self) -> dict[str, Tensor]:
        """Tensors that belong into a file of the network though `net` does not hold them; none of most networks.

        Training neither changes them nor writes them into its checkpoints.
        """
        return {}

    @property
    def whole(self) -> "Network":
        """The network without whatever saves work in it (merging tokens); by default itself."""
        return self

    @property
    def why_whole(self) -> str:
        """Why patches cannot be left out of it, in a few words, where that is so."""
        return why_whole(self.net)

    @property
    def _config(self) -> dict[str, Any]:
        return getattr(self.net, "pretrained_cfg", None) or {}

    @property
    def channels(self) -> int:
        """Colour channels of an input, read from the network where it shows them."""
        embed = getattr(self.net, "patch_embed", None)
        if isinstance(embed, PatchEmbed):
            return int(embed.proj.in_channels)
        if (built := record_of(self.net).args.get("in_chans")) is not None:
            return int(built)
        channels = int((self._config.get("input_size") or (3,))[0])
        first = self._config.get("first_conv") or ""
        try:
            conv = self.net.get_submodule(first if isinstance(first, str) else first[0])
        except AttributeError:  # it is no longer there
            return channels
        # A stem that folds pixels into channels (TResNet) has a multiple of these, and is not taken at its word.
        return int(conv.in_channels) if getattr(conv, "in_channels", 0) in (1, 2, 4) else channels

    @property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel that the network expects.

        Where timm's configuration has other channels than the network (greyscale), all get their average.
        """
        mean, std = (tuple(self._config.get(*one)) for one in (("mean", DEFAULT_MEAN), ("std", DEFAULT_STD)))
        count = self.channels
        return _spread(mean, count), _spread(std, count)

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
            f"{self.name} cannot leave out patches ({self.why_whole}), so it cannot be a masked teacher or student",
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
        """Its size is the one it was built with, or, where it takes any, the one it is fed."""
        built = record_of(self.net).args.get("img_size") or getattr(
            getattr(self.net, "patch_embed", None), "img_size", None
        )
        size = (built, built) if isinstance(built, int) else built or self._config.get("input_size", (224, 224))[-2:]
        return InputSpec((self.channels, int(size[0]), int(size[1])), *self._statistics)

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


def check_names_inputs(network: Network, rule: str, remedy: str | None = None) -> None:
    """
    Args:
        network: that shall have a classifier, or is one.
        rule: what must hold.
        remedy: what to do; None is to choose what it was made of, and of verbs with `--task` see `to_its_task`.

    Raises:
        UserError: when it does something else, as detectors do.
    """
    if network.purpose:
        remedy = "Choose the ViT that it was made of" if remedy is None else remedy
        raise UserError(rule, f"{network.name}, which {network.purpose}", remedy)


def to_its_task(network: Network) -> str:
    """What to do with a network of another purpose, where a verb has `--task`."""
    return f"Give --task {network.task}, or choose the ViT that it was made of"


def fit_all(networks: Iterable[Network], inputs: Tensor) -> ExitStack:
    """A context in which networks without a fixed size have that of the inputs; see `Network.fit`."""
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(network.fit(tuple(inputs.shape[-2:])))
        return stack.pop_all()


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values if len(values) == count else (sum(values) / len(values),) * count


def refuse_opaque(network: Network) -> NoReturn:
    """
    Raises:
        UserError: since what is asked for needs tokens.
    """
    raise UserError(f"{network.name} hands out logits only ({network.why_whole})", remedy="Choose a ViT, DeiT or CaiT")
