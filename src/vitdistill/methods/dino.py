"""DINO (Caron et al., ICCV 2021), whose teacher, the student's moving average, may see only the patches that the
student attends to (MaskedKD, Table 4).

One step: the student sees large and small crops of each image; its class token's attention in each large crop ranks
that crop's patches; the teacher runs on the best of them; every view of the student predicts what the teacher says of
the other large crops.
"""

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import distributed as dist

from vitdistill.errors import UserError
from vitdistill.files import WEIGHTS
from vitdistill.losses.dino import dino_loss, dino_targets, entropy, moved_centre
from vitdistill.methods.masked_modelling import check_final_norm
from vitdistill.methods.method import Method, Pass, Spent, freeze_unreached
from vitdistill.methods.options import DinoHead, check_numbers, check_views
from vitdistill.methods.selection.amounts import Keep
from vitdistill.methods.selection.mass import see
from vitdistill.methods.selection.ranked import Ranked
from vitdistill.models.backbone import Backbone, with_tokens
from vitdistill.models.ema import follow
from vitdistill.models.families import as_network
from vitdistill.models.families.vit_at_size import LocalPositions, ViTAtSize
from vitdistill.models.network import Network, check_names_inputs
from vitdistill.models.projection import ProjectionHead
from vitdistill.models.teacher import Teacher
from vitdistill.types import NOTHING, Capture, Output, Step

TRAINED = "dino_student.safetensors"  # of a run: the network that was trained, of which the exported one is the average
LITTLE = 0.01  # of the largest entropy: what outputs tell of their images where they have collapsed


class Average(nn.Module):
    """The teacher: moving averages of the student's backbone and head, and of its own outputs. Nothing here trains.

    Attributes:
        centre: moving average of the head's outputs, (1, k).
    """

    centre: Tensor

    def __init__(self, student: Backbone, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(student), copy.deepcopy(head)
        self.register_buffer("centre", torch.zeros(1, head.outputs))
        self.requires_grad_(False)


class AverageTeacher(Teacher):
    """The average as a teacher: its prediction is the head's outputs less their centre.

    Unlike other teachers it is part of its method's state, and computes in the number format of the training: its
    weights, which change by a thousandth a step, stay in float32.
    """

    def __init__(self, average: Average) -> None:
        super().__init__(average.backbone)
        self.average = average

    def __call__(
        self, inputs: Float[Tensor, "b ch *pixels"], *, keep: Tensor | None = None, capture: Capture = NOTHING
    ) -> Output:
        self.average.eval()
        with torch.no_grad():
            output = self.network(inputs, keep=keep, capture=capture)
            if output.final is not None:
                output.prediction = self.average.head(class_token(output)).float() - self.average.centre
        return output


class DINO(Method):
    """Cross-entropy between what the average says of the large crops and what the student says of all others.

    Example:
        >>> method = DINO(student, globals=2, locals=8, local_size=(96, 96), keep=130)
        >>> method((global1, global2, *small_crops)).loss.backward()  # batches of views, the large ones first
        >>> optimizer.step()
        >>> method.after_step(progress)
    """

    student: Backbone
    decays_positions = True

    def __init__(
        self,
        student: Network | nn.Module,
        *,
        globals: int = 2,
        locals: int = 0,
        local_size: tuple[int, int] | None = None,
        keep: Keep = 1.0,
        head: DinoHead = DinoHead(),
        local_positions: LocalPositions = "dino",
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        first_teacher_temperature: float | None = None,
        temperature_warmup: float = 0.0,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        freeze_last: float = 0.0,
        network: Teacher | Network | nn.Module | None = None,
        **selection: Any,
    ) -> None:
        """
        Args:
            student: the network to train: a ViT with a class token, a timm module or an adapter.
            globals: large crops of each image, which the teacher sees as well; the first views.
            locals: small crops of each image.
            local_size: height and width of these in pixels.
            keep: patches of a large crop that the teacher sees: a count (130), a fraction (0.66; 1.0, all, is DINO),
                a schedule over training ('1.0->0.5' linear, '0:1.0,0.5:0.25' in steps), or a rule (agree:0.9,
                budget:0.5, mass:0.9).
            head: sizes of the head.
            local_positions: how position embeddings are interpolated for the small crops: as DINO's authors do (dino),
                or as timm does, with antialiasing (timm).
            student_temperature: of the student's softmax.
            teacher_temperature: of the teacher's softmax; lower is sharper.
            first_teacher_temperature: of the teacher's softmax at the beginning, from where it goes to
                `teacher_temperature` along a line.
            temperature_warmup: share of the training that this takes.
            momentum: decay of the teacher's moving average at the beginning; goes to 1 along a cosine.
            centre_momentum: decay of the moving average of the teacher's outputs.
            freeze_last: share of the training at whose beginning the head's prototypes stay as they are.
            network: the frozen network of the criteria that name one.
            selection: which patches the teacher sees: criterion, order, saliency, saliency_layer, random_share; see
                `Ranked`.

        Raises:
            UserError: when there is one view only, the student has no class token or its patches cannot be left out, or
                a number is out of range.
        """
        check_views(globals, locals)
        check_numbers(
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            first_teacher_temperature=first_teacher_temperature,
            momentum=momentum,
            centre_momentum=centre_momentum,
        )
        backbone = with_tokens(as_network(student))
        check_names_inputs(backbone, "DINO trains a ViT without a head")
        super().__init__(backbone)
        if getattr(backbone.net, "cls_token", None) is None:
            raise UserError("DINO reads the class token", f"{backbone.name}, which has none", "Choose a ViT or DeiT")
        check_final_norm(backbone)
        freeze_unreached(backbone, backbone.reached(NOTHING, prediction=False))
        self.head = ProjectionHead(
            backbone.width, head.outputs, hidden=head.hidden, bottleneck=head.bottleneck, norm_last=head.norm_last
        )
        self.average = Average(backbone, self.head)
        self.guide = AverageTeacher(self.average)
        self.globals, self.locals = globals, locals
        # The same network at another size; in a list, so that its weights are not counted twice.
        self._small: list[Backbone] = []
        if locals:
            self._small.append(ViTAtSize(backbone, local_size or backbone.input.size, local_positions))
        self.ranks_by = None if network is None else Teacher.of(network, backbone)
        self.selector = Ranked(keep=keep, mask="teacher", network=self.ranks_by, **selection)
        self.selector.check(backbone, self.guide)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.first_teacher_temperature = first_teacher_temperature
        self.temperature_warmup = temperature_warmup
        self.momentum, self.centre_momentum, self.freeze_last = momentum, centre_momentum, freeze_last
        # Entropy of the teacher's outputs, and the distance of their mean from uniform, in the last step.
        self.register_buffer("watched", torch.full((2,), math.nan))

    watched: Tensor

    # --- one step --------------------

    def forward(self, inputs: Any, targets: Tensor | None = None, progress: float = 0.0) -> Step:
        """One training step's loss.

        Args:
            inputs: one batch per view, the large ones first.
            targets: ignored.
            progress: share of the training that is done.

        Raises:
            ValueError: when there are not as many views as the method was made for.
        """
        large, small = self._by_size(inputs)

        # The student sees every view, one pass a size, and hands out what ranks the patches of the large ones.
        student = self.student(large, capture=self.student_capture(progress))
        tokens = [class_token(student)]
        if small is not None:
            tokens.append(class_token(self._small[0](small)))
        scores = self.head(torch.cat(tokens))

        # The teacher sees of each large view what this view's own pass of the student keeps.
        with self.clock("teacher"):
            keep = self.selector.for_teacher(large, student, self.student, self.guide, progress)
            teacher = see(self.guide, large, keep, NOTHING)
            measured: dict[str, float | Tensor] = {
                **self.selector.observe(large, student, self.student, self.guide, keep, teacher, progress)
            }
        assert teacher.prediction is not None
        said = dino_targets(teacher.prediction, self.temperature_at(progress))

        # Every view predicts the others' targets. These used the centre as it was; now it moves.
        loss = dino_loss(scores, said, len(inputs), self.student_temperature)
        if self.training:
            measured |= self._watch(teacher.prediction, said)
        return Step(loss, {"dino": loss.detach()}, kept=None if keep is None else teacher.kept, measured=measured)

    def _by_size(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Large and small views, each as one batch: all images in one view, then all in the next.

        Raises:
            ValueError: when they are not as many as the method was made for.
        """
        if not isinstance(inputs, tuple) or len(inputs) != self.globals + self.locals:
            got = f"{len(inputs)}" if isinstance(inputs, tuple) else "one batch"
            raise ValueError(f"{self.globals} large and {self.locals} small views are needed; got {got}")
        small = inputs[self.globals :]
        return torch.cat(inputs[: self.globals]), torch.cat(small) if small else None

    @torch.no_grad()
    def _watch(self, centred: Float[Tensor, "gb k"], said: Float[Tensor, "gb k"]) -> dict[str, Tensor]:
        """Move the centre, by the outputs of all processes, and look for collapse.

        Returns:
            The mean entropy of the teacher's outputs in nats, and the Kullback-Leibler divergence of their mean from
            the uniform distribution. Where outputs are the same for all images, the two add up to log k.
        """
        each = entropy(said).sum()
        sums = torch.cat((centred.sum(dim=0), said.sum(dim=0), torch.stack((each, torch.full_like(each, len(said))))))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        outputs = self.head.outputs
        means = sums[:-1] / sums[-1]
        centre = self.average.centre
        centre.copy_(moved_centre(centre, means[:outputs] + centre[0], self.centre_momentum))
        spread = entropy(means[outputs:-1])
        self.watched.copy_(torch.stack((means[-1], math.log(outputs) - spread)))
        return {"teacher/entropy": self.watched[0].clone(), "teacher/kl_uniform": self.watched[1].clone()}

    def after_backward(self, progress: float) -> None:
        if progress < self.freeze_last or self.freeze_last >= 1:  # without a gradient, no weight decay either
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, progress: float) -> None:
        decay = self.momentum_at(progress)
        follow(self.average.backbone, self.student, decay)
        follow(self.average.head, self.head, decay)

    def momentum_at(self, progress: float) -> float:
        """Decay of the teacher's moving average at a training progress in [0, 1]."""
        return 1 - (1 - self.momentum) * 0.5 * (1 + math.cos(math.pi * progress))

    def temperature_at(self, progress: float) -> float:
        """The teacher's temperature at a training progress in [0, 1]."""
        last, first = self.teacher_temperature, self.first_teacher_temperature
        if first is None or progress >= self.temperature_warmup:
            return last
        return first + (last - first) * progress / self.temperature_warmup

    # --- what it runs --------------------

    def student_capture(self, progress: float) -> Capture:
        """What the student's pass over the large views hands out."""
        return self.selector.capture(self.student, self.guide, progress) | NOTHING

    @property
    def teachers(self) -> list[Teacher]:
        return [self.guide, *([] if self.ranks_by is None else [self.ranks_by])]

    @property
    def masked(self) -> Backbone | None:
        return self.selector.masked(self.student, self.guide)

    def kept_patches(self, progress: float) -> int | None:
        return self.selector.counts(self.student, self.guide, progress)[1]

    def passes(self, progress: float) -> list[Pass]:
        ranking = self.selector.ranking_passes(self.student, self.guide, progress)
        kept = self.kept_patches(progress)
        return [
            Pass("student", self.student, None, self.student_capture(progress), self.globals),
            *(Pass("student", small, times=self.locals) for small in self._small),
            *(one._replace(times=one.times * self.globals) for one in ranking),
            Pass("teacher", self.guide.network, kept, times=self.globals),
        ]

    def spent(self, remembered: dict[str, Any]) -> Spent | None:
        spent = self.selector.spent(remembered, self.student, self.guide, NOTHING)
        return None if spent is None else spent._replace(inputs=spent.inputs // self.globals)

    # --- what it has learned about its teacher --------------------

    def remembered(self, total: Any = lambda local: local) -> dict[str, Any]:
        return self.selector.state(total)

    def recall(self, state: dict[str, Any], *, first: bool = True) -> None:
        self.selector.load(state, first=first)

    def observations(self) -> dict[str, float]:
        return self.selector.observations()

    def describe(self) -> dict[str, Any]:
        return self.selector.describe()

    def doubt(self) -> str | None:
        of_each, from_uniform = self.watched.tolist()
        most = math.log(self.head.outputs)
        if math.isnan(of_each) or most - from_uniform - of_each > LITTLE * most:
            return None
        one = of_each < most / 2
        return (
            f"The teacher says the same of all images ({'one output' if one else 'all outputs alike'}: entropy "
            f"{of_each:.2f} of at most {most:.2f} nats), so nothing is left to learn. "
            + ("Raise --teacher_temperature, or lower --optim.lr" if one else "Lower --teacher_temperature")
        )

    # --- what it leaves --------------------

    def artifacts(self, state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The average takes the place of the student's weights, as DINO's authors evaluate it."""
        return {
            name: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            for name, prefix in ((WEIGHTS, "average.backbone.net."), (TRAINED, "student.net."))
        }


def class_token(output: Output) -> Float[Tensor, "b d"]:
    """The normed class token of a pass."""
    assert output.final is not None
    return output.final.special[:, 0]
