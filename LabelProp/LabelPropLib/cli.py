"""The command `labelprop`, and the same as a script of Slicer's:

    labelprop propagate IMAGE ANNOTATIONS -o OUT
    Slicer --no-splash --no-main-window --python-script .../LabelPropLib/cli.py propagate IMAGE ANNOTATIONS -o OUT

Exit status: 0 done; 2 the input cannot be used, and one line says why and how to mend it; 130 cancelled by Ctrl+C or
SIGTERM; 1 anything else. Output files are written whole or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # run as a file: make the package that the file lies in importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from LabelPropLib import files
from LabelPropLib.annotation import AXIS_CHOICES, MISSING_CHOICES
from LabelPropLib.errors import Cancelled, InputError, out_of_memory
from LabelPropLib.machine import is_out_of_memory
from LabelPropLib.provenance import provenance
from LabelPropLib.report_text import format_suggestions, format_summary
from LabelPropLib.settings import DEVICES, FUSIONS, PRESETS, REGISTRATIONS, Settings, weights_of
from LabelPropLib.terminal import complain, interruptible, seldom_collecting, shown_progress, uninterrupted

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
ATLAS = ("image", "labels")
DEVICE_HELP = "where to compute; auto: a GPU if there is one, else the processor"
SEED_HELP = "of the random numbers; the same one, the same result (0)"


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process; returns the exit status."""
    interrupted = threading.Event()
    try:
        with interruptible(interrupted), seldom_collecting():
            options = parser().parse_args(argv)
            return options.run(options) or DONE
    except InputError as error:
        complain(" ".join(str(error).split()))
        return BAD_INPUT
    except (KeyboardInterrupt, Cancelled) as stopped:
        complain(str(stopped) or "cancelled, nothing was written")
        return CANCELLED
    except Exception as error:  # Slicer would stay open after an exception that nobody caught
        if interrupted.is_set():  # a library that is interrupted while it loads raises errors of its own
            complain("cancelled, nothing was written")
            return CANCELLED
        if is_out_of_memory(error):
            complain(out_of_memory(f"{type(error).__name__}: {error}".partition("\n")[0]))
        elif isinstance(error, (OSError, ImportError)):
            complain(str(error))
        else:
            traceback.print_exc()
        return FAILED


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as with all bad input."""

    def error(self, message):
        raise InputError(f"{message} (see '{self.prog} --help')")

    def parse_known_args(self, args=None, namespace=None):
        """As the base class; but a verb says itself what it does not know, so that its own help is pointed to."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def parser() -> Parser:
    """The command line."""
    command = Parser(prog="labelprop", description="Segment a volume from outlines on a few of its slices.")
    verbs = command.add_subparsers(metavar="VERB", required=True)
    for add_verb in (add_propagate, add_suggest, add_batch, add_train, add_pretrain, add_evaluate, add_demo):
        add_verb(verbs)
    return command


def add_propagate(verbs):
    """The verb `propagate`."""
    verb = verbs.add_parser("propagate", help="carry the labels drawn on some slices through the volume")
    verb.set_defaults(run=propagate)
    add = verb.add_argument
    add("image", metavar="IMAGE", type=Path, help="the scan (.nii.gz, .nrrd, .mha, ...)")
    add(
        "annotations",
        metavar="ANNOTATIONS",
        type=Path,
        help="label volume on the scan's grid, in which 0 is 'not annotated' and a slice that bears a label is complete"
        " for it; or a segmentation of Slicer's (.seg.nrrd)",
    )
    add("-o", "--output", metavar="OUT", type=Path, required=True, help="label volume or .seg.nrrd to write")
    add(
        "--second-image",
        metavar="FILE",
        type=Path,
        help="another contrast of the same anatomy, for instance the fat image of a Dixon scan; resampled to IMAGE",
    )
    add(
        "--atlas",
        metavar=("IMAGE", "LABELS"),
        nargs=2,
        type=Path,
        action="append",
        default=[],
        dest="atlases",
        help="a finished volume of another subject with the same labels, used where it helps; may be repeated",
    )
    add("--scribbles", metavar="FILE", type=Path, help="strokes of the labels in any plane; 255 is background")
    add("--axis", choices=AXIS_CHOICES, default="auto", help="file axis across the slices; i is fastest")
    add_settings(add)
    add("--directions", action="store_true", help="also write OUT_up and OUT_down, each from the slices of one side")
    add("--uncertainty", metavar="FILE", type=Path, help="volume to write, from 0 sure to 1 a toss-up")
    add("--report", metavar="FILE.json", type=Path, help="what was done, as JSON")
    add("--picture", metavar="FILE.png", type=Path, help="picture of the slice that needs a look most")


def add_suggest(verbs):
    """The verb `suggest`."""
    verb = verbs.add_parser("suggest", help="which slice to annotate next, and what it would gain")
    verb.set_defaults(run=suggest, atlases=())
    add = verb.add_argument
    add("image", metavar="IMAGE", type=Path, help="the scan")
    add("annotations", metavar="ANNOTATIONS", type=Path, help="label volume or .seg.nrrd, as for propagate")
    add("--count", metavar="N", type=positive, default=1, help="slices, each as if those before it were drawn (1)")
    add("--second-image", metavar="FILE", type=Path, help="another contrast of the same anatomy")
    add("--scribbles", metavar="FILE", type=Path, help="strokes of the labels in any plane; 255 is background")
    add("--axis", choices=AXIS_CHOICES, default="auto", help="file axis across the slices")
    add_settings(add)
    add("--report", metavar="FILE.json", type=Path, help="the suggestions and what they rest on, as JSON")


def add_batch(verbs):
    """The verb `batch`."""
    verb = verbs.add_parser("batch", help="propagate on many volumes, and rank the results")
    verb.set_defaults(run=batch)
    add = verb.add_argument
    add(
        "table",
        metavar="TABLE.csv",
        type=Path,
        help="a line for each volume; columns image, annotations and, if need be, second_image, scribbles, axis, name;"
        " paths are relative to the table's folder",
    )
    add("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results and their overview")
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--jobs", metavar="N", type=positive, help="volumes at once (one for every 8 processors)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="run on the workers of this dask scheduler")
    add_settings(add)


def add_evaluate(verbs):
    """The verb `evaluate`."""
    verb = verbs.add_parser("evaluate", help="Dice and distances in mm of each label")
    verb.set_defaults(run=evaluate)
    verb.add_argument("prediction", metavar="PREDICTION", type=Path, help="label volume")
    verb.add_argument("reference", metavar="REFERENCE", type=Path, help="label volume of the whole scan")
    verb.add_argument("--annotations", metavar="A", type=Path, help="label volume whose slices are left out")


def add_demo(verbs):
    """The verb `demo`."""
    verb = verbs.add_parser("demo", help="try it on a synthetic scan")
    verb.set_defaults(run=demo)
    folder = Path("labelprop-demo")
    verb.add_argument("-o", "--output", metavar="DIR", type=Path, default=folder, help=f"folder to write to ({folder})")


def add_settings(add: Callable):
    """The options of a propagation that do not depend on its files; `add` is a parser's `add_argument`."""
    add(
        "--missing",
        choices=MISSING_CHOICES,
        default="auto",
        help="what a label is on an annotated slice without it; auto: absent, unless some label is missing between its"
        " own first and last slice",
    )
    add("--extrapolate", action="store_true", help="go on beyond the outermost annotated slices")
    add(
        "--graph-cut",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="snap what a scribble corrects to edges of the image (default), or do not",
    )
    add(
        "--registration",
        choices=REGISTRATIONS,
        default="auto",
        help="how slices are matched: optimised for this scan (instance, which is auto), by a network trained on this"
        " scan (network), or by one as it comes (pretrained)",
    )
    add(
        "--fusion",
        choices=FUSIONS,
        default="auto",
        help="how what arrives at a slice is weighed; auto: for each label the best of deep, similarity and appearance"
        " as far as hidden slices tell",
    )
    add("--preset", choices=PRESETS, default="balanced", help="how much time to spend")
    add(
        "--checkpoint",
        metavar="FILE|auto|none",
        default="auto",
        help="weights to start from; auto: those that come with LabelProp",
    )
    add("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    add("--memory", dest="memory_gb", metavar="GB", type=float, help="of memory to hold at most (all that is free)")
    add("--seed", metavar="N", type=natural, default=0, help=SEED_HELP)


def add_train(verbs):
    """The verb `train`."""
    verb = verbs.add_parser("train", help="train the registration network on one scan and keep it")
    verb.set_defaults(run=train, scribbles=None, second_image=None, atlases=())
    add = verb.add_argument
    add("image", metavar="IMAGE", type=Path, help="the scan")
    add("annotations", metavar="ANNOTATIONS", type=Path, help="label volume or .seg.nrrd, as for propagate")
    add("--axis", choices=AXIS_CHOICES, default="auto", help="file axis across the slices")
    add("--missing", choices=MISSING_CHOICES, default="auto", help="as for propagate")
    add("--preset", choices=PRESETS, default="balanced", help="as for propagate; here it is the size of the planes")
    add_training_options(add)


def add_pretrain(verbs):
    """The verb `pretrain`."""
    verb = verbs.add_parser("pretrain", help="train the registration network on a data set")
    verb.set_defaults(run=pretrain)
    add = verb.add_argument
    add("table", metavar="TABLE.csv", type=Path, help="columns image, annotations (optional), axis (optional)")
    add_training_options(add)
    add("--steps", metavar="N", type=positive, default=2000, help="at most")
    add("--batch", metavar="N", type=positive, default=4, help="samples a step, of each process")
    add("--half", action="store_true", help="write the weights as 16 bit numbers")


def add_training_options(add: Callable):
    """What `train` and `pretrain` share; `add` is a parser's `add_argument`."""
    add("-o", "--output", metavar="CHECKPOINT.pt", type=Path, required=True, help="weights to write; log and plot too")
    add("--checkpoint", metavar="FILE|auto|none", default="auto", help="weights to begin with; auto: LabelProp's own")
    add("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    add("--seed", metavar="N", type=natural, default=0, help=SEED_HELP)
    add("--licence", metavar="TEXT", default="not stated", help="of the weights, kept with them")


def settings_of(options) -> Settings:
    """The settings that the command line asks for."""
    return Settings(
        registration=options.registration,
        fusion=options.fusion,
        preset=options.preset,
        device=options.device,
        seed=options.seed,
        extrapolate=options.extrapolate,
        graph_cut=options.graph_cut,
        checkpoint=options.checkpoint,
        memory_gb=options.memory_gb,
    )


def positive(text: str) -> int:
    """A whole number from 1. Raises ArgumentTypeError."""
    return whole_number(text, 1)


def natural(text: str) -> int:
    """A whole number from 0. Raises ArgumentTypeError."""
    return whole_number(text, 0)


def whole_number(text: str, least: int) -> int:
    """The number in a text. Raises ArgumentTypeError with what to give instead."""
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < least:
        raise argparse.ArgumentTypeError(f"'{text}': give a whole number from {least}")
    return number


def batch(options) -> int:
    """labelprop batch"""
    from LabelPropLib import batch

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
    from LabelPropLib.training_run import RunFiles, train

    settings = Settings(preset=options.preset, device=options.device, seed=options.seed, checkpoint=options.checkpoint)
    run = RunFiles(options.output)
    run.check(inputs_of(options))

    collected, _ = collect(options)
    with shown_progress() as progress:
        train(collected.annotation, run, settings, options.licence, progress)
    print(written_text(run), file=sys.stderr)


def pretrain(options):
    """labelprop pretrain"""
    from LabelPropLib import dataset
    from LabelPropLib.registration.pretraining import PretrainingPlan
    from LabelPropLib.training_run import RunFiles, is_first_process, pretrain

    def say(text: str):
        if is_first_process():
            print(text, file=sys.stderr)

    run = RunFiles(options.output)
    entries = dataset.read_table(options.table, say)
    volumes = [path for entry in entries for path in (entry.image, entry.annotations) if path]
    run.check([options.table, *volumes, *weights_of(options.checkpoint)])
    if len({entry.image for entry in entries}) == 1:
        say("There is one image only, so none to validate with: all steps are made.")
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
    plot = f", plot {run.plot.name}" if importlib.util.find_spec("matplotlib") else ""
    return f"Written: {run.checkpoint}, log {run.log.name}{plot}."


def suggest(options):
    """labelprop suggest: propagate, write nothing of it, and say which slices to draw."""
    settings = replace(settings_of(options), suggestions=options.count)
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


def evaluate(options):
    """labelprop evaluate"""
    from LabelPropLib import evaluation

    evaluation.run(options.prediction, options.reference, options.annotations)


def demo(options):
    """labelprop demo"""
    from LabelPropLib import demo

    with shown_progress() as progress:
        demo.run(options.output, progress)


def propagate(options):
    """labelprop propagate: files to MRML nodes, through `LabelPropLogic`, and to files again."""
    started = time.monotonic()
    settings = replace(settings_of(options), directions=options.directions, uncertainty=options.uncertainty is not None)
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
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError("A picture needs matplotlib, which is not installed: pip install matplotlib.")
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
        from LabelPropLib.scene import storage

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

    from LabelPropLib.scene import storage

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
    from LabelPropLib.scene import storage

    others = filter(None, (options.uncertainty, options.picture, options.report))
    if options.picture:
        from LabelPropLib import picture
    with files.replacing((*segmentation_nodes, *others)) as staged:
        for path, node in segmentation_nodes.items():
            segment_ids = collected.segment_ids if path == options.output else collected.written_ids
            storage.save_segments(node, segment_ids, collected.volume_node, label_type, staged[path])
        if options.uncertainty:
            storage.save_volume(uncertainty_node, staged[options.uncertainty])
        if options.picture:
            picture.save_doubtful_slice(staged[options.picture], collected.annotation, propagation.label_maps, report)
        if options.report:
            files.write_json(report, staged[options.report])


if __name__ == "__main__":
    sys.exit(main())
