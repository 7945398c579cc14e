"""A user's mistake is said in the first line on stderr, without a traceback, and ends in the exit code of its kind.

Mistakes in a command line are in `test_flags.py` and `test_commands.py`, stop signals in `test_signals.py`, lost
processes in `test_distributed.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from refusals import assert_names

from jaxmlp.cli import COMMANDS, main
from jaxmlp.run.directory import RunDirectory

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
Mistake = Callable[..., tuple[int, str]]


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    def run(*words: str) -> tuple[int, str]:
        """The exit code, and the first line on stderr."""
        capsys.readouterr()
        code = main(words)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, said.partition("\n")[0]

    return run


@pytest.fixture
def run(two_runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(two_runs[0], tmp_path / "run"))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_data_that_is_not_here_and_cannot_be_fetched_ends_in_4(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAXMLP_MANUAL_DIR", raising=False)
    monkeypatch.setenv("JAXMLP_DATA_DIR", str(tmp_path))
    code, said = mistake("train", str(ROOT / "experiments" / "relu_rmsprop.py"))
    assert code == 4
    assert_names(said, "mnist")


def test_an_array_of_another_shape_ends_in_4_and_tells_found_and_wanted(
    mistake: Mistake, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.npy"
    np.save(path, np.zeros((2, 20, 30), np.uint8))
    code, said = mistake("predict", str(run), str(path))
    assert code == 4
    assert_names(said, path, "[n, 28, 28, 1]", (2, 20, 30))


def test_a_damaged_checkpoint_is_named_with_its_tensor_and_an_older_one_used(mistake: Mistake, run: Path) -> None:
    older, newest = sorted((run / "checkpoints").glob("*.safetensors"))[-2:]
    flip_last_byte(newest)
    code, said = mistake("evaluate", str(run))
    assert code == 0
    assert newest.name in said and "tensor " in said and older.name in said


def test_a_run_whose_checkpoints_are_all_damaged_ends_in_5(mistake: Mistake, run: Path) -> None:
    for checkpoint in (run / "checkpoints").glob("*.safetensors"):
        flip_last_byte(checkpoint)
    code, said = mistake("evaluate", str(run))
    assert code == 5
    assert_names(said, *[path.name for path in (run / "checkpoints").iterdir()])


def test_a_run_whose_config_has_other_shapes_than_its_checkpoint_ends_in_5(mistake: Mistake, run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace("      16\n", "      17\n"))
    code, said = mistake("evaluate", str(run))
    assert code == 5
    assert_names(said, "params/Dense_0/bias", "float32[16]", "float32[17]")


def test_a_folder_that_cannot_be_made_ends_in_8(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    code, said = mistake("train", QUICKSTART, "--out", str(out))
    assert code == 8
    assert_names(said, out, os.strerror(errno.ENOTDIR))


SMALL = ("--model.hidden-sizes", "16", "--epochs", "2", "--verbose", "0", "--checkpoint-s", "0")


def test_a_run_that_a_process_is_at_ends_in_5_and_names_the_process(mistake: Mistake, run: Path) -> None:
    with RunDirectory.open(run, write=True):
        for words in (("train", QUICKSTART, *SMALL, "--out", str(run)), ("train", "--resume", str(run))):
            code, said = mistake(*words)
            assert code == 5
            assert_names(said, run, os.getpid())


def test_a_disk_that_fills_up_ends_in_8_and_names_the_checkpoint_that_is_intact(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "run", os.replace

    def full(source: str, target: str) -> None:
        if len(list((out / "checkpoints").glob("step-*"))) == 1 and "step-" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, said = mistake("train", QUICKSTART, *SMALL, "--out", str(out))
    (intact,) = (out / "checkpoints").glob("step-*.safetensors")
    assert code == 8
    assert_names(said, os.strerror(errno.ENOSPC), intact.name, "--resume")
    monkeypatch.undo()
    assert mistake("train", "--resume", str(out))[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_a_mistake_in_json_too(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([command, "x", "--no-such-flag", "--json"]) in (2, 5)
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["status"] == "failed"
    assert err.startswith(document["error"])
