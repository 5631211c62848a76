"""The teacher: a network that is frozen, always in eval mode, without gradient, and in nobody's checkpoint."""

import math
from collections.abc import Sequence
from typing import Union

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.classes import class_order
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.text import TextEmbeddings
from vitdistill.types import NOTHING, QKV, Capture, Output, TokenGrid, Tokens

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as Pillow converts


class Teacher:
    """A frozen network that takes the student's inputs and sees them as it was trained to.

    Deliberately not an `nn.Module`: a module that holds it does not register its weights, so they stay out of
    `state_dict`, `parameters`, DDP buckets and FSDP shards. It follows the inputs to their device by itself, unless it
    has a device of its own: then inputs go there, and what it hands out comes back to theirs.

    Attributes:
        network: frozen and in eval mode.
        drops_paths: whether its drop path is active, if it has any: an ablation of TinyMIM, off by default.
        device: where it computes; None for where the inputs are.
        order: which of the network's scores belongs to each class of the data, (c,); None for all of them as they are.

    Example:
        >>> teacher = Teacher.of(timm.create_model("deit_small_patch16_224", pretrained=True), student)
        >>> scores = teacher(images, keep=kept).prediction  # images as the student sees them
    """

    def __init__(
        self,
        network: Network,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype | None = None,
        text_embeddings: TextEmbeddings | Float[Tensor, "c e"] | None = None,
    ) -> None:
        """
        Args:
            network: its parameters are frozen in place.
            mean: statistics that the incoming inputs were normalised with; None means the teacher's own.
            std: goes with `mean`.
            dtype: compute the teacher in this dtype (bfloat16 on GPUs); None keeps its own.
            text_embeddings: one embedding per class. The teacher's output is then taken as an image embedding, and
                its class scores are the cosine similarity (CLIP zero-shot) times the text's own scale, 100 by default.

        Raises:
            UserError: when the text embeddings have other channels than the network's output, or the network takes
                other channels than the inputs have, and neither is grey and the other RGB.
        """
        text = TextEmbeddings(text_embeddings) if isinstance(text_embeddings, Tensor) else text_embeddings
        if text is not None:
            channels = network.num_classes or with_tokens(network).width
            if text.features.shape[1] != channels:
                raise UserError(
                    f"Text embeddings must have the {channels} channels of {network.name}'s image embeddings",
                    text.features.shape[1],
                    "Take both from one CLIP model, its image projection included",
                )
        self.network = network.requires_grad_(False).eval()
        if dtype is not None:
            network.to(dtype)
        self.text_embeddings = None if text is None else F.normalize(text.features.float(), dim=-1)
        self._text = text
        self.drops_paths = False
        self.device: torch.device | None = None
        self.order: Tensor | None = None
        own = network.input
        mean, std = mean or own.mean, std or own.std
        if {len(mean), len(own.mean)} not in ({len(own.mean)}, {1, 3}):
            raise UserError(
                "Student and teacher must take the same channels, or one of them grey images (1) and the other RGB (3)",
                f"{len(mean)} channels, and {len(own.mean)} of the teacher {network.name}",
                f"Build the student with --student_args.in_chans {len(own.mean)}, or choose another teacher",
            )
        self._renormalise = _Renormalise.between(mean, std, own.mean, own.std)

    @classmethod
    def of(
        cls,
        model: Union["Teacher", Network, nn.Module],
        student: Network,
        *,
        dtype: torch.dtype | None = None,
        text_embeddings: TextEmbeddings | Float[Tensor, "c e"] | None = None,
    ) -> "Teacher":
        """A teacher for a student: it takes inputs that were normalised with the student's statistics.

        Args:
            model: a teacher, which is returned as it is, a network, or any module.
            student: whose inputs it will see.
            dtype: see the class.
            text_embeddings: see the class.

        Raises:
            UserError: when it is the very network to be trained.
        """
        if isinstance(model, Teacher):
            teacher = model
        else:
            spec = student.input
            network = as_network(model)
            if network.net is student.net:
                raise UserError("The teacher must be another network than the student", remedy="Give a copy of it")
            teacher = cls(network, mean=spec.mean, std=spec.std, dtype=dtype, text_embeddings=text_embeddings)
        if teacher.network.net is student.net:
            raise UserError("The teacher must be another network than the student", remedy="Give a copy of it")
        return teacher

    @property
    def name(self) -> str:
        return self.network.name

    @property
    def backbone(self) -> Backbone:
        """The network, if its tokens are known.

        Raises:
            UserError: when it hands out its prediction only.
        """
        return with_tokens(self.network)

    @property
    def grid(self) -> TokenGrid:
        """Patches of one input."""
        return self.backbone.grid

    @property
    def passes(self) -> int:
        """Passes of the network that one input takes."""
        return 1

    @property
    def num_classes(self) -> int:
        if self.order is not None:
            return len(self.order)
        return len(self.text_embeddings) if self.text_embeddings is not None else self.network.num_classes

    def match_classes(self, classes: Sequence[str], data: str) -> None:
        """Put the class scores into the order of the data's classes, by name.

        Text embeddings whose classes have no names are taken in the data's order.

        Args:
            classes: names of the data's classes.
            data: what the data is called in messages.

        Raises:
            UserError: when the network was trained on other classes, or the text embeddings are of others.

        Example:
            >>> teacher.match_classes(source.classes, source.name)
        """
        if self._text is not None:
            order = self._text.order(classes, data)
            self.order = None if order is None else torch.tensor(order)
            return
        order = class_order(self.network, classes, data, role="teacher")
        self.order = None if order is None else torch.tensor(order)

    def __call__(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """The network's output for inputs normalised with the student's statistics; float32 class scores."""
        parameter = next(self.network.parameters(), None)
        home, where = inputs.device, self.device or inputs.device
        if parameter is not None and parameter.device != where:
            self.network.to(where)
        if where != home:
            inputs = onto(inputs, where)
            keep = None if keep is None else onto(keep, where)
        self.network.eval()
        for module in self._drop_paths if self.drops_paths else ():
            module.train()
        dtype = parameter.dtype if parameter is not None else inputs.dtype
        with torch.no_grad(), torch.autocast(where.type, enabled=False):
            seen = self.resized(self._renormalise(inputs.float())).to(dtype)
            output = self.network(seen, keep=keep, capture=capture)
            if output.prediction is not None:
                output.prediction = self._class_scores(output.prediction.float())
        return output if where == home else output.map(lambda tensor: onto(tensor, home))

    @property
    def _drop_paths(self) -> list[DropPath]:
        return [module for module in self.network.modules() if isinstance(module, DropPath)]

    def resized(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch *pixels2"]:
        """Images or frames at the teacher's resolution (MaskedKD, App. C, and MVD's H interpolate)."""
        size = self.network.input.size
        if tuple(inputs.shape[-2:]) == size or not self.network.sized:
            return inputs
        shrinking = inputs.shape[-2] > size[0] or inputs.shape[-1] > size[1]
        pictures = inputs if inputs.ndim == 4 else inputs.transpose(1, 2).flatten(0, 1)
        pictures = F.interpolate(pictures, size=size, mode="bicubic", align_corners=False, antialias=shrinking)
        return pictures if inputs.ndim == 4 else pictures.unflatten(0, (len(inputs), -1)).transpose(1, 2)

    def _class_scores(self, output: Float[Tensor, "b *e"]) -> Float[Tensor, "b *c"]:
        if self._text is not None and self.text_embeddings is not None:
            self.text_embeddings = self.text_embeddings.to(output.device)
            output = self._text.scale * F.normalize(output, dim=-1) @ self.text_embeddings.T
        if self.order is None:
            return output
        self.order = self.order.to(output.device)
        return self.network.in_order(output, self.order)


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. GPUs order copies with what they compute; a CPU would read what is not there yet."""
    return tensor.to(device, non_blocking=device.type != "cpu")


class FrameTeacher(Teacher):
    """A teacher over images that takes clips: it sees the first frame of every time step, as so many images (MVD).

    Its patches are those of all time steps, so its tokens stand where the student's do; special tokens are left out,
    since each frame has its own.

    Attributes:
        steps: time steps of a clip, as many as the student has.
    """

    steps: int

    @classmethod
    def over(cls, teacher: Teacher, steps: int) -> "FrameTeacher":
        """The teacher, seeing clips of so many time steps."""
        framewise = cls.__new__(cls)
        framewise.__dict__.update(teacher.__dict__, steps=steps)
        return framewise

    @property
    def grid(self) -> TokenGrid:
        image = super().grid
        return TokenGrid(self.steps, image.h, image.w)

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(
        self,
        inputs: Float[Tensor, "b ch t height width"],
        *,
        keep: Int[Tensor, "bm k"] | None = None,
        capture: Capture = NOTHING,
    ) -> Output:
        """
        Raises:
            UserError: when patches shall be left out.
        """
        if keep is not None:
            raise UserError("A teacher over the frames of clips sees every patch", remedy="Use --keep 1.0")
        frames = inputs[:, :, :: inputs.shape[2] // self.steps].transpose(1, 2).flatten(0, 1)
        output = super().__call__(frames, capture=capture)
        together = Output(grid=self.grid)
        for point, tokens in output.captured.items():
            assert not isinstance(tokens, QKV), "relations between the tokens of different frames are not known"
            patches = tokens.patches.reshape(len(inputs), self.grid.count, -1)
            together.captured[point] = Tokens(patches, 0)
        return together


class _Renormalise(nn.Module):
    """From one pair of input statistics to another: x * scale + shift per channel. Grey becomes RGB, and RGB luma."""

    def __init__(self, scale: Tensor, shift: Tensor, *, luma: bool) -> None:
        super().__init__()
        self.scale, self.shift, self.luma = scale, shift, luma

    @classmethod
    def between(
        cls, mean: Sequence[float], std: Sequence[float], to_mean: Sequence[float], to_std: Sequence[float]
    ) -> nn.Module:
        """The map between two statistics; the identity when they agree, so that nothing is rounded."""
        channels = len(mean), len(to_mean)
        pairs = zip((*mean, *std), (*to_mean, *to_std), strict=False)
        if channels[0] == channels[1] and all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs):
            return nn.Identity()
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std, to_mean, to_std)
        )
        luma = channels == (3, 1)
        weights = torch.tensor(LUMA).view(-1, 1, 1) if luma else torch.ones(1)
        # Red, green and blue share the teacher's mean in the proportion of their weights, which add up to 1.
        return cls(old_std * weights / new_std, (old_mean - new_mean) * weights / new_std, luma=luma)

    def forward(self, images: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch2 *pixels"]:
        if self.scale.device != images.device:
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        shape = (-1, *[1] * (images.ndim - 2))
        seen = images * self.scale.view(shape) + self.shift.view(shape)
        return seen.sum(dim=1, keepdim=True) if self.luma else seen
