"""A command line of `labelprop` in the background of the application, for what takes files and not nodes.

As process.py, nothing here imports Qt: the caller hands in its `qt.QProcess`.
"""

from __future__ import annotations

from .commands import STOP_SECONDS, WORKER, interpreter

FAILED_TO_START = -1


class BackgroundCommand:
    """One command at a time, in a process of its own that ends with the application.

    process: a `qt.QProcess`.

    What happens is told by calling these attributes, from the event loop:

    on_line(text): a line of what it says.
    on_ended(status): its exit status, see cli.py, or FAILED_TO_START.
    """

    def __init__(self, process):
        self.on_line = self.on_ended = lambda *arguments: None
        self.running = False
        self._process = process
        self._launched = False
        self._received = b""
        self._connections = (
            ("started()", self._on_started),
            ("readyReadStandardOutput()", self._drop_output),
            ("readyReadStandardError()", self._read),
            ("finished(int,QProcess::ExitStatus)", self._on_finished),
            ("errorOccurred(QProcess::ProcessError)", self._on_error),
        )
        for signal, slot in self._connections:
            process.connect(signal, slot)

    def start(self, arguments: list[str]):
        """Run `labelprop` with the arguments."""
        self.running, self._launched, self._received = True, False, b""
        program, *options = [*interpreter(), str(WORKER), *arguments]
        self._process.start(program, options)

    def cancel(self):
        """Ask the command to stop; it removes what is half written, and ends."""
        self._process.closeWriteChannel()

    def close(self):
        """End the command and forget the callbacks; safe to call at any time."""
        for signal, slot in self._connections:
            self._process.disconnect(signal, slot)
        self._connections = ()
        if self.running:
            self.running = False
            self.cancel()
            if not self._process.waitForFinished(int(1000 * STOP_SECONDS)):
                self._process.kill()
                self._process.waitForFinished(1000)

    def _on_started(self):
        self._launched = True

    def _drop_output(self):
        self._process.readAllStandardOutput()  # nothing for the user, but a full pipe would hold the process up

    def _read(self):
        self._received += self._process.readAllStandardError().data()
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self.on_line(line.decode(errors="replace").rstrip())

    def _on_finished(self, status, _exit_status):
        self.running = False
        self.on_ended(status)

    def _on_error(self, _error):
        if self._launched:
            return  # `finished` follows
        self.running = False
        self.on_line(self._process.errorString())
        self.on_ended(FAILED_TO_START)
