"""What the benchmark shows: a table, a summary, a plot, and the machine it ran on."""

import os
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import markdown_tables
import numpy as np
from bench import Case
from matplotlib.figure import Figure
from methods import Cost, Method

CLEARLY = 0.005  # Dice by which a case has to be below the better baseline to count as worse
LINES = {"nearest": ("#9aa4b2", "--", 1.4), "fill": ("#f4a261", "--", 1.4)}  # colour, dashes, width
OWN_LINES = (("#6fb1ea", "-", 5), ("#14532d", "-", 1.4), ("#8e44ad", "-", 2.2), ("#d1495b", "-", 1.4))


@dataclass(frozen=True)
class ScoredCase:
    """A method on a case: means over the labels of Dice, ASSD (mm) and HD95 (mm), and the worst label's Dice."""

    case: str
    method: str
    dice: float
    assd: float
    hd95: float
    worst_label_dice: float

    @property
    def volume(self) -> str:
        """The case without its number of annotated slices."""
        return self.case.rpartition("-k")[0]

    @property
    def slice_count(self) -> int:
        """How many slices were annotated."""
        return int(self.case.rpartition("-k")[2])


@dataclass(frozen=True)
class Row(ScoredCase):
    """A method on a case: its scores, whether it kept the annotated slices, and its cost, see `methods.Cost`."""

    annotated_slices_kept: bool
    seconds: float
    process_seconds: float
    peak_gb: float

    @classmethod
    def of(cls, case: Case, method: Method, score: dict, cost: Cost) -> "Row":
        """A row from a score and a cost."""
        scores = {
            field.name: score[field.name] for field in fields(cls) if field.name in score and field.name != "case"
        }
        return cls(case=case.name, method=method.text, **scores, **asdict(cost))


def format_table(rows: list[Row], methods: list[Method]) -> str:
    """A Markdown table: a line for each case and one for the means."""
    heads = ["case"]
    for method in methods:
        heads += [f"{method.title}: Dice / ASSD / HD95 / worst label", "s / whole process s / GB"]
        heads += [] if method.is_baseline else ["error"]
    lines = markdown_tables.head(heads)
    better = better_baseline(rows)
    for case in dict.fromkeys(row.case for row in rows):
        cells = [case]
        for method in methods:
            (row,) = (row for row in rows if (row.case, row.method) == (case, method.text))
            cells += format_cells([row])
            cells += [] if method.is_baseline else [format_ratio([row], better)]
        lines.append(markdown_tables.line(cells))
    cells = ["**mean**"]
    for method in methods:
        own = [row for row in rows if row.method == method.text]
        cells += format_cells(own)
        cells += [] if method.is_baseline else [format_ratio(own, better)]
    lines.append(markdown_tables.line(cells))
    lines.append("")
    lines.append(
        "Dice, ASSD mm and HD95 mm are means over the labels, on the slices that were not annotated; worst label: its"
        " Dice. Seconds of computing, after imports; of the whole process, from its start to the written file; peak"
        " memory. Error: 1 - Dice, relative to that of the better baseline."
    )
    return "\n".join(lines)


def format_overview(rows: list[Row], methods: list[Method]) -> str:
    """A narrow Markdown table: Dice of every case, and the means of all figures."""
    lines = markdown_tables.head(["Dice", *(method.title for method in methods)])
    own = {method.text: [row for row in rows if row.method == method.text] for method in methods}
    for case in dict.fromkeys(row.case for row in rows):
        cells = [f"{row.dice:.3f}" for method in methods for row in own[method.text] if row.case == case]
        lines.append(markdown_tables.line([case, *cells]))
    figures = {
        "mean Dice": ("dice", 3),
        "mean ASSD, mm": ("assd", 2),
        "mean HD95, mm": ("hd95", 1),
        "mean Dice of the worst label": ("worst_label_dice", 3),
        "mean seconds of computing": ("seconds", 2),
        "mean seconds of the whole process": ("process_seconds", 1),
        "peak memory, GB": ("peak_gb", 2),
    }
    for title, (name, digits) in figures.items():
        collect = np.max if name == "peak_gb" else np.mean
        cells = [f"{collect([getattr(row, name) for row in own[method.text]]):.{digits}f}" for method in methods]
        lines.append(markdown_tables.line([f"**{title}**", *cells]))
    return "\n".join(lines)


def format_cells(rows: list[Row]) -> list[str]:
    """Quality and cost, the mean of the rows."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(row, name) for row in rows]))

    def cost(name: str, digits: int) -> str:
        return "-" if np.isnan(mean(name)) else f"{mean(name):.{digits}f}"

    quality = f"{mean('dice'):.3f} / {mean('assd'):.2f} / {mean('hd95'):.1f} / {mean('worst_label_dice'):.3f}"
    return [quality, f"{cost('seconds', 2)} / {cost('process_seconds', 1)} / {cost('peak_gb', 2)}"]


def better_baseline(rows: list[Row]) -> dict[str, float]:
    """Case -> Dice of the better one of the baselines that were run; empty if none was."""
    better = {}
    for row in rows:
        if row.method in LINES:
            better[row.case] = max(row.dice, better.get(row.case, 0))
    return better


def error_ratio(row: Row, better: dict[str, float]) -> float:
    """1 - Dice relative to that of the better baseline."""
    return (1 - row.dice) / (1 - better[row.case])


def format_ratio(rows: list[Row], better: dict[str, float]) -> str:
    """Mean of the ratios, as a cell."""
    return f"×{np.mean([error_ratio(row, better) for row in rows]):.2f}" if better else "-"


def format_summary(rows: list[Row], methods: list[Method]) -> str:
    """For each method but the baselines: where it is worse than the better one, and K=3 against that one's K=5."""
    better = better_baseline(rows)
    if not better:
        return "No baseline was run."
    lines = []
    for method in (method for method in methods if not method.is_baseline):
        own = {row.case: row for row in rows if row.method == method.text}
        worse = [case for case, row in own.items() if row.dice < better[case] - CLEARLY]
        pairs = [(case, f"{row.volume}-k5") for case, row in own.items() if row.slice_count == 3]
        pairs = [(three, five) for three, five in pairs if five in better]
        reached = [three for three, five in pairs if own[three].dice >= better[five]]
        altered = [case for case, row in own.items() if not row.annotated_slices_kept]
        lines += [
            f"{method.title}:",
            f"- error ×{np.mean([error_ratio(row, better) for row in own.values()]):.3f} of the better baseline's, mean"
            f" over {len(own)} cases",
            f"- below the better baseline by more than {CLEARLY} Dice: {listing(worse)}",
            f"- K=3 at least equal to the better baseline's K=5 in {len(reached)} of {len(pairs)} volumes:"
            f" {listing(reached)}",
            f"- annotated slices altered: {listing(altered)}",
            "",
        ]
    return "\n".join(lines).strip()


def listing(names: list[str]) -> str:
    """How many, and which."""
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def describe_machine() -> str:
    """Processor, memory, software, and how busy it was before the start."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Ran on {processor}, {os.cpu_count()} cores, {memory:.0f} GB; {platform.system()}, Python"
        f" {platform.python_version()}, PyTorch {version('torch')}; load before the start {os.getloadavg()[0]:.1f}."
    )


def plot_slices(rows: list[Row], methods: list[Method], path: Path):
    """Dice against the number of annotated slices, a panel for each volume."""
    volumes = list(dict.fromkeys(row.volume for row in rows))
    columns = min(5, len(volumes))
    lines = -(-len(volumes) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.4 * lines + 0.5), layout="constrained", dpi=110)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    own_lines = iter(OWN_LINES)
    styles = [LINES.get(method.text) or next(own_lines) for method in methods]
    for panel, volume in zip(panels, volumes):
        for method, (colour, dashes, width) in zip(methods, styles):
            own = [row for row in rows if (row.volume, row.method) == (volume, method.text)]
            panel.plot(
                [row.slice_count for row in own],
                [row.dice for row in own],
                color=colour,
                linestyle=dashes,
                marker="o",
                markersize=3.5,
                linewidth=width,
                label=method.title,
            )
        panel.set_title(volume, fontsize=10)
        panel.set_xticks(sorted({row.slice_count for row in rows}))
        panel.set_ylim(top=1)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(volumes) :]:
        panel.set_axis_off()
    figure.supxlabel("annotated slices", fontsize=10)
    figure.supylabel("mean Dice of the other slices", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(methods), frameon=False)
    figure.savefig(path)
