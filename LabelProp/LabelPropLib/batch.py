"""Many volumes: every row of a table runs as `labelprop propagate` does, and the results are ranked.

    labelprop batch TABLE.csv -o DIR

The voxels are those of single runs: a row is a command line in a process of its own, with as many threads as a single
run would take where the batch was started, however many rows run at once and wherever they do (sums of floats may
depend on the number of threads). What fails is named, and the others go on. A row whose result is there, made of the
same files with the same settings, is not run again, so the same command resumes where it stopped.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import files, overview
from .commands import run_here, run_on_cluster
from .errors import Cancelled, InputError
from .machine import processor_count, thread_count, why_no_plots
from .overview import Result
from .provenance import provenance
from .settings import AXIS_CHOICES, NAMED_CHECKPOINTS, Settings
from .tables import read_records

REQUIRED = ("image", "annotations")
OPTIONAL = ("second_image", "scribbles")
FILES = (*REQUIRED, *OPTIONAL)
COLUMNS = (*FILES, "axis", "name")
UNFIT_FOR_FILES = re.compile(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]$')


@dataclass(frozen=True)
class Row:
    """A row of the table: the volume's name, its files by column, and the axis across its slices."""

    name: str
    inputs: dict[str, Path]
    axis: str = "auto"


@dataclass(frozen=True)
class Job:
    """A row, the settings it is run with, and the folder for its result."""

    row: Row
    folder: Path
    settings: Settings
    missing: str

    @property
    def output(self) -> Path:
        """The segmentation to write, of the annotations' kind."""
        _, suffix = files.split_suffix(self.row.inputs["annotations"].name)
        return self.folder / (self.row.name + (suffix.lower() or ".nii.gz"))

    @property
    def report(self) -> Path:
        """The report to write; it takes its place after the output, so where it is, both are whole."""
        return self.folder / f"{self.row.name}.json"

    @property
    def picture(self) -> Path:
        """The picture to write."""
        return self.folder / f"{self.row.name}.png"

    @property
    def command(self) -> list[str]:
        """The arguments of `labelprop` that run this row."""
        image, annotations = (str(self.row.inputs[column]) for column in REQUIRED)
        command = ["propagate", image, annotations, "-o", str(self.output), "--report", str(self.report)]
        for column in OPTIONAL:
            if column in self.row.inputs:
                command += [f"--{column.replace('_', '-')}", str(self.row.inputs[column])]
        if not why_no_plots():
            command += ["--picture", str(self.picture)]
        return [*command, "--axis", self.row.axis, "--missing", self.missing, *self.settings.arguments()]

    def result(self, failure: str = "") -> Result:
        """The result of the row once it has ended."""
        return Result(
            name=self.row.name,
            inputs=self.row.inputs,
            output=self.output,
            picture=self.picture,
            report={} if failure else read_report(self.report),
            failure=failure,
        )

    def report_is_of_another_program(self) -> bool:
        """Whether there is JSON in its place that `labelprop` has not written, like the notes that come with a scan."""
        content = read_json(self.report)
        return content is not None and not (isinstance(content, dict) and "annotated_slices" in content)

    @property
    def written(self) -> list[Path]:
        """All files that the row makes."""
        directions = [files.with_ending(self.output, f"_{name}") for name in ("up", "down")]
        return [self.output, self.report, self.picture, *(directions if self.settings.directions else ())]

    def is_done(self) -> bool:
        """Whether the result is there, made of the same files with the same settings."""
        try:
            made_of = provenance(self.row.inputs, self.settings, axis=self.row.axis, missing=self.missing)
        except OSError:
            return False
        return self.output.is_file() and read_report(self.report).get("made_of") == made_of


def run(
    table: Path,
    folder: Path,
    settings: Settings = Settings(),
    missing: str = "auto",
    jobs: int | None = None,
    scheduler: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Result]:
    """Run all rows of `table`, write their results and an overview into `folder`, made if need be.

    settings: without `uncertainty` and `suggestions`, for which there is no file.
    missing: see `annotation.annotate_from_planes`.
    jobs: how many rows at once, by default as many as there are processors for. scheduler: the address of a dask
    scheduler whose workers are to run them. say: told what happens, line by line.
    Returns the results, doubtful ones first. Raises InputError if the table, the settings, their checkpoint or device
    cannot be used, or a file that is read or JSON of another program would be replaced; Cancelled by Ctrl+C.
    """
    settings = for_workers(settings, is_local=not scheduler)
    rows = read_table(table, say)
    folder = files.writable_folder(folder)
    all_jobs = {row.name: Job(row, folder.resolve(), settings, missing) for row in rows}
    check_nothing_is_lost(all_jobs.values(), table, folder)
    results = {name: job.result() for name, job in all_jobs.items() if job.is_done()}
    if results:
        say(f"{len(results)} of {len(rows)} volumes are done already, from the same files and with the same settings.")
    commands = {name: job.command for name, job in all_jobs.items() if name not in results}
    threads = thread_count()
    if scheduler:
        ended = run_on_cluster(commands, scheduler, threads)
    else:
        ended = run_here(commands, jobs or max(1, processor_count() // threads), threads)
    try:
        for name, end in ended:
            results[name] = all_jobs[name].result(end.failure)
            say(f"[{len(results)}/{len(rows)}] {describe(results[name])}")
        ranked = sorted(results.values(), key=Result.rank)
        overview.write(folder, ranked, title=table.stem)
    except KeyboardInterrupt:
        raise Cancelled(
            f"cancelled, {len(results)} of {len(rows)} volumes have ended; the same command goes on from there"
        ) from None
    finally:
        ended.close()
    say(f"Overview: {folder / overview.PAGE} and {folder / overview.TABLE}, doubtful volumes first.")
    return ranked


def for_workers(settings: Settings, is_local: bool) -> Settings:
    """The settings as workers that run elsewhere can take them. Raises InputError if they cannot be used."""
    if settings.uncertainty or settings.suggestions > 1:
        raise InputError(
            "A batch writes neither maps of uncertainty nor lists of suggestions: leave both settings out."
        )
    if settings.checkpoint not in NAMED_CHECKPOINTS:
        from .checkpoint import check_kind  # needs PyTorch

        settings = replace(settings, checkpoint=str(files.resolved(Path(settings.checkpoint))))  # workers are elsewhere
        check_kind(settings.checkpoint, settings.networks)
    if settings.device not in ("auto", "cpu") and is_local:  # what a cluster's workers have is not known here
        from .planner import choose_device  # needs PyTorch

        choose_device(settings.device)
    return settings


def check_nothing_is_lost(jobs: Collection[Job], table: Path, folder: Path):
    """Raise InputError if a file that is read, another row's result, or JSON of another program would be replaced."""
    read = (table, *(path for job in jobs for path in job.row.inputs.values()))
    written = (*(path for job in jobs for path in job.written), folder / overview.TABLE, folder / overview.PAGE)
    clash = files.first_clash(written, read)
    if clash:
        raise InputError(
            f"{clash} would be replaced, but this batch reads it, or writes it for another row: choose another"
            " folder for the results, or other names."
        )
    for job in jobs:
        if job.report_is_of_another_program():
            raise InputError(
                f"{job.report} would be replaced, but is no report of LabelProp's: choose another folder for the"
                " results, or a name for this row."
            )


def read_table(path: Path, say: Callable[[str], None]) -> list[Row]:
    """The rows of a CSV file, its paths relative to its folder.

    Whether the files are there is not asked: a volume that cannot be read must not keep the others from running.
    Raises InputError if this is no such table.
    """
    records = read_records(path, COLUMNS, REQUIRED, say)
    rows = [read_row(path, record.number, record.cells) for record in records]
    return with_names(path, rows)


def read_row(table: Path, number: int, cells: dict[str, str]) -> Row:
    """The row of line `number`, its name empty where the table gives none. Raises InputError."""
    for column in REQUIRED:
        if not cells[column]:
            raise InputError(f"{table}, line {number}: the column {column} is empty: give a file.")
    axis = cells["axis"] or "auto"
    if axis not in AXIS_CHOICES:
        raise InputError(f"{table}, line {number}: unknown axis '{axis}': choose one of {', '.join(AXIS_CHOICES)}.")
    name = cells["name"]
    if UNFIT_FOR_FILES.search(name):
        raise InputError(f"{table}, line {number}: the name '{name}' cannot be that of a file: choose another one.")
    folder = table.resolve().parent
    return Row(name, {column: folder / cells[column] for column in FILES if cells[column]}, axis)


def with_names(table: Path, rows: list[Row]) -> list[Row]:
    """The rows with a name each: the table's or the image's, with its folder's where images of a name lie in several.

    Raises InputError where names are not unique: they are those of the files to write.
    """
    images = [row.inputs["image"] for row in rows]
    times = Counter(stem(image).lower() for image in images)
    names = [
        row.name or (stem(image) if times[stem(image).lower()] == 1 else f"{image.parent.name}-{stem(image)}")
        for row, image in zip(rows, images)
    ]
    for name, count in Counter(name.lower() for name in names).items():
        if count > 1:
            raise InputError(f"{table}: {count} rows are called '{name}': give a column name in which they differ.")
    return [Row(name, row.inputs, row.axis) for name, row in zip(names, rows)]


def stem(path: Path) -> str:
    """The file's name without its suffix, both parts of it where there are two."""
    name, suffix = files.split_suffix(path.name)
    return name if suffix else path.stem


def read_report(path: Path) -> dict:
    """The report in a file, empty if there is none or it is not one."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def read_json(path: Path) -> Any:
    """What a file holds as JSON, None if there is no file or it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def describe(result: Result) -> str:
    """A result in one line, for the user."""
    if result.failure:
        return f"{result.name}: failed: {result.failure}"
    quality = "" if result.quality is None else f", expected Dice {result.quality:.2f}"
    return f"{result.name}: done in {result.seconds:.1f} s{quality}"
