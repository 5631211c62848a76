"""Student and teacher at once, on parts of a batch (MaskedKD, App. F; GPipe, Huang et al., 2019).

The teacher needs to know what the student attends to, so that it waits for the student's pass, but for that over its
own part of the batch only. What is computed stays the same: the loss is computed once, on the outputs of all parts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vitdistill.errors import UserError
from vitdistill.methods.distillation import Distillation, Taught
from vitdistill.methods.pipelining import check_device, check_parts
from vitdistill.methods.pipelining.draws import Draws, Order
from vitdistill.methods.pipelining.lanes import Result, lane
from vitdistill.methods.selection.mass import see
from vitdistill.models.network import fit_all
from vitdistill.tokens.select import random_scores
from vitdistill.types import Output, Step

M = TypeVar("M", bound=Distillation)


def pipelined(method: M, parts: int, *, teacher_device: str | None = None) -> M:
    """Have a method's training steps make their passes in parts, teacher and student at once.

    Loss, gradients and random draws are those of whole steps. In eval mode steps stay whole.

    Args:
        method: changed in place.
        parts: into which a batch is split, of sizes that differ by at most one; 1 leaves steps whole.
        teacher_device: where frozen networks compute: cuda:1 beside a student on another GPU; None for where the
            inputs are.

    Raises:
        UserError: when the method has no teacher, something looks at a batch as a whole, or there is no such device.

    Example:
        >>> method = pipelined(MaskedKD(student, teacher, keep=0.5), 4, teacher_device="cuda:1")
        >>> method(images, labels).loss.backward()
    """
    check_parts(parts)
    if parts > 1:
        if not method.lessons:
            raise UserError("--pipeline needs a teacher", remedy="Name one, or leave out --pipeline")
        method.selector.check_parts()
        for name, module in method.student.net.named_modules():
            if isinstance(module, _BatchNorm):
                raise UserError(
                    "--pipeline needs a student that sees each sample by itself, without batch normalisation",
                    f"{name} of {method.student.name}",
                    "Leave out --pipeline",
                )
    if teacher_device is not None:
        device = _device(teacher_device)
        for teacher in method.teachers:
            teacher.device = device
            teacher.network.to(device)  # now, and not first in a stream of its own
    method.pipeline = Pipeline(parts) if parts > 1 else None
    return method


def _device(name: str) -> torch.device:
    check_device(name)
    device = torch.device(name)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError("teacher_device must be a device of this machine", f"{name}, and there are {count} GPUs")
    return device


class Begun(NamedTuple):
    """A part of a batch that the student has passed over.

    Attributes:
        rows: of the batch.
        student: the student's pass.
        taught: waits for the teachers' passes.
    """

    rows: slice
    student: Output
    taught: Callable[[], Result]


class Pipeline:
    """The passes of a method's step in parts. Made by `pipelined`, it is the method's `pipeline`.

    Attributes:
        parts: into which a batch is split; one with fewer inputs into as many as it has.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._order: Order | None = None

    def passes(
        self, method: Distillation, inputs: Float[Tensor, "b ch *pixels"], progress: float
    ) -> tuple[Output, tuple[Any, ...]]:
        """The student's pass over a batch, and that of each teacher, as one pass over the whole would give them."""
        with self._begun(method, inputs, progress) as (shown, begun):
            with method.clock("teacher"):  # how long the student waits for it
                results = tuple(part.taught() for part in begun)
            student = Output.joined(tuple(part.student for part in begun))
        student.kept = shown
        return student, self._taught(method, shown, begun, results)

    def in_parts(
        self,
        method: Distillation,
        inputs: Float[Tensor, "b ch *pixels"],
        targets: Tensor | None = None,
        progress: float = 0.0,
    ) -> Iterator[Step]:
        """A step as one for each part, whose losses add up to the step's; for loops of your own.

        Each comes as soon as the teacher has seen its part, and its backward pass can be made while the teacher is on
        the next. Losses and terms are weighted by the part's share of the batch.

        Args:
            method: in training.
            inputs: of the step.
            targets: of the task.
            progress: of the training.

        Raises:
            UserError: when a loss compares the samples of a batch with one another.

        Example:
            >>> for part in method.pipeline.in_parts(method, images, labels):
            ...     part.loss.backward()
        """
        check_separable(method)
        results: list[Result] = []
        networks = (method.student, *(teacher.network for teacher in method.teachers))
        with fit_all(networks, inputs), self._begun(method, inputs, progress) as (shown, begun):
            for rows, student, wait in begun:
                with method.clock("teacher"):
                    results.append(wait())
                taught = tuple(Taught(keep, output) for keep, output in results[-1])
                step = method.compared(inputs[rows], None if targets is None else targets[rows], student, taught)
                share = (rows.stop - rows.start) / len(inputs)
                step.loss = share * step.loss
                step.terms = {name: share * value for name, value in step.terms.items()}
                if len(results) == len(begun):  # what the selector learns, it learns from the whole step
                    whole = Output.joined(tuple(part.student.map(torch.Tensor.detach) for part in begun))
                    whole.kept = shown
                    step.measured = method.observed(
                        inputs, whole, self._taught(method, shown, begun, tuple(results)), progress
                    )
                yield step

    @contextmanager
    def _begun(
        self, method: Distillation, inputs: Float[Tensor, "b ch *pixels"], progress: float
    ) -> Iterator[tuple[Tensor | None, tuple[Any, ...]]]:
        """The student's passes, made, and the teachers', which go on until the context is left."""
        if any(teacher.drops_paths for teacher in method.teachers):
            raise UserError(
                "--pipeline needs a teacher that draws nothing", "--teacher_drop_path above 0", "Leave out one of them"
            )
        student, selector, batch = method.student, method.selector, len(inputs)
        rows = split(batch, self.parts)
        shown = method.shown(inputs, progress)
        view = method.view(inputs)
        parts = [(inputs[part], None if shown is None else shown[part]) for part in rows]
        guides = [lesson.teacher for lesson in method.lessons]
        waits = any(selector.waits(student, teacher, progress) for teacher in guides)
        chance = [selector.draws(student, teacher, progress) for teacher in guides]

        def noise() -> list[Tensor | None]:
            return [
                random_scores(batch, teacher.grid.count, device=inputs.device) if draws else None
                for teacher, draws in zip(guides, chance, strict=True)
            ]

        def ranked(images: Tensor, *keeps: Tensor | None) -> Result:
            """The teachers' passes over what the student's pass has ranked."""
            return tuple(
                (keep, see(lesson.teacher, images, keep, lesson.capture))
                for lesson, keep in zip(method.lessons, keeps, strict=True)
            )

        def ranking(images: Tensor, own: Tensor | None, *noises: Tensor | None) -> Result:
            """The same, where patches are chosen without the student's pass, which may take passes of their own."""
            keeps: Any = (
                method.kept(lesson, images, Output(kept=own), progress, drawn)
                for lesson, drawn in zip(method.lessons, noises, strict=True)
            )
            return ranked(images, *keeps)

        passes: list[Output] = []
        taught: list[Callable[[], Result]] = []
        noises: list[Tensor | None] | None = None
        with lane(inputs.device, guides[0].device) as teachers:

            def send_all(noises: Sequence[Tensor | None]) -> None:
                for part, (images, own) in zip(rows, parts, strict=True):
                    taught.append(teachers.send(ranking, images, own, *_of(noises, part)))

            with Draws(student, batch, self._order) as draws:
                if not waits and (draws.foreseen or not any(chance)):
                    # The teacher begins at once. Draws keep their order, in which those of the student come first.
                    if any(chance):
                        draws.ahead()
                    noises = noise()
                    send_all(noises)
                for part, (images, own) in zip(rows, parts, strict=True):
                    draws.part(part)
                    passes.append(method.student_pass(view[part], own, progress))
                    if noises is None:
                        noises = noise()
                        if not waits:
                            send_all(noises)
                    if waits:
                        with method.clock("teacher"):
                            keeps: list[Any] = [
                                method.kept(lesson, images, passes[-1], progress, drawn)
                                for lesson, drawn in zip(method.lessons, _of(noises, part), strict=True)
                            ]
                        taught.append(teachers.send(ranked, images, *keeps))
                self._order = draws.order
            yield shown, tuple(Begun(*begun) for begun in zip(rows, passes, taught, strict=True))

    def _taught(
        self, method: Distillation, shown: Tensor | None, begun: tuple[Any, ...], results: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """The teachers' passes over the whole batch, out of those over its parts."""
        taught = []
        for number in range(len(method.lessons)):
            keeps, outputs = zip(*(result[number] for result in results), strict=True)
            output = Output.joined(outputs)
            if all(keep is part.student.kept for keep, part in zip(keeps, begun, strict=True)):
                keep = shown  # terms can tell that both saw the same
            else:
                keep = None if keeps[0] is None else torch.cat(keeps)
            output.kept = keep
            taught.append(Taught(keep, output))
        return tuple(taught)


def check_separable(method: Distillation) -> None:
    """
    Raises:
        UserError: when the losses of a batch are not the mean of those of its parts.
    """
    coupled = [type(term).__name__.removesuffix("Term").lower() for term in method.terms if not term.separable]
    if method.task is not None and not method.task.separable:
        coupled.append(type(method.task).__name__.lower())
    if coupled:
        raise UserError(
            "Losses can be computed part by part where they are means over the samples of a batch",
            ", ".join(coupled),
            "Compute the loss once, with method(images, labels), whose passes come in parts all the same",
        )


def split(batch: int, parts: int) -> list[slice]:
    """The rows of each part; sizes differ by at most one.

    Example:
        >>> split(5, 2)
        [slice(0, 3, None), slice(3, 5, None)]
    """
    parts = min(parts, batch)
    sizes = [batch // parts + (number < batch % parts) for number in range(parts)]
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _of(values: Sequence[Tensor | None], rows: slice) -> list[Tensor | None]:
    return [None if value is None else value[rows] for value in values]
