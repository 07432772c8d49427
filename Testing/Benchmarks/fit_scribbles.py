#!/usr/bin/env python3
"""Fit how far a stroke's correction goes to simulated strokes on many scans, and show what it does on others.

    python Testing/Benchmarks/fit_scribbles.py [--only VOLUME ...] [--write]

Propagates the benchmark's volumes, and others that lie in the folder `data` beside it, from 3 and 5 slices; draws
strokes through the largest wrong regions, as scribbles.py does; and fits the coefficients `PRIOR` of
LabelPropLib/surroundings.py to what is truly wrong around them. Then every stroke is drawn with coefficients that were
fitted without any scan of its anatomy. Writes results/scribbles_held_out.md beside this file. With --write the
coefficients in surroundings.py are replaced.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import optimize, special

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

from bench import add_bench_option, open_bench  # noqa: E402
from fit_confidence import ANATOMIES, MORE_SCANS  # noqa: E402
from scans import read_scan, spread_slices  # noqa: E402
from scribbles import REGIONS, Result, StrokedScan, table  # noqa: E402

from LabelPropLib import scribbles, surroundings  # noqa: E402
from LabelPropLib.surroundings import Prior, Window  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
SLICE_COUNTS = (3, 5)
FITTED_REGIONS = 8  # a scan
LEAST_WRONG = 20  # voxels; a stroke around which fewer are wrong counts less than others


@dataclass(frozen=True)
class Around:
    """What is around a stroke: terms (N, 9) of the log-odds, and (N,) whether the voxels truly bear its label."""

    anatomy: str
    terms: np.ndarray
    wrong: np.ndarray


def main():
    """Collect, fit, and write what comes out on anatomies that were not fitted to."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    entries = [entry for entry in (*bench.entries(None), *MORE_SCANS) if entry["name"] in (arguments.only or ANATOMIES)]
    strokes: list[Around] = []
    for stroked in stroked_scans(entries, bench.folder.parent / "data", FITTED_REGIONS):
        strokes += collect(stroked, ANATOMIES[stroked.name.rpartition("-k")[0]])
    prior = fit(strokes)
    print(format_prior(prior))
    results: list[Result] = []
    for anatomy in sorted({stroke.anatomy for stroke in strokes}):
        without = fit([stroke for stroke in strokes if stroke.anatomy != anatomy])
        own = [entry for entry in entries if ANATOMIES[entry["name"]] == anatomy]
        with standing_in(surroundings, "PRIOR", without):
            for stroked in stroked_scans(own, bench.folder.parent / "data"):
                results += stroked.measure()
    text = f"Each with coefficients fitted without any scan of that anatomy.\n\n{table(results)}"
    print(text)
    (RESULTS / "scribbles_held_out.md").write_text(text, encoding="utf-8")
    if arguments.write:
        write_prior(prior, Path(surroundings.__file__))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names of volumes (all)")
    parser.add_argument("--write", action="store_true", help="write the coefficients to surroundings.py")
    return parser.parse_args()


def stroked_scans(entries: Sequence[dict], data: Path, regions: int = REGIONS) -> Iterator[StrokedScan]:
    """Every scan propagated from several numbers of slices."""
    for entry in entries:
        scan = read_scan(entry, data)
        for count in SLICE_COUNTS:
            if 2 * count < len(scan.labels):
                name = f"{scan.name}-k{count}"
                print(name, file=sys.stderr)
                yield StrokedScan(name, scan.annotate(spread_slices(scan, count)), scan.labels, regions)


def collect(stroked: StrokedScan, anatomy: str) -> list[Around]:
    """What is around all strokes of a scan."""
    found: list[Around] = []

    def keep(original: Callable, label: int, strokes: np.ndarray, window: Window) -> np.ndarray:
        for around in surroundings.surroundings(window.standing(label), strokes, window):
            truly = stroked.reference[window.box][surroundings.at(around.voxels)] == label
            found.append(Around(anatomy, around.terms, truly))
        return np.zeros(window.shape, bool)

    with standing_in(scribbles, "wrong_around", keep):
        for _ in stroked.measure():
            pass
    return found


def fit(strokes: Sequence[Around]) -> Prior:
    """Logistic regression; every stroke counts as much as another, however much is wrong around it."""
    terms = np.concatenate([stroke.terms for stroke in strokes])
    terms = np.insert(terms, 0, 1, axis=1)
    wrong = np.concatenate([stroke.wrong for stroke in strokes])
    weights = np.concatenate([np.full(len(s.wrong), 1 / max(s.wrong.sum(), LEAST_WRONG)) for s in strokes])
    weights /= weights.sum()

    def surprise(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        odds = terms @ coefficients
        loss = weights @ (np.logaddexp(0, odds) - wrong * odds)
        return float(loss), terms.T @ (weights * (special.expit(odds) - wrong))

    start = np.zeros(terms.shape[1])
    return Prior(*optimize.minimize(surprise, start, jac=True, method="L-BFGS-B").x.round(3).tolist())


@contextmanager
def standing_in(module, name: str, value):
    """In place of a module's constant another; of a function one that is given it as its first argument."""
    original = getattr(module, name)
    setattr(module, name, (lambda *arguments: value(original, *arguments)) if callable(original) else value)
    try:
        yield
    finally:
        setattr(module, name, original)


def format_prior(prior: Prior) -> str:
    """As Python."""
    lines = [f"    {field.name}={getattr(prior, field.name)}," for field in fields(prior)]
    return "\n".join(["PRIOR = Prior(", *lines, ")"])


def write_prior(prior: Prior, path: Path):
    """Replace PRIOR in the module."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(r"^PRIOR = Prior\(.*?^\)", format_prior(prior), text, flags=re.DOTALL | re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{path}: PRIOR = Prior(...) is not there once but {count} times.")
    path.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
