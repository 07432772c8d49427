#!/usr/bin/env python3
"""A simulated annotator: which slice to draw next, the one that LabelProp suggests or the middle of the largest gap?

    python Testing/Benchmarks/annotator.py [--preset balanced] [--cache FOLDER] [--only VOLUME ...]

Starts on every volume of the benchmark from 3 annotated slices and draws four more, one after the other: all labels of
a slice, from the reference. Once the slice that LabelProp suggests, and once the middle of the largest gap between
annotated slices, in mm; of equal gaps the lowest. After each slice LabelProp propagates anew. Dice is that of the
slices which were not annotated at the beginning, mean over the labels: the same slices for both, whether drawn since or
not. Which structures are on the first slices is chance, so the same is done from three more starts, the volume without
its first, its last or some of both slices. Writes results/annotator.md, .csv and .png beside this file. With --cache
what was computed is kept in a folder.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import markdown_tables  # noqa: E402
from bench import add_bench_option, open_bench  # noqa: E402
from csv_files import write_csv  # noqa: E402
from scans import Scan, read_scan, spread_slices  # noqa: E402

from LabelPropLib.confidence import measure  # noqa: E402
from LabelPropLib.evaluation import score_labels  # noqa: E402
from LabelPropLib.pipeline import propagate  # noqa: E402
from LabelPropLib.settings import PRESETS, Settings  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
FIRST = 3  # annotated slices to begin with
TRIMMED = ((0.0, 0.0), (0.12, 0.0), (0.0, 0.12), (0.08, 0.08))  # parts of the slices left out below and above, by start
STEPS = 4
SUGGESTED, BISECTED = "suggested", "largest gap"
COLOURS = {SUGGESTED: "#1d6fb8", BISECTED: "#f4a261"}


@dataclass(frozen=True)
class Step:
    """So many slices drawn after the first ones, the last of them `drawn`; length traced since, mm; mean Dice.

    start: number of the start, in the order of TRIMMED. drawn: counts from the first slice that was left in.
    """

    volume: str
    start: int
    strategy: str
    step: int
    drawn: int | None
    length: float
    dice: float


@dataclass(frozen=True)
class Outcome:
    """What a propagation gives: mean Dice of the labels on the slices to be scored, and the suggested slice."""

    dice: float
    suggested: int | None


def main():
    """Annotate, and write what came out."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    steps = []
    for entry in bench.entries(arguments.only):
        whole = read_scan(entry, bench.folder.parent / "data")
        for start in range(len(TRIMMED)):
            scan = trim(whole, *TRIMMED[start])
            try_slices = memory_of(scan, start, arguments.preset, arguments.cache)
            for strategy in (SUGGESTED, BISECTED):
                for step in annotate(scan, start, strategy, try_slices):
                    print(f"{scan.name} {start} {strategy} {step.drawn}: {step.length:.0f} mm, {step.dice:.3f}")
                    steps.append(step)
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = format_table(steps, arguments.preset) + "\n"
    print(text)
    (arguments.results / "annotator.md").write_text(text, encoding="utf-8")
    write_csv(steps, arguments.results / "annotator.csv", ".4f")
    plot(steps, arguments.results / "annotator.png")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--preset", choices=PRESETS, default="balanced", help="what to propagate with (balanced)")
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names in cases.json (all)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was computed here")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help=f"where to write ({RESULTS})")
    return parser.parse_args()


def trim(scan: Scan, below: float, above: float) -> Scan:
    """The scan without these parts of its slices, at the beginning and at the end."""
    count = len(scan.labels)
    left_in = slice(round(below * count), count - round(above * count))
    return replace(scan, image=scan.image[left_in], labels=scan.labels[left_in])


def memory_of(scan: Scan, start: int, preset: str, cache: Path | None) -> Callable[[list[int]], Outcome]:
    """What comes out for the slices that are annotated, computed once; scored without the first ones."""
    first = spread_slices(scan, FIRST)
    known: dict[str, Outcome] = {}
    kept = cache and cache / f"{scan.name}-{start}-{preset}.json"
    if kept and kept.exists():
        known = {slices: Outcome(*values) for slices, values in json.loads(kept.read_text()).items()}

    def outcome(slices: list[int]) -> Outcome:
        key = " ".join(map(str, slices))
        if key not in known:
            result = propagate(scan.annotate(slices), Settings(preset=preset))
            scores = score_labels(result.label_maps[0], scan.labels, scan.spacing, 0, first)
            suggested = result.report["suggested_slice"]
            dice = float(np.mean([score.dice for score in scores.values()]))
            known[key] = Outcome(dice, suggested and suggested["plane"])
            if kept:
                cache.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps({key: [o.dice, o.suggested] for key, o in known.items()}))
        return known[key]

    return outcome


def annotate(scan: Scan, start: int, strategy: str, try_slices: Callable[[list[int]], Outcome]) -> Iterable[Step]:
    """Draw slice after slice; ends early where nothing is suggested any more."""
    slices = spread_slices(scan, FIRST)
    outcome = try_slices(slices)
    length = 0.0
    yield Step(scan.name, start, strategy, 0, None, length, outcome.dice)
    for step in range(1, STEPS + 1):
        plane = outcome.suggested if strategy == SUGGESTED else middle_of_largest_gap(slices)
        if plane is None:
            return
        slices = sorted([*slices, plane])
        length += boundary(scan, plane)
        outcome = try_slices(slices)
        yield Step(scan.name, start, strategy, step, plane, length, outcome.dice)


def middle_of_largest_gap(slices: Sequence[int]) -> int:
    """The lower one of two equal gaps, and of two slices in the middle; slices are equally far apart."""
    gaps = np.diff(slices)
    largest = int(np.argmax(gaps))
    return int(slices[largest] + gaps[largest] // 2)


def boundary(scan: Scan, plane: int) -> float:
    """mm to trace on a slice, for all its labels."""
    labels = [int(label) for label in np.unique(scan.labels[plane]) if label]
    contours = measure(scan.labels[plane : plane + 1], labels, scan.spacing[1:])
    return float(sum(contour.perimeter.sum() for contour in contours.values()))


def mean_curve(steps: Sequence[Step], strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean over volumes and starts, after each step: length traced, in parts of what bisection traces in all; Dice."""
    wholes = {(s.volume, s.start): s.length for s in steps if (s.strategy, s.step) == (BISECTED, STEPS)}
    by_step: list[list[tuple[float, float]]] = [[] for _ in range(STEPS + 1)]
    for (volume, start), whole in wholes.items():
        own = [step for step in steps if (step.volume, step.start, step.strategy) == (volume, start, strategy)]
        own += [own[-1]] * (STEPS + 1 - len(own))  # nothing more was suggested
        for number, step in enumerate(own):
            by_step[number].append((step.length / whole, step.dice))
    lengths, dice = np.mean(by_step, axis=1).T
    return lengths, dice


def length_to_reach(dice: float, lengths: np.ndarray, curve: np.ndarray) -> float:
    """Where a curve first reaches a Dice, linearly between its points; NaN if it does not."""
    for number in range(1, len(curve)):
        if curve[number] >= dice:
            part = (dice - curve[number - 1]) / max(curve[number] - curve[number - 1], 1e-9)
            return float(lengths[number - 1] + max(part, 0) * (lengths[number] - lengths[number - 1]))
    return float("nan")


def format_table(steps: Sequence[Step], preset: str) -> str:
    """Markdown: the means from the first start and from all of them, and a table of the volumes."""
    first = [step for step in steps if step.start == 0]
    lines = [
        f"Mean over the volumes after so many more slices, preset {preset}; length in parts of what the largest gap"
        f" takes for {STEPS}.",
        "",
        *format_means(first),
        "",
        f"The same over {len(TRIMMED)} starts: all slices, and without the first ones, the last ones or some of both.",
        "",
        *format_means(steps),
        "",
        *markdown_tables.head(["volume", f"{SUGGESTED}: Dice / mm", f"{BISECTED}: Dice / mm"]),
    ]
    for volume in dict.fromkeys(step.volume for step in first):
        last = [[s for s in first if (s.volume, s.strategy) == (volume, name)][-1] for name in (SUGGESTED, BISECTED)]
        lines.append(markdown_tables.line([volume, *(f"{step.dice:.3f} / {step.length:.0f}" for step in last)]))
    return "\n".join(lines)


def format_means(steps: Sequence[Step]) -> list[str]:
    """Lines of a Markdown table, and what it comes to."""
    curves = {strategy: mean_curve(steps, strategy) for strategy in (SUGGESTED, BISECTED)}
    heads = [f"{name}: {what}" for name in (SUGGESTED, BISECTED) for what in ("mean Dice", "length traced")]
    lines = markdown_tables.head(["slices drawn", *heads])
    for number in range(STEPS + 1):
        cells = [str(number)]
        for lengths, dice in curves.values():
            cells += [f"{dice[number]:.3f}", f"{lengths[number]:.2f}"]
        lines.append(markdown_tables.line(cells))
    needed = length_to_reach(curves[BISECTED][1][-1], *curves[SUGGESTED])
    said = f"with {100 * needed:.0f} % of its length" if np.isfinite(needed) else "not"
    return [*lines, "", f"What the largest gap reaches with {STEPS} slices, the suggested slices reach {said}."]


def plot(steps: Sequence[Step], path: Path):
    """Dice against length, a panel for the means from the first start and from all, and one for each volume."""
    from matplotlib.figure import Figure

    first = [step for step in steps if step.start == 0]
    volumes = list(dict.fromkeys(step.volume for step in first))
    titles = ["mean", f"mean of {len(TRIMMED)} starts", *volumes]
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.4 * rows + 0.5), layout="constrained", dpi=110)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for strategy, colour in COLOURS.items():
        for panel, averaged in zip(panels, (first, steps)):
            lengths, dice = mean_curve(averaged, strategy)
            panel.plot(lengths, dice, color=colour, marker="o", markersize=4, linewidth=2.2, label=strategy)
        for panel, volume in zip(panels[2:], volumes):
            own = [step for step in first if (step.volume, step.strategy) == (volume, strategy)]
            panel.plot([s.length / 1000 for s in own], [s.dice for s in own], color=colour, marker="o", markersize=3)
    for panel, title in zip(panels, titles):
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    figure.supxlabel("m of boundary traced (means: in parts of what the largest gap takes)", fontsize=10)
    figure.supylabel("mean Dice of the slices not annotated at first", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
