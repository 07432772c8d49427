"""Runs command lines of `labelprop`, each in a process of its own: several at a time here, or on a dask cluster.

A process that is killed, most often for want of memory, takes only its own command down, and is tried once more. When
the caller stops, the processes that run are stopped; when the caller is killed, they notice and stop by themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .terminal import CANCELLED, COMPLAINT

WORKER = Path(__file__).with_name("batch_worker.py")
POLL_SECONDS = 0.5
STOP_SECONDS = 10.0  # for removing what is half written
CONNECT_SECONDS = 30
TRIES = 2
WINDOWS_ERROR = 0xC0000000  # from here on the exit status is that of a process which Windows has ended


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    status: its exit status, below 0 the signal that ended it. said: its complaint, else its last line on stderr.
    """

    status: int
    said: str = ""

    @property
    def was_killed(self) -> bool:
        """Whether something from outside ended it, so that it may work when tried again."""
        return self.status < 0 or self.status == CANCELLED or self.status >= WINDOWS_ERROR

    @property
    def reason(self) -> str:
        """What killed it: the signal, or what Windows says instead."""
        if self.status >= WINDOWS_ERROR:
            return f"{self.status:#x}"
        return signal.Signals(-self.status).name if self.status < 0 else "SIGTERM"

    @property
    def failure(self) -> str:
        """Why it failed, in one line for the user; empty if it did not."""
        if self.status == 0:
            return ""
        if self.was_killed:
            return f"the process was killed ({self.reason}) {TRIES} times, most often for want of memory"
        return self.said.removeprefix(COMPLAINT) or f"the process ended with exit status {self.status}"


def run_here(commands: Mapping[str, list[str]], jobs: int, threads: int) -> Iterator[tuple[str, Ended]]:
    """Run the commands, `jobs` at a time on `threads` processors each; yields their names as they end."""
    stopped = threading.Event()
    pool = ThreadPoolExecutor(jobs)
    try:
        names = {pool.submit(run, command, threads, stopped.is_set): name for name, command in commands.items()}
        while names:
            done, _ = wait(names, POLL_SECONDS, FIRST_COMPLETED)  # on Windows, Ctrl+C does not interrupt a longer wait
            for future in done:
                yield names.pop(future), future.result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def run_on_cluster(commands: Mapping[str, list[str]], scheduler: str, threads: int) -> Iterator[tuple[str, Ended]]:
    """Run the commands on the workers of a dask cluster, `threads` processors each; yields their names as they end.

    scheduler: its address. The files have to lie where all workers see them, by the same paths, and LabelProp has to be
    installed there. What a worker was running when it died is run on another one. Raises InputError if nobody answers.
    """
    distributed = import_distributed()
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(f"No dask scheduler answers at '{scheduler}' ({error}): check its address.") from error
    with client:
        stopped = distributed.Event(f"labelprop-{uuid.uuid4()}", client=client)
        names = {
            client.submit(run_on_worker, command, threads, stopped.name, key=f"{stopped.name}-{name}"): name
            for name, command in commands.items()
        }
        try:
            for future in distributed.as_completed(names, raise_errors=False):
                error = future.exception()
                yield names[future], Ended(1, " ".join(str(error).split())) if error else future.result()
        finally:
            stopped.set()
            with suppress(TimeoutError):
                distributed.wait(names, timeout=STOP_SECONDS)


def import_distributed():
    """The module dask.distributed. Raises InputError with what to do if it is not installed."""
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise InputError(
            "A cluster needs dask.distributed, which is not installed: pip install 'labelprop[cluster]'."
        ) from error
    return distributed


def run_on_worker(command: list[str], threads: int, stopped: str) -> Ended:
    """`run` on a worker of the cluster; `stopped` is the name of the event that stops it."""
    import distributed

    return run(command, threads, distributed.Event(stopped).is_set)


def run(command: list[str], threads: int, is_stopped: Callable[[], bool]) -> Ended:
    """Run `labelprop` with the arguments `command` in a new process, once more if it is killed."""
    for _ in range(TRIES):
        ended = run_once(command, threads, is_stopped)
        if not ended.was_killed or is_stopped():
            break
    return ended


def run_once(command: list[str], threads: int, is_stopped: Callable[[], bool]) -> Ended:
    """Run `labelprop` with the arguments `command` in a new process, which is stopped when `is_stopped` says so."""
    if is_stopped():
        return Ended(CANCELLED)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*interpreter(), str(WORKER), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # so that Ctrl+C reaches only the process that waits for this one
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        try:
            while process.poll() is None and not is_stopped():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            stop(process)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
    complaints = [line for line in lines if line.startswith(COMPLAINT)]  # Slicer prints a last line of its own
    return Ended(process.returncode, (complaints or lines or [""])[-1].strip())


def interpreter() -> list[str]:
    """What runs a Python file with Slicer's libraries: this Python, or the Slicer application without its window."""
    application = getattr(sys.modules.get("slicer"), "app", None)
    if application is None:
        return [sys.executable]
    program = application.launcherExecutableFilePath or application.applicationFilePath()  # macOS has no launcher
    return [program, "--no-splash", "--no-main-window", "--python-script"]


def stop(process: subprocess.Popen):
    """End the process if it runs, and give it time to remove what is half written, in which no signal disturbs it."""
    process.stdin.close()  # which the worker takes for an interruption
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
