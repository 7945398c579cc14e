"""What do stop signals do? The first makes the training loop save and end; a second Ctrl-C exits at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer, current_thread, main_thread
from types import FrameType

GC_CALLBACK = "_xla_gc_callback"
"""JAX's function that Python calls when it collects garbage. Python drops its exceptions."""
AGAIN_S = 0.02
"""Seconds after which a Ctrl-C that arrived in that function is sent again."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """The signal that requested the end, if there was one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """Exit code as in shells: 128 + the signal's number."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect stop signals within the block, and restore the handlers afterwards. Main thread only.

    An ignored signal stays ignored: `nohup` ignores SIGHUP.
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
    """Keep Ctrl-C from being dropped within the block: if it arrives in JAX's callback, it is raised afterwards.

    This applies only where Ctrl-C raises KeyboardInterrupt, the default in the main thread.
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
