"""Stop signals: the first asks the training loop to save and end, a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from types import FrameType

GC_CALLBACK = "_xla_gc_callback"
"""JAX's function that Python calls when it collects garbage, and whose exceptions it drops."""
AGAIN_S = 0.02
"""After which a Ctrl-C that met it comes once more."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Which signal asked for the end, if one has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells count."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect stop signals while the block runs; the handlers before come back after it. For the main thread.

    A signal that is ignored stays so: `nohup` ignores SIGHUP.
    """
    stop = Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.signal and number == signal.SIGINT:
            os._exit(128 + number)
        stop.signal = signal.Signals(number)

    watched = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_interrupts() -> Iterator[None]:
    """Let no Ctrl-C be dropped while the block runs: one that meets JAX's callback is raised after it.

    Only where Ctrl-C raises KeyboardInterrupt, as it does in the main thread by default.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if frame and frame.f_code.co_name == GC_CALLBACK:
            Timer(AGAIN_S, os.kill, (os.getpid(), number)).start()
        else:
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
