"""What a result was made of, so that one that is there already need not be made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .settings import NAMED_CHECKPOINTS, Settings


def provenance(inputs: Mapping[str, Path | None], settings: Settings, **choices: str) -> dict:
    """Plain values (JSON) that are equal for two runs only if these give the same result.

    inputs: what a file is for -> its path, None where there is none. A file is known by its name, size and time of
    change, as `make` and `rsync` do, because to read hundreds of volumes takes long. Raises OSError for a missing file.
    """
    made_of = {use: identify(path) for use, path in inputs.items() if path is not None}
    if weights := identify_weights(settings):
        made_of["checkpoint"] = weights
    return {"inputs": made_of, "settings": asdict(settings), **choices}


def identify_weights(settings: Settings) -> dict | None:
    """Name, size and time of change of the file of weights that the settings name; None for no such file."""
    path = Path(settings.checkpoint)
    return identify(path) if settings.checkpoint not in NAMED_CHECKPOINTS and path.is_file() else None


def identify(path: Path) -> dict:
    """Name, size and time of change of a file."""
    status = path.stat()
    return {"file": path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
