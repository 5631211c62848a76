"""A step whose batch comes in parts, so that the teacher works on one part while the student is on the next.

This file is imported to print help texts, so it imports no torch.
"""

import re
from typing import Annotated

from vitdistill.errors import UserError


def check_parts(parts: int) -> None:
    """
    Raises:
        UserError: when there would be no part.
    """
    if parts < 1:
        raise UserError("pipeline must be at least 1", parts)


def check_device(device: str) -> None:
    """
    Raises:
        UserError: when it names no device.
    """
    if not re.fullmatch(r"cpu|cuda:\d+", device):
        raise UserError("teacher_device must be cpu or a GPU by its number", repr(device), "Use cuda:1, say")


Parts = Annotated[int, check_parts]
DeviceName = Annotated[str, check_device]
