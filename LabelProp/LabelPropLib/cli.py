"""The command `labelprop`, and the same as a script of Slicer's:

    labelprop propagate IMAGE ANNOTATIONS -o OUT
    Slicer --no-splash --no-main-window --python-script .../LabelPropLib/cli.py propagate IMAGE ANNOTATIONS -o OUT

Exit status: 0 done; 2 the input cannot be used, and one line says why and how to mend it; 130 cancelled by Ctrl+C,
SIGTERM or SIGHUP; 1 anything else. Output files are written whole or not at all.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # run as a file: make the package that the file lies in importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from LabelPropLib.errors import Cancelled, InputError, out_of_memory
from LabelPropLib.interruptions import interruptible, uninterrupted
from LabelPropLib.machine import is_out_of_memory
from LabelPropLib.settings import AXIS_CHOICES, DEVICES, FUSIONS, MISSING_CHOICES, PRESETS, REGISTRATIONS
from LabelPropLib.terminal import (
    BAD_INPUT,
    CANCELLED,
    DONE,
    FAILED,
    allow_letters_of_any_script,
    complain,
    draw_into_files,
    open_closed_streams,
    seldom_collecting,
)

DEVICE_HELP = "where to compute; auto: a GPU if there is one, else the processor"
SEED_HELP = "seed of the random numbers: the same one gives the same result (0)"


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default that of the process; returns the exit status."""
    open_closed_streams()
    allow_letters_of_any_script()
    draw_into_files()
    interrupted = []
    try:
        with interruptible(interrupted), seldom_collecting():
            options = parser().parse_args(argv)
            with uninterrupted():  # no earlier: what it loads takes most of a second
                from LabelPropLib import verbs
            return getattr(verbs, options.verb)(options) or DONE
    except InputError as error:
        complain(" ".join(str(error).split()))
        return BAD_INPUT
    except (KeyboardInterrupt, Cancelled) as stopped:
        complain(str(stopped) or "cancelled, nothing was written")
        return CANCELLED
    except Exception as error:  # Slicer would stay open after an exception that nobody caught
        if interrupted:  # a library that is interrupted while it loads raises errors of its own
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
        """As the base class, but a verb itself rejects what it does not know, so that its own help is named."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def parser() -> Parser:
    """The command line."""
    command = Parser(prog="labelprop", description="Segment a volume from outlines on a few of its slices.")
    subparsers = command.add_subparsers(dest="verb", metavar="VERB", required=True)
    for add_verb in (add_propagate, add_suggest, add_batch, add_train, add_pretrain, add_evaluate, add_demo):
        add_verb(subparsers)
    return command


def add_propagate(subparsers):
    """The verb `propagate`."""
    verb = subparsers.add_parser("propagate", help="carry the labels drawn on some slices through the volume")
    add = verb.add_argument
    add("-o", "--output", metavar="OUT", type=path, required=True, help="label volume or .seg.nrrd to write")
    add_annotated_scan(add)
    add_further_inputs(add)
    add(
        "--atlas",
        metavar=("IMAGE", "LABELS"),
        nargs=2,
        type=path,
        action="append",
        default=[],
        dest="atlases",
        help="a finished volume of another subject with the same labels, used where it helps; may be repeated",
    )
    add_settings(add)
    add("--directions", action="store_true", help="also write OUT_up and OUT_down, each from the slices of one side")
    add("--uncertainty", metavar="FILE", type=path, help="map of uncertainty to write, from 0 (sure) to 1 (a toss-up)")
    add("--report", metavar="FILE.json", type=path, help="report to write: what was done, as JSON")
    add("--picture", metavar="FILE.png", type=path, help="picture to write, of the slice that most needs a look")


def add_suggest(subparsers):
    """The verb `suggest`."""
    verb = subparsers.add_parser("suggest", help="which slice to annotate next, and what it would gain")
    verb.set_defaults(atlases=())
    add = verb.add_argument
    add(
        "--count",
        metavar="N",
        type=positive,
        default=1,
        help="slices to suggest, each as if those before it were drawn (1)",
    )
    add_annotated_scan(add)
    add_further_inputs(add)
    add_settings(add)
    add("--report", metavar="FILE.json", type=path, help="report to write: suggestions and their grounds, as JSON")


def add_batch(subparsers):
    """The verb `batch`."""
    verb = subparsers.add_parser("batch", help="propagate on many volumes, and rank the results")
    add = verb.add_argument
    add(
        "table",
        metavar="TABLE.csv",
        type=path,
        help="a line for each volume; columns image, annotations and, optionally, second_image, scribbles, axis, name;"
        " paths are relative to the table's folder",
    )
    add("-o", "--output", metavar="DIR", type=path, required=True, help="folder for the results and their overview")
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--jobs", metavar="N", type=positive, help="volumes to run at once (one for every 8 processors)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="run on the workers of this dask scheduler")
    add_settings(add)


def add_evaluate(subparsers):
    """The verb `evaluate`."""
    verb = subparsers.add_parser("evaluate", help="Dice and distances in mm of each label")
    verb.add_argument("prediction", metavar="PREDICTION", type=path, help="label volume")
    verb.add_argument("reference", metavar="REFERENCE", type=path, help="label volume of the whole scan")
    verb.add_argument("--annotations", metavar="A", type=path, help="label volume whose drawn slices are not scored")


def add_demo(subparsers):
    """The verb `demo`."""
    verb = subparsers.add_parser("demo", help="try it on a synthetic scan")
    folder = Path("labelprop-demo")
    verb.add_argument("-o", "--output", metavar="DIR", type=path, default=folder, help=f"folder to write to ({folder})")


def add_annotated_scan(add: Callable):
    """The scan and its annotations, which `propagate`, `suggest` and `train` read; `add`: a parser's `add_argument`."""
    add("image", metavar="IMAGE", type=path, help="the scan (.nii.gz, .nrrd, .mha, ...)")
    add(
        "annotations",
        metavar="ANNOTATIONS",
        type=path,
        help="label volume on the scan's grid, in which 0 means 'not annotated' and a slice that bears a label is drawn"
        " completely for it; or a segmentation of Slicer's (.seg.nrrd)",
    )
    add("--axis", choices=AXIS_CHOICES, default="auto", help="axis of the file across the slices; i varies fastest")


def add_further_inputs(add: Callable):
    """What `propagate` and `suggest` can read besides; `add` is a parser's `add_argument`."""
    add(
        "--second-image",
        metavar="FILE",
        type=path,
        help="another contrast of the same anatomy, for instance the fat image of a Dixon scan; resampled to IMAGE",
    )
    add("--scribbles", metavar="FILE", type=path, help="strokes of the labels in any plane; 255 is background")


def add_settings(add: Callable):
    """The options of a propagation that do not depend on its files; `add` is a parser's `add_argument`."""
    add(
        "--missing",
        choices=MISSING_CHOICES,
        default="auto",
        help="how to read a label that is missing on an annotated slice; auto: as absent, or as unknown if it is"
        " missing between its own first and last slice, or if labels look drawn each on their own slices",
    )
    add("--extrapolate", action="store_true", help="go on beyond the outermost annotated slices")
    add(
        "--graph-cut",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether what a scribble corrects snaps to edges of the image (by default it does)",
    )
    add(
        "--registration",
        choices=REGISTRATIONS,
        default="auto",
        help="how slices are matched: optimised for this scan (instance, which is also auto), by a network trained on"
        " this scan (network), or by a network as it comes, without training on this scan (pretrained)",
    )
    add(
        "--fusion",
        choices=FUSIONS,
        default="auto",
        help="how the outlines that reach a slice are weighed; auto: deep for each label, unless annotated slices that"
        " are hidden are found clearly better by similarity or appearance",
    )
    add("--preset", choices=PRESETS, default="balanced", help="how much time to spend")
    add(
        "--checkpoint",
        metavar="FILE|auto|none",
        type=from_home,
        default="auto",
        help="weights to start from; auto: those that come with LabelProp",
    )
    add("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    add("--memory", dest="memory_gb", metavar="GB", type=float, help="most memory to use, in GB (all that is free)")
    add("--seed", metavar="N", type=natural, default=0, help=SEED_HELP)


def add_train(subparsers):
    """The verb `train`."""
    verb = subparsers.add_parser("train", help="train the registration network on one scan and keep it")
    verb.set_defaults(scribbles=None, second_image=None, atlases=())
    add = verb.add_argument
    add_annotated_scan(add)
    add("--missing", choices=MISSING_CHOICES, default="auto", help="as for propagate")
    add("--preset", choices=PRESETS, default="balanced", help="as for propagate; here it sets the size of planes")
    add_training_options(add)


def add_pretrain(subparsers):
    """The verb `pretrain`."""
    verb = subparsers.add_parser("pretrain", help="train the registration network on a data set")
    add = verb.add_argument
    add("table", metavar="TABLE.csv", type=path, help="columns image, annotations (optional), axis (optional)")
    add_training_options(add)
    add("--steps", metavar="N", type=positive, default=2000, help="steps to make at most (2000)")
    add("--batch", metavar="N", type=positive, default=4, help="samples per step in each process (4)")
    add("--half", action="store_true", help="write the weights as 16-bit numbers")


def add_training_options(add: Callable):
    """What `train` and `pretrain` share; `add` is a parser's `add_argument`."""
    add("-o", "--output", metavar="CHECKPOINT.pt", type=path, required=True, help="weights to write; log and plot too")
    add(
        "--checkpoint",
        metavar="FILE|auto|none",
        type=from_home,
        default="auto",
        help="weights to begin with; auto: LabelProp's own",
    )
    add("--device", choices=DEVICES, default="auto", help=DEVICE_HELP)
    add("--seed", metavar="N", type=natural, default=0, help=SEED_HELP)
    add("--licence", metavar="TEXT", default="not stated", help="licence of the weights, kept with them")


def path(text: str) -> Path:
    """A path, see `from_home`."""
    return Path(from_home(text))


def from_home(text: str) -> str:
    """The path in a text; ~ before it is the home folder, which shells leave to the command in --option=~/FILE."""
    return os.path.expanduser(text) if Path(text).parts[:1] == ("~",) else text


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


if __name__ == "__main__":
    sys.exit(main())
