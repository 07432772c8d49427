#!/usr/bin/env python3
"""Simulated strokes: what one stroke through the largest wrong region of a result changes, on real volumes.

    python Testing/Benchmarks/scribbles.py [--only VOLUME ...] [--slices K ...] [--without-graph-cut]

For every case the three largest regions of one true label (or background) that came out otherwise are looked for. Each
gets, one at a time, strokes in the stack's planes, in the two planes across them and in an oblique one; every other one
is thick. Nothing is registered or fused again for a stroke. With --without-graph-cut each stroke is drawn a
second time, without the setting `graph_cut`. Writes results/scribbles.md and .csv beside this file:

kept: scribbled voxels that bear their label; corrected: of the wrong voxels of the region within 5 slices and 15 mm of
the stroke, the scribbled ones among them; corrected_of_all: of all voxels of the region; far: voxels further than 15 mm
from the stroke that changed; Dice: change of the mean over the labels.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import markdown_tables  # noqa: E402
from bench import Case, add_bench_option, open_bench  # noqa: E402
from csv_files import write_csv  # noqa: E402

from LabelPropLib.annotation import SparseAnnotation, annotate_from_label_volume, stack_order  # noqa: E402
from LabelPropLib.memory import Memory  # noqa: E402
from LabelPropLib.pipeline import propagate  # noqa: E402
from LabelPropLib.settings import Settings  # noqa: E402
from LabelPropLib.surroundings import REACH  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = ("in the slice", "across rows", "across columns", "oblique")
SLICE_COUNTS = (3, 5)
REGIONS = 3
LEAST_VOXELS = 20
SLICES_AROUND = 5
MIDDLE = 0.8  # of a region's length that a stroke runs through
TOLERATED = 0.002  # fall of the mean Dice


@dataclasses.dataclass(frozen=True)
class Result:
    """What one stroke changed; see the module's text for the columns."""

    case: str
    plane: str
    graph_cut: bool
    scribbled: int
    region: int
    kept: float
    corrected: float
    corrected_of_all: float
    far: int
    dice: float
    worst_label: float
    seconds: float


def main():
    """Parse the command line, run, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names in cases.json (all)")
    parser.add_argument("--slices", nargs="+", type=int, metavar="K", default=SLICE_COUNTS, help="annotated slices")
    parser.add_argument(
        "--cases", type=Path, metavar="FOLDER", help="keep the cases here, and take those that are here"
    )
    add_comparison_option(parser)
    arguments = parser.parse_args()
    bench = open_bench(arguments.bench)
    with tempfile.TemporaryDirectory() as temporary:
        results = []
        for entry in bench.entries(arguments.only):
            for count in set(entry["slices"]) & set(arguments.slices):
                case = bench.make_case(entry, count, arguments.cases or Path(temporary))
                results += read_case(case).measure(arguments.without_graph_cut)
                print(f"{case.name}: {len(results)} strokes so far", file=sys.stderr)
    text = table(results) + "\n" + of_whole_regions(results)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scribbles.md").write_text(text, encoding="utf-8")
    write_csv(results, RESULTS / "scribbles.csv")


def add_comparison_option(parser: argparse.ArgumentParser):
    """Add the option to draw each stroke a second time."""
    parser.add_argument("--without-graph-cut", action="store_true", help="draw each stroke a second time, without it")


class StrokedScan:
    """A propagated scan on which strokes are drawn, each on its own, on the same registration.

    reference: (K, J, I), true labels. regions: the wrong ones, see `wrong_regions`.
    """

    def __init__(self, name: str, annotation: SparseAnnotation, reference: np.ndarray):
        self.name = name
        self.annotation = annotation
        self.reference = reference
        self._order = stack_order(annotation)
        self._memory = Memory()
        self._found = propagate(annotation, memory=self._memory).label_maps[0]
        self.regions = wrong_regions(annotation, *(v.transpose(self._order) for v in (self._found, reference)))

    def measure(self, without_graph_cut: bool = False) -> Iterator[Result]:
        """What strokes through the largest regions change, each of them also without the graph cut if asked for."""
        for label, region in self.regions[:REGIONS]:
            for kind in range(len(KINDS)):
                yield self.draw(label, region, kind)
                if without_graph_cut:
                    yield self.draw(label, region, kind, graph_cut=False)

    def draw(self, label: int, region: np.ndarray, kind: int, graph_cut: bool = True) -> Result:
        """What a stroke changes, of a kind through the middle of a region."""
        spacing = np.array(self.annotation.spacing)[list(self._order)]
        voxels = stroke(region, spacing, kind)
        scribbled = np.empty_like(voxels)
        scribbled[:, self._order] = voxels
        annotation = dataclasses.replace(self.annotation, scribbles={label: scribbled})
        start = time.perf_counter()
        found = propagate(annotation, Settings(graph_cut=graph_cut), memory=self._memory).label_maps[0]
        seconds = time.perf_counter() - start
        before, after = (volume.transpose(self._order) for volume in (self._found, found))
        changes = dice_changes(annotation.labels, self._found, found, self.reference)
        return Result(
            self.name,
            KINDS[kind],
            graph_cut,
            len(voxels),
            len(region),
            kept=float((after[tuple(voxels.T)] == label).mean()),
            corrected=corrected(region, voxels, after, label, spacing),
            corrected_of_all=float((after[tuple(region.T)] == label).mean()),
            far=far_changes(before, after, voxels, spacing),
            dice=float(np.mean(changes)),
            worst_label=float(min(changes)),
            seconds=seconds,
        )


def read_case(case: Case) -> StrokedScan:
    """A case of the benchmark, propagated."""
    image, drawn, reference = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (case.image, case.annotations, case.reference)
    )
    spacing = sitk.ReadImage(str(case.image)).GetSpacing()[::-1]
    return StrokedScan(case.name, annotate_from_label_volume(image, drawn, spacing, case.axis), reference)


def wrong_regions(
    annotation: SparseAnnotation, found: np.ndarray, reference: np.ndarray
) -> list[tuple[int, np.ndarray]]:
    """(true label, (N, 3) voxels) of connected regions between the outermost annotated planes, largest first."""
    within = np.zeros(len(found), bool)
    within[annotation.planes[0] : annotation.planes[-1]] = True
    within[annotation.planes] = False
    wrong = (found != reference) & within[:, None, None]
    regions = []
    for label in (0, *annotation.labels):
        pieces, _ = ndimage.label(wrong & (reference == label))
        sizes = np.bincount(pieces.ravel())[1:]
        boxes = ndimage.find_objects(pieces)
        for piece in np.flatnonzero(sizes >= LEAST_VOXELS):
            box = boxes[piece]
            regions.append((label, np.argwhere(pieces[box] == piece + 1) + [part.start for part in box]))
    return sorted(regions, key=lambda region: -len(region[1]))


def stroke(region: np.ndarray, spacing: np.ndarray, kind: int) -> np.ndarray:
    """(N, 3) voxels of a stroke along the middle of the region, in the plane of the kind that holds most of it."""
    normal = np.eye(3)[kind] if kind < 3 else np.ones(3) / np.sqrt(3)
    thickness = np.abs(normal * spacing).max()
    plane_of = np.round(region * spacing @ normal / thickness).astype(int)
    counts = np.bincount(plane_of - plane_of.min())
    inside = region[plane_of == counts.argmax() + plane_of.min()]
    first = region.min(axis=0) - 1
    solid = np.zeros(region.max(axis=0) - first + 2, bool)
    solid[tuple((region - first).T)] = True
    depth = ndimage.distance_transform_edt(solid, sampling=spacing)[tuple((inside - first).T)]
    centred = (inside - inside.mean(axis=0)) * spacing
    way = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    low, high = np.quantile(way, [(1 - MIDDLE) / 2, (1 + MIDDLE) / 2])
    step = spacing.max()
    points = [
        inside[part][depth[part].argmax()]
        for n in range(int(low // step), int(high // step) + 1)
        if len(part := np.flatnonzero(way // step == n))
    ]
    line = np.zeros(solid.shape, bool)
    for one, other in zip(points, points[1:] or points, strict=False):
        for share in np.linspace(0, 1, int(np.abs(other - one).max()) + 1):
            line[tuple(np.round(one + share * (other - one)).astype(int) - first)] = True
    if kind % 2:
        line = ndimage.binary_dilation(line, np.ones([1 if axis == kind else 3 for axis in range(3)]))
    return np.argwhere(line & solid) + first


def corrected(region: np.ndarray, voxels: np.ndarray, after: np.ndarray, label: int, spacing: np.ndarray) -> float:
    """Share of the region within 5 slices and REACH of the stroke that bears its true label now."""
    slices = np.abs(region[:, :1] - np.unique(voxels[:, 0])).min(axis=1)
    distance, _ = cKDTree(voxels * spacing).query(region * spacing)
    near = region[(slices <= SLICES_AROUND) & (distance <= REACH)]
    return float((after[tuple(near.T)] == label).mean())


def far_changes(before: np.ndarray, after: np.ndarray, voxels: np.ndarray, spacing: np.ndarray) -> int:
    """Number of voxels further than REACH from the stroke that changed."""
    changed = np.argwhere(before != after)
    distance, _ = cKDTree(voxels * spacing).query(changed * spacing)
    return int(np.count_nonzero(distance > REACH + 1e-6))


def dice_changes(labels, before: np.ndarray, after: np.ndarray, reference: np.ndarray) -> list[float]:
    """By how much the Dice of each label changes, over the whole volume."""

    def dice(found: np.ndarray, label: int) -> float:
        there = reference == label
        return 2 * np.count_nonzero((found == label) & there) / (np.count_nonzero(found == label) + there.sum())

    return [dice(after, label) - dice(before, label) for label in labels]


def table(results: list[Result]) -> str:
    """Markdown: a line a case, one a kind of plane, and one of all; then one of all without graph cut."""
    cut, without = ([r for r in results if r.graph_cut is way] for way in (True, False))
    groups = {name: [r for r in cut if r.case == name] for name in dict.fromkeys(r.case for r in cut)}
    groups |= {kind: [r for r in cut if r.plane == kind] for kind in KINDS}
    groups |= {"all": cut, "all, without graph cut": without}
    columns = {
        "strokes": len,
        "kept": lambda rows: f"{np.mean([row.kept for row in rows]):.3f}",
        "corrected, mean": lambda rows: f"{np.mean([row.corrected for row in rows]):.3f}",
        "less than half corrected": lambda rows: sum(row.corrected < 0.5 for row in rows),
        "changed beyond 15 mm": lambda rows: sum(row.far for row in rows),
        "Dice, mean change": lambda rows: f"{np.mean([row.dice for row in rows]):+.4f}",
        f"Dice, falls by more than {TOLERATED}": lambda rows: sum(row.dice < -TOLERATED for row in rows),
        "Dice, worst change": lambda rows: f"{min(row.dice for row in rows):+.4f}",
        "seconds, median": lambda rows: f"{np.median([row.seconds for row in rows]):.2f}",
    }
    lines = markdown_tables.head(["", *columns])
    lines += [
        markdown_tables.line([name, *(str(column(rows)) for column in columns.values())])
        for name, rows in groups.items()
        if rows
    ]
    return "\n".join(lines) + "\n"


def of_whole_regions(results: list[Result]) -> str:
    """Markdown: what of the regions was corrected, as far as they go."""
    shares = np.array([result.corrected_of_all for result in results if result.graph_cut])
    return (
        "Corrected is the share of what was wrong of the region within 5 slices and 15 mm of the stroke, its own voxels"
        f" included. Of the whole regions {shares.mean():.3f} was corrected on average, less than half by"
        f" {np.count_nonzero(shares < 0.5)} of the {len(shares)} strokes.\n"
    )


if __name__ == "__main__":
    main()
