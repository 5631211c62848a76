"""How long a step takes whose batch comes in parts, with student and teacher on two devices.

Times are in any unit, seconds or multiply-accumulates. A part takes its share of a pass and an overhead (launching,
copying, worse use of the device by small parts).
"""


def forward_time(student: float, teacher: float, parts: int = 1, overhead: float = 0.0) -> float:
    """Until student and teacher have seen all of a batch: two stages in order, each busy with one part at a time.

    Args:
        student: the student's forward pass over the batch.
        teacher: the teacher's pass over the patches that it sees.
        parts: equal ones; 1 is one after the other.
        overhead: of each part, on each device.

    Example:
        >>> forward_time(4.6, 8.7, parts=4)  # GMACs of DeiT-S and of DeiT-B with half of its patches
        9.85
    """
    shares = student / parts + overhead, teacher / parts + overhead
    return sum(shares) + (parts - 1) * max(shares)


def step_time(student: float, teacher: float, backward: float, parts: int = 1, overhead: float = 0.0) -> float:
    """A step whose loss is computed once, on the outputs of all parts.

    Args:
        student: as of `forward_time`.
        teacher: as of `forward_time`.
        backward: the student's backward pass.
        parts: as of `forward_time`.
        overhead: as of `forward_time`.
    """
    return forward_time(student, teacher, parts, overhead) + backward


def separable_step_time(
    student: float, teacher: float, backward: float, parts: int = 1, overhead: float = 0.0
) -> float:
    """A step in which a part's backward pass is made as soon as the teacher has seen it, behind all forward passes.

    Arguments as of `step_time`.
    """
    seen = 0.0  # when the teacher is done with a part
    done = student + parts * overhead  # when the student is
    for part in range(1, parts + 1):
        seen = max(seen, part * (student / parts + overhead)) + teacher / parts + overhead
        done = max(done, seen) + backward / parts + overhead
    return done
