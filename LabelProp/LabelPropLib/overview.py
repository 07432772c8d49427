"""The overview of a batch: a table as CSV, and the same as a page to look at, doubtful volumes first.

The page is one file that needs no network: the pictures are in it, and it follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from . import files

TABLE, PAGE = "overview.csv", "overview.html"


@dataclass(frozen=True)
class Result:
    """How a volume of the batch ended.

    inputs: its files by column of the batch's table. output, picture: what was written. report: what `propagate` says
    of it, empty if it failed. failure: why, in one line, empty if it did not.
    """

    name: str
    inputs: dict[str, Path]
    output: Path
    picture: Path
    report: dict
    failure: str = ""

    @property
    def quality(self) -> float | None:
        """Expected Dice of what was found, None where nothing speaks for or against it."""
        return self.report.get("expected_mean_dice")

    @property
    def seconds(self) -> float:
        """Seconds of computing."""
        return sum(self.report.get("seconds", {}).values())

    @property
    def volumes(self) -> dict[str, float]:
        """Segment's name -> ml; with its label where several segments are called so."""
        names, ml = self.report.get("segments", {}), self.report.get("volume_ml", {})
        count = Counter(names.get(label, label) for label in ml)

        def title(label: str) -> str:
            name = names.get(label, label)
            return name if count[name] == 1 else f"{name} ({label})"

        return {title(label): value for label, value in ml.items()}

    @property
    def messages(self) -> list[str]:
        """Sentences for the user."""
        return [self.failure] if self.failure else self.report.get("messages", [])

    def rank(self) -> tuple:
        """What failed, then the least expected quality, then what is not known."""
        return (not self.failure, self.quality is None, self.quality or 0.0, self.name)


def write(folder: Path, results: Sequence[Result], title: str):
    """Write the table and the page into the folder, in the order of the results."""
    with files.replacing((folder / TABLE, folder / PAGE)) as staged:
        write_table(staged[folder / TABLE], results)
        staged[folder / PAGE].write_text(page(results, title), encoding="utf-8")


def write_table(path: Path, results: Sequence[Result]):
    """A line for each volume, with a column for each segment's ml."""
    segments = sorted({segment for result in results for segment in result.volumes})
    columns = ("name", "status", "expected_mean_dice", "seconds", "peak_memory_gb", "device", "annotated_slices")
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow((*columns, *(f"ml {segment}" for segment in segments), "messages", "image", "output"))
        for result in results:
            report, volumes = result.report, result.volumes
            writer.writerow(
                (
                    result.name,
                    "failed" if result.failure else "done",
                    result.quality,
                    "" if result.failure else round(result.seconds, 2),
                    report.get("peak_memory_gb"),
                    report.get("device"),
                    " ".join(map(str, report.get("annotated_slices", ()))),
                    *(volumes.get(segment) for segment in segments),
                    " ".join(result.messages),
                    result.inputs["image"],
                    "" if result.failure else result.output.name,
                )
            )


def page(results: Sequence[Result], title: str) -> str:
    """The page as HTML."""
    failed = sum(bool(result.failure) for result in results)
    summary = f"{len(results)} volumes: {len(results) - failed} done" + (f", {failed} failed" if failed else "")
    hint = "Doubtful volumes first. Click a heading to sort by it."
    if any(result.quality is not None for result in results):
        hint += (
            " Expected Dice is an estimate for the slices that labels were carried to, from how well similar slices"
            " were found in scans with a reference."
        )
    rows = "\n".join(row(result) for result in results)
    return PAGE_HTML.format(
        title=escape(title), summary=summary, hint=hint, rows=rows, style=PAGE_STYLE, script=PAGE_SCRIPT
    )


def row(result: Result) -> str:
    """A row of the page's table; `data-value` is what it is sorted by."""
    rank = -1 if result.failure else 2 if result.quality is None else result.quality
    quality = "failed" if result.failure else "unknown" if result.quality is None else meter(result.quality)
    link = f'<a href="{quote(result.output.name)}">{escape(result.output.name)}</a>'
    largest = max(result.volumes.values(), default=0)
    volumes = "".join(
        f"<li><span>{escape(segment)}</span><b>{volume_text(ml)}</b></li>" for segment, ml in result.volumes.items()
    )
    messages = "".join(f"<p>{escape(message)}</p>" for message in result.messages)
    slices = result.report.get("annotated_slices", ())
    return f"""<tr{' class="failed"' if result.failure else ""}>
<td class="picture">{picture(result)}</td>
<td data-value="{escape(result.name)}"><h2>{escape(result.name)}</h2>{"" if result.failure else link}</td>
<td data-value="{rank}">{quality}</td>
<td data-value="{largest}"><ul>{volumes}</ul></td>
<td data-value="{len(slices)}" class="number">{len(slices) or ""}</td>
<td data-value="{result.seconds:.2f}" class="number">{"" if result.failure else f"{result.seconds:.1f}"}</td>
<td class="messages">{messages}</td>
</tr>"""


def volume_text(ml: float) -> str:
    """Millilitres to three digits, as many as a volume drawn by hand is worth, or to one after the point."""
    return f"{ml:.1f}" if ml >= 10 else f"{ml:.3g}"


def meter(quality: float) -> str:
    """The expected Dice as a number and as a bar from 0.5 to 1, where it tells volumes apart."""
    share = min(max((quality - 0.5) / 0.5, 0), 1)
    return f'<b>{quality:.3f}</b><div class="meter"><i style="width:{100 * share:.0f}%"></i></div>'


def picture(result: Result) -> str:
    """The volume's picture within the page; nothing where there is none."""
    if result.failure or not result.picture.is_file():
        return '<div class="none"></div>'
    data = base64.b64encode(result.picture.read_bytes()).decode("ascii")
    return f'<img alt="the most doubtful slice of {escape(result.name)}" src="data:image/png;base64,{data}">'


PAGE_HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – LabelProp</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p class="summary">{summary}</p><p>{hint}</p></header>
<table>
<thead><tr><th>Most doubtful slice</th><th class="sortable">Volume</th><th class="sortable">Expected Dice</th>
<th class="sortable">Segments, ml</th><th class="sortable number">Slices drawn</th>
<th class="sortable number">Seconds</th><th>Messages</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<script>{script}</script>
</body>
</html>
"""

PAGE_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfd; --ink: #16191f; --quiet: #667080; --line: #e3e6ec; --card: #fff;
  --bar: #2f7dd1; --bad: #c62f3b; --bad-paper: #fdeeee; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0e1116; --ink: #f2f4f8; --quiet: #9aa4b2; --line: #262c36; --card: #151a21; --bar: #4cc9f0;
    --bad: #ff7b84; --bad-paper: #2a1518; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 2rem 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.05rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
header p { margin: .1rem 0; color: var(--quiet); }
header .summary { color: var(--ink); font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin-top: 1.4rem; }
th { position: sticky; top: 0; z-index: 1; background: var(--paper); color: var(--quiet); font-size: .8rem;
  font-weight: 600; text-align: left; padding: .5rem .8rem; border-bottom: 2px solid var(--line); }
th.sortable { cursor: pointer; }
th.sortable:hover { color: var(--ink); }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
td { padding: .8rem; vertical-align: top; border-bottom: 1px solid var(--line); background: var(--card); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.picture { width: 272px; padding: .5rem; }
.picture img, .picture .none { display: block; width: 256px; height: 256px; border-radius: 8px; }
.picture .none { border: 1px dashed var(--line); }
a { color: var(--bar); font-size: .85rem; overflow-wrap: anywhere; }
ul { margin: 0; padding: 0; list-style: none; max-height: 256px; overflow-y: auto; font-size: .85rem; }
li { display: flex; justify-content: space-between; gap: 1rem; }
li b { font-variant-numeric: tabular-nums; }
.meter { width: 7rem; height: 6px; margin-top: .4rem; border-radius: 3px; background: var(--line); }
.meter i { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
.messages { max-width: 22rem; color: var(--quiet); font-size: .85rem; }
.messages p { margin: 0 0 .4rem; overflow-wrap: anywhere; }
.failed td { background: var(--bad-paper); }
.failed td:nth-child(3), .failed .messages { color: var(--bad); }
"""

PAGE_SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0];
table.querySelectorAll("th.sortable").forEach(heading => heading.addEventListener("click", () => {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const value = row => row.cells[heading.cellIndex].dataset.value;
  const compare = (a, b) => a - b || (isNaN(a - b) ? a.localeCompare(b) : 0);
  const rows = [...body.rows].sort((a, b) => compare(value(a), value(b)));
  if (descending) rows.reverse();
  body.append(...rows);
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}));
"""
