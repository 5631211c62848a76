"""Training without a teacher."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.method import Method, Pass
from vitdistill.methods.options import check_patch_drop
from vitdistill.models.backbone import Backbone
from vitdistill.models.families import as_network
from vitdistill.models.network import Network
from vitdistill.models.whole import why_whole
from vitdistill.tasks.classification import Classification
from vitdistill.tasks.task import Task
from vitdistill.tokens.keep import keep_count
from vitdistill.tokens.select import random_scores, top_k
from vitdistill.types import Step


class Supervised(Method):
    """The task's loss on labels: for classification, cross-entropy on hard, smoothed or mixed labels.

    With `patch_drop` every training step shows the network a random part of each image's patches, so that it learns to
    answer without the others: a teacher that is ready for masks. In eval mode it sees every patch. This computes what
    timm's `patch_drop_rate` does (PatchDropout), through the adapters, so that families have it for which timm has
    none: positions are added first, special tokens always stay, every image has a selection of its own. The number of
    patches is rounded as `--keep` rounds it, where timm rounds down, and the distillation token of a distilled DeiT is
    no patch, for which timm takes it.

    Example:
        >>> Supervised(timm.create_model("deit_tiny_patch16_224"), task=Classification(1000, smoothing=0.1))
        >>> Supervised(timm.create_model("cait_s24_224"), patch_drop=0.5)
    """

    task: Task

    def __init__(self, student: Network | nn.Module, *, task: Task | None = None, patch_drop: float = 0.0) -> None:
        """
        Args:
            student: the network to train.
            task: what the labels mean; None is classification into the student's classes, without smoothing.
            patch_drop: share of the patches that a training step leaves out of each image, in [0, 1).

        Raises:
            UserError: when the network cannot be trained for the task, or patches shall be left out where they cannot
                be.
        """
        network = as_network(student)
        goal = task or Classification(network.num_classes)
        super().__init__(network, goal)
        check_patch_drop(patch_drop)
        if patch_drop:
            _check_leaves_out(network, goal, patch_drop)
        self.patch_drop = float(patch_drop)

    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        assert targets is not None
        with self.student.fit(tuple(inputs.shape[-2:])):
            keep = self._draw(inputs) if self.training else None
        prediction = self.task.read(self.student, self.student(inputs, keep=keep), targets)
        losses = self.task.loss(prediction, targets)
        parts = {name: value.detach() for name, value in losses.items()}
        return Step(torch.stack(list(losses.values())).sum(), parts, prediction, keep)

    def _draw(self, inputs: Float[Tensor, "b ch *pixels"]) -> Int[Tensor, "b k"] | None:
        """A uniformly random selection of each input's patches, drawn on the device; None for all of them."""
        count = self.kept_patches(0.0)
        if self.masked is None or count is None:
            return None
        return top_k(random_scores(len(inputs), self.masked.grid.count, device=inputs.device), count)

    @property
    def masked(self) -> Backbone | None:
        return self.student if self.patch_drop and isinstance(self.student, Backbone) else None

    def kept_patches(self, progress: float) -> int | None:
        if self.masked is None:
            return None
        count = keep_count(1 - self.patch_drop, self.masked.grid.count)
        return None if count == self.masked.grid.count else count

    def passes(self, progress: float) -> list[Pass]:
        return [Pass("student", self.student, self.kept_patches(progress))]


def _check_leaves_out(network: Network, task: Task, patch_drop: float) -> None:
    """
    Raises:
        UserError: when the network, or the task, cannot do without some of the patches.
    """
    if not network.maskable:
        raise UserError(
            f"{network.name} cannot leave out patches ({why_whole(network.net)})",
            f"patch_drop {patch_drop}",
            "Leave --patch_drop out, or choose a ViT, DeiT or CaiT",
        )
    if task.reads_grid:
        raise UserError(
            f"The task {type(task).__name__.lower()} reads its answer out of the whole grid of patches, so that none "
            "can be left out",
            f"patch_drop {patch_drop}",
            "Leave --patch_drop out",
        )
    if getattr(getattr(network.net, "patch_drop", None), "prob", 0):
        raise UserError(
            f"{network.name} drops patches by itself (patch_drop_rate), so --patch_drop would drop them twice",
            f"patch_drop {patch_drop}",
            "Build it without patch_drop_rate",
        )
