"""A progress bar on terminals only, so that logs and pipes stay clean."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], text: str, total: int) -> Iterator[T]:
    """The items as they come, with a bar on stderr where that is a terminal.

    Args:
        items: what is worked on.
        text: shown before the bar.
        total: number of items.
    """
    console = Console(stderr=True)
    yield from rich_track(items, text, total=total, console=console, disable=not console.is_terminal, transient=True)
