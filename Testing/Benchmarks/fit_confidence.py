#!/usr/bin/env python3
"""Fit what LabelProp expects of its own results to scans with a reference, and show how far it can be trusted.

    python Testing/Benchmarks/fit_confidence.py [--preset balanced] [--cache FOLDER] [--write]

Propagates the benchmark's volumes, and others that lie in the folder `data` beside it, from several numbers of slices,
and fits the coefficients `PRIOR` of LabelPropLib/confidence.py to what came out. Writes results/confidence.md, .csv and
.png beside this file: the expected against the true Dice of every label and slice of the benchmark's volumes at 5
annotated slices, with the coefficients fitted to all scans and with those fitted without any scan of that kind; and
how often voxels are wrong, against how often they should be. With --write the coefficients in confidence.py are
replaced. With --cache what was propagated is kept in a folder, and taken from there if it is there.
"""

import argparse
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy import optimize, special, stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "LabelProp"))

import markdown_tables  # noqa: E402
from bench import add_bench_option, open_bench  # noqa: E402
from csv_files import write_csv  # noqa: E402
from scans import Scan, read_scan, spread_slices  # noqa: E402

from LabelPropLib import confidence, evaluation, pipeline  # noqa: E402
from LabelPropLib.confidence import Contours, Prior, SeenDrift  # noqa: E402
from LabelPropLib.evidence import Evidence  # noqa: E402
from LabelPropLib.settings import PRESETS, Settings  # noqa: E402
from LabelPropLib.surroundings import Coefficients  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results"
SLICE_COUNT = 5  # of the cases that are reported
MORE_SLICE_COUNTS = (3, 9)  # that are fitted to as well, where the volume is long enough
# Of log drift over log bridge. Farther is worse, but slices are drawn more densely where it is difficult, which hides
# it among labels of all kinds. Anything from 0 to .3 gives the same error on them.
LEAST_SLOPE = 0.15
GEOMETRY_ALONE = (0.0, 1.0, *[0.0] * 7)  # dice_of_one that leaves what drift and end give
ALSO_ELSEWHERE = (
    "A few structures are in scans of another kind, too: the spleen in those of the torso, hippocampus and caudate in"
    " those of the brain."
)
ANATOMIES = {
    "paraspinal-01": "back muscles",
    "leg-synthetic": "thighs",
    "leg-coronal": "thighs",
    "lumbar-05": "spine",
    "lumbar-16": "spine",
    "spine-t2-07": "spine",
    "spine-path-15": "spine",
    "discs-20": "spine",
    "vertebra": "spine",
    "torso-muscles": "torso",
    "torso-organs": "torso",
    "torso-mr": "abdomen",
    "brain-deep": "brain",
    "brain-cortex": "brain",
    "ventricles": "ventricles",
    "hippocampus-001": "hippocampus",
    "hippocampus-004": "hippocampus",
    "hippocampus-007": "hippocampus",
    "fetal-brain": "fetal brain",
    "fetal-sagittal": "fetal brain",
    "spleen": "spleen",
    "cord": "cord",
}
MORE_SCANS = (
    {"name": "leg-coronal", "data": "leg-synthetic", "axis": "y", "step": 2},
    {"name": "vertebra", "data": "vertebra-ct", "axis": "z"},
    {"name": "torso-organs", "data": "torso-ct", "axis": "z", "labels": [1, 2, 3, 5, 6, 14, 25, 52, 75, 76, 77, 78]},
    {"name": "torso-mr", "data": "torso-mr", "axis": "z"},
    {"name": "brain-cortex", "data": "brain-colin27-aal", "axis": "y", "step": 2, "labels": [1, 2, 29, 30, 43, 44, 57]},
    {"name": "hippocampus-007", "data": "hippocampus-007", "axis": "y"},
    {"name": "fetal-sagittal", "data": "fetalbrain-30", "axis": "x", "step": 3},
    {"name": "cord", "data": "cord-gm", "axis": "z"},
)


@dataclass(frozen=True)
class Gap:
    """A label in a gap: the evidence, what was found, and the truth: area (mm^2), Dice, surface distance (mm), (T,)."""

    evidence: Evidence
    contours: Contours
    there: np.ndarray
    dice: np.ndarray
    surface: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """(T,) whether the label is on the slice, or was found there."""
        return (self.there > 0) | (self.contours.area > 0)

    @property
    def end(self) -> int:
        """On how many of its planes a label that ends in the gap is."""
        return int((self.there > 0).sum())


@dataclass(frozen=True)
class Run:
    """A propagation: of which volume, from how many slices, and what came out."""

    volume: str
    slice_count: int
    gaps: list[Gap]
    hidden: dict[int, list[SeenDrift]]

    @property
    def anatomy(self) -> str:
        """Volumes of the same anatomy are left out together."""
        return ANATOMIES[self.volume]


@dataclass(frozen=True)
class Pair:
    """A label on a slice of a case: expected Dice, all scans fitted to or without this anatomy, and the true one."""

    case: str
    anatomy: str
    label: int
    plane: int
    ends: bool
    found: bool
    expected: float
    held_out: float
    true: float


def main():
    """Collect, fit, and write what came out."""
    arguments = parse_arguments()
    bench = open_bench(arguments.bench)
    entries = bench.entries(None)
    reported = {entry["name"] for entry in entries}
    scans = [read_scan(entry, bench.folder.parent / "data") for entry in (*entries, *MORE_SCANS)]
    runs = list(collect(scans, arguments.preset, arguments.cache))
    prior = fit(runs)
    print(format_fitted(prior))
    if arguments.write:
        write_fitted(prior, Path(confidence.__file__))
    pairs = list(compare([run for run in runs if run.volume in reported], runs, prior))
    voxels = measure_voxels([scan for scan in scans if scan.name in reported], arguments.preset, prior)
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = format_summary(pairs, voxels, arguments.preset) + "\n"
    print(text)
    (arguments.results / "confidence.md").write_text(text, encoding="utf-8")
    write_csv(pairs, arguments.results / "confidence.csv", ".4f")
    plot(pairs, voxels, arguments.results / "confidence.png")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_option(parser)
    parser.add_argument("--preset", choices=PRESETS, default="balanced", help="what to propagate with (balanced)")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep what was propagated here")
    parser.add_argument("--write", action="store_true", help="write the coefficients to confidence.py")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=RESULTS, help=f"where to write ({RESULTS})")
    return parser.parse_args()


# What to fit to


def collect(scans: Sequence[Scan], preset: str, cache: Path | None) -> Iterable[Run]:
    """Propagate every scan from several numbers of slices, or read what was kept."""
    for scan in scans:
        for count in (SLICE_COUNT, *MORE_SLICE_COUNTS):
            if count > len(scan.labels) / 3 and count != SLICE_COUNT:
                continue
            kept = cache and cache / f"{scan.name}-k{count}-{preset}.pickle"
            if kept and kept.exists():
                yield pickle.loads(kept.read_bytes())
                continue
            print(f"{scan.name} from {count} slices", file=sys.stderr)
            run = propagate(scan, count, preset)
            if kept:
                cache.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(pickle.dumps(run))
            yield run


def propagate(scan: Scan, count: int, preset: str) -> Run:
    """Propagate, and compare with the reference in every gap."""
    hidden: dict[int, list[SeenDrift]] = {}
    gaps: list[Gap] = []

    scales, assess = confidence.scales, confidence.assess

    def keep_hidden(slices, *rest):
        hidden.update(slices)
        return scales(slices, *rest)

    def keep_gaps(annotation, stack, evidence, label_maps, factors):
        expected = assess(annotation, stack, evidence, label_maps, factors)
        gaps.extend(compare_gap(scan, label_maps, seen) for seen in evidence)
        return expected

    with standing_in(confidence, "scales", keep_hidden), standing_in(confidence, "assess", keep_gaps):
        pipeline.propagate(scan.annotate(spread_slices(scan, count)), Settings(preset=preset))
    return Run(scan.name, count, gaps, hidden)


@contextmanager
def standing_in(module: ModuleType, name: str, value: object):
    """Replace what a module calls by that name, inside."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


def compare_gap(scan: Scan, label_maps: Sequence[np.ndarray], seen: Evidence) -> Gap:
    """What was found of a label in a gap, and how good it is."""
    planes = list(seen.planes)
    found = np.any([label_map[planes] == seen.label for label_map in label_maps], axis=0)
    true = scan.labels[planes] == seen.label
    contours = confidence.measure(found.astype(np.uint8), (1,), scan.spacing[1:])[1]
    overlap, total = (found & true).sum(axis=(1, 2)), found.sum(axis=(1, 2)) + true.sum(axis=(1, 2))
    distances = [evaluation.contour_distances(*pair, scan.spacing[1:]) for pair in zip(found, true)]
    return Gap(
        evidence=seen,
        contours=contours,
        there=true.sum(axis=(1, 2)) * scan.spacing[1] * scan.spacing[2],
        dice=2 * overlap / np.maximum(total, 1),
        surface=np.array([d.mean() if len(d) else 0.0 for d in distances]),
    )


# Fitting


def fit(runs: Sequence[Run], start: Prior = confidence.PRIOR) -> Prior:
    """The coefficients, one part after the other.

    Drift where both sides bear the label, then what hidden slices say of it, by the Dice; ends by their likelihood; the
    drift where one side bears the label, given where it ends, by the Dice; then what the scores say there.
    """
    prior = fit_drift(runs, start)
    prior = fit_ends(runs, prior)
    prior = fit_drift_of_one(runs, prior)
    return fit_blend(runs, prior)


def fit_drift(runs: Sequence[Run], prior: Prior) -> Prior:
    """drift, own and surface, and growth. What goes farther drifts more: see LEAST_SLOPE."""
    gaps = [(run, gap) for run in runs for gap in run.gaps if gap.evidence.ending is None]
    masks = [gap.contours.area > 0 for _, gap in gaps]

    def joined(values: Callable[[Gap], np.ndarray]) -> np.ndarray:
        return np.concatenate([values(gap)[mask] for (_, gap), mask in zip(gaps, masks, strict=True)])

    bridged = joined(lambda gap: np.log(confidence.bridge(gap.evidence.below, gap.evidence.above)))
    terms = [
        bridged,
        joined(lambda gap: np.log(gap.evidence.disagreement)),
        joined(lambda gap: gap.evidence.unlikeness),
        joined(lambda gap: confidence.edge(gap.evidence)),
    ]
    thinness = joined(lambda gap: confidence.thinness(gap.contours))
    dice, surface = joined(lambda gap: gap.dice), joined(lambda gap: gap.surface)

    def least(
        start: Sequence[float], logarithm: Callable[[np.ndarray], np.ndarray], bounds: tuple = (-np.inf, np.inf)
    ) -> np.ndarray:
        def residual(coefficients: np.ndarray) -> np.ndarray:
            return np.exp(-np.exp(logarithm(coefficients).clip(-8, 4)) * thinness) - dice

        start = np.clip(start, *bounds)
        return optimize.least_squares(residual, start, bounds=bounds, loss="soft_l1", f_scale=0.02).x

    farther_is_worse = ([-np.inf, LEAST_SLOPE, *[-np.inf] * 3], np.inf)
    drift = least(prior.drift, lambda c: confidence.linear(c, *terms), farther_is_worse)
    prior = replace(prior, drift=tuple(drift), growth=fit_growth(runs))
    own = np.concatenate(
        [
            np.full(mask.sum(), confidence.excess_drift(run.hidden.get(gap.evidence.label, ()), prior))
            for (run, gap), mask in zip(gaps, masks, strict=True)
        ]
    )
    expected = confidence.linear(drift, *terms)
    offset, slope = least((0.0, 0.0), lambda c: expected + c[0] + c[1] * own)
    drift = (drift[0] + offset, *drift[1:])
    final = np.exp(expected + offset + slope * own)
    ratio = float(surface[dice > 0].mean() / final[dice > 0].mean())
    return replace(prior, drift=tuple(drift), own=float(slope), surface=ratio)


def fit_growth(runs: Sequence[Run]) -> float:
    """growth: slope of log drift over log bridge, of the same label of a volume from different numbers of slices.

    Over all labels alike the slope would be flatter: who annotates densely does so because it is difficult there.
    """
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for run in runs:
        for label in {gap.evidence.label for gap in run.gaps}:
            gaps = [gap for gap in run.gaps if gap.evidence.label == label and gap.evidence.ending is None]
            found = [gap for gap in gaps if (gap.contours.area > 0).all()]
            if found:
                bridged = [confidence.bridge(gap.evidence.below, gap.evidence.above).mean() for gap in found]
                drifted = [((1 - gap.dice) / confidence.thinness(gap.contours)).mean() for gap in found]
                points.setdefault((run.volume, label), []).append(np.log([np.mean(bridged), np.mean(drifted) + 0.02]))
    moments = sum(np.cov(np.transpose(own), bias=True) * len(own) for own in points.values() if len(own) > 1)
    return float(moments[0, 1] / moments[0, 0])


def fit_ends(runs: Sequence[Run], prior: Prior) -> Prior:
    """end and presence, by the likelihood of where the labels truly end; every anatomy counts the same."""
    gaps = [(run.anatomy, gap) for run in runs for gap in run.gaps if gap.evidence.ending is not None]
    ends = len(prior.end)
    counts = {anatomy: sum(other == anatomy for other, _ in gaps) for anatomy, _ in gaps}

    def loss(values: np.ndarray) -> float:
        trial = replace(prior, end=tuple(values[:ends]), presence=tuple(values[ends:]))
        surprise = 0.0
        for anatomy, gap in gaps:
            probability = confidence.end_probabilities(trial, gap.evidence.ending, gap.contours.area)[gap.end]
            surprise -= np.log(probability + 1e-6) / counts[anatomy]
        return surprise + 1e-2 * float(np.square(values).sum())

    values = optimize.minimize(loss, (*prior.end, *prior.presence), method="L-BFGS-B", options={"maxiter": 60}).x
    return replace(prior, end=tuple(values[:ends]), presence=tuple(values[ends:]))


def fit_drift_of_one(runs: Sequence[Run], prior: Prior) -> Prior:
    """drift_of_one, by the Dice that drift and end alone give."""
    gaps = [gap for run in runs for gap in run.gaps if gap.evidence.ending is not None]

    def residual(values: np.ndarray) -> np.ndarray:
        trial = replace(prior, drift_of_one=tuple(values), dice_of_one=GEOMETRY_ALONE)
        expected = (confidence.expect(trial, gap.evidence, gap.contours).dice for gap in gaps)
        return np.concatenate([(dice - gap.dice)[gap.counted] for dice, gap in zip(expected, gaps, strict=True)])

    values = optimize.least_squares(residual, prior.drift_of_one, loss="soft_l1", f_scale=0.05, max_nfev=20).x
    return replace(prior, drift_of_one=tuple(values))


def fit_blend(runs: Sequence[Run], prior: Prior) -> Prior:
    """dice_of_one, by the Dice."""
    alone = replace(prior, dice_of_one=GEOMETRY_ALONE)
    terms, true = [], []
    for run in runs:
        for gap, stretch in zip(run.gaps, stretches(run, alone), strict=True):
            if gap.evidence.ending is not None:
                kept = confidence.left_by_drift(stretch.drift, gap.contours)
                of_gap = confidence.terms_of_one(gap.evidence, kept, stretch.dice, stretch.ends)
                terms.append(np.stack(of_gap)[:, stretch.found > 0])
                true.append(gap.dice[stretch.found > 0])
    terms, true = np.concatenate(terms, axis=1), np.concatenate(true)

    def residual(coefficients: np.ndarray) -> np.ndarray:
        return special.expit(confidence.linear(coefficients, *terms)) - true

    coefficients = optimize.least_squares(residual, prior.dice_of_one, loss="soft_l1", f_scale=0.03).x
    return replace(prior, dice_of_one=tuple(coefficients))


def format_fitted(fitted: Prior | Coefficients) -> str:
    """The constant as it stands in the module, named as its class in capitals."""

    def number(value: float) -> str:
        return f"{value:.3f}"

    lines = []
    for field in fields(fitted):
        value = getattr(fitted, field.name)
        text = f"({', '.join(map(number, value))})" if isinstance(value, tuple) else number(value)
        lines.append(f"    {field.name}={text},")
    name = type(fitted).__name__
    return "\n".join([f"{name.upper()} = {name}(", *lines, ")"])


def write_fitted(fitted: Prior | Coefficients, path: Path):
    """Replace what was fitted before in the module."""
    text, new = path.read_text(encoding="utf-8"), format_fitted(fitted)
    head = new.partition("\n")[0]
    changed, count = re.subn(rf"^{re.escape(head)}.*?^\)", new, text, flags=re.DOTALL | re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{path}: {head}...) is not there once but {count} times.")
    path.write_text(changed, encoding="utf-8")


# How good it is


def compare(reported: Sequence[Run], runs: Sequence[Run], prior: Prior) -> Iterable[Pair]:
    """Every counted label on every slice of the reported cases."""
    reported = [run for run in reported if run.slice_count == SLICE_COUNT]
    without = {
        anatomy: fit([run for run in runs if run.anatomy != anatomy], prior)
        for anatomy in sorted({run.anatomy for run in reported})
    }
    for run in reported:
        both = [expected_dice(run, prior), expected_dice(run, without[run.anatomy])]
        for gap, expected, held_out in zip(run.gaps, *both, strict=True):
            for index in np.flatnonzero(gap.counted):
                yield Pair(
                    case=f"{run.volume}-k{run.slice_count}",
                    anatomy=run.anatomy,
                    label=gap.evidence.label,
                    plane=gap.evidence.planes[index],
                    ends=gap.evidence.ending is not None,
                    found=bool(gap.contours.area[index] > 0),
                    expected=float(expected[index]),
                    held_out=float(held_out[index]),
                    true=float(gap.dice[index]),
                )


def expected_dice(run: Run, prior: Prior) -> list[np.ndarray]:
    """(T,) of every gap."""
    return [stretch.dice for stretch in stretches(run, prior)]


def stretches(run: Run, prior: Prior) -> list[confidence.Stretch]:
    """What to expect of every gap, the drift scaled to what the hidden slices showed."""
    factors = confidence.scales(run.hidden, prior)
    return [
        confidence.expect(prior, gap.evidence, gap.contours, factors.get(gap.evidence.label, 1.0)) for gap in run.gaps
    ]


def measure_voxels(scans: Sequence[Scan], preset: str, prior: Prior) -> np.ndarray:
    """(20, 3): expected probability of being wrong of unknown voxels in bins of it, share of them wrong, and count."""
    bins = np.linspace(0, 0.5, 21)
    sums = np.zeros((20, 3))
    scales = partial(confidence.scales, prior=prior)  # the default of which is bound already
    for scan in scans:
        slices = spread_slices(scan, SLICE_COUNT)
        with standing_in(confidence, "PRIOR", prior), standing_in(confidence, "scales", scales):
            result = pipeline.propagate(scan.annotate(slices), Settings(preset=preset, uncertainty=True))
        doubt = np.delete(result.uncertainty, slices, axis=0).ravel() / 2
        wrong = np.delete(result.label_maps[0] != scan.labels, slices, axis=0).ravel()
        which = np.clip(np.digitize(doubt, bins) - 1, 0, 19)
        sums += np.stack([np.bincount(which, weights, 20) for weights in (doubt, wrong, np.ones(len(doubt)))], axis=1)
    sums[:, :2] /= np.maximum(sums[:, 2:], 1)
    return sums


def format_summary(pairs: Sequence[Pair], voxels: np.ndarray, preset: str) -> str:
    """Two Markdown tables and a sentence."""
    lines = [
        f"Expected against true Dice of every label on every slice that was not annotated, {SLICE_COUNT} annotated"
        f" slices, preset {preset}; labels that are truly on the slice or were found there. Held out: coefficients"
        f" fitted without any scan of that kind. {ALSO_ELSEWHERE} Where nothing was found the Dice is 0, and so is the"
        " expected one.",
        "",
        *markdown_tables.head(["", "pairs", "mean absolute error", "held out", "Spearman", "held out"]),
    ]
    kinds = {
        "**all**": lambda pair: True,
        "label found": lambda pair: pair.found,
        "drawn on both sides": lambda pair: not pair.ends,
        "drawn on one side": lambda pair: pair.ends,
        **{anatomy: (lambda pair, a=anatomy: pair.anatomy == a) for anatomy in sorted({p.anatomy for p in pairs})},
    }
    for kind, belongs in kinds.items():
        own = [pair for pair in pairs if belongs(pair)]
        errors = [np.mean([abs(getattr(p, name) - p.true) for p in own]) for name in ("expected", "held_out")]
        ranks = [
            stats.spearmanr([getattr(p, name) for p in own], [p.true for p in own])[0]
            for name in ("expected", "held_out")
        ]
        figures = [f"{errors[0]:.3f}", f"{errors[1]:.3f}", f"{ranks[0]:.2f}", f"{ranks[1]:.2f}"]
        lines.append(markdown_tables.line([kind, str(len(own)), *figures]))
    lines += ["", *markdown_tables.head(["case", "expected, mean over labels and slices", "held out", "true"])]
    means = case_means(pairs)
    lines += [markdown_tables.line([case, *(f"{value:.3f}" for value in values)]) for case, values in means.items()]
    errors = [np.mean([abs(values[n] - values[2]) for values in means.values()]) for n in (0, 1)]
    ranks = [stats.spearmanr(*np.array(list(means.values()))[:, [n, 2]].T)[0] for n in (0, 1)]
    lines += [
        "",
        f"Of these means: mean absolute error {errors[0]:.3f}, held out {errors[1]:.3f}; Spearman {ranks[0]:.2f}, held"
        f" out {ranks[1]:.2f}.",
        "",
        f"Voxels: {100 * (voxels[:, 0] * voxels[:, 2]).sum() / voxels[:, 2].sum():.2f} % expected to be wrong,"
        f" {100 * (voxels[:, 1] * voxels[:, 2]).sum() / voxels[:, 2].sum():.2f} % are.",
    ]
    return "\n".join(lines)


def case_means(pairs: Sequence[Pair]) -> dict[str, tuple[float, float, float]]:
    """Case -> means of expected, held out and true Dice."""
    cases = dict.fromkeys(pair.case for pair in pairs)
    return {
        case: tuple(
            float(np.mean([getattr(pair, name) for pair in pairs if pair.case == case]))
            for name in ("expected", "held_out", "true")
        )
        for case in cases
    }


def plot(pairs: Sequence[Pair], voxels: np.ndarray, path: Path):
    """Three panels: Dice of labels on slices, Dice of cases, and voxels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained", dpi=110)
    by_pair, by_case, by_voxel = figure.subplots(1, 3)
    held_out, true = (np.array([getattr(pair, name) for pair in pairs]) for name in ("held_out", "true"))
    ends = np.array([pair.ends for pair in pairs])
    for kind, colour, name in ((~ends, "#1d6fb8", "drawn on both sides"), (ends, "#f4a261", "drawn on one side")):
        by_pair.scatter(held_out[kind], true[kind], s=5, alpha=0.3, color=colour, label=name, linewidths=0)
    edges = np.quantile(held_out[held_out > 0], np.linspace(0, 1, 13))
    middles = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        within = (held_out >= low) & (held_out <= high) & (held_out > 0)
        middles.append((held_out[within].mean(), true[within].mean()))
    by_pair.plot(*np.transpose(middles), color="black", marker="o", markersize=4, label="mean of a twelfth")
    by_pair.set(xlabel="expected Dice, anatomy held out", ylabel="true Dice", title="A label on a slice")
    means = case_means(pairs)
    ranked = sorted(means, key=lambda case: means[case][2])
    for height, case in zip(np.linspace(0.02, 0.98, len(ranked)), ranked, strict=True):
        _, expected, measured = means[case]
        by_case.plot(expected, measured, "o", color="#1d6fb8", markersize=5)
        by_case.annotate(
            case.rpartition("-k")[0],
            (expected, measured),
            (1.03, height),  # beside the panel, where names do not lie on each other
            textcoords="axes fraction",
            va="center",
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": "#9aa4b2", "linewidth": 0.6},
        )
    by_case.set(xlabel="mean expected Dice, anatomy held out", ylabel="mean true Dice", title="A volume")
    used = voxels[:, 2] > 50
    by_voxel.plot(voxels[used, 0], voxels[used, 1], color="#1d6fb8", marker="o", markersize=4)
    by_voxel.set(xlabel="expected probability", ylabel="share of voxels", title="A voxel's label is wrong")
    limits = ((0, 1), (min(min(values) for values in means.values()) - 0.05, 1), (0, 0.6))
    for panel, (low, high) in zip((by_pair, by_case, by_voxel), limits, strict=True):
        panel.plot((low, high), (low, high), color="#9aa4b2", linestyle="--", linewidth=1)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    by_pair.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)


if __name__ == "__main__":
    main()
