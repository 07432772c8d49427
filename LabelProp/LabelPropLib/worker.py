"""The pipeline in a process of its own, kept warm between jobs: `python -u worker.py FOLDER`.

One JSON object a line. On stdin:

    {"propagate": "job-1", "settings": {...}}      a folder in FOLDER that holds an annotation, see exchange.py
    {"train": "job-1", "settings": {...}, "checkpoint": "FILE.pt"}
    {"cancel": "job-1"}
    {"forget": true}                               the next job starts from nothing

On stdout:

    {"ready": {"cpu": "CPU"}}                      PyTorch is loaded; what it can compute on, the fastest first
    {"job": "job-1", "progress": 0.25, "stage": "Registering"}
    {"job": "job-1", "done": "FOLDER/job-1"}       a propagation lies in the job's folder
    {"job": "job-1", "error": {"kind": "input", "text": "..."}}      kind: input, cancelled, memory or failed

The process ends when stdin closes, whatever it is doing, and removes FOLDER: nothing is left behind when the
application that started it is killed. Of a signal that reaches both of them, like Ctrl+C in the terminal they were
started in, it therefore waits for the application's answer. A job on the same scan as the one before starts from its
registration.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

if __name__ == "__main__":  # run as a file: make the package that the file lies in importable
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from LabelPropLib import standard_input
from LabelPropLib.errors import Cancelled, InputError
from LabelPropLib.exchange import read_annotation, write_propagation
from LabelPropLib.machine import is_out_of_memory
from LabelPropLib.settings import Settings, weights_of

PROGRESS_INTERVAL_S = 0.1
SIGNALS_TO_ALL = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl+C, end of the session, end of the terminal; not all on Windows


class Worker:
    """Takes jobs from lines of text, one at a time, and writes to a stream what becomes of them."""

    def __init__(self, folder: Path, requests, replies):
        self._folder = folder
        self._requests = requests
        self._replies = replies
        self._jobs = queue.SimpleQueue()
        self._cancelled = set()
        self._listening = threading.Thread(target=self._listen, daemon=True)

    def run(self):
        """Serve until the requests end, which ends the process."""
        self._listening.start()
        # Loading PyTorch takes seconds, in which the end of the requests must not go unnoticed.
        from LabelPropLib import pipeline  # noqa: F401
        from LabelPropLib.memory import Memory

        memory = Memory()
        self._reply(ready=devices())
        while True:
            request = self._jobs.get()
            if "forget" in request:
                memory = Memory()
            elif "train" in request:
                work = functools.partial(train, checkpoint=request["checkpoint"])
                self._work(work, request["train"], request["settings"])
            else:
                self._work(functools.partial(propagate, memory=memory), request["propagate"], request["settings"])

    def _listen(self):
        for line in self._requests:
            request = json.loads(line)
            if "cancel" in request:
                self._cancelled.add(request["cancel"])
            else:
                self._jobs.put(request)
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(0)  # the main thread may be deep in a computation that nobody waits for any more

    def _work(self, work, job: str, settings: dict):
        folder = self._folder / job
        try:
            work(folder, Settings(**settings), self._progress(job), lambda: job in self._cancelled)
        except Cancelled:
            self._fail(job, "cancelled", "")
        except InputError as error:
            self._fail(job, "input", str(error))
        except Exception as error:
            traceback.print_exc()
            kind = "memory" if is_out_of_memory(error) else "failed"
            text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            self._fail(job, kind, text.partition("\n")[0])
        else:
            self._reply(job=job, done=str(folder))

    def _progress(self, job: str):
        """A progress callback that speaks up at each new stage, and otherwise a few times a second."""
        last_stage, last_time = None, 0.0

        def progress(fraction: float, stage: str):
            nonlocal last_stage, last_time
            if stage != last_stage or time.monotonic() - last_time > PROGRESS_INTERVAL_S:
                last_stage, last_time = stage, time.monotonic()
                self._reply(job=job, progress=float(fraction), stage=stage)

        return progress

    def _fail(self, job: str, kind: str, text: str):
        self._reply(job=job, error={"kind": kind, "text": text})

    def _reply(self, **message):
        try:
            self._replies.write(json.dumps(message) + "\n")
            self._replies.flush()
        except OSError:  # the application is gone, and an error here would end the process before FOLDER is removed
            self._listening.join()


def propagate(folder: Path, settings: Settings, progress, is_cancelled, memory):
    """Propagate the annotation in `folder`, and leave the result there."""
    from LabelPropLib import pipeline

    result = pipeline.propagate(read_annotation(folder), settings, progress, is_cancelled, memory)
    try:
        write_propagation(folder, result)
    except OSError as error:
        raise OSError(f"The result cannot be written to {folder}: {error}. Free some space on that disk.") from error


def train(folder: Path, settings: Settings, progress, is_cancelled, checkpoint: str):
    """Train the registration network on the annotation in `folder`, and keep its weights in the file `checkpoint`."""
    from LabelPropLib import training_run

    def progress_or_stop(fraction: float, stage: str):
        if is_cancelled():
            raise Cancelled
        progress(fraction, stage)

    run = training_run.RunFiles(Path(checkpoint))
    run.check(weights_of(settings.checkpoint))
    training_run.train(read_annotation(folder), run, settings, "not stated", progress_or_stop)


def devices() -> dict[str, str]:
    """What can be computed on, the fastest first: name in `Settings.device` -> for the user."""
    import torch

    from LabelPropLib.planner import can_use_mps

    found = {}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_device_name()
    if can_use_mps():
        found["mps"] = "Apple GPU"
    found["cpu"] = "CPU"
    return found


def main():
    """Serve the process that started this one through the standard streams."""
    for name in SIGNALS_TO_ALL:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not mix with the messages
    Worker(Path(sys.argv[1]), standard_input.lines(), replies).run()


if __name__ == "__main__":
    main()
