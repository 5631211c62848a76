"""How `--data` becomes a data source: the names of bundled sources, and folders.

To add a bundled source: write one file with a function that returns a `DataSource`, and name it in `bundled`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vitdistill.data.source import DataSource
from vitdistill.errors import UserError, near

BUNDLED = ("digits", "moving_digits", "moving_digits:motion")


def bundled() -> dict[str, Callable[[], DataSource]]:
    """Sources that need no download, by the name that `--data` takes."""
    from vitdistill.data.bundled.digits import digits
    from vitdistill.data.bundled.moving_digits import moving_digits

    return dict(zip(BUNDLED, (digits, moving_digits, partial(moving_digits, "motion")), strict=True))


def check_there(data: str | Path) -> None:
    """Quick, and without loading torch.

    Raises:
        UserError: when `--data` names neither a bundled source nor anything that exists.
    """
    if data not in BUNDLED and not Path(data).expanduser().exists():
        raise UserError(
            f"--data must be an existing folder or a bundled source ({', '.join(BUNDLED)})",
            f"'{data}'",
            near(str(data), BUNDLED),
        )


def open_source(data: str | Path | DataSource, *, labels: bool = True) -> DataSource:
    """Open what `--data` names.

    Args:
        data: the name of a bundled source, a folder with `train/` and `val/`, or a source that is already open.
            A bundled name wins over a folder of the same name; write `./digits` to mean the folder.
        labels: False opens any folder of images, see `image_folder`; all else is opened as ever.

    Raises:
        UserError: when it is neither, or when the source itself is unusable.
    """
    if isinstance(data, DataSource):
        if labels and not data.classes:
            raise UserError("Labelled data is needed", f"{data.name}, which has no labels")
        return data
    check_there(data)
    if isinstance(data, str) and data in BUNDLED:
        return bundled()[data]()
    from vitdistill.data.clips.files import has_videos, video_files
    from vitdistill.data.folders import listing
    from vitdistill.data.images.folder import image_folder

    with listing(data):
        return (video_files if has_videos(data) else image_folder)(data, labels=labels)
