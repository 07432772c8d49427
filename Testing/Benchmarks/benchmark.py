#!/usr/bin/env python3
"""LabelProp against what a Slicer user has without it, on real volumes: Dice, distances, time and memory in one table.

    python Testing/Benchmarks/benchmark.py [--methods nearest fill labelprop:balanced labelprop:fast] [--plot]

Runs every method on every case of --bench, each in a process of its own and LabelProp through its command line, and
scores what they write on the slices that were not annotated. Writes results/benchmark.md and .csv beside this file;
with --plot also results/slices.png and .csv, Dice against the number of annotated slices. With --in-process nothing is
started and no memory measured: quick, for development.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

from bench import Bench, Case, add_bench_option, open_bench  # noqa: E402
from csv_files import write_csv  # noqa: E402
from methods import Cost, Method, parse_method, run_here, run_process  # noqa: E402
from tables import (  # noqa: E402
    Row,
    describe_machine,
    format_overview,
    format_summary,
    format_table,
    plot_slices,
)

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_METHODS = ("nearest", "fill", "labelprop:balanced")
PLOTTED_SLICE_COUNTS = (2, 3, 5, 7, 9, 13)
Run = Callable[[Method, Case, Path], Cost]


def main():
    """Parse the command line, run, print and write the results."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    entries = bench.entries(arguments.only)
    methods = arguments.methods
    run = run_here if arguments.in_process else run_process
    results = arguments.results
    results.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cases or Path(temporary)
        cases = [bench.make_case(entry, count, folder) for entry in entries for count in entry["slices"]]
        rows = list(measure(bench, cases, methods, run))
        parts = (format_overview(rows, methods), format_table(rows, methods), format_summary(rows, methods), machine)
        text = "\n\n".join(parts) + "\n"
        print(text)
        (results / "benchmark.md").write_text(text, encoding="utf-8")
        write_csv(rows, results / "benchmark.csv", ".5g")
        if arguments.plot:
            cases = [bench.make_case(entry, count, folder) for entry in entries for count in PLOTTED_SLICE_COUNTS]
            cases = [case for case in cases if case.annotated_share <= 0.5]
            rows = list(measure(bench, cases, methods, run))
            write_csv(rows, results / "slices.csv", ".5g")
            plot_slices(rows, methods, results / "slices.png")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        type=parse_method,
        default=[parse_method(text) for text in DEFAULT_METHODS],
        help=f"nearest, fill, labelprop[:PRESET][:REGISTRATION][:FUSION] ({' '.join(DEFAULT_METHODS)})",
    )
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names in cases.json (all)")
    parser.add_argument(
        "--cases", type=Path, metavar="FOLDER", help="keep the cases here, and take those that are here"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", default=RESULTS, help=f"folder to write to ({RESULTS})"
    )
    parser.add_argument("--in-process", action="store_true", help="run everything in this process")
    parser.add_argument("--plot", action="store_true", help="also plot Dice against the number of annotated slices")
    return parser.parse_args()


def measure(bench: Bench, cases: list[Case], methods: list[Method], run: Run) -> Iterator[Row]:
    """Run every method on every case, and say on stderr how it goes."""
    with tempfile.TemporaryDirectory() as folder:
        prediction = Path(folder, "prediction.nii.gz")
        for case in cases:
            for method in methods:
                cost = run(method, case, prediction)
                row = Row.of(case, method, bench.score(case, prediction), cost)
                print(f"{row.case:22s} {row.method:32s} Dice {row.dice:.3f}  {row.seconds:6.2f} s", file=sys.stderr)
                yield row


if __name__ == "__main__":
    main()
