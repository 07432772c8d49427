"""What the verbs of `labelprop` do, each with the options that cli.py has read: files in, files out."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import fields
from pathlib import Path

from . import files
from .errors import Cancelled, InputError
from .interruptions import uninterrupted
from .machine import why_no_plots
from .provenance import provenance
from .report_text import format_suggestions, format_summary
from .settings import Settings, weights_of
from .terminal import DONE, FAILED, complain, shown_progress

ATLAS = ("image", "labels")


def settings_of(options, **more) -> Settings:
    """The settings that the command line asks for, and `more`; those that a verb has no option for are the default."""
    given = {field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)}
    return Settings(**{**given, **more})


def propagate(options):
    """labelprop propagate: files to MRML nodes, through `LabelPropLogic`, and to files again."""
    started = time.monotonic()
    settings = settings_of(options, uncertainty=options.uncertainty is not None)
    directions = check_outputs(options)

    with uninterrupted():
        import slicer

        from LabelProp import LabelPropLogic

    logic = LabelPropLogic()
    made_of = provenance_of(options, settings)  # before they are read: they may be changed while this computes
    collected, label_type = collect(options)
    check_overlap(collected, options.output)
    read = loaded = time.monotonic()

    with shown_progress() as progress:

        def tell(fraction: float, message: str):
            nonlocal loaded
            if loaded == read:  # the first stage begins
                loaded = time.monotonic()
            progress(fraction, message)

        propagation = logic.compute(collected, settings, tell)
    computed = time.monotonic()

    uncertainty_node = None
    if options.uncertainty:
        uncertainty_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Uncertainty")
    direction_nodes = logic.addDirections(collected, propagation)
    report = logic.write(collected, propagation, uncertainty_node)
    loading = {"reading": round(read - started, 3), "loading": round(loaded - read, 3)}
    report["seconds"] = {**loading, **report["seconds"]}
    report["made_of"] = made_of
    segmentation_nodes = {options.output: collected.segmentation_node}
    segmentation_nodes |= {path: direction_nodes[name] for name, path in directions.items()}
    write_outputs(options, collected, propagation, segmentation_nodes, uncertainty_node, report, label_type)

    now = time.monotonic()
    summary = format_summary(collected.annotation, report, writing=now - computed, total=now - started)
    written = (*segmentation_nodes, options.uncertainty, options.picture, options.report)
    print(f"{summary}\nWritten: {', '.join(map(str, filter(None, written)))}.", file=sys.stderr)


def provenance_of(options, settings: Settings) -> dict | None:
    """What the result is made of; None where a file is missing, which reading it will tell the user."""
    inputs = {use: getattr(options, use) for use in ("image", "annotations", "second_image", "scribbles")}
    inputs |= {f"atlas {n}, {use}": path for n, pair in enumerate(options.atlases) for use, path in zip(ATLAS, pair)}
    if not all(path.is_file() for path in inputs.values() if path is not None):
        return None
    return provenance(inputs, settings, axis=options.axis, missing=options.missing)


def check_outputs(options) -> dict[str, Path]:
    """Raise InputError unless all files can be written; returns direction -> path of the directions asked for."""
    files.check_suffix(options.output, (files.SEGMENTATION_SUFFIX, *files.VOLUME_SUFFIXES))
    if options.uncertainty:
        files.check_suffix(options.uncertainty, files.VOLUME_SUFFIXES)
    if options.picture:
        files.check_suffix(options.picture, (".png",))
        if missing := why_no_plots():
            raise InputError(
                f"A picture needs matplotlib, which cannot be loaded ({missing}): pip install --upgrade matplotlib, or"
                " leave the picture out."
            )
    if options.report:
        files.check_suffix(options.report, (".json",))
    names = ("up", "down") if options.directions else ()
    directions = {name: files.with_ending(options.output, f"_{name}") for name in names}
    outputs = (options.output, *directions.values(), options.uncertainty, options.picture, options.report)
    files.check_outputs(filter(None, outputs), inputs_of(options))
    return directions


def inputs_of(options) -> list[Path]:
    """All files that the job reads."""
    images = (options.image, options.annotations, options.scribbles, options.second_image)
    return [*filter(None, images), *sum(options.atlases, []), *weights_of(options.checkpoint)]


def collect(options):
    """What the input files hold, see `LabelPropLogic.collect`, and the type for label values. Raises InputError."""
    with uninterrupted():
        from LabelProp import LabelPropLogic

        from .scene import storage

    volume, annotations, scribbles_node = read_inputs(options)
    collected = LabelPropLogic().collect(
        volume.node,
        annotations.node,
        axis=options.axis,
        missing=options.missing,
        scribbles=scribbles_node,
        secondVolumeNode=storage.load_volume(options.second_image).node if options.second_image else None,
        atlases=[storage.load_atlas(*paths) for paths in options.atlases],
    )
    return collected, annotations.label_type


def read_inputs(options):
    """The volume, the annotations and the segmentation node of scribbles, None without them, see `scene.storage`."""
    import vtk

    from .scene import storage

    vtk.vtkObject.GlobalWarningDisplayOff()  # what goes wrong is said in our words
    volume = storage.load_volume(options.image)
    annotations = storage.load_annotations(options.annotations, volume)
    scribbles_node = None
    if options.scribbles:
        scribbles_node = storage.load_scribbles(options.scribbles, volume, annotations.node)
    return volume, annotations, scribbles_node


def check_overlap(collected, output: Path):
    """Raise InputError if segments overlap and `output` is a label volume, whose voxels have but one label."""
    overlapping = collected.annotation.overlapping()
    if overlapping and not files.is_segmentation(output):
        first, second = (collected.segment_ids[label] for label in min(overlapping))
        raise InputError(
            f"The segments {first} and {second} overlap, which {output} cannot keep: give OUT a name that ends in"
            f" {files.SEGMENTATION_SUFFIX}."
        )


def write_outputs(
    options, collected, propagation, segmentation_nodes: dict, uncertainty_node, report: dict, label_type
):
    """Write all files, or none; the report takes its place last. segmentation_nodes: path -> node."""
    from .scene import storage
    from .scene.geometry import lines_against_view

    others = filter(None, (options.uncertainty, options.picture, options.report))
    if options.picture:
        from . import picture
    with files.replacing((*segmentation_nodes, *others)) as staged:
        for path, node in segmentation_nodes.items():
            segment_ids = collected.segment_ids if path == options.output else collected.written_ids
            storage.save_segments(node, segment_ids, collected.volume_node, label_type, staged[path])
        if options.uncertainty:
            storage.save_volume(uncertainty_node, staged[options.uncertainty])
        if options.picture:
            against_view = lines_against_view(collected.grid, collected.annotation.axis)
            path, label_maps = staged[options.picture], propagation.label_maps
            picture.save_doubtful_slice(path, collected.annotation, label_maps, report, against_view)
        if options.report:
            files.write_json(report, staged[options.report])


def suggest(options):
    """labelprop suggest: propagate without writing the result, and say which slices to draw."""
    settings = settings_of(options, suggestions=options.count)
    if options.report:
        files.check_suffix(options.report, (".json",))
    files.check_outputs(filter(None, [options.report]), inputs_of(options))

    collected, _ = collect(options)

    from LabelProp import LabelPropLogic

    with shown_progress() as progress:
        report = collected.report(LabelPropLogic().compute(collected, settings, progress))
    if options.report:
        with files.replacing([options.report]) as staged:
            files.write_json(report, staged[options.report])
    print("\n".join(report["messages"]), file=sys.stderr)
    print(format_suggestions(report))


def batch(options) -> int:
    """labelprop batch"""
    from . import batch

    results = batch.run(
        options.table,
        options.output,
        settings_of(options),
        options.missing,
        options.jobs,
        options.scheduler,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    failed = sum(bool(result.failure) for result in results)
    if failed:
        complain(f"{failed} of {len(results)} volumes failed, see above")
    return FAILED if failed else DONE


def train(options):
    """labelprop train: reads its input as `propagate` does."""
    from .training_run import RunFiles, train

    run = RunFiles(options.output)
    run.check(inputs_of(options))

    collected, _ = collect(options)
    with shown_progress() as progress:
        train(collected.annotation, run, settings_of(options), options.licence, progress)
    print(written_text(run), file=sys.stderr)


def pretrain(options):
    """labelprop pretrain"""
    from . import dataset
    from .registration.pretraining import PretrainingPlan
    from .training_run import RunFiles, is_first_process, pretrain

    def say(text: str):
        if is_first_process():
            print(text, file=sys.stderr)

    run = RunFiles(options.output)
    entries = dataset.read_table(options.table, say)
    volumes = [path for entry in entries for path in (entry.image, entry.annotations) if path]
    run.check([options.table, *volumes, *weights_of(options.checkpoint)])
    if len({entry.image for entry in entries}) == 1:
        say("There is only one image, so none to validate with: all steps are made.")
    plan = PretrainingPlan(steps=options.steps, batch=options.batch, seed=options.seed)
    silent = contextlib.nullcontext(lambda fraction, message: None)
    try:
        with shown_progress() if is_first_process() else silent as progress:
            pretrain(
                entries,
                run,
                plan,
                progress,
                start=options.checkpoint,
                device=options.device,
                licence=options.licence,
                half=options.half,
            )
    except KeyboardInterrupt as error:
        if run.state.exists():
            raise Cancelled(f"cancelled: the same command goes on from {run.state}") from error
        raise
    say(written_text(run))


def written_text(run) -> str:
    """Which files a training has left, for the user; run: `training_run.RunFiles`."""
    plots = "".join(f", plot {path.name}" for path in run.plots)
    return f"Written: {run.checkpoint}, log {run.log.name}{plots}."


def evaluate(options):
    """labelprop evaluate"""
    from . import evaluation

    evaluation.run(options.prediction, options.reference, options.annotations)


def demo(options):
    """labelprop demo"""
    with uninterrupted():
        from . import demo

    with shown_progress() as progress:
        demo.run(options.output, progress)
