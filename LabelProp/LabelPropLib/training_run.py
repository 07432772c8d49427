"""`labelprop train` and `labelprop pretrain`: trainings, and the files that they leave.

Beside the checkpoint lie the log (.csv: step, training_loss, validation_loss), the log as a plot (.png, where there is
matplotlib) and, as long as `pretrain` is not done, what it needs to go on after an interruption (.state).
Each of them is whole at any moment. Step 0 of the log is the validation of the weights that `pretrain` begins with.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from . import checkpoint, dataset, files
from .annotation import SparseAnnotation
from .clock import Progress
from .dataset import Entry
from .errors import InputError
from .label_planes import LabelPlanes, far_ends
from .machine import thread_count, why_no_plots
from .parallel import threads
from .planner import EFFORTS, choose_device
from .preprocessing import prepare
from .provenance import identify
from .registration.pretraining import Pretraining, PretrainingPlan, Sampling, TrainingVolume, weights
from .registration.training import FROM_SCRATCH, course_for, fit
from .registration_weights import KIND, load_network, save_network
from .settings import NAMED_CHECKPOINTS, Settings, weights_of

SUFFIX = ".pt"
SAMPLING = Sampling()
HELD_BACK = 0.2  # of the images, to validate with
LOG_COLUMNS = ("step", "training_loss", "validation_loss")
STATE_VERSION = 3

Row = Mapping[str, float]


@dataclass(frozen=True)
class RunFiles:
    """The checkpoint that a training writes, and what lies beside it."""

    checkpoint: Path

    @property
    def log(self) -> Path:
        return self.checkpoint.with_suffix(".csv")

    @property
    def plot(self) -> Path:
        return self.checkpoint.with_suffix(".png")

    @property
    def plots(self) -> list[Path]:
        """The plot, unless matplotlib cannot be loaded."""
        return [] if why_no_plots() else [self.plot]

    @property
    def state(self) -> Path:
        return self.checkpoint.with_suffix(".state")

    def check(self, inputs: Sequence[Path]):
        """Raise InputError unless all can be written, and none of them is an input or a file of something else.

        A log shows by its header that it is one, and that a plot beside it is a training's.
        """
        files.check_suffix(self.checkpoint, [SUFFIX])
        files.check_outputs([self.checkpoint, self.log, self.plot, self.state], inputs)
        if self.checkpoint.exists():
            try:
                checkpoint.read(self.checkpoint)
            except InputError as error:
                raise InputError(
                    f"{self.checkpoint} would be replaced, but is no checkpoint of LabelProp's, or damaged: remove"
                    " it, or give the weights another name."
                ) from error
        logged = self.log.exists() and is_log(self.log)
        for path in (self.log, self.plot):
            if path.exists() and not logged:
                raise InputError(
                    f"{path} would be replaced, but was not written by a training: give the weights another name."
                )


def train(annotation: SparseAnnotation, run: RunFiles, settings: Settings, licence: str, progress: Progress):
    """Train the network on one scan as `propagate` does with the registration 'network', and keep it.

    On the scan alone: weights that are kept are of networks that look at one image. Raises InputError, among others
    where no two neighbouring slices lie between drawn ones.
    """
    annotation = replace(annotation, second_image=None)
    device = choose_device(settings.device)
    checkpoint.check_kind(settings.checkpoint, [KIND])
    start, origin = load_network(settings.checkpoint), origin_of(settings.checkpoint)
    losses: list[float] = []
    with threads(thread_count()):
        stack = prepare(annotation, EFFORTS[settings.preset].pixels, device=device)
        if len(stack.images) < 2:
            raise InputError(
                f"Only slice {annotation.planes[0]} is annotated, so there are no neighbouring slices to train on:"
                " annotate a second slice, some slices away."
            )
        ends = far_ends(annotation, stack, LabelPlanes(annotation, stack))
        network = fit(
            stack.images,
            ends,
            settings.seed,
            course_for(start),
            start,
            on_step=lambda done: progress(done, "Training"),
            on_loss=losses.append,
        )
    summary = {
        "scans": 1,
        "slices": len(stack.images),
        "annotated_slices": len(annotation.planes),
        "steps": len(losses),
        "start": origin,
        "seed": settings.seed,
    }
    log = [{"step": n, "training_loss": loss, "validation_loss": math.nan} for n, loss in enumerate(losses, start=1)]
    write_results(run, weights(network), summary, licence, log)


def pretrain(
    entries: Sequence[Entry],
    run: RunFiles,
    plan: PretrainingPlan,
    progress: Progress,
    start: str = checkpoint.AUTO,
    device: str = "auto",
    licence: str = "not stated",
    half: bool = False,
    sampling: Sampling = SAMPLING,
) -> Pretraining:
    """Train the network on a data set, or go on with it if `run.state` is there.

    start: checkpoint to begin with, see `checkpoint.choose`. half: write the checkpoint as float16. Under torchrun
    every process takes part, and the first one writes. Raises InputError.
    """
    with processes(device) as (rank, device), threads(thread_count()):
        checkpoint.check_kind(start, [KIND])
        network, origin = load_network(start), origin_of(start)
        description = describe(entries, plan, sampling, start)
        state = from_first(lambda: read_state(run.state, description), rank)
        trained_on, held_back = dataset.hold_back(entries, HELD_BACK, plan.seed)
        training, validation = load_volumes(trained_on, progress), load_volumes(held_back, progress)
        pretraining = Pretraining(training, validation, plan, sampling, FROM_SCRATCH, network, device)
        if state is not None:
            pretraining.resume(state)
        while not pretraining.is_done:
            pretraining.advance(lambda step: progress(step / plan.steps, training_message(pretraining)))
            if rank == 0:
                write_state(run, {"description": description, **pretraining.state()})
        if rank == 0:
            summary = summarise(pretraining, trained_on, training, validation, origin)
            write_results(run, pretraining.best, summary, licence, pretraining.progress.log, half)
            run.state.unlink()
    return pretraining


def origin_of(start: str) -> str | dict[str, str]:
    """The weights to begin with, for metadata that others may read: of a file its name and its content's digest."""
    if start in NAMED_CHECKPOINTS:
        return start
    path = Path(start)
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def describe(entries: Sequence[Entry], plan: PretrainingPlan, sampling: Sampling, start: str) -> dict[str, Any]:
    """What identifies a training, as plain values: it goes on only from a state of the same training."""
    rows = [[str(e.image), str(e.annotations), str(e.axis)] for e in entries]
    paths = [path for entry in entries for path in (entry.image, entry.annotations) if path is not None]
    paths += weights_of(start)
    choices = {name: repr(value) for name, value in {**asdict(plan), **asdict(sampling)}.items()}
    return {
        "version": STATE_VERSION,
        "rows": rows,
        "files": [identify(path) for path in paths],
        "choices": choices,
        "start": start,
        "processes": process_count(),
    }


def process_count() -> int:
    """How many processes share the training, as torchrun tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that speaks for all that share the training."""
    return process_count() == 1 or os.environ.get("RANK") == "0"


def read_state(path: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """The state to go on from, None if there is none. Raises InputError if it is another training's or damaged."""
    if not path.exists():
        return None
    state = checkpoint.read_plain(path)
    if state.pop("description", None) != description:
        raise InputError(
            f"{path}: state of a training with another table, other files or other options: finish that one, or remove"
            " this file to begin anew."
        )
    return state


def write_state(run: RunFiles, state: dict[str, Any]):
    """Write the state and the log up to it."""
    with files.replacing([run.state]) as staged:
        checkpoint.write_plain(state, staged[run.state])
    with contextlib.suppress(PermissionError):  # on Windows while somebody looks at it; the next log holds all rows
        write_log(state["progress"]["log"], run.log)


def load_volumes(entries: Sequence[Entry], progress: Progress) -> list[TrainingVolume]:
    """The volumes of these rows. Raises InputError."""
    loaded = []
    for entry in entries:
        progress(0.0, f"Reading {entry.image.name}")
        loaded.append(dataset.load(entry))
    return loaded


def training_message(pretraining: Pretraining) -> str:
    """How the training stands, for the user."""
    if not pretraining.progress.log:
        return "Training"
    last = pretraining.progress.log[-1]
    losses = {"loss": last["training_loss"], "validation": last["validation_loss"]}
    measured = (f"{name} {loss:.4f}" for name, loss in losses.items() if not math.isnan(loss))
    return f"Step {last['step']}: {', '.join(measured)}"


def summarise(
    pretraining: Pretraining,
    trained_on: Sequence[Entry],
    training: list[TrainingVolume],
    validation: list[TrainingVolume],
    origin: str | dict[str, str],
) -> dict[str, Any]:
    """What the metadata of the checkpoint tell of the training.

    trained_on: the rows of `training`; a scan has several of them if it is looked at across several axes. origin: see
    `origin_of`.
    """
    return {
        "scans": len({entry.image for entry in trained_on}),
        "annotated_scans": len({entry.image for entry in trained_on if entry.annotations}),
        "slices": sum(len(volume.images) for volume in training),
        "names": [volume.name for volume in training],
        "validation_names": [volume.name for volume in validation],
        "start": origin,
        "steps": pretraining.progress.step,
        "processes": pretraining.processes,
        "best_step": pretraining.progress.best_step,
        "best_loss": pretraining.progress.best_loss,
        "plan": asdict(pretraining.plan),
    }


def write_results(
    run: RunFiles,
    tensors: Mapping[str, torch.Tensor],
    summary: Mapping[str, Any],
    licence: str,
    log: Sequence[Row],
    half: bool = False,
):
    """Write weights, log and, where there can be one, plot, or none of them."""
    plots = run.plots
    with files.replacing([run.checkpoint, run.log, *plots]) as staged:
        save_network(staged[run.checkpoint], tensors, summary, licence, half)
        write_log(log, staged[run.log])
        for path in plots:
            plot_log(log, staged[path])


def write_log(log: Sequence[Row], path: Path):
    """The log as CSV, whole; an empty field where nothing was measured."""
    with files.replacing([path]) as staged, staged[path].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(LOG_COLUMNS)
        for row in log:
            writer.writerow("" if math.isnan(row[column]) else row[column] for column in LOG_COLUMNS)


def is_log(path: Path) -> bool:
    """Whether a file begins as `write_log` begins."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline().rstrip("\n") == ",".join(LOG_COLUMNS)


def plot_log(log: Sequence[Row], path: Path):
    """The log as a plot; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, colour in (("training_loss", "#9aa4b2"), ("validation_loss", "#1d6fb8")):
        measured = [row for row in log if not math.isnan(row[column])]
        if measured:
            steps, values = [row["step"] for row in measured], [row[column] for row in measured]
            marker = "o" if len(measured) == 1 else ""  # no line runs through a single point
            axes.plot(steps, values, color=colour, marker=marker, label=column.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def from_first(read: Callable[[], Any], rank: int) -> Any:
    """What the first process reads, for all of them: only that one writes, and it may be on another host.

    Raises the InputError that it raises.
    """
    told = [None]
    if rank == 0:
        try:
            told = [read()]
        except InputError as error:
            told = [error]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(told, src=0)
    if isinstance(told[0], InputError):
        raise told[0]
    return told[0]


@contextlib.contextmanager
def processes(device: str) -> Iterator[tuple[int, torch.device]]:
    """This process's rank and device; under torchrun all processes form a group inside. Raises InputError."""
    if process_count() == 1:
        yield 0, choose_device(device)
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    # Imported later, as torch's optimisers do, this module keeps the group for good: its threads outlive Python and can
    # abort a process that is done, whereupon torchrun ends the first one, which may still be writing.
    importlib.import_module("torch.distributed.nn")
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield torch.distributed.get_rank(), chosen
    finally:
        torch.distributed.destroy_process_group()
