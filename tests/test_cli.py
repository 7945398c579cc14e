"""What people and other programs see of `jaxmlp` whatever the command: help, streams, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import QUICKSTART, ROOT, SMALL, Program
from refusals import assert_names

import jaxmlp
from jaxmlp.cli import COMMANDS, main

program = command_line.program


def script(*argv: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *argv]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **kwargs)


def imported_after(code: str) -> set[str]:
    """The packages that are loaded after these lines, in a new process."""
    ended = script("-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)")
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in ended.stderr.split()}


def test_the_help_names_every_command_and_loads_nothing_that_takes_time(program: Program) -> None:
    ended = program("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", ended.stdout, re.MULTILINE)
    loaded = imported_after("from jaxmlp.cli import main; main(['--help'])")
    assert not loaded & {"jax", "tyro", "numpy", "rich"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_shows_its_flags(command: str, program: Program) -> None:
    ended = program(command, "--help")
    assert ended.code == 0
    assert ended.stdout.startswith(f"usage: jaxmlp {command} ")
    assert "--json" in ended.stdout and "--no-color" in ended.stdout


def test_no_commands_help_loads_jax_or_numpy() -> None:
    loaded = imported_after(f"from jaxmlp.cli import main\nfor name in {[*COMMANDS]}: main([name, '--help'])")
    assert not loaded & {"jax", "numpy", "rich"}


def test_the_help_of_train_shows_the_experiments_own_values_and_what_they_mean(program: Program) -> None:
    words = " ".join(program("train", str(ROOT / "experiments/tanh_sgd_nesterov.py"), "--help").stdout.split())
    assert "--optimizer.momentum FLOAT" in words
    assert "Fraction of the velocity that is kept. (default: 0.9)" in words
    assert "--optimizer.schedule.decay FLOAT" in words


def test_the_version_is_the_packages(program: Program) -> None:
    assert program("--version") == (0, f"jaxmlp {jaxmlp.__version__}\n", "")


@pytest.mark.parametrize("word", ["", "1"])
def test_colours_are_off_by_flag_or_environment(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", word)
    monkeypatch.setenv("PYTHON_TYRO_ANSI_CODES", "True")
    assert main(["--version", *([] if word else ["--no-color"])]) == 0
    assert os.environ["NO_COLOR"] == "1"
    assert os.environ["PYTHON_TYRO_ANSI_CODES"] == "False"


def test_an_unknown_command_is_guessed(program: Program) -> None:
    ended = program("trian", "x.py")
    assert ended.code == 2
    assert_names(ended.stderr, "trian", "train?", *COMMANDS)


def test_a_bug_shows_its_traceback_and_asks_for_a_report(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxmlp.cli.data.run", lambda argv: 1 / 0)
    ended = program("data", "status", "--json")
    assert ended.code == 1
    assert ended.stderr.startswith("Traceback")
    assert_names(ended.stderr.splitlines()[-1], "bug in jaxmlp")
    assert ended.document == {"status": "failed", "error": "ZeroDivisionError: division by zero"}


def test_ctrl_c_outside_of_training_ends_in_130(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmlp.cli.data.run", interrupted)
    ended = program("data", "status", "--json")
    assert (ended.code, ended.document["status"], ended.stderr) == (130, "interrupted", "interrupted\n")


LONG = "a" * 300
"""No file system has such a name."""


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["runs", LONG], 5, LONG),
        (["evaluate", LONG], 5, LONG),
        (["train", f"{LONG}.py"], 2, f"{LONG}.py"),
        (["train", QUICKSTART, *SMALL, "--out", LONG], 8, LONG),
        (["train", QUICKSTART, "--out", "~nobody-has-this-name/run"], 2, "--out"),
        (["new", "."], 2, "'.'"),
        (["data", "status", "mnits"], 2, "mnits"),
        (["sweep", QUICKSTART, "--set", "controllers.0.patience=1,2"], 2, "controllers.0.patience"),
        (["sweep", QUICKSTART, "--seeds", "9" * 5_000], 2, "seeds"),
        (["compile", QUICKSTART, "--for", "cpu", "--devices", "\N{SUPERSCRIPT TWO}"], 2, "--devices"),
        (["speedrun", QUICKSTART, "--metrics", "top_k", "--seeds", "2"], 2, "accuracy"),
        (["throughput", "no-such-experiment"], 2, "no-such-experiment"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_words_that_can_mean_nothing_are_refused(
    words: list[str], code: int, named: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = program(*words)
    assert (ended.code, "Traceback" in ended.stderr) == (code, False), ended
    assert named in ended.stderr


def test_a_path_that_is_closed_to_the_user_is_no_bug(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(argv: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/runs")

    monkeypatch.setattr("jaxmlp.cli.data.run", closed)
    ended = program("data", "status")
    assert ended.code == 8
    assert_names(ended.first_line, "/closed/runs", "Permission denied")


def test_a_variable_that_jax_refuses_is_named_and_an_empty_one_counts_as_unset() -> None:
    code = f"from jaxmlp.cli import main; raise SystemExit(main(['evaluate', {LONG[:9]!r}]))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    refused, unset = (
        subprocess.run([sys.executable, "-c", code], env=env | more, capture_output=True, text=True, check=False)
        for more in ({"JAX_ENABLE_X64": "maybe"}, {"JAX_COMPILATION_CACHE_MAX_SIZE": ""})
    )
    assert (refused.returncode, unset.returncode) == (2, 5), (refused, unset)
    assert_names(refused.stderr.splitlines()[-1], "maybe")


def test_ctrl_c_while_the_answer_is_printed_ends_in_130(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmlp.cli.json.dumps", interrupted)
    assert program("data", "status", "--json").code == 130


def test_a_message_with_which_code_of_the_users_own_exits_is_shown(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxmlp.cli.data.run", lambda argv: sys.exit("no files"))
    assert program("data", "status") == (1, "", "no files\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "status"], ["data", "status", "--json"]])
def test_a_closed_pipe_ends_the_program_without_a_word(words: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "jaxmlp", *words]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=env, check=False, text=True)
    os.close(writing)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert "Error" not in ended.stderr and ("--json" in words or ended.stderr == "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["data", "status"], ["data", "status", "--json"]])
def test_an_output_on_a_full_disk_ends_the_program_with_8(words: list[str], unbuffered: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "jaxmlp", *words]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=env, check=False, text=True)
        silent = subprocess.run(command, stdout=full, stderr=full, env=env, check=False)
    assert ended.returncode == silent.returncode == 8
    assert_names(ended.stderr.splitlines()[-1], "No space left on device")
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def test_a_file_does_not_take_the_place_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    code = "import sys; from jaxmlp.cli import main; code = main(['--version']); file = open(sys.argv[1], 'w')\n"
    code += "print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(code or (0 if file.fileno() > 2 else 9))"
    command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_the_programs_end_is_short_but_what_was_to_come_at_exit_does() -> None:
    code = (
        "import atexit; from jaxmlp.cli import program\n"
        "class Long:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Long()\n"
        "program(lambda argv: atexit.register(print, 'at exit') and 3)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "at exit\n", "")


def test_an_experiment_runs_as_a_script(tmp_path: Path) -> None:
    ended = script(QUICKSTART, *SMALL, "--out", str(tmp_path / "run"), "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["run_dir"] == str(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["name"] == "quickstart"
