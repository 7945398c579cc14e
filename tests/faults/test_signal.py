"""Signals, and closed or full outputs, in every phase: the run ends with the signal's code, and goes on to its bits."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mnist_stand_in import write_stand_in

from faults import scenarios
from faults.conftest import ALL, some

TRAIN = ["train", scenarios.TINY, "--checkpoint-s", "0", "--epochs", "3"]
"""An epoch is logged once the next one's updates are made; a signal then is heard before the one after."""
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
SAVED = ("compile", "step", "evaluation", "log", "checkpoint")
"""Phases that the run is in, which is saved then."""
Tried = Callable[[Counter[str]], None]


def python(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of the interpreter; what it writes, unless told otherwise, is kept."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120} | options
    return subprocess.run([sys.executable, *map(str, words)], check=False, **options)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an undisturbed run leaves."""
    path = tmp_path_factory.mktemp("whole") / "run"
    scenarios.done(*TRAIN, "--out", path)
    return scenarios.logs(path)


def goes_on(path: Path, wanted: Any) -> None:
    """Make sure that the run in the folder ends in the same bits, or one begun there."""
    started = (path / "config.json").exists()
    scenarios.done(*(["train", "--resume", path] if started else [*TRAIN, "--out", path]))
    scenarios.done("verify", path)
    assert scenarios.logs(path) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "name"), some([(phase, name) for phase in SAVED for name in SIGNALS]))
def test_a_signal_saves_the_run_in_whatever_phase_it_comes(
    phase: str, name: str, wanted: Any, tmp_path: Path, tried: Tried
) -> None:
    ended = python("tests/faults/phases.py", phase, name, *TRAIN, "--out", tmp_path / "run", "--json")
    assert ended.returncode == 128 + signal.Signals[name], ended.stderr
    assert json.loads(ended.stdout)["status"] == "interrupted"
    assert "jaxmlp train --resume" in ended.stderr and "Traceback" not in ended.stderr
    goes_on(tmp_path / "run", wanted)
    tried(Counter({f"ended {ended.returncode}": 1}))


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "name"), some([(phase, name) for phase in ("begin", "finish") for name in SIGNALS]))
def test_a_signal_outside_the_loop_leaves_nothing_that_cannot_go_on(
    phase: str, name: str, wanted: Any, tmp_path: Path, tried: Tried
) -> None:
    ended = python("tests/faults/phases.py", phase, name, *TRAIN, "--out", tmp_path / "run")
    # Before the loop the system's own action ends the process; after its last update the run is finished.
    number = signal.Signals[name]
    assert ended.returncode == (0 if phase == "finish" else 130 if name == "SIGINT" else -number), ended.stderr
    assert "Traceback" not in ended.stderr
    goes_on(tmp_path / "run", wanted)
    tried(Counter({f"ended {ended.returncode}": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("name", some(SIGNALS, few=1))
def test_a_signal_while_data_is_prepared_leaves_a_folder_in_which_it_can_be(
    name: str, tmp_path: Path, tried: Tried
) -> None:
    write_stand_in(tmp_path / "files")
    words = ["data", "prepare", "mnist", "--manual-dir", tmp_path / "files", "--data-dir", tmp_path / "data"]
    ended = python("tests/faults/phases.py", "prepare", name, *words)
    assert ended.returncode == (130 if name == "SIGINT" else -signal.Signals[name]), ended.stderr
    assert "Traceback" not in ended.stderr
    assert python("tests/faults/start.py", *words).returncode == 0
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock", "mnist.idx", "jaxmlp_mnist"}
    tried(Counter({f"ended {ended.returncode}": 1}))


@pytest.mark.slow
@pytest.mark.parametrize("phase", some(SAVED, few=1))
def test_a_second_ctrl_c_ends_the_process_at_once(phase: str, wanted: Any, tmp_path: Path, tried: Tried) -> None:
    ended = python("tests/faults/phases.py", phase, "SIGINT,SIGINT", *TRAIN, "--out", tmp_path / "run")
    assert (ended.returncode, ended.stderr) == (130, "")
    goes_on(tmp_path / "run", wanted)
    tried(Counter({"ended 130": 1}))


EXITS = """
import atexit, os, signal
from jaxmlp.cli import program

def run(argv):
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
    return 3

program(run)
"""


def test_ctrl_c_while_the_process_exits_changes_neither_code_nor_words() -> None:
    done = subprocess.run([sys.executable, "-c", EXITS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20 if ALL else 1))
def test_ctrl_c_at_any_moment_shows_no_traceback(number: int, wanted: Any, tmp_path: Path, tried: Tried) -> None:
    words = [sys.executable, "tests/faults/start.py", *TRAIN, "--out", str(tmp_path / "run")]
    draw = random.Random(number)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(draw.uniform(0.4, 3.5))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode in (0, 130), said
    assert "Traceback" not in said, said
    goes_on(tmp_path / "run", wanted)
    tried(Counter({f"ended {process.returncode}": 1}))


OUTPUTS = {
    "full": (">/dev/full", 8),
    "full, as JSON": ("--json >/dev/full", 8),
    "full, both": (">/dev/full 2>&1", 8),
    "full, messages": ("--json 2>/dev/full", 8),
    "closed": (">&-", 0),
    "closed, both": (">&- 2>&-", 0),
    "closed, all three": ("<&- >&- 2>&-", 0),
    "a reader that leaves": ("| head -1", 141),
    "a reader that is gone": ("| true", 141),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", some(list(OUTPUTS)))
def test_an_output_that_takes_nothing_ends_the_run_in_order_or_lets_it_go_on(
    case: str, wanted: Any, tmp_path: Path, tried: Tried
) -> None:
    redirection, code = OUTPUTS[case]
    command = shlex.join([sys.executable, "tests/faults/start.py", *TRAIN, "--out", str(tmp_path / "run")])
    shell = ["bash", "-c", f"{command} {redirection}; exit ${{PIPESTATUS[0]}}"]
    ended = subprocess.run(shell, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stderr
    if case in ("full", "full, as JSON"):
        assert "No space left on device" in ended.stderr and "Traceback" not in ended.stderr
    else:
        assert ended.stderr == ""
    goes_on(tmp_path / "run", wanted)
    tried(Counter({f"ended {code}": 1}))
