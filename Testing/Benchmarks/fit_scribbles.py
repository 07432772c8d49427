#!/usr/bin/env python3
"""Fit how far a stroke's correction goes to simulated strokes on many scans, and show what it does on others.

    python Testing/Benchmarks/fit_scribbles.py [--write] [--without-graph-cut]

Propagates the benchmark's volumes, and others that lie in the folder `data` beside it, from 3 and 5 slices; draws
strokes through the largest wrong regions, as scribbles.py does; and fits the coefficients `COEFFICIENTS` of
LabelPropLib/surroundings.py to what is truly wrong around them. Then the strokes are drawn with coefficients
fitted without any scan of that kind. Writes results/scribbles_held_out.md beside this file. With --write the
coefficients in surroundings.py are replaced.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, special

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

from bench import add_bench_option, open_bench  # noqa: E402
from fit_confidence import ALSO_ELSEWHERE, ANATOMIES, MORE_SCANS, format_fitted, standing_in, write_fitted  # noqa: E402
from scans import read_scan, spread_slices  # noqa: E402
from scribbles import KINDS, RESULTS, SLICE_COUNTS, StrokedScan, add_comparison_option, table  # noqa: E402

from LabelPropLib import scribbles, surroundings  # noqa: E402
from LabelPropLib.surroundings import Coefficients  # noqa: E402

REGIONS = 8  # of a scan, to be fitted to
HEAD = (
    f"Strokes with coefficients fitted without any scan of that kind. {ALSO_ELSEWHERE} Beyond the outermost slice that"
    " bears its label a stroke carries the whole label up to it, also further than 15 mm."
)
LEAST_WRONG = 20  # voxels; a stroke around which fewer are wrong counts less than others


@dataclass(frozen=True)
class Sample:
    """What is around a stroke: terms of the log-odds (N, 12), and (N,) whether the voxels truly bear its label."""

    anatomy: str
    terms: np.ndarray
    wrong: np.ndarray


def main():
    """Collect, fit, and write what comes out on anatomies that were not fitted to."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    scans = list(propagate((*bench.entries(None), *MORE_SCANS), bench.folder.parent / "data"))
    samples = [sample for scan in scans for sample in collect(scan)]
    fitted = fit(samples)
    print(format_fitted(fitted))
    if arguments.write:
        write_fitted(fitted, Path(surroundings.__file__))
    results = []
    for left_out in dict.fromkeys(anatomy(scan) for scan in scans):
        held_out = fit([sample for sample in samples if sample.anatomy != left_out])
        with standing_in(surroundings, "COEFFICIENTS", held_out):
            of_anatomy = [scan for scan in scans if anatomy(scan) == left_out]
            results += [result for scan in of_anatomy for result in scan.measure(arguments.without_graph_cut)]
    text = f"{HEAD}\n\n{table(results)}"
    print(text)
    (RESULTS / "scribbles_held_out.md").write_text(text, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    add_comparison_option(parser)
    parser.add_argument("--write", action="store_true", help="write the coefficients to surroundings.py")
    return parser.parse_args()


def propagate(entries: Sequence[dict], data: Path) -> Iterator[StrokedScan]:
    """Every scan from several numbers of slices, where it is long enough."""
    for entry in entries:
        scan = read_scan(entry, data)
        for count in SLICE_COUNTS:
            if 2 * count < len(scan.labels):
                name = f"{scan.name}-k{count}"
                print(name, file=sys.stderr)
                yield StrokedScan(name, scan.annotate(spread_slices(scan, count)), scan.labels)


def anatomy(scan: StrokedScan) -> str:
    """Scans of the same anatomy are left out together."""
    return ANATOMIES[scan.name.rpartition("-k")[0]]


def collect(scan: StrokedScan) -> list[Sample]:
    """What is around strokes through the largest wrong regions of a scan."""
    samples: list[Sample] = []

    def keep(standing, strokes, window):
        for around in surroundings.around_strokes(standing, strokes, window):
            truly = scan.reference[window.box][surroundings.at(around.voxels)] == standing.label
            samples.append(Sample(anatomy(scan), around.terms, truly))
            yield around

    with standing_in(scribbles, "around_strokes", keep):
        for label, region in scan.regions[:REGIONS]:
            for kind in range(len(KINDS)):
                scan.draw(label, region, kind)
    return samples


def fit(samples: Sequence[Sample]) -> Coefficients:
    """Logistic regression; a stroke counts as much as another, however much is wrong around it."""
    terms = np.concatenate([sample.terms for sample in samples])
    wrong = np.concatenate([sample.wrong for sample in samples])
    weights = np.concatenate([np.full(len(s.wrong), 1 / max(s.wrong.sum(), LEAST_WRONG)) for s in samples])
    weights /= weights.sum()

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        log_odds = coefficients[0] + terms @ coefficients[1:]
        residual = weights * (special.expit(log_odds) - wrong)
        return float(weights @ (np.logaddexp(0, log_odds) - wrong * log_odds)), np.r_[residual.sum(), residual @ terms]

    found = optimize.minimize(loss, np.zeros(terms.shape[1] + 1), jac=True, method="L-BFGS-B", tol=1e-9)
    return Coefficients(*found.x.tolist())


if __name__ == "__main__":
    main()
