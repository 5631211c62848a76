"""Rows of a result as a table, csv or json, printed or written to a file as they come."""

import csv
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO, get_args

from vitdistill.errors import UserError
from vitdistill.files import readable

Format = Literal["table", "csv", "json"]


class RowWriter:
    """Writes rows of one kind; a table is printed when all of them are known, as its columns are as wide as they.

    Example:
        >>> with RowWriter(None, "csv") as writer:
        ...     writer.write([{"path": "a.jpg", "label": "cat"}])
        path,label
        a.jpg,cat
    """

    def __init__(self, out: str | None, format: Format | None) -> None:
        """
        Args:
            out: file to write; None prints.
            format: of the rows; None takes what the file's ending says, and a table where that says nothing.

        Raises:
            UserError: when the file is a folder, or in none that can be written to.
        """
        ending = "" if out is None else Path(out).suffix.removeprefix(".").lower()
        self.format: Format = format or ("table" if ending not in get_args(Format) else ending)  # type: ignore[assignment]
        self.out = None if out is None else Path(out).expanduser()
        if self.out is not None and self.out.is_dir():
            raise UserError("--out must be a file", f"the folder {self.out}", f"For example {self.out / 'rows.csv'}")
        self._file: TextIO = sys.stdout
        self._rows: list[dict[str, Any]] = []  # of a table
        self._count = 0  # rows written so far

    def __enter__(self) -> "RowWriter":
        if self.out is not None:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.out, "w", newline="", encoding="utf-8")
            except OSError as error:
                raise UserError("--out must be writable", f"{self.out} ({error.strerror})") from error
        return self

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Write some rows, all with the same columns."""
        rows = [{name: readable(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
        if self.format == "table":
            self._rows += rows
        elif self.format == "json":
            for row in rows:
                self._file.write(("[\n" if not self._count else ",\n") + json.dumps(row, ensure_ascii=False))
                self._count += 1
        else:
            for row in rows:
                writer = csv.DictWriter(self._file, row, lineterminator="\n")
                if not self._count:
                    writer.writeheader()
                writer.writerow(row)
                self._count += 1
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.format == "json" and (kind is None or self._count):  # what was interrupted can be read as well
            self._file.write("\n]\n" if self._count else "[]\n")
        if kind is None and self.format == "table":
            self._file.writelines(f"{line}\n" for line in table(self._rows))
        if self.out is not None:
            self._file.close()
            if kind is not None and not self._count:
                self.out.unlink()  # nothing was written


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a plain table, whole whatever the width of the terminal; numbers between 0 and 1 with four digits."""
    if not rows:
        return []
    cells = [list(rows[0])] + [[f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(width) for c, width in zip(row, widths, strict=True)).rstrip() for row in cells]
