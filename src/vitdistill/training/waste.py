"""What a training would waste without a word, said before its first step."""

import logging
import math
from typing import Any

from vitdistill.data.inspect import usual_short_side
from vitdistill.data.source import DataSource
from vitdistill.files import is_first_process
from vitdistill.methods.method import Method
from vitdistill.models.network import Network
from vitdistill.models.teacher import Teacher
from vitdistill.types import InputSpec

log = logging.getLogger(__name__)

# Times the pixels from which enlarging is said. Enlarging less is common practice and known to help: teachers at 384
# pixels see pictures of 224 (MaskedKD, App. C: 2.9 times), and networks at 384 those of ImageNet's shorter edges.
WASTEFUL = 4
# Patches that are recommended: the network's own, or the first of these that makes a grid of at least so many rows.
PATCHES, GRID = (16, 8, 4, 2), 6


def say_waste(method: Method, source: DataSource, info: dict[str, Any]) -> list[str]:
    """Warn, in the first process, of compute that brings nothing; nothing is refused.

    Args:
        method: what is going to be trained.
        source: what on.
        info: the run's so far, of which `notes` are kept.

    Returns:
        The run's notes, those said before among them.

    Example:
        >>> run.update(notes=say_waste(method, source, run.read_info()))
    """
    if not is_first_process():
        return list(info.get("notes", ()))
    found = waste(method, source)
    for line in found:
        log.warning("%s", line)
    return list(dict.fromkeys([*info.get("notes", ()), *found]))


def waste(method: Method, source: DataSource) -> list[str]:
    """One line for each thing in a training that sees far more pixels than there is to see."""
    side = usual_short_side(source)
    lines = [] if side is None else enlarged_pictures(method.student, side, source.train.word)
    for teacher in method.teachers:
        lines += enlarged_for_teacher(teacher, method.student)
    return list(dict.fromkeys(lines))


def enlarged_pictures(student: Network, side: float, word: str) -> list[str]:
    """Pictures much smaller than the input of the network that they are enlarged for.

    Args:
        student: the network.
        side: their shorter edge in pixels.
        word: what one of them is called.
    """
    times = _pixels(student.input) / side**2
    if times < WASTEFUL:
        return []
    fitting, smaller = side, ""
    if student.input.patch is not None:
        own = student.input.patch[-1]
        patch = next((size for size in (own, *PATCHES) if size <= own and math.ceil(side / size) >= GRID), 1)
        fitting = patch * math.ceil(side / patch)
        smaller = "" if patch == own else f" and patches of {patch} (patch_size among its arguments)"
    return [
        f"{word.capitalize()}s of {side:g} pixels feed the student {student.name} of {_size(student.input)}: "
        f"{_times(times)} the compute, and nothing more to see. Give --image_size {fitting:g}{smaller}, unless its "
        f"weights were trained at {_size(student.input)}"
    ]


def enlarged_for_teacher(teacher: Teacher, student: Network) -> list[str]:
    """A teacher that sees the student's input enlarged to its own size."""
    network = teacher.network
    times = _pixels(network.input) / _pixels(student.input)
    if not network.sized or times < WASTEFUL:
        return []
    return [
        f"The teacher {network.name} of {_size(network.input)} pixels sees the student's input of "
        f"{_size(student.input)} enlarged: {1 / times:.1%} of its pixels tell it something. Raise the student's "
        "--image_size, or build the teacher smaller (img_size among its arguments, --teacher_args.img_size), if it "
        "does well there"
    ]


def _pixels(spec: InputSpec) -> int:
    height, width = spec.size
    return height * width


def _size(spec: InputSpec) -> str:
    height, width = spec.size
    return str(height) if height == width else f"{height}x{width}"


def _times(number: float) -> str:
    return f"{number:.0f} times" if number >= 10 else f"{number:.2g} times"
