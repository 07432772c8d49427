"""Many volumes: what is run, what is not run again, what is said of failures, and the overview."""

import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from samples import SHAPE, STRAIGHT, drawn_masks, label_volume, noise

from LabelPropLib import batch, batch_worker, cli, commands, files, overview
from LabelPropLib.checkpoint import SHIPPED_FOLDER
from LabelPropLib.commands import Ended
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.overview import Result
from LabelPropLib.settings import Settings

LABELS = (7, 300)
NAMES = ("one", "two", "three")


@pytest.fixture
def table(tmp_path):
    """A table of three volumes in a folder of its own; returns its path."""
    return make_table(tmp_path / "data", NAMES)


def make_table(folder, names):
    """Scans and annotations in the folder, and the table that lists them; returns its path."""
    folder.mkdir()
    for name in names:
        files.write_volume(noise(), STRAIGHT, folder / f"{name}.nii.gz")
        drawn = label_volume(drawn_masks(), LABELS).astype(np.uint16)
        files.write_volume(drawn, STRAIGHT, folder / f"{name}-drawn.nii.gz")
    return write_table(
        folder / "table.csv", *({"image": f"{n}.nii.gz", "annotations": f"{n}-drawn.nii.gz"} for n in names)
    )


def write_table(path, *rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def in_this_process(monkeypatch, nearest_slice_engine):
    """Commands run one after the other in this process, by an engine that takes no time; returns their names."""
    ran = []

    def run_here(all_commands, jobs, threads):
        for name, command in all_commands.items():
            ran.append(name)
            yield name, Ended(cli.main(command), "labelprop: what it said")

    monkeypatch.setattr(batch, "run_here", run_here)
    return ran


def run(table, folder, *options):
    """Exit status of `labelprop batch`."""
    return cli.main(["batch", str(table), "-o", str(folder), *map(str, options)])


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# What is run


def test_every_volume_is_as_from_a_single_run(table, tmp_path, in_this_process):
    assert run(table, tmp_path / "out") == 0
    for name in NAMES:
        single = tmp_path / "single.nii.gz"
        inputs = (str(table.parent / f"{name}{part}.nii.gz") for part in ("", "-drawn"))
        assert cli.main(["propagate", *inputs, "-o", str(single)]) == 0
        np.testing.assert_array_equal(read(tmp_path / "out" / f"{name}.nii.gz"), read(single))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("nii.gz", "json", "png")
    assert written == {f"{n}.{kind}" for n in NAMES for kind in kinds} | {overview.TABLE, overview.PAGE}


def test_a_matplotlib_that_cannot_be_loaded_costs_the_pictures_alone(table, tmp_path, in_this_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(table, tmp_path / "out") == 0
    assert not list((tmp_path / "out").glob("*.png"))


def test_console(table, tmp_path, in_this_process):
    from LabelProp import LabelPropLogic

    said = []
    results = LabelPropLogic().batch(str(table), str(tmp_path), preset="fast", say=said.append)
    assert sorted(result.name for result in results) == sorted(NAMES)
    assert not any(result.failure for result in results)
    assert len(said) == len(NAMES) + 1


def test_settings_reach_every_volume(table, tmp_path, in_this_process):
    options = ("--preset", "fast", "--seed", 3, "--extrapolate", "--no-graph-cut", "--missing", "unknown")
    assert run(table, tmp_path, *options, "--memory", 2.5) == 0
    made_of = json.loads((tmp_path / "one.json").read_text())["made_of"]
    assert made_of["missing"] == "unknown"
    expected = {"preset": "fast", "seed": 3, "extrapolate": True, "graph_cut": False, "memory_gb": 2.5}
    assert expected.items() <= made_of["settings"].items()


def test_columns_of_a_row(table, tmp_path, in_this_process):
    strokes = np.zeros(SHAPE, np.uint16)
    strokes[5, 3, 4:9] = 7
    files.write_volume(strokes, STRAIGHT, table.parent / "strokes.nii.gz")
    row = {"name": "mine", "image": "one.nii.gz", "annotations": "one-drawn.nii.gz"}
    write_table(table, row | {"scribbles": "strokes.nii.gz", "second_image": "two.nii.gz", "axis": "k"})
    assert run(table, tmp_path) == 0
    made_of = json.loads((tmp_path / "mine.json").read_text())["made_of"]
    assert made_of["axis"] == "k"
    assert {use: file["file"] for use, file in made_of["inputs"].items()} == {
        "image": "one.nii.gz",
        "annotations": "one-drawn.nii.gz",
        "scribbles": "strokes.nii.gz",
        "second_image": "two.nii.gz",
    }


def test_finished_volumes_are_not_run_again(table, tmp_path, in_this_process, capsys):
    run(table, tmp_path)
    before = (tmp_path / "two.nii.gz").stat().st_mtime_ns
    in_this_process.clear()
    assert run(table, tmp_path) == 0
    assert in_this_process == []
    assert "3 of 3 volumes are done already" in capsys.readouterr().err
    assert (tmp_path / "two.nii.gz").stat().st_mtime_ns == before


def change_image(folder, out):
    files.write_volume(noise() + np.int16(1), STRAIGHT, folder / "two.nii.gz")


def remove_output(folder, out):
    (out / "two.nii.gz").unlink()


def remove_report(folder, out):
    (out / "two.json").unlink()


def cut_off_report(folder, out):
    (out / "two.json").write_text((out / "two.json").read_text()[:100])


@pytest.mark.parametrize("change", [change_image, remove_output, remove_report, cut_off_report])
def test_what_has_changed_is_run_again(table, tmp_path, in_this_process, change):
    run(table, tmp_path)
    in_this_process.clear()
    change(table.parent, tmp_path)
    assert run(table, tmp_path) == 0
    assert in_this_process == ["two"]


def test_other_settings_are_run_again(table, tmp_path, in_this_process):
    run(table, tmp_path)
    in_this_process.clear()
    assert run(table, tmp_path, "--seed", 1) == 0
    assert in_this_process == list(NAMES)


def test_a_failure_is_named_and_the_others_go_on(table, tmp_path, in_this_process, capsys):
    image = table.parent / "two.nii.gz"
    image.write_bytes(image.read_bytes()[:300])
    assert run(table, tmp_path) == 1
    assert in_this_process == list(NAMES)
    said = capsys.readouterr().err
    assert said.count("two: failed: what it said") == said.count("what it said") == 1
    assert said.splitlines()[-1] == "labelprop: 1 of 3 volumes failed, see above"
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == ["one.nii.gz", "three.nii.gz"]
    with (tmp_path / overview.TABLE).open(newline="") as stream:
        assert [(row["name"], row["status"]) for row in csv.DictReader(stream)][0] == ("two", "failed")


def test_a_missing_file_is_a_failure_of_its_row(table, tmp_path, in_this_process):
    (table.parent / "three.nii.gz").unlink()
    assert run(table, tmp_path) == 1
    assert (tmp_path / "one.nii.gz").exists() and (tmp_path / "two.nii.gz").exists()


# Tables


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,name\na.nii.gz,a\n", "no column annotations"),
        ("a.nii.gz,b.nii.gz\n", "no column image and no column annotations"),
        ("image,annotations\n", "no rows"),
        ("", "no column image"),
        ("image,annotations\na.nii.gz,\n", "line 2: the column annotations is empty"),
        ("image,annotations,axis\na.nii.gz,b.nii.gz,z\n", "line 2: unknown axis 'z'"),
        ("image,annotations,name\na.nii.gz,b.nii.gz,../x\n", "line 2: the name '../x'"),
        ("image,annotations\nx/a.nii.gz,b.nii.gz\ny/x/a.nii.gz,b.nii.gz\n", "2 rows are called 'x-a'"),
    ],
)
def test_bad_table(tmp_path, capsys, text, message):
    (tmp_path / "table.csv").write_text(text)
    assert run(tmp_path / "table.csv", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()


def test_table_that_is_none(tmp_path, capsys):
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name, message in {"table.csv": "cannot be read as a table", "nothing.csv": "no such file"}.items():
        assert run(tmp_path / name, tmp_path / "out") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_quotes_and_unused_columns(tmp_path, delimiter):
    said = []
    lines = [["Image", "annotations", "age"], ['"a, b; c.nii.gz"', "d.nrrd", "7"], ["e.nrrd", "f.nrrd", ""]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    (tmp_path / "table.csv").write_text("\ufeff" + text, encoding="utf-8")
    first, second = batch.read_table(tmp_path / "table.csv", said.append)
    assert first.inputs == {"image": tmp_path / "a, b; c.nii.gz", "annotations": tmp_path / "d.nrrd"}
    assert (first.name, second.name) == ("a, b; c", "e")
    assert said == ["Columns of the table that are not used: age."]


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    rows = ({"image": f"{name}/scan.nii.gz", "annotations": f"{name}/drawn.seg.nrrd"} for name in ("ann", "ben"))
    rows = batch.read_table(write_table(tmp_path / "table.csv", *rows), print)
    assert [row.name for row in rows] == ["ann-scan", "ben-scan"]
    assert batch.Job(rows[0], tmp_path, Settings(), "auto").output == tmp_path / "ann-scan.seg.nrrd"


# Processes


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Makes a Python text the worker's file, so that processes start at once; returns the maker."""

    def make(text):
        path = tmp_path / "worker.py"
        path.write_text(textwrap.dedent(text))
        monkeypatch.setattr(commands, "WORKER", path)

    return make


def test_processes_run_side_by_side_with_the_same_threads(tmp_path, stand_in):
    stand_in("""
        import os, pathlib, sys, time
        folder = pathlib.Path(sys.argv[1])
        (folder / sys.argv[2]).write_text(os.environ["OMP_NUM_THREADS"])
        while len(list(folder.glob("job-*"))) < 2:
            time.sleep(0.02)
        """)
    ended = dict(commands.run_here({n: [str(tmp_path), f"job-{n}"] for n in "ab"}, jobs=2, threads=3))
    assert ended == {"a": Ended(0), "b": Ended(0)}
    assert {path.read_text() for path in tmp_path.glob("job-*")} == {"3"}


def test_a_killed_process_is_tried_once_more(tmp_path, stand_in):
    stand_in("""
        import os, pathlib, signal, sys
        tries = pathlib.Path(sys.argv[1])
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        if sys.argv[2] == "always" or len(tries.read_text()) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    names = {"once": [str(tmp_path / "a"), "once"], "always": [str(tmp_path / "b"), "always"]}
    ended = dict(commands.run_here(names, jobs=2, threads=1))
    assert ended["once"].failure == ""
    assert "was killed (SIGKILL) 2 times" in ended["always"].failure
    assert (tmp_path / "b").read_text() == "xx"


@pytest.mark.parametrize("more", ["", "\\nThe application says goodbye"])
def test_a_failure_is_not_tried_again_and_tells_why(stand_in, more):
    stand_in(f"""
        import sys
        sys.exit("Reading\\nlabelprop: the file is damaged{more}")
        """)
    assert dict(commands.run_here({"a": []}, jobs=1, threads=1))["a"].failure == "the file is damaged"


def test_stopping_ends_what_runs(tmp_path, stand_in):
    """By the end of its input alone: a signal as well would interrupt it while it removes what is half written."""
    stand_in("""
        import pathlib, sys, time
        if sys.argv[1].endswith("long"):
            sys.stdin.read()
            time.sleep(0.1)
            pathlib.Path(sys.argv[1] + "-ended").touch()
        """)
    names = {name: [str(tmp_path / name)] for name in ("long", "short", "never")}
    running = commands.run_here(names, jobs=2, threads=1)
    name, _ = next(running)
    assert name in ("short", "never")
    running.close()
    assert (tmp_path / "long-ended").exists()


def test_where_there_are_no_signals_work_is_cancelled_and_not_killed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda number, signal: pytest.fail("killed"))
    monkeypatch.setattr(batch_worker.standard_input, "read", lambda: b"")
    with pytest.raises(KeyboardInterrupt), cli.interruptible([]):
        batch_worker.end_with_stdin()


def test_nothing_that_is_read_is_replaced(table, in_this_process, capsys):
    """Neither the table nor an input of any row."""
    folder = table.parent
    row = {"image": "one.nii.gz", "annotations": "one-drawn.nii.gz", "name": "result"}
    other = {"image": "two.nii.gz", "annotations": "two-drawn.nii.gz", "name": "one"}
    for name, rows in ((overview.TABLE, [row]), ("one.nii.gz", [row, other])):
        listed = write_table(folder / overview.TABLE, *rows)
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert run(listed, folder) == 2
        assert f"{name} would be replaced, but this batch reads it" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert in_this_process == []


@pytest.mark.parametrize("content", ['{"EchoTime": 0.1}', "[1, 2]"])
def test_a_file_of_another_program_in_the_place_of_a_report_is_kept(table, tmp_path, in_this_process, capsys, content):
    (tmp_path / "two.json").write_text(content)
    assert run(table, tmp_path) == 2
    assert "two.json would be replaced, but is no report of LabelProp's" in capsys.readouterr().err
    assert (tmp_path / "two.json").read_text() == content
    assert in_this_process == []


def test_a_report_of_a_suggestion_is_no_other_programs(table, tmp_path, in_this_process):
    (tmp_path / "two.json").write_text('{"annotated_slices": [2, 9], "suggested_slice": null}')
    assert run(table, tmp_path) == 0


def test_directions_replace_no_input(table):
    row = {"image": "one.nii.gz", "annotations": "one-drawn.nii.gz", "name": "result"}
    files.write_volume(label_volume(drawn_masks(), LABELS), STRAIGHT, table.parent / "result_up.nii.gz")
    other = {"image": "two.nii.gz", "annotations": "result_up.nii.gz", "name": "other"}
    with pytest.raises(InputError, match="result_up.nii.gz would be replaced"):
        batch.run(write_table(table, row, other), table.parent, Settings(directions=True))


def test_directions_replace_no_other_rows_result(table, tmp_path):
    rows = [{"image": "one.nii.gz", "annotations": "one-drawn.nii.gz", "name": name} for name in ("a", "a_up")]
    with pytest.raises(InputError, match="a_up.nii.gz would be replaced"):
        batch.run(write_table(table, *rows), tmp_path / "out", Settings(directions=True))


def test_a_checkpoint_is_found_wherever_a_row_runs(table, tmp_path, in_this_process, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    shipped = (SHIPPED_FOLDER / "registration.pt").read_bytes(), (SHIPPED_FOLDER / "fusion.pt").read_bytes()
    (tmp_path / "weights.pt").write_bytes(shipped[0])
    run(table, tmp_path / "out", "--checkpoint", "weights.pt")
    made_of = json.loads((tmp_path / "out" / "one.json").read_text())["made_of"]
    assert made_of["settings"]["checkpoint"] == str((tmp_path / "weights.pt").resolve())
    in_this_process.clear()
    (tmp_path / "weights.pt").write_bytes(shipped[1])
    run(table, tmp_path / "out", "--checkpoint", "weights.pt")
    assert sorted(in_this_process) == sorted(NAMES)


def test_weights_that_cannot_be_used_are_found_before_a_row_runs(table, tmp_path, in_this_process, capsys):
    (tmp_path / "damaged.pt").write_bytes(b"one")
    for name, message in {"missing.pt": "no such file", "damaged.pt": "not a checkpoint"}.items():
        assert run(table, tmp_path / "out", "--checkpoint", tmp_path / name) == 2
        assert message in capsys.readouterr().err
    other_kind = ["--checkpoint", SHIPPED_FOLDER / "fusion.pt", "--registration", "pretrained"]
    assert run(table, tmp_path / "out", *other_kind) == 2
    assert in_this_process == [] and not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without that GPU")
def test_a_device_that_is_not_there_is_found_before_a_row_runs(table, tmp_path, in_this_process, capsys):
    assert run(table, tmp_path / "out", "--device", "cuda") == 2
    assert "'cuda' is not available" in capsys.readouterr().err
    assert in_this_process == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", [{"uncertainty": True}, {"suggestions": 3}])
def test_settings_that_have_no_file_in_a_batch(table, tmp_path, setting):
    with pytest.raises(InputError, match="leave both settings out"):
        batch.run(table, tmp_path, Settings(**setting))


def test_the_application_runs_itself(monkeypatch):
    """Also on macOS, where it has no launcher."""
    application = SimpleNamespace(launcherExecutableFilePath="launcher", applicationFilePath=lambda: "itself")
    monkeypatch.setitem(sys.modules, "slicer", SimpleNamespace(app=application))
    assert commands.interpreter()[0] == "launcher"
    application.launcherExecutableFilePath = ""
    assert commands.interpreter()[0] == "itself"


@pytest.mark.parametrize("status, reason", [(-9, "SIGKILL"), (130, "SIGTERM"), (3221225477, "0xc0000005")])
def test_what_was_killed_is_told_from_what_failed(status, reason):
    assert Ended(status).was_killed and f"was killed ({reason})" in Ended(status).failure
    assert not Ended(1, "labelprop: bad").was_killed and Ended(1, "labelprop: bad").failure == "bad"


def test_a_batch_that_is_interrupted_says_how_far_it_came(table, tmp_path, monkeypatch):
    def run_here(all_commands, jobs, threads):
        yield "one", Ended(2, "labelprop: bad")
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run_here", run_here)
    with pytest.raises(Cancelled, match="1 of 3 volumes have ended"):
        batch.run(table, tmp_path)
    assert not (tmp_path / overview.PAGE).exists()


def test_a_batch_that_is_interrupted_at_its_overview_says_how_far_it_came(table, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    ends = [(name, Ended(2, "labelprop: bad")) for name in ("one", "two", "three")]
    monkeypatch.setattr(batch, "run_here", lambda *arguments: (end for end in ends))
    monkeypatch.setattr(overview, "write", interrupted)
    with pytest.raises(Cancelled, match="3 of 3 volumes have ended"):
        batch.run(table, tmp_path)


AS_THE_APPLICATION_RUNS_IT = "import runpy, sys; sys.stdin = object(); runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize("python", [[], ["-c", f"import sys; del sys.argv[0]; {AS_THE_APPLICATION_RUNS_IT}"]])
def test_processes_of_a_killed_batch_end(table, tmp_path, python):
    """The worker notices that its stdin closes, and is cancelled: nothing half-written is left behind."""
    inputs = [str(table.parent / name) for name in ("one.nii.gz", "one-drawn.nii.gz")]
    command = [sys.executable, *python, commands.WORKER, "propagate", *inputs, "-o", str(tmp_path / "out.nii.gz")]
    before = sorted(tmp_path.iterdir())
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while (line := process.stderr.readline()).strip() != "Preparing":
        assert line, "it has ended before it began"
    process.stdin.close()
    assert process.wait(120) in (cli.CANCELLED, -signal.SIGTERM)
    assert sorted(tmp_path.iterdir()) == before


# One machine and a cluster, for real


@pytest.fixture(scope="module")
def real_case(tmp_path_factory):
    """A table of two small tubes and the voxels of their single runs by the pipeline."""
    folder = tmp_path_factory.mktemp("real")
    k, j, i = np.indices((9, 32, 36))
    names, singles = ("a", "b"), {}
    for shift, name in enumerate(names):
        mask = (j - 14 - shift) ** 2 + (i - 12 - k) ** 2 < 64
        image = (np.where(mask, 200, 60) + np.random.default_rng(shift).integers(0, 30, mask.shape)).astype(np.int16)
        drawn = np.zeros(mask.shape, np.uint8)
        drawn[[0, 4, 8]] = mask[[0, 4, 8]]
        files.write_volume(image, STRAIGHT, folder / f"{name}.nii.gz")
        files.write_volume(drawn, STRAIGHT, folder / f"{name}-drawn.nii.gz")
        single = folder / f"{name}-single.nii.gz"
        inputs = [str(folder / f"{name}{part}.nii.gz") for part in ("", "-drawn")]
        assert cli.main(["propagate", *inputs, "-o", str(single), "--preset", "fast"]) == 0
        singles[name] = read(single)
    rows = [{"image": f"{name}.nii.gz", "annotations": f"{name}-drawn.nii.gz"} for name in names]
    return write_table(folder / "table.csv", *rows), singles


def test_processes_find_the_voxels_of_single_runs(real_case, tmp_path):
    table, singles = real_case
    assert run(table, tmp_path, "--preset", "fast", "--jobs", 2) == 0
    for name, single in singles.items():
        np.testing.assert_array_equal(read(tmp_path / f"{name}.nii.gz"), single)


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="dask.distributed is not installed")
def test_a_cluster_survives_a_killed_worker(real_case, tmp_path):
    from distributed import LocalCluster

    table, singles = real_case
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        arguments = ["batch", table, "-o", tmp_path, "--preset", "fast", "--scheduler", cluster.scheduler_address]
        process = subprocess.Popen([sys.executable, cli.__file__, *map(str, arguments)])
        while process.poll() is None and not any(
            cluster.scheduler.workers[w].processing for w in cluster.scheduler.workers
        ):
            time.sleep(0.05)
        os.kill(cluster.workers[0].process.pid, signal.SIGKILL)
        assert process.wait(300) == 0
    for name, single in singles.items():
        np.testing.assert_array_equal(read(tmp_path / f"{name}.nii.gz"), single)


def test_no_scheduler(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, "CONNECT_SECONDS", 0.3)
    assert run(table, tmp_path, "--scheduler", "tcp://127.0.0.1:9") == 2
    assert re.search("No dask scheduler answers|dask.distributed, which is not installed", capsys.readouterr().err)
    with pytest.raises(InputError):
        cli.parser().parse_args(["batch", "t.csv", "-o", "x", "--scheduler", "a", "--jobs", "2"])


# The overview


class Page(HTMLParser):
    """The headings of the rows, in order; tags that were not closed; and what refers to other files."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.names, self.open, self.references = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [value for name, value in attributes.items() if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.names.append(data)


def result(folder, name, quality=None, failure=""):
    report = {
        "seconds": {"registering": 2.0},
        "segments": {"7": "Psoas & co"},
        "volume_ml": {"7": 12.5},
        "annotated_slices": [3, 12],
        "messages": ["Look at it."],
    }
    if quality is not None:
        report["expected_mean_dice"] = quality
    (folder / f"{name}.png").write_bytes(b"\x89PNG")
    inputs = {"image": Path("image.nii.gz")}
    return Result(name, inputs, folder / f"{name}.nii.gz", folder / f"{name}.png", {} if failure else report, failure)


def test_doubtful_volumes_come_first(tmp_path):
    results = [
        result(tmp_path, "good", 0.95),
        result(tmp_path, "unknown"),
        result(tmp_path, "bad", 0.6),
        result(tmp_path, "<failed>", failure="a & b"),
    ]
    ranked = sorted(results, key=Result.rank)
    overview.write(tmp_path, ranked, "Study")
    page = Page((tmp_path / overview.PAGE).read_text(encoding="utf-8"))
    assert page.names == ["<failed>", "bad", "good", "unknown"]
    assert page.open == []
    with (tmp_path / overview.TABLE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == page.names
    kept = {name: text for name, text in rows[0].items() if text}
    assert kept == {"name": "<failed>", "status": "failed", "messages": "a & b", "image": "image.nii.gz"}
    assert {name: text for name, text in rows[1].items() if text} == {
        "name": "bad",
        "status": "done",
        "expected_mean_dice": "0.6",
        "seconds": "2.0",
        "annotated_slices": "3 12",
        "ml Psoas & co": "12.5",
        "messages": "Look at it.",
        "image": "image.nii.gz",
        "output": "bad.nii.gz",
    }


def test_a_row_of_the_page_tells_what_is_known_of_the_volume(tmp_path):
    bad, unknown, failed = (
        overview.row(result(tmp_path, "a", **known)) for known in ({"quality": 0.6}, {}, {"failure": "a & b"})
    )
    for text in ("<img", ">a.nii.gz</a>", "<b>0.600</b>", "width:20%", ">2<", ">2.0<", "<p>Look at it.</p>"):
        assert text in bad and (text not in failed)
    assert ">unknown<" in unknown and "width" not in unknown and "<img" in unknown
    assert ">failed<" in failed and "<p>a &amp; b</p>" in failed and ">unknown<" not in failed
    values = [re.findall('data-value="(.*?)"', row)[1] for row in (failed, bad, unknown)]
    assert sorted(values, key=float) == values


def test_segments_of_one_name_keep_their_volumes(tmp_path):
    report = {"segments": {"1": "cyst", "2": "cyst", "3": "liver"}, "volume_ml": {"1": 1.0, "2": 5.0, "3": 9.0}}
    volumes = Result("a", {}, tmp_path / "a.nii.gz", tmp_path / "a.png", report).volumes
    assert volumes == {"cyst (1)": 1.0, "cyst (2)": 5.0, "liver": 9.0}


@pytest.mark.parametrize(("ml", "text"), [(1234.56, "1234.6"), (12.34, "12.3"), (1.526, "1.53"), (0.0417, "0.0417")])
def test_small_volumes_are_told_to_three_digits(tmp_path, ml, text):
    small = result(tmp_path, "a", 0.9)
    small.report["volume_ml"]["7"] = ml
    assert f"<b>{text}</b>" in overview.row(small)


def test_the_page_needs_no_other_file_but_the_results(tmp_path):
    overview.write(tmp_path, [result(tmp_path, "a b", 0.9)], "Study")
    page = Page((tmp_path / overview.PAGE).read_text(encoding="utf-8"))
    links = [reference for reference in page.references if not reference.startswith("data:image/png;base64,")]
    assert links == ["a%20b.nii.gz"]
    assert len(page.references) == 2


def test_cells_at_the_end_of_a_row_may_be_missing(tmp_path):
    (tmp_path / "table.csv").write_text("image,annotations,axis,name\na.nii.gz,b.nii.gz\n")
    (row,) = batch.read_table(tmp_path / "table.csv", print)
    assert (row.name, row.axis) == ("a", "auto")


@pytest.mark.parametrize("option", [("--missing", "unknown"), ("--fusion", "distance")])
def test_other_options_are_run_again(table, tmp_path, in_this_process, option):
    run(table, tmp_path)
    in_this_process.clear()
    assert run(table, tmp_path, *option) == 0
    assert in_this_process == list(NAMES)
    in_this_process.clear()
    assert run(table, tmp_path, *option) == 0
    assert in_this_process == []


def test_as_many_rows_at_once_as_there_are_processors_for(table, tmp_path, monkeypatch):
    seen = []

    def run_here(all_commands, jobs, threads):
        seen.append((jobs, threads))
        yield from ()

    monkeypatch.setattr(batch, "run_here", run_here)
    monkeypatch.setattr(batch, "processor_count", lambda: 20)
    monkeypatch.setattr(batch, "thread_count", lambda: 8)
    for jobs in (None, 5):
        batch.run(table, tmp_path, jobs=jobs)
    assert seen == [(2, 8), (5, 8)]


@pytest.mark.parametrize("name", [".hidden", "ends with a dot.", "a/b", "a:b"])
def test_names_that_no_file_can_have_are_refused(table, tmp_path, name):
    write_table(table, {"image": "one.nii.gz", "annotations": "one-drawn.nii.gz", "name": name})
    with pytest.raises(InputError, match="cannot be that of a file"):
        batch.run(table, tmp_path)


def test_a_process_that_does_not_stop_is_killed(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(commands, "STOP_SECONDS", 0.2)
    stand_in("""
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(20)
        """)
    started = tmp_path / "started"
    assert commands.run_once([str(started)], 1, started.exists).status == -signal.SIGKILL
