"""Stop signals: the first is remembered for the loop, a second Ctrl-C ends the process, ignored ones stay ignored."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxmlp.system.signals import STOP_SIGNALS, kept_interrupts, stop_signals

WAITING = """
import time
from jaxmlp.system.signals import stop_signals
with stop_signals() as stop:
    print("ready", flush=True)
    while not stop.signal:
        time.sleep(0.01)
    print(stop.exit_code, flush=True)
    time.sleep(60)
"""


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


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "130\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130  # Else it would sleep for a minute.


@pytest.mark.slow
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_the_run_and_ends_it_with_its_code(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--model.hidden-sizes", "16", "--epochs", "100000"]
    words = ["train", "experiments/quickstart.py", *small, "--out", str(out), "--json"]
    command = [sys.executable, "-m", "jaxmlp", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        answer, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert json.loads(answer)["status"] == "interrupted"
    assert f"{number.name}: step {json.loads(answer)['steps']} is saved" in said
    assert f"jaxmlp train --resume {out}" in said
