#!/usr/bin/env python3
"""A batch of 12 volumes on a dask cluster of 2 workers, one of which is killed half-way; then one that cannot be read.

    python Testing/Benchmarks/batch_on_cluster.py [--volumes 12] [--folder FOLDER]

Makes synthetic thighs, runs `labelprop propagate` on each, and `labelprop batch --scheduler` on all of them. When half
of the results are there, a worker is killed with what it is at. Passes if the batch ends with status 0 and every voxel
is that of the single run. Then one image is cut off and all run again, on this machine alone: passes if the batch ends
with status 1, names this volume and no other, and has the others' voxels. Needs dask.distributed.
"""

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from distributed import LocalCluster

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "LabelProp"))

from LabelPropLib import files  # noqa: E402
from LabelPropLib.phantom import make_phantom  # noqa: E402

COMMAND_LINE = REPOSITORY / "LabelProp" / "LabelPropLib" / "cli.py"
OPTIONS = ("--preset", "fast")
DRAWN = [0, 12, 24, 36, 47]


def main():
    """Parse the command line and run; ends with an AssertionError if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="keep everything here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        names = [f"thigh-{number:02d}" for number in range(arguments.volumes)]
        make_table(folder, names)
        for name in names:
            inputs = (folder / f"{name}-{part}.nii.gz" for part in ("image", "annotations"))
            status, said = labelprop("propagate", *inputs, "-o", folder / f"{name}-single.nii.gz", *OPTIONS)
            assert status == 0, said
        print(f"{len(names)} single runs done")
        survives_a_killed_worker(folder, names)
        goes_on_without_an_unreadable_volume(folder, names)


def survives_a_killed_worker(folder: Path, names: list[str]):
    """All volumes are there, voxel for voxel those of single runs, although a worker was killed half-way."""
    results = folder / "cluster"
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        batch = start("batch", folder / "table.csv", "-o", results, "--scheduler", cluster.scheduler_address, *OPTIONS)
        while len(list(results.glob("*.json"))) < len(names) // 2:
            assert batch.poll() is None, batch.communicate()
            time.sleep(0.1)
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)
        print("killed a worker")
        _, said = batch.communicate()
    assert batch.returncode == 0, said
    assert_voxels_of_single_runs(folder, results, names)
    print(f"all {len(names)} volumes are there, voxel for voxel")


def goes_on_without_an_unreadable_volume(folder: Path, names: list[str]):
    """The one volume that cannot be read is named, the others are there."""
    broken, *others = names
    image = folder / f"{broken}-image.nii.gz"
    image.write_bytes(image.read_bytes()[:-1000])
    results = folder / "unreadable"
    status, said = labelprop("batch", folder / "table.csv", "-o", results, "--jobs", 2, *OPTIONS)
    assert status == 1, said
    failures = [line for line in said.splitlines() if line.startswith("labelprop: ")]
    assert len(failures) == 1 and broken in failures[0], said
    assert_voxels_of_single_runs(folder, results, others)
    print(f"{len(others)} volumes are there, and status 1 with: {failures[0]}")


def make_table(folder: Path, names: list[str]):
    """Synthetic thighs, annotated on five slices, and the table that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("name", "image", "annotations"))
        for seed, name in enumerate(names):
            phantom = make_phantom(seed)
            for part, array in (("image", phantom.image), ("annotations", phantom.drawn_on(DRAWN))):
                files.write_volume(array, phantom.ijk_to_ras, folder / f"{name}-{part}.nii.gz")
            writer.writerow((name, f"{name}-image.nii.gz", f"{name}-annotations.nii.gz"))


def assert_voxels_of_single_runs(folder: Path, results: Path, names: list[str]):
    """Every result is the same volume as that of the single run."""
    for name in names:
        single, batch = (
            sitk.ReadImage(str(path)) for path in (folder / f"{name}-single.nii.gz", results / f"{name}.nii.gz")
        )
        assert np.array_equal(sitk.GetArrayFromImage(single), sitk.GetArrayFromImage(batch)), name


def labelprop(*arguments) -> tuple[int, str]:
    """Run the command line; returns its exit status and what it said on stderr."""
    process = start(*arguments)
    _, said = process.communicate()
    return process.returncode, said


def start(*arguments) -> subprocess.Popen:
    """Start the command line."""
    return subprocess.Popen([sys.executable, COMMAND_LINE, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    main()
