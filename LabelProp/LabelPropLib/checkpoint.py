"""Weights on disk: tensors and plain metadata, nothing that could run code.

A checkpoint is a zip archive of PyTorch's that holds two dictionaries, `metadata` and `tensors`. It is read with
`torch.load(weights_only=True)`, which refuses every pickle but of tensors and plain values. The metadata say what the
weights are and where they come from:

    format, version   what kind of file this is, added by `save`
    kind              'registration' or 'fusion'
    architecture      what the tensors fit into, a dictionary
    preprocessing     what the network expects of its input, a dictionary
    training          a summary of the data and how it was trained on, a dictionary
    licence           of the weights
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .errors import InputError
from .files import check_is_file, replacing
from .settings import AUTO, NAMED_CHECKPOINTS, NONE

FORMAT = "LabelProp checkpoint"
VERSION = 1  # of the format; a reader takes this one and all before it
KINDS = ("registration", "fusion")
FIELDS = ("kind", "architecture", "preprocessing", "training", "licence")
SHIPPED_FOLDER = Path(__file__).parent / "Resources"

Tensors = dict[str, torch.Tensor]
Metadata = dict[str, Any]
Network = TypeVar("Network", bound=nn.Module)


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]):
    """Write a checkpoint, whole or not at all.

    tensors: name -> tensor; float16 halves the file, and `load` gives float32 back. metadata: all of FIELDS, plain
    values (str, numbers, None, lists and dictionaries of such). Raises ValueError if these are not complete.
    """
    missing = [name for name in FIELDS if name not in metadata]
    if missing or metadata["kind"] not in KINDS:
        raise ValueError(f"metadata without {missing}" if missing else f"unknown kind {metadata['kind']!r}")
    content = {
        "metadata": {"format": FORMAT, "version": VERSION, **metadata},
        "tensors": {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
    }
    with replacing([Path(path)]) as staged:
        write_plain(content, staged[Path(path)])


def write_plain(content: Mapping[str, Any], path: Path):
    """Write a dictionary of tensors and plain values for `read_plain`. Raises OSError."""
    stream = io.BytesIO()  # on a full disk PyTorch's own writing raises errors of all kinds
    torch.save(content, stream)
    path.write_bytes(stream.getbuffer())


def load(path: Path, kind: str) -> tuple[Tensors, Metadata]:
    """Tensors, on the CPU, floating ones as float32, and metadata of a checkpoint of this kind.

    Raises InputError if the file is not there, damaged, no checkpoint, of another kind, of a newer version, or holds
    more than tensors and plain values.
    """
    tensors, metadata = read(Path(path))
    if metadata["kind"] != kind:
        raise another_kind(path, metadata["kind"], kind)
    return tensors, metadata


def check_kind(checkpoint: str, needed: Collection[str]) -> str | None:
    """Raise InputError if the file cannot be read, or is for none of the networks that are `needed`, if any are.

    checkpoint: as in `choose`. needed: kinds. A file for one of several is no mistake: it can hold only one.
    Returns the file's kind, None where `checkpoint` names no file.
    """
    kind = kind_of(checkpoint)
    if kind is not None and needed and kind not in needed:
        raise another_kind(checkpoint, kind, " or ".join(needed))
    return kind


def kind_of(checkpoint: str) -> str | None:
    """The kind of network that a file is for, None where `checkpoint` names no file. Raises InputError, see `read`."""
    return None if checkpoint in NAMED_CHECKPOINTS else read(checkpoint)[1]["kind"]


def choose(checkpoint: str, kind: str) -> tuple[Tensors, Metadata] | None:
    """The checkpoint of this kind to work with, None for none.

    checkpoint: 'auto' for the shipped weights, 'none', or a file, which takes the place of the shipped weights of its
    own kind. Raises InputError, see `load`.
    """
    if checkpoint == NONE:
        return None
    if checkpoint != AUTO:
        tensors, metadata = read(Path(checkpoint))
        if metadata["kind"] == kind:
            return tensors, metadata
    shipped = SHIPPED_FOLDER / f"{kind}.pt"
    return load(shipped, kind) if shipped.is_file() else None


def load_network(
    make: Callable[[], Network],
    checkpoint: str,
    kind: str,
    architecture: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
) -> Network | None:
    """The network that `make` returns with the weights of the chosen checkpoint; None for none.

    checkpoint, kind: as in `choose`. architecture, preprocessing: those of the network, which the metadata have to
    state. Raises InputError if they state others, if the tensors do not fit, and where `load` does.
    """
    chosen = choose(checkpoint, kind)
    if chosen is None:
        return None
    tensors, metadata = chosen
    if metadata["architecture"] != architecture or metadata["preprocessing"] != preprocessing:
        raise InputError(
            f"{checkpoint}: weights for another network or other preprocessing than this LabelProp's: give another"
            " checkpoint."
        )
    network = make()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{checkpoint}: weights that do not fit the network: give another checkpoint.") from error
    return network


def read(path: Path | str) -> tuple[Tensors, Metadata]:
    """Tensors, on the CPU, floating ones as float32, and metadata of a checkpoint of any kind. Raises InputError."""
    content = read_plain(Path(path))
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise not_a_checkpoint(path)
    version = metadata.get("version")
    if not isinstance(version, int) or version < 1:
        raise not_a_checkpoint(path)
    if version > VERSION:
        raise InputError(
            f"{path}: a checkpoint of version {version}, this LabelProp reads those up to {VERSION}: update LabelProp,"
            " or train anew."
        )
    tensors = content.get("tensors")
    complete = all(name in metadata for name in FIELDS) and metadata["kind"] in KINDS
    if not complete or not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise not_a_checkpoint(path)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{path}: weights that are NaN or infinite ({broken[0]}): train anew.")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, metadata


def read_plain(path: Path) -> dict:
    """The dictionary of tensors and plain values in a file of PyTorch's, tensors on the CPU. Raises InputError."""
    check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # PyTorch itself does not compare checksums
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputError(f"{path}: you may not read this file: change its permissions.") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors and plain values, so to open it could run code: give a checkpoint that"
            " LabelProp wrote."
        ) from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, KeyError, ValueError, NotImplementedError) as error:
        raise not_a_checkpoint(path) from error
    if not isinstance(content, dict):
        raise not_a_checkpoint(path)
    return content


def another_kind(path: Path | str, kind: str, needed: str) -> InputError:
    """What to raise for weights of a kind where those of another are needed."""
    return InputError(f"{path}: weights for {kind}, where those for {needed} are needed: give another checkpoint.")


def not_a_checkpoint(path: Path) -> InputError:
    """What to raise for a file that is foreign or damaged."""
    return InputError(f"{path}: not a checkpoint of LabelProp's, or damaged: copy it again, or give another one.")
