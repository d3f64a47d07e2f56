"""What Ctrl-C and SIGTERM do to a command. Imports nothing that takes long, so as to be in place early."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

INTERRUPTED = 130  # 128 + SIGINT
_STDERR = 2
# what starts a command may pass on a Ctrl-C that the terminal has sent to both
_SECONDS_OF_ONE_INTERRUPTION = 0.3


def while_loading() -> None:
    """Until `while_running`, Ctrl-C ends the process with a sentence: raised inside an import, it would be a traceback
    or lost. SIGTERM ends it as `sys.exit` does, now and later: its default leaves behind what is half-written.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if _may_be_interrupted():
        signal.signal(signal.SIGINT, _end_at_once)


def while_running() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, and a second one ends the process at once, also where Python waits
    for something that takes long, such as a sweep over many ratings.
    """
    if not _may_be_interrupted():
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: None)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    # which waits until the main thread is back in Python; this pipe is written at once
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(reading,), daemon=True).start()


def _may_be_interrupted() -> bool:
    """Not where SIGINT is ignored, as in what a shell runs in the background."""
    return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def _end_at_the_second(reading: int) -> None:
    first = None
    while number := os.read(reading, 1):
        if number[0] != signal.SIGINT:
            continue
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > _SECONDS_OF_ONE_INTERRUPTION:
            _end_at_once(signal.SIGINT, None)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # progress bars hide the cursor of a terminal
    os.write(_STDERR, (b"\x1b[?25h\n" if os.isatty(_STDERR) else b"") + b"interrupted; ended at once\n")
    os._exit(128 + number)
