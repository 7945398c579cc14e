"""Stop signals: the loop remembers the first, and signals that were ignored stay ignored."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from jaxmlp.system.signals import STOP_SIGNALS, kept_interrupts, stop_signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_remembered_and_handlers_come_back(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    with stop_signals() as stop:
        assert (stop.signal, stop.exit_code) == (None, 0)
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_code) == (number, 128 + number)
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_ctrl_c_that_meets_jaxs_garbage_callback_is_raised_after_it() -> None:
    returned: list[bool] = []

    def _xla_gc_callback(*arguments: object) -> None:
        if not returned:  # It is called before and after.
            os.kill(os.getpid(), signal.SIGINT)
        returned.append(True)

    with kept_interrupts():
        gc.callbacks.append(_xla_gc_callback)
        try:
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                gc.collect(0)
                time.sleep(1)
        finally:
            gc.callbacks.remove(_xla_gc_callback)
    assert returned
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
