"""The benchmark's volumes, cases and score, which lie in a folder outside of the repository.

The folder has cases.json (the volumes and what to make of them), cases.py (makes cases) and score.py (scores label
volumes); the volumes are in the folder `data` beside it. None of it is part of the product.
"""

import argparse
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import SimpleITK as sitk

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = REPOSITORY.parent / "shared" / "bench"
ARRAY_AXIS = {"x": 2, "y": 1, "z": 0}  # of a file's axes in a (K, J, I) array


@dataclass(frozen=True)
class Case:
    """A volume annotated on some slices: a folder with image, annotations, reference (.nii.gz) and case.json."""

    folder: Path

    @property
    def name(self) -> str:
        """<volume>-k<number of annotated slices>"""
        return self.folder.name

    @property
    def description(self) -> dict:
        """name, axis ('x', 'y' or 'z' of the file), annotated (slice indices), labels."""
        return json.loads((self.folder / "case.json").read_text())

    @property
    def axis(self) -> int:
        """Array axis of the stack."""
        return ARRAY_AXIS[self.description["axis"]]

    @property
    def annotated_share(self) -> float:
        """The share of its slices that is annotated."""
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self.image))
        reader.ReadImageInformation()
        return len(self.description["annotated"]) / reader.GetSize()[2 - self.axis]

    @property
    def image(self) -> Path:
        """The scan."""
        return self.folder / "image.nii.gz"

    @property
    def annotations(self) -> Path:
        """The label volume to start from."""
        return self.folder / "annotations.nii.gz"

    @property
    def reference(self) -> Path:
        """The label volume to compare with."""
        return self.folder / "reference.nii.gz"


@dataclass(frozen=True)
class Bench:
    """The folder, and its modules."""

    folder: Path
    cases: ModuleType
    score_module: ModuleType

    def entries(self, names: list[str] | None) -> list[dict]:
        """What cases.json says of the volumes of these names, or of all. Ends with a message if one is not there."""
        entries = json.loads((self.folder / "cases.json").read_text())
        unknown = set(names or ()) - {entry["name"] for entry in entries}
        if unknown:
            raise SystemExit(f"{self.folder / 'cases.json'} has no volume {', '.join(sorted(unknown))}.")
        return [entry for entry in entries if names is None or entry["name"] in names]

    def make_case(self, entry: dict, slice_count: int, folder: Path) -> Case:
        """The case of a volume with so many annotated slices, made in a folder unless it is there."""
        case = Case(folder / f"{entry['name']}-k{slice_count}")
        if not (case.folder / "case.json").exists():
            self.cases.make_case({**entry, "slices": [slice_count]}, self.folder.parent / "data", folder)
        return case

    def score(self, case: Case, prediction: Path) -> dict:
        """dice, assd, hd95 (means over the labels), worst_label_dice, annotated_slices_kept, labels."""
        return self.score_module.score(case.folder, prediction)


def add_bench_option(parser: argparse.ArgumentParser):
    """Add the option --bench."""
    parser.add_argument(
        "--bench",
        type=Path,
        default=DEFAULT_FOLDER,
        help=f"folder of the benchmark's cases.py, score.py and cases.json, beside a folder data ({DEFAULT_FOLDER})",
    )


def open_bench(folder: Path) -> Bench:
    """The benchmark in the folder. Ends with a message if it is not there."""
    return Bench(folder, load_module(folder / "cases.py"), load_module(folder / "score.py"))


def load_module(path: Path) -> ModuleType:
    """A module from a file that is on no search path."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file: give the benchmark's folder with --bench.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
