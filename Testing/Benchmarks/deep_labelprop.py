#!/usr/bin/env python3
"""Run the original LabelProp, PyPI's deep-labelprop, on a benchmark case, and say what it reaches at what cost.

    python Testing/Benchmarks/deep_labelprop.py CASE_FOLDER [--epochs 100] [--bench FOLDER] [--environment FOLDER]

It is installed into a virtual environment of its own, with the PyTorch that LabelProp runs on, so that CPU seconds
compare; an --environment is kept and used again. It trains from scratch on the case, on the CPU, through its own
`train` and `inference`, on the annotated region at native resolution in a square, which favours it: by default it
resamples whole slices. CPU seconds of an epoch are measured, those of its default 100 epochs extrapolated.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bench import Case, add_bench_option, open_bench
from scipy import ndimage

PACKAGES = ["deep-labelprop==1.2.3", "scikit-image", "plotext<6"]  # it needs all three, and requires less
DEFAULT_EPOCHS = 100
MARGIN = 12  # pixels around the annotations
MULTIPLE = 16  # its network halves the slices' sides this often


def main():
    """Parse the command line, run, print quality and cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=Path, help="a folder made by the benchmark's cases.py")
    parser.add_argument("--epochs", type=int, default=DEFAULT_EPOCHS)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--environment", type=Path, help="folder of the virtual environment, made if it is not there")
    add_bench_option(parser)
    arguments = parser.parse_args()
    bench = open_bench(arguments.bench)
    case = Case(arguments.case)
    with tempfile.TemporaryDirectory() as folder:
        python = prepare_environment(arguments.environment or Path(folder, "environment"))
        prediction, cost = run_case(python, case, arguments.epochs, arguments.threads, Path(folder))
        path = Path(folder, "prediction.nii.gz")
        sitk.WriteImage(prediction, str(path))
        result = bench.score(case, path)
    print(
        f"{result['case']}, region {cost['region']}, {arguments.epochs} epoch(s): Dice {result['dice']:.3f},"
        f" ASSD {result['assd']:.2f} mm, HD95 {result['hd95']:.1f} mm"
    )
    print(
        f"{cost['epoch']:.2f} CPU s an epoch, {cost['training']:.0f} in training, {cost['inference']:.0f} in inference;"
        f" with {DEFAULT_EPOCHS} epochs {DEFAULT_EPOCHS * cost['epoch'] + cost['inference']:.0f} (extrapolated)"
    )


def prepare_environment(folder: Path) -> Path:
    """The Python of a virtual environment with deep-labelprop in it. Ends with a message where it cannot be had."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    installed = subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES, torch])
    if installed.returncode:
        raise SystemExit("deep-labelprop cannot be installed here: see pip's message above.")
    return python


def run_case(python: Path, case: Case, epochs: int, threads: int, folder: Path) -> tuple[sitk.Image, dict]:
    """Its fused label volume of a case, and its cost: CPU seconds of 'epoch', 'training', 'inference'; 'region'."""
    image, annotations = sitk.ReadImage(str(case.image)), sitk.ReadImage(str(case.annotations))
    planes = np.moveaxis(sitk.GetArrayFromImage(image), case.axis, 0).astype(np.float32)
    drawn = np.moveaxis(sitk.GetArrayFromImage(annotations), case.axis, 0)

    box = ndimage.find_objects(drawn.any(axis=0).astype(np.uint8))[0]
    side = max(extent.stop - extent.start for extent in box) + 2 * MARGIN
    side += -side % MULTIPLE
    pad = [(0, 0), (side, side), (side, side)]  # room for a square anywhere
    corner = [(extent.start + extent.stop + side) // 2 for extent in box]
    square = (slice(None), *(slice(start, start + side) for start in corner))
    labels = np.concatenate([[0], case.description["labels"]])
    np.savez(
        folder / "region.npz",
        image=np.pad(planes, pad, mode="edge")[square],
        labels=np.searchsorted(labels, np.pad(drawn, pad)[square]).astype(np.uint8),  # it wants them contiguous
    )
    worker = Path(__file__).with_name("deep_labelprop_worker.py").resolve()
    command = [python, worker, "region.npz", str(epochs), str(threads)]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # it prints every step

    padded = np.zeros_like(np.pad(drawn, pad))
    padded[square] = labels[np.load(folder / "fused.npy")]
    found = padded[:, side : side + drawn.shape[1], side : side + drawn.shape[2]]
    annotated = case.description["annotated"]
    found[annotated] = drawn[annotated]
    prediction = sitk.GetImageFromArray(np.moveaxis(found, 0, case.axis))
    prediction.CopyInformation(annotations)
    cost = json.loads((folder / "cost.json").read_text())
    return prediction, cost | {"region": f"{side} x {side} x {len(drawn)}"}


if __name__ == "__main__":
    main()
