"""The one supervised step: a student, its teachers, what it learns from each, and what the labels add."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitdistill.errors import UserError
from vitdistill.methods.method import Method, Pass, Spent, freeze_unreached
from vitdistill.methods.selection.mass import Groups, see
from vitdistill.methods.selection.selector import Selector
from vitdistill.methods.terms.term import Term
from vitdistill.models.backbone import Backbone
from vitdistill.models.families import as_network
from vitdistill.models.network import Network, fit_all
from vitdistill.models.teacher import FrameTeacher, Teacher
from vitdistill.tasks.task import Task
from vitdistill.types import Capture, InputSpec, Output, Step

if TYPE_CHECKING:
    from vitdistill.methods.pipelining.pipeline import Pipeline


class Lesson(NamedTuple):
    """A teacher, and what the student learns from its pass."""

    teacher: Teacher
    terms: Sequence[Term]

    @property
    def capture(self) -> Capture:
        """What the teacher's pass hands out, which decides where it stops."""
        return Capture.union(term.captures()[1] for term in self.terms)


class Taught(NamedTuple):
    """A teacher's pass over what it was shown.

    Attributes:
        keep: the patches that it saw; None for all.
        output: of the pass.
    """

    keep: Int[Tensor, "b k"] | Groups | None
    output: Output


class Distillation(Method):
    """Weighted sum of what the teachers say and, where there is a task, of what the labels say.

    MaskedKD is this with class scores as the term, TinyMIM with token relations and no task.

    Example:
        >>> method = Distillation(student, [Lesson(teacher, [Logits(tau=4.0)])], task=Classification(1000))
        >>> method(images, labels).loss.backward()
    """

    pipeline: "Pipeline | None" = None  # see `pipelined`

    def __init__(
        self,
        student: Network | nn.Module,
        lessons: Iterable[Lesson] = (),
        *,
        task: Task | None = None,
        task_weight: float = 1.0,
        selector: Selector | None = None,
    ) -> None:
        """
        Args:
            student: the network to train. Without labels, `freeze_unreached` keeps from training what no term reaches.
            lessons: teachers with their terms.
            task: what the labels mean; None trains without labels.
            task_weight: of the labels' loss.
            selector: which patches the teachers see; None shows them all.

        Raises:
            UserError: when the student cannot be trained for the task, patches shall be left out where they cannot be,
                or a teacher cannot see the student's inputs.
        """
        super().__init__(as_network(student), task)
        self.lessons = list(lessons)
        self.terms = nn.ModuleList(term for lesson in self.lessons for term in lesson.terms)
        self.selector = selector or Selector()
        self.weights = {name: weight for term in self.terms for name, weight in term.weights.items()}  # type: ignore[union-attr,operator]
        self.task_weight = task_weight
        for teacher, taught in self.lessons:
            check_inputs(self.student, teacher)
            self.selector.check(self.student, teacher, tuple(taught))

    # --- one step --------------------

    def forward(
        self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None = None, progress: float = 0.0
    ) -> Step:
        # Networks without a fixed size have that of these inputs, so that patches are chosen on their grid.
        with fit_all((self.student, *(teacher.network for teacher in self.teachers)), inputs):
            return self._step(inputs, targets, progress)

    def _step(self, inputs: Float[Tensor, "b ch *pixels"], targets: Tensor | None, progress: float) -> Step:
        if self.pipeline is not None and self.training:
            # The same passes, over parts of the batch.
            student, taught = self.pipeline.passes(self, inputs, progress)
        else:
            # The student sees everything, unless the selector masks it, and hands out what selector and terms ask for.
            shown = self.shown(inputs, progress)
            student = self.student_pass(self.view(inputs), shown, progress)
            # Each teacher sees what the selector keeps, up to the last point that its terms ask for.
            with self.clock("teacher"):
                taught = tuple(self.taught(lesson, inputs, student, progress) for lesson in self.lessons)

        # What the student learns from each, and from the labels; what the selector learns from it all.
        step = self.compared(inputs, targets, student, taught)
        step.measured = self.observed(inputs, student, taught, progress)
        return step

    def shown(self, inputs: Float[Tensor, "b ch *pixels"], progress: float) -> Int[Tensor, "b k"] | None:
        """Patches that the student sees; None for all."""
        if not self.lessons:
            return None
        return self.selector.for_student(inputs, self.student, self.lessons[0].teacher, progress)

    def student_pass(
        self, view: Float[Tensor, "b ch *pixels"], shown: Int[Tensor, "b k"] | None, progress: float
    ) -> Output:
        """The student's pass over its view of the inputs."""
        return self.student(view, keep=shown, capture=self.student_capture(progress))

    def taught(self, lesson: Lesson, inputs: Float[Tensor, "b ch *pixels"], student: Output, progress: float) -> Taught:
        """A teacher's pass over what is kept for it."""
        keep = self.kept(lesson, inputs, student, progress)
        return Taught(keep, see(lesson.teacher, inputs, keep, lesson.capture))

    def kept(
        self,
        lesson: Lesson,
        inputs: Float[Tensor, "b ch *pixels"],
        student: Output,
        progress: float,
        noise: Float[Tensor, "b n"] | None = None,
    ) -> Int[Tensor, "b k"] | Groups | None:
        """Patches that a teacher sees, after the student's pass; None for all. See `Selector.for_teacher`."""
        drawn = {} if noise is None else {"noise": noise}  # selectors without chance need not know of it
        return self.selector.for_teacher(inputs, student, self.student, lesson.teacher, progress, **drawn)

    def compared(
        self,
        inputs: Float[Tensor, "b ch *pixels"],
        targets: Tensor | None,
        student: Output,
        taught: tuple[Any, ...],
    ) -> Step:
        """The loss, once all passes are made.

        Args:
            inputs: of the step.
            targets: of the task.
            student: its pass.
            taught: a `Taught` for each lesson.
        """
        losses: dict[str, Tensor] = {}
        scores, kept = None, student.kept
        for lesson, (keep, output) in zip(self.lessons, taught, strict=True):
            for term in lesson.terms:
                learned = term(student, output, targets) if term.uses_labels else term(student, output)
                if twice := losses.keys() & learned.keys():
                    raise ValueError(f"two losses are both named {', '.join(twice)}, of which one would be lost")
                losses |= learned
                scores = output.prediction if term.compares_predictions else scores
            kept = kept if keep is None else output.kept

        # Labels, or whatever else the method learns without a teacher.
        own = self.own_losses(inputs, student, targets)
        losses |= own
        weights = self.weights if self.task is None else {**self.weights, **dict.fromkeys(own, self.task_weight)}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        parts = {name: value.detach() for name, value in losses.items()}
        prediction = None if self.task is None else student.prediction  # without labels its head learns nothing
        return Step(loss, parts, prediction, kept, scores)

    def observed(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Output, taught: tuple[Any, ...], progress: float
    ) -> dict[str, float]:
        """What the selector learns from a step, which it learns from the first teacher."""
        if not self.lessons:
            return {}
        (keep, seen), teacher = taught[0], self.lessons[0].teacher
        with self.clock("teacher"):
            return self.selector.observe(inputs, student, self.student, teacher, keep, seen, progress)

    def view(self, inputs: Float[Tensor, "b ch *pixels"]) -> Float[Tensor, "b ch *pixels"]:
        """The student's view of the inputs; by default as they are."""
        return inputs

    def own_losses(
        self, inputs: Float[Tensor, "b ch *pixels"], student: Output, targets: Tensor | None
    ) -> dict[str, Float[Tensor, ""]]:
        """Losses that need no teacher, by name; by default the task's."""
        if self.task is None:
            return {}
        assert targets is not None, "a method with a task needs targets"
        return self.task.loss(self.task.read(self.student, student, targets), targets)

    # --- what it runs --------------------

    def student_capture(self, progress: float) -> Capture:
        """What the student's pass hands out; it stops early where neither a term nor labels need its head."""
        asked = [term.captures()[0] for term in self.terms]  # type: ignore[operator]
        selected = [self.selector.capture(self.student, teacher, progress) for teacher, _ in self.lessons]
        return Capture.union([*asked, *selected, Capture(head=self.task is not None)])

    @property
    def teachers(self) -> list[Teacher]:
        return [teacher for teacher, _ in self.lessons]

    @property
    def masked(self) -> Backbone | None:
        return self.selector.masked(self.student, self.lessons[0].teacher) if self.lessons else None

    def kept_patches(self, progress: float) -> int | None:
        if not self.lessons:
            return None
        of_student, of_teacher = self.selector.counts(self.student, self.lessons[0].teacher, progress)
        return of_student if of_teacher is None else of_teacher

    def passes(self, progress: float) -> list[Pass]:
        passes: list[Pass] = []
        of_student = None  # chosen once, for the first teacher
        for number, lesson in enumerate(self.lessons):
            teacher = lesson.teacher
            shown, of_teacher = self.selector.counts(self.student, teacher, progress)
            of_student = shown if number == 0 else of_student
            if number == 0 or of_student is None:
                passes += self.selector.ranking_passes(self.student, teacher, progress)
            passes.append(Pass("teacher", teacher.network, of_teacher, lesson.capture, teacher.passes))
        return [Pass("student", self.student, of_student, self.student_capture(progress)), *passes]

    # --- what it has learned about its teacher --------------------

    def remembered(self, total: Callable[[Tensor], Tensor] = lambda local: local) -> dict[str, Any]:
        return self.selector.state(total)

    def recall(self, state: dict[str, Any], *, first: bool = True) -> None:
        self.selector.load(state, first=first)

    def observations(self) -> dict[str, float]:
        return self.selector.observations()

    def doubt(self) -> str | None:
        return self.selector.doubt(self.student, self.lessons[0].teacher) if self.lessons else None

    def describe(self) -> dict[str, Any]:
        return self.selector.describe()

    def spent(self, remembered: dict[str, Any]) -> Spent | None:
        if len(self.lessons) != 1:
            return None
        lesson = self.lessons[0]
        return self.selector.spent(remembered, self.student, lesson.teacher, lesson.capture)

    # --- what trains --------------------

    def freeze_unreached(self) -> None:
        """Keep from training what no term reaches; with labels, all is reached. For subclasses, once complete."""
        if self.task is None:
            freeze_unreached(self.student, self.reached())

    def reached(self) -> set[nn.Parameter]:
        """The student's parameters on which the loss depends, where there are no labels."""
        return set().union(*(term.reached(self.student) for term in self.terms))  # type: ignore[operator]


def check_inputs(student: Network, teacher: Teacher) -> None:
    """
    Raises:
        UserError: when a teacher cannot see the student's inputs: images, or clips of so many frames.
    """
    kinds = [_kind_of(network.input) for network in (student, teacher.network)]
    sound = student.input.sound or teacher.network.input.sound
    if kinds[0] == kinds[1] or isinstance(teacher, FrameTeacher) or not (teacher.network.sized or sound):
        return
    raise UserError(
        f"Student and teacher must see the same kind of inputs; {student.name} sees {kinds[0]} and {teacher.name} "
        f"{kinds[1]}",
        remedy="Choose two networks over images, two over clips with the same frames, or two over sound of the same "
        "mel bins and frames",
    )


def _kind_of(spec: InputSpec) -> str:
    """What a network sees, in words. Spectrograms have one size, since time and frequency are not stretched."""
    if spec.sound:
        return f"spectrograms of {spec.size[0]} mel bins and {spec.size[1]} frames"
    return "images" if spec.frames is None else f"clips of {spec.frames} frames"
