#!/usr/bin/env python3
"""What pretrained weights are worth on an anatomy that they have not seen, as a table.

    python Training/registration.py --data FOLDER --leave-out leg -o without-leg.pt
    python Testing/Benchmarks/pretraining.py leg=without-leg.pt leg-synthetic-k3 leg-synthetic-k5 leg-synthetic-k9

Per left-out anatomy: a name, its weights, and the cases to run. Dice on the slices that were not annotated, of the
network alone, of the registration optimised for the scan with all steps and with a quarter of them, from rest and from
the network, and of the network trained on the scan, from random weights and from these. Writes results/pretraining.md
beside this file; every run takes part in the usual fusion.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import markdown_tables  # noqa: E402
from bench import Bench, Case, add_bench_option, open_bench  # noqa: E402

from LabelPropLib import pipeline  # noqa: E402
from LabelPropLib.annotation import annotate_from_label_volume  # noqa: E402
from LabelPropLib.baselines import copy_nearest  # noqa: E402
from LabelPropLib.evaluation import score_labels  # noqa: E402
from LabelPropLib.planner import EFFORTS  # noqa: E402
from LabelPropLib.registration import instance, training  # noqa: E402
from LabelPropLib.registration.consistency import FarEnds  # noqa: E402
from LabelPropLib.registration.network import RegistrationNetwork  # noqa: E402
from LabelPropLib.registration_weights import load_network  # noqa: E402
from LabelPropLib.settings import Settings  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "pretraining.md"
FEWER = 0.25  # of the steps
Register = Callable[[torch.Tensor, FarEnds | None], torch.Tensor]


def main():
    """Parse the command line, run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="ANATOMY=WEIGHTS.pt")
    parser.add_argument("cases", metavar="CASE", nargs="+", help="volume and number of slices: leg-synthetic-k5")
    parser.add_argument("--folder", type=Path, default=Path("pretraining-cases"), help="folder for the cases")
    add_bench_option(parser)
    arguments = parser.parse_args()
    anatomy, _, path = arguments.weights.partition("=")
    network = load_network(path)
    bench = open_bench(arguments.bench)
    rows = []
    for name in arguments.cases:
        case = find_case(bench, name, arguments.folder)
        rows.append(run(case, registrations(network)))
        print(name, *(f"{column} {dice:.3f}" for column, dice in rows[-1].items()), sep="\n  ", flush=True)
    text = f"{__doc__.splitlines()[0]}\n\nLeft out: {anatomy}.\n\n{format_table(arguments.cases, rows)}\n"
    RESULTS.write_text(text, encoding="utf-8")


def find_case(bench: Bench, name: str, folder: Path) -> Case:
    """The case of that name, made unless it is there."""
    volume, _, count = name.rpartition("-k")
    folder.mkdir(parents=True, exist_ok=True)
    return bench.make_case(bench.entries([volume])[0], int(count), folder)


def registrations(network: RegistrationNetwork) -> dict[str, Register]:
    """Column -> how the velocity fields are found."""
    scratch, short = training.FROM_SCRATCH, training.PRETRAINED
    long_course, short_course = (sum(phase.steps for phase in course.phases) for course in (scratch, short))

    def predicted(images: torch.Tensor) -> torch.Tensor:
        return training.predict(network, images, training.PREDICTION_REDUCTIONS)

    return {
        "network alone": lambda images, ends: predicted(images),
        "optimised, all steps": lambda images, ends: instance.register(images, ends, schedule(images)),
        "optimised, a quarter of them": lambda images, ends: instance.register(images, ends, schedule(images, FEWER)),
        "from the network, as many": lambda images, ends: instance.register(
            images, ends, schedule(images, FEWER), predicted(images)
        ),
        f"trained on the scan, {long_course} steps": lambda images, ends: training.register(
            images, ends, course=scratch
        ),
        f"the same, {short_course} steps": lambda images, ends: training.register(images, ends, course=short),
        f"from the weights, {short_course} steps": lambda images, ends: training.register(
            images, ends, course=short, start=network
        ),
    }


def schedule(images: torch.Tensor, share: float = 1.0) -> instance.Schedule:
    """The schedule of the preset `balanced` for planes (Z, C, H, W), with a share of its steps."""
    levels = EFFORTS["balanced"].levels_for(images.shape[-2:])
    return instance.Schedule(levels=tuple(level.shortened(share) for level in levels))


def run(case: Case, ways: dict[str, Register]) -> dict[str, float]:
    """Column -> mean Dice of the labels on slices that were not annotated."""
    image = sitk.ReadImage(str(case.image))
    drawn, reference = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (case.annotations, case.reference))
    spacing = image.GetSpacing()[::-1]
    annotation = annotate_from_label_volume(sitk.GetArrayFromImage(image), drawn, spacing)

    def dice(found: np.ndarray) -> float:
        scores = score_labels(found, reference, spacing, annotation.axis, annotation.planes)
        return float(np.mean([score.dice for score in scores.values()]))

    results = {"copy nearest": dice(copy_nearest(drawn, annotation.axis))}
    usual = pipeline.register
    try:
        for name, register in ways.items():
            pipeline.register = lambda stack, ends, *_, register=register: register(stack.images, ends)
            results[name] = dice(pipeline.propagate(annotation, Settings(device="cpu")).label_maps[0])
    finally:
        pipeline.register = usual
    return results


def format_table(cases: list[str], rows: list[dict[str, float]]) -> str:
    """A Markdown table: a line for each case, and the mean."""
    columns = list(rows[0])
    lines = markdown_tables.head(["Dice", *columns])
    mean = {column: float(np.mean([row[column] for row in rows])) for column in columns}
    for name, row in [*zip(cases, rows), ("**mean**", mean)]:
        lines.append(markdown_tables.line([name, *(f"{row[column]:.3f}" for column in columns)]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
