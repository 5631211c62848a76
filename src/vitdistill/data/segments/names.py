"""Names of the classes of masks, out of a file."""

import csv
from pathlib import Path

from vitdistill.data.segments.files import MOST_CLASSES
from vitdistill.errors import UserError

HEADER = ("idx", "ratio")  # how ADE20K's table of classes begins


def read_names(path: str | Path) -> list[str]:
    """Class names in the order of their numbers: ADE20K's objectInfo150.txt, or a text file with a name on each line.

    Of ADE20K's lists of synonyms the first stands for the class, where that tells all classes apart.

    Raises:
        UserError: when the file cannot be read, names a class twice, or fewer than two or more than masks can hold.
    """
    try:
        lines = [line for line in Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError("A file of class names must be readable text", f"'{path}' ({reason})") from error
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    if lines and tuple(lines[0].lower().split(delimiter)[:2]) == HEADER:
        names = _of_table(path, lines, delimiter)
    else:
        names = [line.strip() for line in lines]
    if len(names) < 2 or len(names) > MOST_CLASSES:
        raise UserError(f"{path} must name 2 to {MOST_CLASSES} classes", len(names))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} must name every class once", f"'{twice}' twice")
    return names


def _of_table(path: str | Path, lines: list[str], delimiter: str) -> list[str]:
    rows = list(csv.DictReader(lines, delimiter=delimiter))
    if not all(row.get("Name") for row in rows):
        raise UserError(f"{path} must have a column Name, as ADE20K's objectInfo150.txt has")
    whole = [row["Name"].strip() for row in rows]
    first = [name.replace(";", ",").partition(",")[0].strip() for name in whole]
    return first if len(set(first)) == len(first) else whole
