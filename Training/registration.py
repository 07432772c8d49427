#!/usr/bin/env python3
"""Makes weights of the registration network as they come with LabelProp.

    python Training/registration.py --data FOLDER [-o LabelProp/LabelPropLib/Resources/registration.pt]

Takes random shapes (synthetic.py), thighs of LabelProp's own phantom, and the scans of registration.csv, all of
licences that permit it, which are read from FOLDER and are not part of this repository. It trains on four fifths of
them; the others only tell which weights are best. With --leave-out ANATOMY the scans of one anatomy take no part (nor
do the phantoms, if it is the leg), to measure how the weights do on one they have not seen. The same command makes the
same weights on one kind of machine; an interrupted one goes on.

The weights that come with LabelProp are of an earlier version, in which the folders' names had a say in what is held
back: shapes 4, 5 and 12, vertebra-ct and cord-gm. They were trained on the rest, in 600 steps, the last of which were
the best. Run today, this holds back shapes 4, 10 and 11, fetalbrain-30 and leg-synthetic, so it makes other weights.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "LabelProp"))

from synthetic import make_volume  # noqa: E402

from LabelPropLib import cli, files  # noqa: E402
from LabelPropLib.phantom import make_phantom  # noqa: E402

SCANS = Path(__file__).with_name("registration.csv")
RANDOM_VOLUMES = 16
PHANTOMS = 2
LICENCE = "Apache-2.0"


def main() -> int:
    """Parse the command line, write the table, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the scans")
    parser.add_argument(
        "-o", "--output", type=Path, default=REPOSITORY / "LabelProp" / "LabelPropLib" / "Resources" / "registration.pt"
    )
    parser.add_argument("--work", type=Path, default=Path("registration-training"), help="folder for made volumes")
    parser.add_argument("--leave-out", metavar="ANATOMY", help="of registration.csv")
    parser.add_argument("--steps", default="600")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scans = read_scans()
    if arguments.leave_out and arguments.leave_out not in {scan["anatomy"] for scan in scans}:
        parser.error(f"no anatomy '{arguments.leave_out}' in {SCANS}")
    table = arguments.work / f"{arguments.output.stem}.table.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "annotations", "axis"))
        writer.writerows(made_volumes(arguments.work, 0 if arguments.leave_out == "leg" else PHANTOMS))
        for scan in scans:
            if scan["anatomy"] != arguments.leave_out:
                folder = (arguments.data / scan["folder"]).resolve()
                for axis in scan["axes"]:
                    writer.writerow((folder / "image.nii.gz", folder / "labels.nii.gz", axis))
    return cli.main(
        ["pretrain", str(table), "-o", str(arguments.output), "--checkpoint", "none", "--steps", arguments.steps]
        + ["--half", "--licence", LICENCE, "--device", "cpu"]
    )


def read_scans() -> list[dict[str, str]]:
    """The rows of registration.csv."""
    with SCANS.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def made_volumes(folder: Path, phantoms: int) -> Iterator[tuple[str, str, str]]:
    """Random shapes and so many phantoms, written to the folder unless they are there: rows of the table."""
    for seed in range(RANDOM_VOLUMES):
        names = f"shapes{seed}.nii.gz", f"shapes{seed}-labels.nii.gz"
        write(folder, names, lambda seed=seed: make_volume(seed), (1.0, 1.0, 1.0))
        yield *names, "k"
    for seed in range(1, phantoms + 1):
        names = f"thigh{seed}.nii.gz", f"thigh{seed}-labels.nii.gz"
        write(folder, names, lambda seed=seed: (make_phantom(seed).image, make_phantom(seed).labels), (4.0, 1.0, 1.0))
        yield *names, "k"


def write(folder: Path, names: tuple[str, str], make, spacing: tuple[float, float, float]):
    """Write the image and the labels that `make` returns; spacing: mm along (k, j, i)."""
    if all((folder / name).exists() for name in names):
        return
    ijk_to_ras = np.diag([*spacing[::-1], 1.0])
    for name, array in zip(names, make()):
        files.write_volume(array, ijk_to_ras, folder / name)


if __name__ == "__main__":
    sys.exit(main())
