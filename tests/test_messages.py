"""A user's mistake is said in the first line on stderr, without a traceback, and ends in the exit code of its kind.

Mistakes in a command line are in `test_flags.py` and `test_commands.py`, stop signals in `test_signals.py`, lost
processes in `test_distributed.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import QUICKSTART, ROOT, Program, assert_refused

from jaxmlp.cli import COMMANDS
from jaxmlp.run.directory import RunDirectory

program = command_line.program


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(two_runs[0], tmp_path / "run"))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_data_that_is_not_here_and_cannot_be_fetched_ends_in_4(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAXMLP_MANUAL_DIR", raising=False)
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path))
    ended = program("train", str(ROOT / "experiments" / "relu_rmsprop.py"))
    assert_refused(ended, 4, "mnist")


def test_an_array_of_another_shape_ends_in_4_and_tells_found_and_wanted(
    program: Program, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.npy"
    np.save(path, np.zeros((2, 20, 30), np.uint8))
    ended = program("predict", str(run), str(path))
    assert_refused(ended, 4, path, "[n, 28, 28, 1]", (2, 20, 30))


def test_a_damaged_checkpoint_is_named_with_its_tensor_and_an_older_one_used(program: Program, run: Path) -> None:
    older, newest = sorted((run / "checkpoints").glob("*.safetensors"))[-2:]
    flip_last_byte(newest)
    ended = program("evaluate", str(run))
    assert ended.code == 0
    assert all(named in ended.first_line for named in (newest.name, "tensor ", older.name))


def test_a_run_whose_checkpoints_are_all_damaged_ends_in_5(program: Program, run: Path) -> None:
    for checkpoint in (run / "checkpoints").glob("*.safetensors"):
        flip_last_byte(checkpoint)
    ended = program("evaluate", str(run))
    assert_refused(ended, 5, *[path.name for path in (run / "checkpoints").iterdir()])


def test_a_run_whose_config_has_other_shapes_than_its_checkpoint_ends_in_5(program: Program, run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace("      16\n", "      17\n"))
    ended = program("evaluate", str(run))
    assert_refused(ended, 5, "params/Dense_0/bias", "float32[16]", "float32[17]")


def test_a_folder_that_cannot_be_made_ends_in_8(program: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    ended = program("train", QUICKSTART, "--out", str(out))
    assert_refused(ended, 8, out, os.strerror(errno.ENOTDIR))


SMALL = ("--model.hidden-sizes", "16", "--epochs", "2", "--verbose", "0", "--checkpoint-s", "0")


def test_a_run_that_a_process_is_at_ends_in_5_and_names_the_process(program: Program, run: Path) -> None:
    with RunDirectory.open(run, write=True):
        for words in (("train", QUICKSTART, *SMALL, "--out", str(run)), ("train", "--resume", str(run))):
            ended = program(*words)
            assert_refused(ended, 5, run, os.getpid())


def test_a_disk_that_fills_up_ends_in_8_and_names_the_checkpoint_that_is_intact(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "run", os.replace

    def full(source: str, target: str) -> None:
        if len(list((out / "checkpoints").glob("step-*"))) == 1 and "step-" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    ended = program("train", QUICKSTART, *SMALL, "--out", str(out))
    (intact,) = (out / "checkpoints").glob("step-*.safetensors")
    assert_refused(ended, 8, os.strerror(errno.ENOSPC), intact.name, "--resume")
    monkeypatch.undo()
    assert program("train", "--resume", str(out)).code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_a_mistake_in_json_too(command: str, program: Program) -> None:
    ended = program(command, "x", "--no-such-flag", "--json")
    assert ended.code in (2, 5)
    assert ended.document["status"] == "failed"
    assert ended.stderr.startswith(ended.document["error"])
