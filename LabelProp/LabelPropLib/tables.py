"""Tables of files, as spreadsheets write them: CSV with a header, separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError


@dataclass(frozen=True)
class Record:
    """A line of a table. number: of the line in the file, from 1; cells: column -> text, empty where there is none."""

    number: int
    cells: dict[str, str]


def read_records(
    path: Path, columns: Sequence[str], required: Sequence[str], say: Callable[[str], None]
) -> list[Record]:
    """The records of a table, with the cells of `columns`.

    Case of the columns' names and blanks around cells do not matter. say: called with a line about the columns that are
    not used, if there are any. Raises InputError if the file is no such table, has no record, or lacks one of the
    columns that are required.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file: check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}): give a CSV file in UTF-8.") from error
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), skipinitialspace=True)
    try:
        reader.fieldnames = [(column or "").strip().lower() for column in reader.fieldnames or ()]
        records = [
            Record(reader.line_num, {column: (cells.get(column) or "").strip() for column in columns})
            for cells in reader
        ]
    except csv.Error as error:
        raise InputError(f"{path}, after line {reader.line_num}: not a CSV table ({error}): save it as CSV.") from error
    absent = [column for column in required if column not in reader.fieldnames]
    if absent:
        raise InputError(f"{path}: no column {' and no column '.join(absent)}: its first line has to name the columns.")
    if not records:
        raise InputError(f"{path}: no rows: give a line for each volume.")
    unused = [column for column in reader.fieldnames if column and column not in columns]
    if unused:
        say(f"Columns of the table that are not used: {', '.join(unused)}.")
    return records
