"""A baseline in a process of its own: `python baseline.py nearest|fill AXIS ANNOTATIONS OUT REPORT.json`.

AXIS is the array axis of the stack. REPORT holds the seconds of the work alone, as that of `labelprop propagate`.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"  # before ITK starts up: see baselines.fill_between_slices
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402

from LabelPropLib.baselines import copy_nearest, interpolate_contours  # noqa: E402


def main():
    """Read, fill in, write."""
    name, axis, source, target, report = sys.argv[1:]
    drawn = sitk.ReadImage(source)
    labels = sitk.GetArrayFromImage(drawn)
    interpolate_contours(np.ones((1, 1, 1), np.uint8))  # loads Slicer's libraries, which in Slicer are there already
    start = time.perf_counter()
    filled = copy_nearest(labels, int(axis)) if name == "nearest" else interpolate_contours(labels)
    seconds = time.perf_counter() - start
    image = sitk.GetImageFromArray(filled)
    image.CopyInformation(drawn)
    sitk.WriteImage(image, target, True)
    Path(report).write_text(json.dumps({"seconds": {name: seconds}}))


if __name__ == "__main__":
    main()
