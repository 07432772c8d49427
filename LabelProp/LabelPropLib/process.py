"""The application's side of the background process that runs the pipeline, see worker.py.

Qt's event loop gives Python threads next to nothing, so the pipeline runs in another process: the application stays
responsive, cancelling is real, and running out of memory cannot take the scene down. Nothing here imports Qt: the
caller hands in its `qt.QProcess` and `qt.QTimer.singleShot`.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from .annotation import SparseAnnotation
from .errors import MEMORY_ADVICE, out_of_memory
from .exchange import read_propagation, write_annotation_in_parts
from .settings import Settings

CANCEL_TIMEOUT_MS = 1000
IDLE_MINUTES = 10  # without use, after which the process is ended, so that its memory is free again
LOG_CHARACTERS = 2000  # of what the process printed, for the message when it ends unexpectedly


class BackgroundPropagation:
    """One background process and the one job that it may have. The process stays for the next job when one is done.

    process: a `qt.QProcess`; call_later: `qt.QTimer.singleShot`.

    What happens is told by calling these attributes, all of them from the event loop:

    on_ready(devices): the process can take jobs; name in `Settings.device` -> for the user, the fastest first.
    on_progress(fraction, stage, seconds_left): seconds_left is None until there is something to go by.
    on_done(propagation): None when weights were trained.
    on_failed(kind, text): kind is 'input', 'memory', 'failed' or 'ended'; the text is for the user.
    """

    def __init__(self, process, call_later: Callable):
        self.on_ready = self.on_progress = self.on_done = self.on_failed = lambda *arguments: None
        self._process = process
        self._call_later = call_later
        self._folder = None  # of the process there is; a new process gets a new one
        self._launched = self._ready = False
        self._job = None
        self._job_count = 0
        self._submitted = None
        self._unwritten = None  # the parts of the job's input that the process does not have yet
        self._unanswered = set()  # cancelled jobs that the process has not let go of yet
        self._rest = None  # told apart from those before it; None while somebody is there
        self._received = b""
        self._log = ""
        self._connections = (
            ("started()", self._on_started),
            ("readyReadStandardOutput()", self._read),
            ("readyReadStandardError()", self._read_log),
            ("finished(int,QProcess::ExitStatus)", self._on_finished),
            ("errorOccurred(QProcess::ProcessError)", self._on_error),
        )
        for signal, slot in self._connections:
            process.connect(signal, slot)

    @property
    def running(self) -> bool:
        """Whether a job is under way."""
        return self._job is not None

    @property
    def process_id(self) -> int:
        """ID of the process, 0 when there is none."""
        return self._process.processId()

    def start(self):
        """Start the process if there is none, so that it has loaded PyTorch when the first job comes."""
        if self._folder is None:
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="LabelProp-"))
            except OSError as error:
                self._fail("failed", f"Temporary files cannot be written: {error}. Free some space on that disk.")
                return
            self._launched = self._ready = False
            self._log = ""
            worker = Path(__file__).with_name("worker.py")
            self._process.start(sys.executable, ["-u", str(worker), str(self._folder)])

    def wake(self):
        """Keep the process: somebody is there who may use it."""
        self._rest = None

    def rest(self):
        """Nobody is there any more: end the process after a while, but not before its job is done."""
        self._rest = rest = object()
        self._call_later(int(IDLE_MINUTES * 60 * 1000), lambda: self._give_up(rest))

    def _give_up(self, rest: object):
        if rest is not self._rest:
            return
        if self.running:
            self.rest()
        else:
            self._end()

    def _end(self):
        self._process.kill()
        self._process.waitForFinished(CANCEL_TIMEOUT_MS)

    def submit(self, annotation: SparseAnnotation, settings: Settings, checkpoint: str | None = None):
        """Begin a job; one that is under way is cancelled.

        checkpoint: to train the network on the scan instead, and keep its weights in this .pt file.
        """
        self.cancel()
        self._job_count += 1
        self._job = f"job-{self._job_count}"
        self._first_progress = None
        self._submitted = annotation, settings, checkpoint
        self.start()
        if self.running:  # else the start failed
            self._unwritten = self._write_input(self._folder / self._job, *self._submitted)
            self._write_part(self._job)

    def _write_input(
        self, folder: Path, annotation: SparseAnnotation, settings: Settings, checkpoint: str | None
    ) -> Iterator[None]:
        """Hand the job to the process, with breaks: copying a large scan takes longer than an event loop may stand."""
        folder.mkdir(parents=True)  # the system may have cleared its temporary files since the last job
        yield
        yield from write_annotation_in_parts(folder, annotation)
        if checkpoint is None:
            self._send(propagate=folder.name, settings=asdict(settings))
        else:
            self._send(train=folder.name, settings=asdict(settings), checkpoint=checkpoint)

    def _write_part(self, job: str):
        """Write one part of the job's input, and see to it that the next one follows."""
        if job != self._job or self._unwritten is None:
            return
        try:
            next(self._unwritten)
        except StopIteration:
            self._unwritten = None
        except OSError as error:
            self._drop_input(job)
            self._fail("failed", f"Temporary files cannot be written: {error}. Free some space on that disk.")
        else:
            self._call_later(0, lambda: self._write_part(job))

    def _drop_input(self, job: str):
        self._unwritten.close()
        self._unwritten = None
        shutil.rmtree(self._folder / job, ignore_errors=True)

    def cancel(self):
        """Give up the job at once; the process gets a second to notice, then it is killed."""
        if self._job is None:
            return
        job, self._job, self._submitted = self._job, None, None
        if self._unwritten is not None:  # the process has not heard of it
            self._drop_input(job)
            return
        self._unanswered.add(job)
        self._send(cancel=job)
        self._call_later(CANCEL_TIMEOUT_MS, lambda: self._kill_unless_answered(job))

    def forget(self):
        """Start the next job from nothing, not from the registration of the last one on the same scan."""
        if self._folder is not None:
            self._send(forget=True)

    def wait(self):
        """Block, without running the event loop, until the job has ended; for scripts."""
        while self.running:
            if self._unwritten is not None:
                self._write_part(self._job)
            else:
                self._process.waitForReadyRead(100)

    def close(self):
        """End the process and the job, remove the temporary files, forget the callbacks; safe to call at any time."""
        self.on_ready = self.on_progress = self.on_done = self.on_failed = lambda *arguments: None
        self._job = self._rest = None
        for signal, slot in self._connections:
            self._process.disconnect(signal, slot)
        self._connections = ()
        self._end()
        self._clean_up()

    def _send(self, **message):
        self._process.write((json.dumps(message) + "\n").encode())

    def _read(self):
        self._received += self._process.readAllStandardOutput().data()
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._handle(json.loads(line))

    def _read_log(self):
        text = self._process.readAllStandardError().data().decode(errors="replace")
        logging.debug(f"LabelProp background process: {text}")
        self._log = (self._log + text)[-LOG_CHARACTERS:]

    def _handle(self, message: dict):
        if "ready" in message:
            self._ready = True
            self.on_ready(message["ready"])
        elif "progress" in message:
            if message["job"] == self._job:
                self.on_progress(message["progress"], message["stage"], self._seconds_left(message["progress"]))
        else:
            self._end_job(message)

    def _end_job(self, message: dict):
        job = message["job"]
        folder = self._folder / job
        self._log = ""
        self._unanswered.discard(job)
        try:
            if job != self._job:
                return
            if "error" in message:
                self._fail(message["error"]["kind"], explain(**message["error"]))
                return
            *_, checkpoint = self._submitted
            try:
                propagation = read_propagation(folder) if checkpoint is None else None
            except (OSError, ValueError, EOFError, MemoryError) as error:
                self._fail("failed", f"The result cannot be read from the temporary files: {error}. Try again.")
                return
            self._job = self._submitted = None
            self.on_done(propagation)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _seconds_left(self, fraction: float) -> float | None:
        """By the speed since the first sign of progress, so that loading PyTorch does not count."""
        now = time.monotonic()
        if self._first_progress is None:
            self._first_progress = now, fraction
        seconds, done = now - self._first_progress[0], fraction - self._first_progress[1]
        return seconds * (1 - fraction) / done if done > 0 else None

    def _kill_unless_answered(self, job: str):
        """Kill the process if it still works on a cancelled job; one that is loading PyTorch will find it cancelled."""
        if job in self._unanswered and self._ready:
            self._process.kill()

    def _on_started(self):
        self._launched = True

    def _on_finished(self, exit_code, _status):
        killed_for_cancelled_job = bool(self._unanswered)
        self._clean_up()
        if not self.running:
            return
        if killed_for_cancelled_job:
            submitted, self._job = self._submitted, None
            self.submit(*submitted)
        else:
            self._fail("ended", self._explain_end(exit_code))

    def _on_error(self, _error):
        if self._launched or self._folder is None:
            return  # `finished` follows
        self._clean_up()
        if self.running:
            reason = f"{sys.executable}: {self._process.errorString()}"
            self._fail("ended", f"The background process could not be started: {reason}")

    def _fail(self, kind: str, text: str):
        self._job = self._submitted = None
        self.on_failed(kind, text)

    def _explain_end(self, exit_code: int) -> str:
        if "No module named 'torch'" in self._log:
            return "PyTorch is not installed: install it with the PyTorch extension, then try again."
        last_line = self._log.strip().rpartition("\n")[2]
        if exit_code == 1 and "Traceback" in self._log:  # it did not get to a job, in which it catches all errors
            return f"The background process could not work: {last_line}. Reinstall PyTorch if it is about torch."
        return (
            f"The background process ended unexpectedly (exit code {exit_code}), most often for want of memory."
            f" {MEMORY_ADVICE}" + (f" Its last message: {last_line}" if last_line else "")
        )

    def _clean_up(self):
        """Forget the process that has ended, and its files; a new one is started when there is a need."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._unwritten = None
        self._unanswered.clear()
        self._received = b""


def explain(kind: str, text: str) -> str:
    """The worker's error as a message for the user."""
    return out_of_memory(text) if kind == "memory" else text
