"""Results as CSV."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any


def write_csv(rows: Sequence[Any], path: Path, number: str = ""):
    """A line for each of these instances of one dataclass; number: how numbers that are not whole are formatted."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            writer.writerow(f"{value:{number}}" if isinstance(value, float) else value for value in astuple(row))
