"""Two processes at one folder: one has it and the other is told who, or waits; readers see no half-made file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import scenarios
from faults.conftest import ALL
from faults.scenarios import TINY
from jaxmlp.run.directory import RunDirectory

Tried = Callable[[Counter[str]], None]
ROUNDS = 20 if ALL else 1
TURNS = 50
"""How often each of four processes opens the run."""

TAKE_TURNS = """
import json, sys, time
import numpy as np
from jaxmlp.experiment.config import ExperimentConfig
from jaxmlp.errors import RunError
from jaxmlp.run.directory import RunDirectory
path, turns, told = sys.argv[1], int(sys.argv[2]), {"wrote": 0, "refused": 0}
for _ in range(turns):
    try:
        with RunDirectory.open(path, write=True) as run:
            newest = run.newest_checkpoint(lambda text: sys.exit(text))
            step = newest.step + 1
            assert len(run.epochs()) == len(run.digests()) == newest.step, (len(run.epochs()), newest.step)
            run.append_epoch({"epoch": step}, {"epoch": step})
            run.save_checkpoint(step, {"w": np.full(1000, step)}, {})
            told["wrote"] += 1
    except RunError as error:
        assert path in str(error), error
        told["refused"] += 1
print(json.dumps(told))
"""


def start(*words: object) -> subprocess.Popen[str]:
    """A process of the interpreter, from an argument of `python` on."""
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code and outputs."""
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err and "Warning" not in err, err
    return process.returncode, out, err


def test_processes_that_take_turns_at_one_run_lose_no_line_and_no_checkpoint(tmp_path: Path, tried: Tried) -> None:
    import numpy as np

    from jaxmlp.experiment.config import ExperimentConfig

    with RunDirectory.create(tmp_path / "run", ExperimentConfig(), {}) as run:
        run.append_epoch({"epoch": 1}, {"epoch": 1})
        run.save_checkpoint(1, {"w": np.full(1000, 1)}, {})
    writers = [start("-c", TAKE_TURNS, tmp_path / "run", TURNS) for _ in range(4)]
    counts: Counter[str] = Counter()
    seen, reading = 1, RunDirectory.open(tmp_path / "run", write=False)
    while any(writer.poll() is None for writer in writers):
        newest = reading.newest_checkpoint(pytest.fail)
        assert newest and newest.step >= seen
        seen = newest.step
    for writer in writers:
        code, out, err = ended(writer)
        assert code == 0, err
        counts += Counter(json.loads(out))
    newest = reading.newest_checkpoint(pytest.fail)
    assert newest and newest.step == 1 + counts["wrote"] == len(reading.epochs())
    assert counts["wrote"] + counts["refused"] == 4 * TURNS and counts["wrote"]
    tried(counts)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_of_runs_begun_at_once_in_one_folder_one_trains(number: int, tmp_path: Path, tried: Tried) -> None:
    begun = [start("tests/faults/start.py", "train", TINY, "--out", tmp_path / "run") for _ in range(3)]
    ends = [ended(process) for process in begun]
    codes = sorted(code for code, _, _ in ends)
    assert codes == [0, 5, 5], ends
    for code, _, err in ends:
        assert code == 0 or str(tmp_path / "run") in err, err
    scenarios.done("verify", tmp_path / "run")
    tried(Counter(f"ended {code}" for code in codes))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_processes_share_a_new_compile_cache(
    number: int, tmp_path: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [tmp_path / f"run-{index}" for index in range(2)]
    ends = [ended(each) for each in [start("tests/faults/start.py", "train", TINY, "--out", path) for path in paths]]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert scenarios.logs(paths[0]) == scenarios.logs(paths[1])
    tried(Counter({"shared": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(ROUNDS))
def test_processes_that_prepare_the_same_data_wait_for_the_first(number: int, tmp_path: Path, tried: Tried) -> None:
    from mnist_stand_in import write_stand_in

    write_stand_in(tmp_path / "files")
    words = ["data", "prepare", "mnist", "--manual-dir", tmp_path / "files", "--data-dir", tmp_path / "data"]
    first, *others = [start("tests/faults/start.py", *words, "--json") for _ in range(3)]
    if number % 2:
        first.kill()
        first.communicate()
    for process in others if number % 2 else (first, *others):
        code, out, err = ended(process)
        assert code == 0 and json.loads(out)["data"][0]["prepared"], err
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".lock", "mnist.idx", "jaxmlp_mnist"}
    tried(Counter({"killed": number % 2, "prepared": 3 - number % 2}))


@pytest.mark.slow
def test_what_reads_runs_beside_a_sweep_that_writes_them_answers_or_says_what_is_missing(
    tmp_path: Path, tried: Tried
) -> None:
    sweep = ["sweep", TINY, "--seeds", "0:2", "--keep-runs", "--epochs", "40", "--checkpoint-s", "0"]
    writer = start("tests/faults/start.py", *sweep, "--out", tmp_path / "sweep")
    counts: Counter[str] = Counter()
    lane = tmp_path / "sweep" / "runs" / "0000-s0"
    commands = (
        ["evaluate", lane],
        ["report", lane, "--out", tmp_path / "report.html"],
        ["verify", lane],
        ["runs", lane],
    )
    while writer.poll() is None:
        for words in commands:
            if (lane / "config.json").exists():
                end = scenarios.run(*words)
                assert end.code in (0, 5), end
                counts[f"ended {end.code}"] += 1
    code, _, err = ended(writer)
    assert code == 0, err
    assert counts.total() > 3
    for path in sorted(lane.parent.iterdir()):
        scenarios.done("verify", path)
    tried(counts)
