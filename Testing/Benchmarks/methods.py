"""How the benchmark runs a method on a case: in a process of its own, timed and weighed, or quickly in this one.

Methods are named `nearest`, `fill` and `labelprop`, the last with choices of `labelprop propagate` after colons:
`labelprop:fast`, `labelprop:best:instance:distance`. `oracle` bounds what fusion can reach: a voxel counts as right
where the upward propagation, the downward one or the fused result is right.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bench import REPOSITORY, Case

from LabelPropLib.annotation import annotate_from_label_volume
from LabelPropLib.baselines import copy_nearest, fill_between_slices
from LabelPropLib.pipeline import propagate
from LabelPropLib.settings import FUSIONS, PRESETS, REGISTRATIONS, Settings

BASELINES = {"nearest": "copy nearest", "fill": "Fill between slices"}
ORACLE = "oracle"
COMMAND_LINE = REPOSITORY / "LabelProp" / "LabelPropLib" / "cli.py"
BASELINE = Path(__file__).with_name("baseline.py").resolve()
MAXRSS_PER_GB = 2**30 if sys.platform == "darwin" else 2**20  # of getrusage: bytes on macOS, else kilobytes


@dataclass(frozen=True)
class Method:
    """A method with its choices; text: as on the command line; title: for tables."""

    text: str
    choices: dict[str, str]

    @property
    def is_baseline(self) -> bool:
        """Whether it is what Slicer users have without LabelProp."""
        return self.text in BASELINES

    @property
    def title(self) -> str:
        """Its name in the head of a table."""
        titles = {**BASELINES, ORACLE: "oracle"}
        return titles.get(self.text, "LabelProp " + " ".join(self.choices.values())).strip()


@dataclass(frozen=True)
class Cost:
    """seconds: of computing alone; process_seconds: from start to written file; peak_gb: memory. NaN: not measured."""

    seconds: float
    process_seconds: float = np.nan
    peak_gb: float = np.nan


def parse_method(text: str) -> Method:
    """The method of that name. Raises argparse.ArgumentTypeError."""
    name, *words = text.split(":")
    if text in BASELINES or text == ORACLE:
        return Method(text, {})
    known = {"preset": PRESETS, "registration": REGISTRATIONS, "fusion": FUSIONS}
    options = {word: option for option, choices in known.items() for word in choices if word != "auto"}
    unknown = [word for word in words if word not in options]
    if name != "labelprop" or unknown:
        raise argparse.ArgumentTypeError(
            f"unknown method '{text}': choose {', '.join(BASELINES)}, {ORACLE} or labelprop, after colons any of"
            f" {', '.join(options)}"
        )
    return Method(text, {options[word]: word for word in words})


def run_process(method: Method, case: Case, prediction: Path) -> Cost:
    """Run the method on a case in a process of its own, which writes `prediction`; not on Windows, for want of `wait4`.

    Raises RuntimeError if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder, "report.json"), Path(folder, "log.txt")
        if method.is_baseline:
            command = [BASELINE, method.text, str(case.axis), case.annotations, prediction, report]
        else:
            options = [word for option, choice in method.choices.items() for word in (f"--{option}", choice)]
            command = [
                COMMAND_LINE,
                "propagate",
                case.image,
                case.annotations,
                "-o",
                prediction,
                "--report",
                report,
                *options,
                *(["--directions"] if method.text == ORACLE else []),
            ]
        start = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen([sys.executable, *command], stdout=stream, stderr=stream)
            _, status, usage = os.wait4(process.pid, 0)
        process_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{method.text} on {case.name} ended with {process.returncode}: {log.read_text()}")
        stages = json.loads(report.read_text())["seconds"]
    if method.text == ORACLE:
        take_what_is_right(case, prediction)
    seconds = sum(seconds for stage, seconds in stages.items() if stage not in ("reading", "loading"))
    return Cost(seconds, process_seconds, usage.ru_maxrss / MAXRSS_PER_GB)


def take_what_is_right(case: Case, prediction: Path):
    """Put the reference into `prediction` wherever it, or the same from one side alone, agrees with the reference."""
    fused = sitk.ReadImage(str(prediction))
    sides = [prediction.with_name(prediction.name.replace(".nii.gz", f"_{side}.nii.gz")) for side in ("up", "down")]
    found, *candidates = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (prediction, *sides))
    best = sitk.GetImageFromArray(what_is_right(case, found, candidates))
    best.CopyInformation(fused)
    sitk.WriteImage(best, str(prediction))


def what_is_right(case: Case, found: np.ndarray, candidates: Iterable[np.ndarray]) -> np.ndarray:
    """(K, J, I) of what was found, with the reference wherever one of the candidates agrees with it."""
    reference = sitk.GetArrayFromImage(sitk.ReadImage(str(case.reference)))
    agreed = np.any([candidate == reference for candidate in candidates], axis=0)
    return np.where(agreed, reference, found)


def run_here(method: Method, case: Case, prediction: Path) -> Cost:
    """Run the method on a case in this process, without the way through files and scene: quick, for development."""
    image = sitk.ReadImage(str(case.image))
    drawn_image = sitk.ReadImage(str(case.annotations))
    drawn = sitk.GetArrayFromImage(drawn_image)
    start = time.perf_counter()
    if method.text == "nearest":
        found = copy_nearest(drawn, case.axis)
    elif method.text == "fill":
        found = fill_between_slices(drawn)
    else:
        annotation = annotate_from_label_volume(sitk.GetArrayFromImage(image), drawn, image.GetSpacing()[::-1])
        result = propagate(annotation, Settings(**method.choices, directions=method.text == ORACLE))
        (found,) = result.label_maps
    cost = Cost(time.perf_counter() - start)
    if method.text == ORACLE:
        found = what_is_right(case, found, [side for (side,) in result.directions.values()])
    written = sitk.GetImageFromArray(found.astype(drawn.dtype))
    written.CopyInformation(drawn_image)
    sitk.WriteImage(written, str(prediction))
    return cost
