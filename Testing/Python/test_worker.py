"""The background process: what goes in and out, and how it ends."""

import functools
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import qt_stand_ins
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from samples import annotate_from_masks

import LabelPropLib
from LabelPropLib import checkpoint, pipeline, process, standard_input, worker
from LabelPropLib.annotation import AtlasVolume, SparseAnnotation
from LabelPropLib.command_process import FAILED_TO_START, BackgroundCommand
from LabelPropLib.exchange import read_annotation, read_propagation, write_annotation_in_parts, write_propagation
from LabelPropLib.machine import is_out_of_memory
from LabelPropLib.pipeline import propagate
from LabelPropLib.process import BackgroundPropagation
from LabelPropLib.propagation import Propagation
from LabelPropLib.settings import Settings

PACKAGE_FOLDER = Path(LabelPropLib.__file__).parent
PATIENCE_S = 120
FAST = Settings(preset="fast", device="cpu")


def tube(shape=(9, 32, 36)):
    """A bright tube that moves, drawn on the first, middle and last plane."""
    k, j, i = np.indices(shape)
    mask = (j - shape[1] / 2) ** 2 + (i - shape[2] / 3 - k) ** 2 < 64
    image = np.where(mask, 200, 60) + np.random.default_rng(0).integers(0, 30, shape)
    drawn = np.zeros_like(mask)
    drawn[[0, shape[0] // 2, -1]] = mask[[0, shape[0] // 2, -1]]
    return annotate_from_masks(image, {3: drawn}, (4.0, 1.0, 1.0))


def write_annotation(folder, annotation):
    """All of it at once."""
    for _ in write_annotation_in_parts(folder, annotation):
        pass


def endless():
    """A job that takes far longer than any test waits."""
    return tube((60, 400, 400))


BEST = Settings(preset="best", device="cpu")


#
# Files of a job
#


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), axis=st.integers(0, 2))
def test_annotation_survives_its_files(tmp_path, data, axis):
    shape = (4, 5, 6)
    plane_shape = tuple(length for a, length in enumerate(shape) if a != axis)
    planes = st.dictionaries(st.integers(0, shape[axis] - 2), npst.arrays(bool, plane_shape), min_size=1, max_size=2)
    complete = data.draw(st.dictionaries(st.sampled_from([1, 7, 300]), planes, min_size=1))
    voxel = st.tuples(*(st.integers(0, length - 1) for length in shape))
    strokes = st.lists(voxel, min_size=1, max_size=3).map(lambda voxels: np.array(voxels))
    rng, full = np.random.default_rng(2), np.full((3, 4, 2), min(complete), np.int32)
    annotation = SparseAnnotation(
        image=np.random.default_rng(0).random(shape, np.float32),
        spacing=(2.5, 0.7, 0.9),
        axis=axis,
        complete=complete,
        absent={label: frozenset({shape[axis] - 1}) for label in complete},
        scribbles=data.draw(st.dictionaries(st.sampled_from([0, *complete]), strokes)),
        missing="unknown",
        sparser=tuple(complete),
        partial=(1,),
        some_missing=True,
        second_image=np.random.default_rng(1).random(shape, np.float32),
        atlases=tuple(AtlasVolume(rng.random((3, 4, 2), np.float32), full, rng.random((4, 4))) for _ in range(2)),
        names={1: "Psoas λ", 300: ""},
    )
    write_annotation(tmp_path, annotation)
    again = read_annotation(tmp_path)
    np.testing.assert_array_equal(again.image, annotation.image)
    np.testing.assert_array_equal(again.second_image, annotation.second_image)
    for found, atlas in zip(again.atlases, annotation.atlases, strict=True):
        for name, array in vars(atlas).items():
            np.testing.assert_array_equal(getattr(found, name), array)
    assert (again.spacing, again.axis, again.missing) == ((2.5, 0.7, 0.9), axis, "unknown")
    assert (again.some_missing, again.sparser, again.partial) == (True, annotation.sparser, (1,))
    assert (again.absent, again.names) == (annotation.absent, annotation.names)
    assert {label: sorted(planes) for label, planes in again.complete.items()} == {
        label: sorted(planes) for label, planes in complete.items()
    }
    for label, masks in complete.items():
        for plane, mask in masks.items():
            np.testing.assert_array_equal(again.complete[label][plane], mask)
    assert set(again.scribbles) == set(annotation.scribbles)
    for label, voxels in annotation.scribbles.items():
        np.testing.assert_array_equal(again.scribbles[label], voxels)


@pytest.mark.parametrize("uncertain", [True, False])
def test_propagation_survives_its_files(tmp_path, uncertain):
    maps = [np.arange(24, dtype=np.uint16).reshape(2, 3, 4), np.zeros((2, 3, 4), np.uint16)]
    uncertainty = np.full((2, 3, 4), 0.25, np.float32) if uncertain else None
    directions = {"up": maps, "down": maps[::-1]} if uncertain else {}
    write_propagation(tmp_path, Propagation(maps, directions, uncertainty, {"axis": "k", "seconds": {"all": 1.5}}))
    again = read_propagation(tmp_path)
    np.testing.assert_array_equal(again.label_maps, maps)
    assert set(again.directions) == set(directions)
    for name in directions:
        np.testing.assert_array_equal(again.directions[name], directions[name])
    assert (again.uncertainty is not None) == uncertain
    assert again.report == {"axis": "k", "seconds": {"all": 1.5}}


def test_one_image_stays_one_image(tmp_path):
    write_annotation(tmp_path, tube())
    assert read_annotation(tmp_path).second_image is None


def test_pickles_are_not_read(tmp_path):
    write_annotation(tmp_path, tube())
    np.save(tmp_path / "image.npy", np.array([{"a": "pickle"}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_annotation(tmp_path)


#
# The process, spoken to directly
#


class Conversation:
    """A worker process on plain pipes."""

    def __init__(self, folder):
        command = [sys.executable, "-u", str(PACKAGE_FOLDER / "worker.py"), str(folder)]
        self.folder = folder
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, **message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self, *kinds):
        """The next message of one of the kinds."""
        while True:
            message = json.loads(self.process.stdout.readline())
            if any(kind in message for kind in kinds):
                return message

    def ask(self, name, annotation, **chosen):
        (self.folder / name).mkdir()
        write_annotation(self.folder / name, annotation)
        self.say(propagate=name, settings=chosen)


@pytest.fixture
def conversation(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    conversation = Conversation(folder)
    yield conversation
    conversation.process.kill()
    conversation.process.wait()
    conversation.process.stdout.close()


def test_jobs_of_a_worker(conversation):
    """One process, one after the other: a result, bad input, a cancelled job, and a result again."""
    assert "cpu" in conversation.hear("ready")["ready"]

    conversation.ask("a", tube(), preset="fast", device="cpu")
    progress = conversation.hear("progress")
    assert progress["job"] == "a" and 0 <= progress["progress"] <= 1 and progress["stage"]
    assert conversation.hear("done", "error")["job"] == "a"
    result = read_propagation(conversation.folder / "a")
    expected = propagate(tube(), FAST)
    np.testing.assert_array_equal(result.label_maps, expected.label_maps)

    conversation.ask("b", tube(), preset="slow")
    assert conversation.hear("done", "error")["error"]["kind"] == "input"

    conversation.ask("c", endless(), preset="best", device="cpu")
    conversation.hear("progress")
    conversation.say(cancel="c")
    assert conversation.hear("done", "error") == {"job": "c", "error": {"kind": "cancelled", "text": ""}}

    conversation.say(cancel="d")
    conversation.ask("d", tube(), preset="fast", device="cpu")
    assert conversation.hear("done", "error")["error"]["kind"] == "cancelled"

    conversation.ask("e", tube(), preset="fast", device="cpu")
    assert "done" in conversation.hear("done", "error")


def test_worker_starts_from_its_last_run(conversation):
    """Until it is told to forget."""
    for name, registration in (("a", "instance"), ("b", "instance, reused"), ("c", "instance")):
        if name == "c":
            conversation.say(forget=True)
        conversation.ask(name, tube(), preset="fast", device="cpu")
        assert "done" in conversation.hear("done", "error")
        assert read_propagation(conversation.folder / name).report["registration"] == registration


def test_worker_trains_weights(conversation, tmp_path):
    """And stops when it is told to, without leaving a file."""
    path = tmp_path / "weights.pt"
    for name, annotation in (("a", endless()), ("b", tube())):
        (conversation.folder / name).mkdir()
        write_annotation(conversation.folder / name, annotation)
        conversation.say(train=name, settings={"preset": "fast", "device": "cpu"}, checkpoint=str(path))
        if name == "a":
            conversation.hear("progress")
            conversation.say(cancel="a")
            assert conversation.hear("done", "error")["error"]["kind"] == "cancelled"
            assert not path.exists()
    assert conversation.hear("done", "error")["job"] == "b"
    assert checkpoint.load(path, "registration")[1]["training"]["annotated_slices"] == 3


def test_worker_ends_with_its_requests_and_leaves_nothing(conversation):
    conversation.ask("a", endless(), preset="best", device="cpu")
    conversation.hear("progress")
    if os.name != "nt":  # where only Ctrl+C in the same terminal can be sent
        for name in worker.SIGNALS_TO_ALL:
            conversation.process.send_signal(getattr(signal, name))
    conversation.process.stdin.close()
    assert conversation.process.wait(PATIENCE_S) == 0
    assert not conversation.folder.exists()


def test_worker_that_nobody_hears_ends_with_its_requests(tmp_path):
    """Not with an error before, while the files of a large scan are being removed."""
    deaf = worker.Worker(tmp_path, None, mock.Mock(flush=mock.Mock(side_effect=BrokenPipeError)))
    deaf._listening = mock.Mock()
    deaf._reply(ready={})
    deaf._listening.join.assert_called_once_with()


def test_windows_waits_for_stdin_outside_of_reads(monkeypatch):
    """Libraries that are loaded meanwhile would wait for the read, too."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # a read that had to wait raises BlockingIOError
    coming = iter([b"", b'{"a": 1}\n{"b"', b"", b": 2}\n"])

    def peek(handle, size):
        try:
            return os.write(writing, next(coming)), 0
        except StopIteration:
            os.close(writing)
            raise BrokenPipeError from None

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "_winapi", SimpleNamespace(PeekNamedPipe=peek))
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(get_osfhandle=lambda number: number))
    monkeypatch.setattr(standard_input, "STDIN", reading)
    assert list(standard_input.lines()) == ['{"a": 1}', '{"b": 2}']
    os.close(reading)


def test_worker_does_not_outlive_a_killed_application(tmp_path):
    application = textwrap.dedent(
        f"""
        import sys
        sys.path.append({str(Path(__file__).parent)!r})
        from test_worker import Conversation, endless
        from pathlib import Path
        conversation = Conversation(Path({str(tmp_path)!r}))
        conversation.ask("a", endless(), preset="best", device="cpu")
        conversation.hear("progress")
        print("The worker works", flush=True)
        conversation.hear("done")
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", application],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PACKAGE_FOLDER.parent)},
    )
    process.stdout.readline()
    process.kill()
    process.communicate(timeout=PATIENCE_S)  # returns when the worker, which has the same stderr, has ended as well
    assert not tmp_path.exists()


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))


#
# The application's side
#


class Application:
    """An event loop, and a background process with what it told."""

    def __init__(self):
        self.qt_application = qt_stand_ins.install()
        import qt

        self.told = []
        self.background = BackgroundPropagation(qt.QProcess(), qt.QTimer.singleShot)
        for name in ("ready", "progress", "done", "failed"):
            setattr(self.background, f"on_{name}", lambda *values, name=name: self.told.append((name, *values)))

    def run_until(self, condition):
        wait_for(lambda: self.qt_application.processEvents() or condition())

    def last(self, name):
        return next((values for told, *values in reversed(self.told) if told == name), None)


def wait_for(condition):
    """Raises TimeoutError when the condition does not come true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)


@pytest.fixture
def application(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    application = Application()
    yield application
    application.background.close()
    assert list(tmp_path.iterdir()) == []


def test_background_jobs(application, tmp_path):
    background = application.background
    background.submit(tube(), FAST)
    application.run_until(lambda: not background.running)
    (first,) = application.last("done")
    np.testing.assert_array_equal(first.label_maps, propagate(tube(), FAST).label_maps)
    fraction, stage, _ = application.last("progress")
    assert 0 <= fraction <= 1 and stage
    process_id = background.process_id

    background.submit(tube(), FAST)
    background.wait()
    assert [name for name, *_ in application.told].count("done") == 2
    assert background.process_id == process_id

    weights = tmp_path / "weights.pt"
    background.submit(tube(), FAST, str(weights))
    application.run_until(lambda: not background.running)
    assert application.last("done") == [None]
    for path in tmp_path.glob("weights.*"):
        path.unlink()

    background.submit(endless(), BEST)
    background.cancel()
    assert not background.running
    background.submit(tube(), FAST)
    application.run_until(lambda: not background.running)
    assert [name for name, *_ in application.told].count("done") == 4
    assert application.last("failed") is None


def test_the_time_left_follows_from_the_speed_since_the_first_progress(application, monkeypatch):
    clock = iter([50.0, 60.0, 75.0])
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    background = application.background
    background._job, background._first_progress = "job-2", None
    for job, fraction in (("job-2", 0.2), ("job-1", 0.9), ("job-2", 0.4), ("job-2", 0.7)):
        background._handle({"job": job, "progress": fraction, "stage": "Registering"})
    left = [seconds for name, fraction, stage, seconds in application.told if name == "progress"]
    assert left == [None, pytest.approx(30), pytest.approx(15)]


def test_large_scans_are_handed_over_in_parts(application, monkeypatch, tmp_path):
    """The event loop runs in between, in which the job can be cancelled before the process has heard of it."""
    monkeypatch.setattr("LabelPropLib.exchange.PART_BYTES", 1000)
    background = application.background
    background.submit(tube(), FAST)
    (written,) = tmp_path.glob("*/job-1")
    application.run_until(lambda: (written / "image.npy").exists())
    assert not (written / "annotation.npz").exists()
    background.cancel()
    assert not background.running and not written.exists()
    background.submit(tube(), FAST)
    application.run_until(lambda: not background.running)
    assert application.last("done") and not application.last("failed")


def test_unresponsive_process_is_replaced(application):
    background = application.background
    background.start()
    application.run_until(lambda: application.last("ready"))
    process_id = background.process_id
    os.kill(process_id, signal.SIGSTOP)
    background.submit(tube(), FAST)
    application.run_until(lambda: background._unwritten is None)
    background.cancel()
    background.submit(tube(), FAST)
    application.run_until(lambda: not background.running)
    assert application.last("done") and not application.last("failed")
    assert background.process_id != process_id
    background.submit(tube(), FAST)
    os.kill(background.process_id, signal.SIGKILL)  # that it was replaced once does not hide it
    application.run_until(lambda: not background.running)
    assert application.last("failed")[0] == "ended"


def test_process_killed_from_outside_is_told_and_replaced(application, tmp_path):
    background = application.background
    background.submit(endless(), BEST)
    application.run_until(lambda: application.last("progress"))
    os.kill(background.process_id, signal.SIGKILL)
    application.run_until(lambda: not background.running)
    kind, text = application.last("failed")
    assert kind == "ended" and "memory" in text
    assert list(tmp_path.iterdir()) == []
    background.submit(tube(), FAST)
    background.wait()
    assert application.last("done")


def test_closing_ends_the_process(application):
    background = application.background
    background.submit(endless(), BEST)
    application.run_until(lambda: application.last("progress"))
    process_id = background.process_id
    background.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_missing_python_is_told(application, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    application.background.submit(tube(), FAST)
    application.run_until(lambda: not application.background.running)
    kind, text = application.last("failed")
    assert kind == "ended" and "no-python" in text


def test_broken_pytorch_is_told(application, monkeypatch, tmp_path_factory):
    broken = tmp_path_factory.mktemp("broken")
    (broken / "torch.py").write_text("raise ImportError('libtorch.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    application.background.submit(tube(), FAST)
    application.run_until(lambda: not application.background.running)
    kind, text = application.last("failed")
    assert kind == "ended" and "libtorch.so is missing" in text and "memory" not in text


def test_full_disk_is_told(application, monkeypatch, tmp_path):
    def write(folder, annotation):
        (folder / "image.npy").write_bytes(b"half of it")
        yield
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("LabelPropLib.process.write_annotation_in_parts", write)
    application.background.submit(tube(), FAST)
    application.run_until(lambda: not application.background.running)
    assert not list(tmp_path.rglob("image.npy"))
    assert "No space left" in application.last("failed")[1]


def test_no_room_for_the_result_is_told(tmp_path, monkeypatch):
    def write(folder, propagation):
        raise OSError("10368 requested and 8064 written")

    monkeypatch.setattr(pipeline, "propagate", lambda *arguments: None)
    monkeypatch.setattr(worker, "write_propagation", write)
    write_annotation(tmp_path, tube())
    replies = io.StringIO()
    job = functools.partial(worker.propagate, memory=None)
    worker.Worker(tmp_path.parent, None, replies)._work(job, tmp_path.name, asdict(FAST))
    error = json.loads(replies.getvalue())["error"]
    assert error["kind"] == "failed" and error["text"].startswith(f"The result cannot be written to {tmp_path}: 10368")


def test_no_room_for_temporary_files_is_told(application, monkeypatch):
    def make(**options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkdtemp", make)
        application.background.submit(tube(), FAST)
    assert not application.background.running
    assert "No space left" in application.last("failed")[1]


def test_result_that_cannot_be_read_is_told(application, monkeypatch):
    def read(folder):
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patched:
        patched.setattr("LabelPropLib.process.read_propagation", read)
        application.background.submit(tube(), FAST)
        application.run_until(lambda: not application.background.running)
    kind, text = application.last("failed")
    assert kind == "failed" and "The result cannot be read" in text


def test_bad_settings_are_told(application):
    unavailable = "cuda" if torch.backends.mps.is_available() else "mps"
    application.background.submit(tube(), Settings(device=unavailable))
    application.run_until(lambda: not application.background.running)
    kind, text = application.last("failed")
    assert kind == "input" and unavailable in text


#
# Command lines
#


@pytest.fixture
def command():
    """A command in the background, with what it told; run to its end by `end`."""
    qt_application = qt_stand_ins.install()
    import qt

    command = BackgroundCommand(qt.QProcess())
    command.lines, command.statuses = [], []
    command.on_line, command.on_ended = command.lines.append, command.statuses.append
    command.end = lambda: wait_for(lambda: qt_application.processEvents() or not command.running)
    yield command
    command.close()


def test_command_tells_what_it_says(command, tmp_path):
    for name in ("first", "second"):
        command.start(["evaluate", str(tmp_path / name), str(tmp_path / name)])
        command.end()
        assert name in command.lines[-1]
    assert command.statuses == [2, 2]


def test_command_is_cancelled(command, tmp_path):
    command.start(["demo", "-o", str(tmp_path)])
    command.cancel()
    command.end()
    assert command.statuses[0] != 0
    assert not list(tmp_path.glob("*.nii.gz"))


def test_command_that_cannot_be_started(command, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    command.start(["demo"])
    command.end()
    assert command.statuses == [FAILED_TO_START]


def test_application_does_not_load_pytorch():
    """Only the background process does: it takes seconds, and memory, and need not be installed.

    Nor is SimpleITK loaded before it comes to files, for Slicer to start sooner.
    """
    code = "import sys; from LabelPropLib import process; from LabelPropLib.scene import protection, slices"
    code += "; too_early = 'SimpleITK' in sys.modules; from LabelPropLib import batch"
    code += "; sys.exit(too_early or 'torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_FOLDER.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_process_is_given_up_when_nobody_is_there_and_no_job_is_left(application, monkeypatch):
    monkeypatch.setattr("LabelPropLib.process.IDLE_MINUTES", 0.002)
    background = application.background
    background.submit(tube(), FAST)
    background.rest()
    process_id = background.process_id
    application.run_until(lambda: not background.running)  # 120 ms are over before PyTorch is loaded
    assert application.last("done")
    application.run_until(lambda: background.process_id == 0)
    background.start()
    background.rest()
    background.wake()
    second = background.process_id
    application.run_until(lambda: [name for name, *_ in application.told].count("ready") == 2)
    assert background.process_id == second != process_id
    background.submit(tube(), FAST)
    application.run_until(lambda: not background.running)
    assert [name for name, *_ in application.told].count("done") == 2 and not application.last("failed")
