"""The roles of segments and slices, and the text in which a segment's tag keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .annotation import AXIS_NAMES
from .errors import InputError

ROLES_TAG = "LabelProp.Roles"
PROPAGATED_TAG = "LabelProp.Propagated"  # "k 3=1234 4=5678": slices that a run found, and their fingerprints
COMPLETE, SCRIBBLE, ABSENT, IGNORED = "complete", "scribble", "absent", "ignored"
SLICE_ROLES = (SCRIBBLE, ABSENT, IGNORED)


@dataclass(frozen=True)
class Roles:
    """What a segment and its slices are, where that is not 'a slice is complete if it bears the segment's voxels'.

    background: the whole segment is a scribble of background, and no label of its own.
    slices: axis name -> role -> slice indices, in the segmentation's reference geometry, whose axes are 'k', 'j', 'i'.
        A 'scribble' slice says only that its voxels are of the segment, an 'absent' one that the segment is not on it,
        an 'ignored' one is not read.

    As text: "background", or for each axis "k:scribble=3,7;absent=12;ignored=5", separated by blanks.
    """

    background: bool = False
    slices: Mapping[str, Mapping[str, frozenset[int]]] = field(default_factory=dict)

    def __str__(self):
        words = ["background"] if self.background else []
        for axis in AXIS_NAMES:
            marked = {role: sorted(self.slices.get(axis, {}).get(role, ())) for role in SLICE_ROLES}
            entries = [f"{role}={','.join(map(str, indices))}" for role, indices in marked.items() if indices]
            if entries:
                words.append(f"{axis}:{';'.join(entries)}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Roles:
        """The roles written as `text`. Raises InputError when it is malformed."""
        words = text.split()
        slices = {}
        for word in words:
            if word == "background":
                continue
            try:
                axis, entries = word.split(":")
                marked = dict(entry.split("=") for entry in entries.split(";"))
                if axis not in AXIS_NAMES or not marked.keys() <= set(SLICE_ROLES):
                    raise ValueError
                slices[axis] = {role: frozenset(map(int, indices.split(","))) for role, indices in marked.items()}
            except ValueError:
                raise InputError(
                    f"The segment tag {ROLES_TAG} cannot be read at '{word}': correct it, or remove the tag."
                ) from None
        return cls("background" in words, slices)

    @property
    def axes(self) -> set[str]:
        """Names of the axes along which slices have roles."""
        return {axis for axis, marked in self.slices.items() if any(marked.values())}

    def of(self, axis: int, role: str) -> frozenset[int]:
        """Indices along the array axis of the slices that have the role."""
        return self.slices.get(AXIS_NAMES[axis], {}).get(role, frozenset())


def slice_roles(borne: Iterable[int], roles: Roles, axis: int) -> dict[int, str]:
    """Slice -> role, from the slices that bear the segment's voxels and the roles that the user gave."""
    found = dict.fromkeys(borne, SCRIBBLE if roles.background else COMPLETE)
    for role in SLICE_ROLES:
        for index in roles.of(axis, role):
            if role == IGNORED or (index in found) == (role == SCRIBBLE):
                found[index] = role
    return found
