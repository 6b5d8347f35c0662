"""A real sweep in a real terminal: what a person sees, and that the terminal is theirs again after Ctrl-C."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
from conftest import Folder

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

import fcntl
import pty
import struct
import termios

SWEEP = ("sweep", "data=digits", "study.trials=500", "trainer.epochs=20", "study/pruner=none", "executor.workers=2")


@dataclass
class Terminal:
    """A pseudo-terminal of 70 × 22 with a command in it, and what was written to it."""

    folder: Folder
    words: tuple[str, ...]
    environment: dict[str, str]
    written: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 22, 70, 0, 0))
        self.settings = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnistexp", *self.words],
            cwd=self.folder.path,
            env={**self.folder.variables(), **self.environment},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its Ctrl-C is a signal
        )
        self.slave = slave  # kept open: what was written last can then be read after the command's end

    def read_until(self, end: bytes | None, seconds: float = 240) -> None:
        """Read until a text came, or (None) the command ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            self.written += os.read(self.master, 65536) if ready else b""
            if end is not None and end in self.written:
                return
            if not ready and self.process.poll() is not None:
                assert end is None, self.written.decode()
                return
        pytest.fail(f"waited for {end!r}; got {self.written.decode()}")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def close(self) -> None:
        """End the command, if it still runs, and the terminal."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(folder: Folder) -> None:
    """The live view runs; Ctrl-C is heard and told; then the summary stands there, in a terminal as it was before."""
    terminal = Terminal(folder, SWEEP, {"TERM": "xterm-256color", "NO_COLOR": "1", "CI": ""})
    try:
        terminal.read_until(b"finished config")  # a trial is done
        terminal.type(b"\x03")
        terminal.read_until(None)
        after = termios.tcgetattr(terminal.slave)
    finally:
        terminal.close()

    seen = terminal.written.decode()
    view, _, end = seen.rpartition("\x1b[?25h")
    assert terminal.process.returncode == 130
    assert after == terminal.settings
    assert view.count("\x1b[?25l") == 1
    assert "running trials" in view
    assert "/500" in view
    assert "\x1b[3" not in seen
    assert "Best of study digits: trial " in end
    assert "python -m mnistexp report study.name=digits" in end
    assert "Traceback" not in seen
    assert {trial.state.name for trial in folder.trials("digits")} <= {"COMPLETE", "WAITING"}
