#!/usr/bin/env python3
"""What each fusion rule makes of the same registration, and what no rule could make of it: the oracle.

    python Testing/Benchmarks/fusion.py [--only VOLUME ...] [--cases FOLDER]

Registers every case of --bench once and fuses with every rule there is. Single candidates are scored alone; in the
oracle a voxel is right where at least one candidate is right, or at least a tenth of them. Writes results/fusion.md and
results/fusion.csv beside this file. Seconds and memory are those of choosing and fusing, registration apart.
"""

import argparse
import csv
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from bench import Case, add_bench_option, open_bench  # noqa: E402
from tables import describe_machine  # noqa: E402

from LabelPropLib import pipeline  # noqa: E402
from LabelPropLib.annotation import SparseAnnotation, annotate_from_label_volume  # noqa: E402
from LabelPropLib.candidates import Arrivals, Atlas, Chains, LabelPlanes, arrivals, far_ends, gaps  # noqa: E402
from LabelPropLib.evaluation import score_labels  # noqa: E402
from LabelPropLib.labelmaps import LabelMaps  # noqa: E402
from LabelPropLib.planner import EFFORTS, thread_count  # noqa: E402
from LabelPropLib.preprocessing import Stack, prepare  # noqa: E402
from LabelPropLib.settings import FUSIONS, Settings  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
RULES = (*(rule for rule in FUSIONS if rule != "auto"), "auto")
CANDIDATES = ("lower", "upper", "next lower", "next upper", "shape")
ORACLES = {"oracle, nearest two": (CANDIDATES[:2], 0.0), "oracle": (CANDIDATES, 0.0), "oracle, 10 %": (CANDIDATES, 0.1)}
MANY_SLICES = 5  # annotated ones, from which a case counts for the second line of means


@dataclass(frozen=True)
class Row:
    """A rule, a candidate alone or an oracle on a case: means over the labels of Dice, ASSD and HD95 (mm), and cost."""

    case: str
    method: str
    dice: float
    assd: float
    hd95: float
    worst_label_dice: float
    seconds: float = math.nan
    megabytes: float = math.nan

    @property
    def slice_count(self) -> int:
        """How many slices were annotated."""
        return int(self.case.rpartition("-k")[2])


@dataclass(frozen=True)
class Registered:
    """A case, ready to be fused. reference: (K, J, I); seconds: that registration took."""

    case: Case
    annotation: SparseAnnotation
    stack: Stack
    planes: LabelPlanes
    chains: Chains
    reference: np.ndarray
    seconds: float

    def score(self, method: str, found: np.ndarray, seconds: float = math.nan, megabytes: float = math.nan) -> Row:
        """The row of a label volume (K, J, I)."""
        annotation = self.annotation
        annotated = self.case.description["annotated"]
        scores = score_labels(found, self.reference, annotation.spacing, annotation.axis, annotated).values()
        means = [float(np.mean([getattr(score, name) for score in scores])) for name in ("dice", "assd", "hd95")]
        return Row(self.case.name, method, *means, min(score.dice for score in scores), seconds, megabytes)


def main():
    """Parse the command line, run, print and write the results."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    machine = describe_machine()
    rows, registration_seconds = [], []
    with tempfile.TemporaryDirectory() as temporary, pipeline.threads(thread_count()):
        for entry in bench.entries(arguments.only):
            for count in entry["slices"]:
                registered = register(bench.make_case(entry, count, arguments.cases or Path(temporary)))
                registration_seconds.append(registered.seconds)
                with torch.no_grad():
                    rows += measure(registered)
                print(f"{registered.case.name:22s} {format_dice(rows, registered.case.name)}", file=sys.stderr)
    text = format_report(rows, float(np.mean(registration_seconds)), machine)
    print(text)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "fusion.md").write_text(text, encoding="utf-8")
    write_csv(rows, arguments.results / "fusion.csv")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names in cases.json (all)")
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="keep the cases here, and take those that are")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help=f"write here ({RESULTS})")
    return parser.parse_args()


def register(case: Case) -> Registered:
    """Read, prepare and register a case, as `propagate` does."""
    image, drawn, reference = (sitk.ReadImage(str(path)) for path in (case.image, case.annotations, case.reference))
    annotation = annotate_from_label_volume(
        sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(drawn), image.GetSpacing()[::-1]
    )
    settings = Settings()
    effort = EFFORTS[settings.preset]
    start = time.perf_counter()
    stack = prepare(annotation, effort.pixels)
    planes = LabelPlanes(annotation, stack)
    ends = far_ends(annotation, stack, planes)
    velocity = pipeline.register(stack, ends, settings, effort, lambda fraction: None)
    seconds = time.perf_counter() - start
    chains = Chains(velocity, stack.images)
    return Registered(case, annotation, stack, planes, chains, sitk.GetArrayFromImage(reference), seconds)


def measure(registered: Registered) -> Iterator[Row]:
    """The rows of all rules, single candidates and oracles."""
    for rule in RULES:
        maps, seconds, megabytes = weigh(lambda rule=rule: fuse(registered, rule))
        yield registered.score(rule, volume(maps), seconds, megabytes)
    alone = {name: volume(maps) for name, maps in candidates_alone(registered).items()}
    for name, found in alone.items():
        yield registered.score(name, found)
    for name, (candidates, share) in ORACLES.items():
        yield registered.score(name, oracle([alone[c] for c in candidates], registered.reference, share))


def fuse(registered: Registered, rule: str) -> LabelMaps:
    """What a rule finds, or `auto`."""
    parts = (registered.annotation, registered.stack, registered.planes, registered.chains)
    rules = pipeline.choose_rules(*parts, rule)
    maps, _ = pipeline.fuse(*parts, rules, Settings(), pipeline.Clock(None, None))
    return maps


def volume(maps: LabelMaps) -> np.ndarray:
    """(K, J, I) of labels that do not overlap."""
    (found,) = maps.volumes()
    return found


def candidates_alone(registered: Registered) -> dict[str, LabelMaps]:
    """What each candidate says without the others; the nearest annotated plane stands in for one that is not there."""
    maps = {name: LabelMaps(registered.annotation, registered.stack) for name in CANDIDATES}
    for gap, labels in gaps(registered.annotation, registered.stack, extrapolate=False).items():
        crossing = registered.chains.cross(gap)
        for label in labels:
            arrived = arrivals(label, crossing, registered.planes)
            atlases = name_atlases(arrived)
            for name in CANDIDATES:
                atlas = atlases.get(name) or atlases["upper" if name.endswith("upper") else "lower"]
                if atlas.distances is not None:
                    maps[name].enter(label, gap.targets, arrived.box, atlas.distances)
    for result in maps.values():
        result.keep_given()
    return maps


def name_atlases(arrived: Arrivals) -> dict[str, Atlas]:
    """The atlases between two annotated planes by the names of CANDIDATES."""
    gap, named = arrived.gap, dict(zip(CANDIDATES, arrived.nearest))
    for atlas in arrived.more():
        if isinstance(atlas.source, int):
            named["next lower" if atlas.source < gap.lower else "next upper"] = atlas
        else:
            named["shape"] = atlas
    return named


def oracle(candidates: list[np.ndarray], reference: np.ndarray, share: float) -> np.ndarray:
    """The reference where at least one candidate, and at least a share of them, agrees with it, else the first one."""
    right = sum((candidate == reference).astype(int) for candidate in candidates)
    return np.where(right >= max(1, share * len(candidates)), reference, candidates[0])


def weigh(work: Callable[[], LabelMaps]) -> tuple[LabelMaps, float, float]:
    """What `work` returns, its seconds, and by how many MB the process grew over what it held; NaN but on Linux."""
    peak_reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def megabytes(name: str) -> float:
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), math.nan)

    if peak_reset.exists():
        peak_reset.write_text("5")
    before, start = megabytes("VmRSS"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - start, megabytes("VmHWM") - before


def format_dice(rows: list[Row], case: str) -> str:
    """Dice of the rules on a case, in a line."""
    return "  ".join(f"{row.method} {row.dice:.3f}" for row in rows if row.case == case and row.method in RULES)


def format_report(rows: list[Row], registration_seconds: float, machine: str) -> str:
    """The tables and what they say, as Markdown."""
    methods = (*RULES, *CANDIDATES, *ORACLES)
    cases = list(dict.fromkeys(row.case for row in rows))
    dice = {(row.case, row.method): row.dice for row in rows}
    lines = table_head(["Dice", *methods])
    lines += [table_line([case, *(f"{dice[case, method]:.3f}" for method in methods)]) for case in cases]
    many = [row.case for row in rows if row.slice_count >= MANY_SLICES]
    groups = {f"mean of {len(cases)} cases": cases, f"mean of those with {MANY_SLICES} slices or more": many}
    for title, group in groups.items():
        if group:
            means = [np.mean([dice[case, method] for case in group]) for method in methods]
            lines.append(table_line([f"**{title}**", *(f"{mean:.4f}" for mean in means)]))

    lines += ["", *table_head(["rule", "Dice", "ASSD, mm", "HD95, mm", "worst label", "gap closed", "gap closed, "
              f"{MANY_SLICES} slices or more", "below distance, most", "s", "MB"])]  # fmt: skip
    for rule in RULES:
        own = [row for row in rows if row.method == rule]
        means = {field.name: np.mean([getattr(row, field.name) for row in own]) for field in fields(Row)[2:]}
        closed = [f"{100 * gap_closed(dice, group, rule):.0f} %" if group else "-" for group in (cases, many)]
        below, where = max((dice[case, "distance"] - dice[case, rule], case) for case in cases)
        lines.append(
            table_line(
                [
                    rule,
                    f"{means['dice']:.4f}",
                    f"{means['assd']:.2f}",
                    f"{means['hd95']:.1f}",
                    f"{means['worst_label_dice']:.3f}",
                    *closed,
                    f"{below:.3f} ({where})",
                    f"{means['seconds']:.2f}",
                    f"{means['megabytes']:.0f}",
                ]
            )  # fmt: skip
        )
    lines += [
        "",
        "All rules fuse the same registration. Single candidates: the annotated planes that bound a gap, the next ones"
        " behind them, and the shape between the nearest two whatever the images say; the nearest plane stands in for a"
        " candidate that is not there. Oracle: a voxel is right where at least one candidate is right, or at least"
        f" 10 % of them, which with {len(CANDIDATES)} candidates is the same. Gap closed: (rule - best single"
        " candidate) / (oracle - best single candidate), of the sums over the cases, the best candidate being that of"
        " the case. Seconds and memory (beyond what is held before) of choosing and fusing; registration takes"
        f" {registration_seconds:.2f} s. {machine}",
    ]
    return "\n".join(lines) + "\n"


def gap_closed(dice: dict[tuple[str, str], float], cases: list[str], rule: str) -> float:
    """How much of the way from the best single candidate to the oracle a rule goes, over all cases together."""
    best = {case: max(dice[case, candidate] for candidate in CANDIDATES) for case in cases}
    gained = sum(dice[case, rule] - best[case] for case in cases)
    return gained / sum(dice[case, "oracle"] - best[case] for case in cases)


def table_head(titles: list[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [table_line(titles), "|---" * len(titles) + "|"]


def table_line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def write_csv(rows: list[Row], path: Path):
    """A line for each row."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


if __name__ == "__main__":
    main()
