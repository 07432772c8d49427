"""The command `labelprop`, and the same as a script of Slicer's:

    labelprop propagate IMAGE ANNOTATIONS -o OUT
    Slicer --no-splash --no-main-window --python-script .../LabelPropLib/cli.py propagate IMAGE ANNOTATIONS -o OUT

Exit status: 0 done; 2 the input cannot be used, and one line says why and how to mend it; 130 cancelled by Ctrl+C or
SIGTERM; 1 anything else. Output files are written whole or not at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # run as a file: make the package that the file lies in importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from LabelPropLib import files
from LabelPropLib.annotation import AXIS_NAMES, MISSING_CHOICES
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.settings import DEVICES, FUSIONS, PRESETS, REGISTRATIONS, Settings

DONE, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process; returns the exit status."""
    try:
        with interruptible():
            options = parser().parse_args(argv)
            options.run(options)
    except InputError as error:
        complain(" ".join(str(error).split()))
        return BAD_INPUT
    except (KeyboardInterrupt, Cancelled):
        complain("cancelled, nothing was written")
        return CANCELLED
    except (OSError, ImportError) as error:
        complain(str(error))
        return FAILED
    except Exception:  # Slicer would stay open after an exception that nobody caught
        traceback.print_exc()
        return FAILED
    return DONE


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, as with all bad input."""

    def error(self, message):
        raise InputError(f"{message} (see '{self.prog} --help')")


def parser() -> Parser:
    """The command line."""
    command = Parser(prog="labelprop", description="Segment a volume from outlines on a few of its slices.")
    verbs = command.add_subparsers(metavar="VERB", required=True)

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
    add("--scribbles", metavar="FILE", type=Path, help="strokes of the labels in any plane; 255 is background")
    add(
        "--axis",
        choices=("auto", "i", "j", "k"),
        default="auto",
        help="file axis across the slices; i is fastest",
    )
    add(
        "--missing",
        choices=MISSING_CHOICES,
        default="auto",
        help="what a label is on an annotated slice without it; auto: absent, unless some label is missing between its"
        " own first and last slice",
    )
    add("--extrapolate", action="store_true", help="go on beyond the outermost annotated slices")
    add("--registration", choices=REGISTRATIONS, default="auto")
    add("--fusion", choices=FUSIONS, default="auto")
    add("--preset", choices=PRESETS, default="balanced", help="how much time to spend")
    add(
        "--checkpoint",
        metavar="FILE|auto|none",
        default="auto",
        help="weights to start from; auto: those that come with LabelProp",
    )
    add("--device", choices=DEVICES, default="auto")
    add("--seed", metavar="N", type=int, default=0)
    add("--directions", action="store_true", help="also write OUT_up and OUT_down, each from the slices of one side")
    add("--uncertainty", metavar="FILE", type=Path, help="volume to write, from 0 sure to 1 a toss-up")
    add("--report", metavar="FILE.json", type=Path, help="what was done, as JSON")

    verb = verbs.add_parser("suggest", help="which slice to annotate next, and what it would gain")
    verb.set_defaults(run=suggest)
    add = verb.add_argument
    add("image", metavar="IMAGE", type=Path, help="the scan")
    add("annotations", metavar="ANNOTATIONS", type=Path, help="as for propagate")
    add(
        "--count", metavar="N", type=int, default=1, help="slices to suggest, each as if those before it were drawn (1)"
    )
    add("--second-image", metavar="FILE", type=Path, help="another contrast of the same anatomy")
    add("--scribbles", metavar="FILE", type=Path, help="strokes of the labels in any plane; 255 is background")
    add("--axis", choices=("auto", "i", "j", "k"), default="auto", help="file axis across the slices")
    add("--missing", choices=MISSING_CHOICES, default="auto", help="what a label is on an annotated slice without it")
    add("--preset", choices=PRESETS, default="fast", help="how much time to spend (fast)")
    add("--device", choices=DEVICES, default="auto")
    add("--report", metavar="FILE.json", type=Path, help="the suggestions and what they rest on, as JSON")

    verb = verbs.add_parser("evaluate", help="Dice and distances in mm of each label")
    verb.set_defaults(run=evaluate)
    verb.add_argument("prediction", metavar="PREDICTION", type=Path, help="label volume")
    verb.add_argument("reference", metavar="REFERENCE", type=Path, help="label volume of the whole scan")
    verb.add_argument("--annotations", metavar="A", type=Path, help="label volume whose slices are left out")

    verb = verbs.add_parser("demo", help="try it on a synthetic scan")
    verb.set_defaults(run=demo)
    folder = Path("labelprop-demo")
    verb.add_argument("-o", "--output", metavar="DIR", type=Path, default=folder, help=f"folder to write to ({folder})")
    return command


def suggest(options):
    """labelprop suggest: propagate, write nothing of it, and say which slices to draw."""
    settings = Settings(preset=options.preset, device=options.device, suggestions=options.count)
    inputs = (options.image, options.annotations, options.scribbles, options.second_image)
    files.check_outputs(filter(None, [options.report]), filter(None, inputs))

    from LabelProp import LabelPropLogic

    logic = LabelPropLogic()
    volume_node, segmentation_node, scribbles_node, _ = read_inputs(options)
    collected = logic.collect(
        volume_node,
        segmentation_node,
        axis=options.axis,
        missing=options.missing,
        scribbles=scribbles_node,
        secondVolumeNode=add_volume(options.second_image) if options.second_image else None,
    )
    with shown_progress() as progress:
        report = logic.compute(collected, settings, progress).report
    report["segments"] = {str(label): segment_id for label, segment_id in collected.segment_ids.items()}
    if options.report:
        with files.replacing([options.report]) as staged:
            staged[options.report].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(report["messages"]), file=sys.stderr)
    print(format_suggestions(report))


def format_suggestions(report: dict) -> str:
    """A line for each slice to draw, for the user."""
    lines = [f"Expected Dice between the annotated slices: {report['expected_mean_dice']:.3f}."]
    if not report["suggested_slices"]:
        lines.append("No slice to suggest: none between annotated ones is likely to bear a label.")
    for suggested in report["suggested_slices"]:
        labels = ", ".join(f"{label} ({report['segments'][str(label)]})" for label in suggested["labels"])
        lines.append(
            f"Slice {suggested['plane']} across {report['axis']}: expected Dice +{suggested['gain']:.4f} for"
            f" {suggested['boundary_mm']:.0f} mm to trace, labels {labels}."
        )
    return "\n".join(lines)


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
    settings = Settings(
        registration=options.registration,
        fusion=options.fusion,
        preset=options.preset,
        device=options.device,
        seed=options.seed,
        extrapolate=options.extrapolate,
        directions=options.directions,
        uncertainty=options.uncertainty is not None,
        checkpoint=options.checkpoint,
    )
    directions = check_outputs(options)

    import slicer

    from LabelProp import LabelPropLogic

    logic = LabelPropLogic()
    volume_node, segmentation_node, scribbles_node, label_type = read_inputs(options)
    collected = logic.collect(
        volume_node,
        segmentation_node,
        axis=options.axis,
        missing=options.missing,
        scribbles=scribbles_node,
        secondVolumeNode=add_volume(options.second_image) if options.second_image else None,
    )
    check_overlap(collected, options.output)
    read = time.monotonic()

    with shown_progress() as progress:
        propagation = logic.compute(collected, settings, progress)
    computed = time.monotonic()

    uncertainty_node = None
    if options.uncertainty:
        uncertainty_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Uncertainty")
    direction_nodes = logic.addDirections(collected, propagation)
    report = logic.write(collected, propagation, uncertainty_node)
    report["seconds"] = {"reading": round(read - started, 3), **report["seconds"]}
    segmentation_nodes = {options.output: segmentation_node}
    segmentation_nodes |= {path: direction_nodes[name] for name, path in directions.items()}
    write_outputs(options, collected, segmentation_nodes, uncertainty_node, report, label_type)

    now = time.monotonic()
    summarise(collected.annotation, report, writing=now - computed, total=now - started)


def check_outputs(options) -> dict[str, Path]:
    """Raise InputError unless all files can be written; returns direction -> path of the directions asked for."""
    files.check_suffix(options.output, (files.SEGMENTATION_SUFFIX, *files.VOLUME_SUFFIXES))
    if options.uncertainty:
        files.check_suffix(options.uncertainty, files.VOLUME_SUFFIXES)
    names = ("up", "down") if options.directions else ()
    directions = {name: files.with_ending(options.output, f"_{name}") for name in names}
    outputs = (options.output, *directions.values(), options.uncertainty, options.report)
    inputs = (options.image, options.annotations, options.scribbles, options.second_image)
    files.check_outputs(filter(None, outputs), filter(None, inputs))
    return directions


def read_inputs(options):
    """Volume node, segmentation node, segmentation node of scribbles or None, and the type for label values."""
    import vtk

    from LabelPropLib import scene

    vtk.vtkObject.GlobalWarningDisplayOff()  # what goes wrong is said in our words
    scan = files.read_volume(options.image)
    volume_node = add_volume(options.image, scan)

    def read_labels(path: Path) -> np.ndarray:
        labels = files.read_labels(path)
        files.check_same_grid(labels, path, scan, options.image)
        return files.voxels(labels)

    def load_segmentation(path: Path):
        files.check_readable(path)
        return scene.load_segmentation(path)

    name = options.annotations.name
    if files.is_segmentation(options.annotations):
        segmentation_node = load_segmentation(options.annotations)
        label_type = np.uint16
    else:
        labels = read_labels(options.annotations)
        segmentation_node = scene.add_segmentation_of_labels(labels, volume_node, name)
        label_type = labels.dtype

    scribbles_node = None
    if options.scribbles and files.is_segmentation(options.scribbles):
        scribbles_node = load_segmentation(options.scribbles)
    elif options.scribbles:
        segment_ids, _ = scene.choose_segments(segmentation_node)
        strokes = read_labels(options.scribbles)
        scribbles_node = scene.add_segmentation_of_scribbles(strokes, volume_node, options.scribbles.name, segment_ids)
    return volume_node, segmentation_node, scribbles_node, label_type


def add_volume(path: Path, image=None):
    """The volume node of a file, or of the image that was read from it. Raises InputError."""
    import slicer

    image = files.read_volume(path) if image is None else image
    return slicer.util.addVolumeFromArray(files.voxels(image), files.ijk_to_ras(image), path.name)


def check_overlap(collected, output: Path):
    """Raise InputError if segments overlap and `output` is a label volume, whose voxels have but one label."""
    overlapping = collected.annotation.overlapping()
    if overlapping and not files.is_segmentation(output):
        first, second = (collected.segment_ids[label] for label in min(overlapping))
        raise InputError(
            f"The segments {first} and {second} overlap, which {output} cannot keep: give OUT a name that ends in"
            f" {files.SEGMENTATION_SUFFIX}."
        )


def write_outputs(options, collected, segmentation_nodes: dict, uncertainty_node, report: dict, label_type):
    """Write all files, or none. segmentation_nodes: path -> node."""
    import slicer

    from LabelPropLib import scene

    others = filter(None, (options.uncertainty, options.report))
    with files.replacing((*segmentation_nodes, *others)) as staged:
        for path, node in segmentation_nodes.items():
            if files.is_segmentation(path):
                scene.save_segmentation(node, staged[path])
            else:
                labels = scene.labels_on_volume(node, collected.segment_ids, collected.volume_node, label_type)
                files.write_volume(labels, scene.ijk_to_ras(collected.volume_node), staged[path])
        if options.uncertainty:
            uncertainty = slicer.util.arrayFromVolume(uncertainty_node)
            files.write_volume(uncertainty, scene.ijk_to_ras(uncertainty_node), staged[options.uncertainty])
        if options.report:
            staged[options.report].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def summarise(annotation, report: dict, **more_seconds: float):
    """Say on stderr what was done, in how much time and memory."""
    slices = ", ".join(map(str, annotation.planes))
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in {**report["seconds"], **more_seconds}.items())
    lines = [
        *report["messages"],
        f"Labels {', '.join(map(str, annotation.labels))}: {annotation.plane_count} slices across"
        f" {AXIS_NAMES[annotation.axis]}, annotated on {slices}.",
        f"Time: {stages}.",
    ]
    if report["peak_memory_gb"] is not None:
        lines.append(f"Peak memory: {report['peak_memory_gb']:.2f} GB.")
    print("\n".join(lines), file=sys.stderr)


@contextlib.contextmanager
def shown_progress():
    """The callback progress(fraction, message): a bar on a terminal, elsewhere a line for each new message."""
    if not sys.stderr.isatty():
        yield StageLines()
        return
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:  # Slicer does not bundle it
        yield StageLines()
        return
    look = "{desc} {percentage:3.0f}% |{bar}| {remaining}"
    with tqdm(total=1.0, file=sys.stderr, leave=False, bar_format=look) as bar:

        def progress(fraction: float, message: str):
            bar.set_description_str(message, refresh=False)
            bar.update(fraction - bar.n)

        yield progress


class StageLines:
    """Progress where there is no terminal: names each stage once."""

    def __init__(self):
        self._message = None

    def __call__(self, fraction: float, message: str):
        if message != self._message:
            print(message, file=sys.stderr)
        self._message = message


@contextlib.contextmanager
def interruptible():
    """SIGTERM ends the work as Ctrl+C does, by KeyboardInterrupt, so that what is half written is removed."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def complain(text: str):
    """One line on stderr."""
    print(f"labelprop: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
