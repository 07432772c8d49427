"""What the caller chooses, checked on entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from .errors import InputError

AXIS_CHOICES = ("auto", "i", "j", "k")
MISSING_CHOICES = ("auto", "absent", "unknown")
REGISTRATIONS = ("auto", "instance", "network", "pretrained")
FUSIONS = ("auto", "majority", "distance", "similarity", "appearance", "joint", "deep")
PRESETS = ("fast", "balanced", "best")
DEVICES = ("auto", "cpu", "cuda", "mps")
NAMED_CHECKPOINTS = AUTO, NONE = "auto", "none"  # all others are files


@dataclass(frozen=True)
class Settings:
    """How to propagate. Raises InputError on an unknown value.

    registration: how the deformations between slices are found; fusion: how what arrives at a slice is combined.
    preset: a point on the measured curve of time against Dice.
    extrapolate: carry labels beyond the outermost annotated slices too.
    graph_cut: let what a stroke corrects end along edges of the image, see `graph_cut`.
    directions: return the upward and the downward propagation as well; uncertainty: return its map.
    memory_gb: most memory that the process may hold, GB; None for all that is free.
    checkpoint: 'auto' for the shipped weights, 'none', or a file, which replaces the shipped weights of its kind.
    suggestions: how many slices to draw next are suggested, each as if those before it had been drawn.
    """

    registration: str = "auto"
    fusion: str = "auto"
    preset: str = "balanced"
    device: str = "auto"
    seed: int = 0
    extrapolate: bool = False
    graph_cut: bool = True
    directions: bool = False
    uncertainty: bool = False
    checkpoint: str = "auto"
    suggestions: int = 1
    memory_gb: float | None = None

    def __post_init__(self):
        for name, choices in (
            ("registration", REGISTRATIONS),
            ("fusion", FUSIONS),
            ("preset", PRESETS),
            ("device", DEVICES),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"Unknown {name} '{value}': choose one of {', '.join(choices)}.")
        if self.suggestions < 1:
            raise InputError(f"{self.suggestions} suggested slices: give 1 or more.")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise InputError(f"A limit of {self.memory_gb:g} GB of memory: give a number above 0.")

    @property
    def networks(self) -> tuple[str, ...]:
        """Kinds of the networks (see `checkpoint.KINDS`) that are asked for by name."""
        registration = ("registration",) if self.registration in ("network", "pretrained") else ()
        return (*registration, "fusion") if self.fusion == "deep" else registration

    def arguments(self) -> Iterator[str]:
        """What is not the default, as arguments of `labelprop propagate`.

        For settings that leave out `uncertainty`, for which it takes a file, and `suggestions`, which it does not have.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                name = field.name.removesuffix("_gb").replace("_", "-")
                if isinstance(value, bool):
                    yield f"--{name}" if value else f"--no-{name}"
                else:
                    yield from (f"--{name}", str(value))


def weights_of(checkpoint: str) -> list[Path]:
    """The file of weights that `Settings.checkpoint` names, if it names one."""
    return [] if checkpoint in NAMED_CHECKPOINTS else [Path(checkpoint)]
