#!/usr/bin/env python3
"""What each fusion rule makes of the same registration, and what no rule could make of it: the oracle.

    python Testing/Benchmarks/fusion.py [--only VOLUME ...] [--cases FOLDER]

Registers every case of --bench once and fuses with every rule there is. Single candidates are scored alone; in the
oracle a voxel is right where at least one candidate is right, or at least a tenth of them. Writes results/fusion.md and
results/fusion.csv beside this file. Seconds and memory are those of choosing and fusing, registration apart.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import markdown_tables  # noqa: E402
import numpy as np  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import torch  # noqa: E402
from bench import Case, add_bench_option, open_bench  # noqa: E402
from csv_files import write_csv  # noqa: E402
from tables import ScoredCase, describe_machine  # noqa: E402

from LabelPropLib.annotation import SparseAnnotation, annotate_from_label_volume  # noqa: E402
from LabelPropLib.candidates import Arrivals, Atlas, Chains, arrivals  # noqa: E402
from LabelPropLib.clock import Clock  # noqa: E402
from LabelPropLib.evaluation import score_labels  # noqa: E402
from LabelPropLib.fusion import deep  # noqa: E402
from LabelPropLib.gap_fusion import Scan, fuse_gaps  # noqa: E402
from LabelPropLib.gaps import gaps  # noqa: E402
from LabelPropLib.label_planes import DISTANCE_LIMIT, LabelPlanes  # noqa: E402
from LabelPropLib.labelmaps import FusedScore, LabelMaps  # noqa: E402
from LabelPropLib.memory import Memory  # noqa: E402
from LabelPropLib.pipeline import propagate  # noqa: E402
from LabelPropLib.planner import EFFORTS  # noqa: E402
from LabelPropLib.preprocessing import prepare  # noqa: E402
from LabelPropLib.propagation import Propagation  # noqa: E402
from LabelPropLib.settings import FUSIONS, Settings  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
RULES = (*(rule for rule in FUSIONS if rule != "auto"), "auto")
CANDIDATES = ("lower", "upper", "next lower", "next upper", "shape")
ORACLES = {"oracle, nearest two": (CANDIDATES[:2], 0.0), "oracle": (CANDIDATES, 0.0), "oracle, 10 %": (CANDIDATES, 0.1)}
ABLATIONS = ("deep, no voting", "deep, no fine-tuning", "deep, no label mask")
MANY_SLICES = 5  # annotated ones, from which a case counts for the second line of means
NOTES = """\
All rules fuse the same registration. Single candidates: the annotated planes that bound a gap, the next ones behind
them, and the shape between the nearest two whatever the images say; for one that is not there stands the plane that
bounds the gap on its side, for the shape the lower one. Oracle: a voxel is right where at least one candidate is right,
or at least 10 % of them, which with {candidates} candidates is the same. Gap closed: (rule - best single candidate) /
(oracle - best single candidate), of the sums over the cases, the best candidate being that of the case. Seconds and
memory (beyond what is held before) of choosing and fusing; registration takes {seconds:.2f} s.
"""


@dataclass(frozen=True)
class Row(ScoredCase):
    """A rule, a candidate alone or an oracle on a case: its scores, and the seconds and MB of choosing and fusing."""

    seconds: float = math.nan
    megabytes: float = math.nan


@dataclass(frozen=True)
class Subject:
    """A case, read. reference: (K, J, I)."""

    case: Case
    annotation: SparseAnnotation
    reference: np.ndarray

    @classmethod
    def read(cls, case: Case) -> "Subject":
        """Read the files of a case."""
        paths = (case.image, case.annotations, case.reference)
        image, drawn, reference = (sitk.ReadImage(str(path)) for path in paths)
        arrays = (sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(drawn))
        annotation = annotate_from_label_volume(*arrays, image.GetSpacing()[::-1])
        return cls(case, annotation, sitk.GetArrayFromImage(reference))

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
    with tempfile.TemporaryDirectory() as temporary:
        for entry in bench.entries(arguments.only):
            for count in entry["slices"]:
                subject = Subject.read(bench.make_case(entry, count, arguments.cases or Path(temporary)))
                memory = Memory()
                registration_seconds.append(register(subject, memory))
                rows += measure(subject, memory)
                print(f"{subject.case.name:22s} {format_dice(rows, subject.case.name)}", file=sys.stderr)
    text = format_report(rows, float(np.mean(registration_seconds)), machine)
    print(text)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "fusion.md").write_text(text, encoding="utf-8")
    write_csv(rows, arguments.results / "fusion.csv", ".5g")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--only", nargs="+", metavar="VOLUME", help="names in cases.json (all)")
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="keep the cases here, and take those that are")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help=f"write here ({RESULTS})")
    return parser.parse_args()


def register(subject: Subject, memory: Memory) -> float:
    """Fill the memory by a first run; the seconds of its registration."""
    first = propagate(subject.annotation, Settings(fusion="distance"), memory=memory)
    return first.report["seconds"]["registering"]


def measure(subject: Subject, memory: Memory) -> Iterator[Row]:
    """The rows of all rules, single candidates and oracles, with the registration in the memory."""
    for rule in RULES:
        settings = Settings(fusion=rule)
        result, megabytes = weigh(lambda settings=settings: propagate(subject.annotation, settings, memory=memory))
        (found,) = result.label_maps
        stages = result.report["seconds"]
        yield subject.score(rule, found, stages["choosing"] + stages["fusing"], megabytes)
    with torch.no_grad():
        alone = {name: volume(maps) for name, maps in candidates_alone(subject.annotation, memory).items()}
        parts_missing = {name: volume(maps) for name, maps in ablations(subject.annotation, memory).items()}
    for name, found in (alone | parts_missing).items():
        yield subject.score(name, found)
    for name, (candidates, share) in ORACLES.items():
        yield subject.score(name, oracle([alone[c] for c in candidates], subject.reference, share))


def volume(maps: LabelMaps) -> np.ndarray:
    """(K, J, I) of labels that do not overlap."""
    (found,) = maps.volumes()
    return found


def candidates_alone(annotation: SparseAnnotation, memory: Memory) -> dict[str, LabelMaps]:
    """What each candidate says without the others; a plane that bounds the gap stands in for one that is not there."""
    scan = registered(annotation, memory)
    planes = scan.planes
    maps = {name: LabelMaps(annotation, scan.stack) for name in CANDIDATES}
    for gap, labels in gaps(annotation, scan.stack, extrapolate=False).items():
        crossing = scan.chains.cross(gap)
        for label in labels:
            arrived = arrivals(label, crossing, planes)
            atlases = name_atlases(arrived)
            for name in CANDIDATES:
                atlas = atlases.get(name) or atlases["upper" if name.endswith("upper") else "lower"]
                if atlas.distances is not None:
                    maps[name].enter(FusedScore(label, gap.targets, arrived.box, atlas.distances))
    for result in maps.values():
        result.keep_given(annotation)
    return maps


def ablations(annotation: SparseAnnotation, memory: Memory) -> dict[str, LabelMaps]:
    """Deep fusion without its voting subnet, without its fine-tuning subnet, and without its label mask."""
    scan = registered(annotation, memory)
    device = scan.stack.images.device
    voiceless, uncorrected, whole = (deep.load("auto", True, device) for _ in range(3))
    for layer in (voiceless.voting.out, uncorrected.correction.out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    maps = {}
    for name, networks in zip(ABLATIONS, (voiceless, uncorrected, whole)):
        margin = deep.MASK_MARGIN
        if networks is whole:
            deep.MASK_MARGIN = DISTANCE_LIMIT
        try:
            maps[name] = fuse_gaps(scan, networks, Settings(fusion="deep"), Clock(None, None)).maps
        finally:
            deep.MASK_MARGIN = margin
        maps[name].keep_given(annotation)
    return maps


def registered(annotation: SparseAnnotation, memory: Memory) -> Scan:
    """The case with the registration in the memory."""
    settings = Settings()
    stack = prepare(annotation, EFFORTS[settings.preset].pixels)
    velocity = memory.recall(annotation, settings).velocity
    return Scan(annotation, stack, LabelPlanes(annotation, stack), Chains(velocity, stack.images))


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


def weigh(work: Callable[[], Propagation]) -> tuple[Propagation, float]:
    """What `work` returns, and by how many MB the process grew meanwhile over what it held; NaN but on Linux."""
    peak_reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def megabytes(name: str) -> float:
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), math.nan)

    if peak_reset.exists():
        peak_reset.write_text("5")
    before = megabytes("VmRSS")
    result = work()
    return result, megabytes("VmHWM") - before


def format_dice(rows: list[Row], case: str) -> str:
    """Dice of the rules on a case, in a line."""
    return "  ".join(f"{row.method} {row.dice:.3f}" for row in rows if row.case == case and row.method in RULES)


def format_report(rows: list[Row], registration_seconds: float, machine: str) -> str:
    """The tables and how to read them, as Markdown."""
    cases = list(dict.fromkeys(row.case for row in rows))
    many = list(dict.fromkeys(row.case for row in rows if row.slice_count >= MANY_SLICES))
    dice = {(row.case, row.method): row.dice for row in rows}
    notes = NOTES.format(candidates=len(CANDIDATES), seconds=registration_seconds)
    return "\n".join(
        [*dice_table(dice, cases, many), "", *rule_table(rows, dice, cases, many), "", notes, "", machine, ""]
    )


def dice_table(dice: dict[tuple[str, str], float], cases: list[str], many: list[str]) -> list[str]:
    """Lines of Markdown: Dice of every method on every case and the means of all, and of the `many` alone."""
    methods = (*RULES, *ABLATIONS, *CANDIDATES, *ORACLES)
    lines = markdown_tables.head(["Dice", *methods])
    lines += [markdown_tables.line([case, *(f"{dice[case, method]:.3f}" for method in methods)]) for case in cases]
    for title, group in (("mean", cases), (f"mean, {MANY_SLICES} slices or more", many)):
        if group:
            means = [np.mean([dice[case, method] for case in group]) for method in methods]
            lines.append(markdown_tables.line([f"**{title}**", *(f"{mean:.4f}" for mean in means)]))
    return lines


def rule_table(rows: list[Row], dice: dict[tuple[str, str], float], cases: list[str], many: list[str]) -> list[str]:
    """Lines of Markdown: quality and cost of every rule."""
    head = ["rule", "Dice", "ASSD, mm", "HD95, mm", "worst label", "gap closed", f"gap closed, K>={MANY_SLICES}"]
    lines = markdown_tables.head([*head, "most below distance", "s", "MB"])
    digits = {"dice": 4, "assd": 2, "hd95": 1, "worst_label_dice": 3, "seconds": 2, "megabytes": 0}
    for rule in RULES:
        own = [row for row in rows if row.method == rule]
        means = {name: f"{np.mean([getattr(row, name) for row in own]):.{places}f}" for name, places in digits.items()}
        cost = (means.pop("seconds"), means.pop("megabytes"))
        closed = [f"{100 * gap_closed(dice, group, rule):.0f} %" if group else "-" for group in (cases, many)]
        below, where = max((dice[case, "distance"] - dice[case, rule], case) for case in cases)
        lines.append(
            markdown_tables.line(
                [rule, *means.values(), *closed, f"{below:.3f} ({where})" if below > 0 else "-", *cost]
            )
        )
    return lines


def gap_closed(dice: dict[tuple[str, str], float], cases: list[str], rule: str) -> float:
    """How much of the way from the best single candidate to the oracle a rule goes, over all cases together."""
    best = {case: max(dice[case, candidate] for candidate in CANDIDATES) for case in cases}
    gained = sum(dice[case, rule] - best[case] for case in cases)
    return gained / sum(dice[case, "oracle"] - best[case] for case in cases)


if __name__ == "__main__":
    main()
