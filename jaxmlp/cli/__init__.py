"""The program `jaxmlp`: finds the command, and turns its answer or its mistake into text, JSON and an exit code.

Every command is a module of this package with `run(argv) -> Answer`. It prints what people read to `sys.stdout`;
under `--json` that is the standard error stream, and the answer's document alone goes to the real stdout.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import io
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import jaxmlp
from jaxmlp.errors import (
    CodeError,
    ConfigError,
    DiskError,
    DivergedError,
    JaxmlpError,
    UsageError,
    did_you_mean,
    printable,
)
from jaxmlp.signals import kept_interrupts

STARTED = time.perf_counter()
"""When the program began, for `total_s`."""

COMMANDS = {
    "train": "EXPERIMENT.py   train; every config value is a flag (train --resume DIR goes on)",
    "sweep": "EXPERIMENT.py   many seeds and values in few programs (sweep --resume DIR goes on)",
    "new": "FILE.py         a commented experiment with a part of each role, to start from",
    "evaluate": "RUN             loss, accuracy with its interval, per-class table, confusion matrix",
    "predict": "RUN FILE...     the classes of images: photographs and scans, .npy, IDX, folders",
    "export": "RUN             its model for other programs: safetensors, stablehlo, web, onnx, orbax",
    "import-keras": "FILE            a network that Keras trained becomes a run: .h5, .weights.h5, .keras",
    "report": "RUN...          one HTML file: result, curves, mistakes, weights; several runs side by side",
    "runs": "[RUN]...        the runs and sweeps, sorted; runs that are named, with the values in which they differ",
    "summary": "EXPERIMENT.py   layers, parameters, FLOPs and bytes; of a RUN too",
    "compile": "EXPERIMENT.py   for an accelerator that is not here: memory, work, messages, findings",
    "reproduce": "RUN             train again and compare bit for bit; names the first difference",
    "verify": "RUN             hash every file and tensor again; says which is damaged. Trains nothing",
    "certify": "RUN             sign what a run holds, for `verify --certificate` and `reproduce --certificate`",
    "doctor": "                devices, versions, flags, data, disk; do the bits here equal the reference?",
    "bench": "                how fast it is on this device, and whether it has become slower",
    "data": "status|prepare  where the data is; make it ready before a run",
    "completion": "bash|zsh        a script by which the shell finishes words",
}
"""What each command does; its module has its name, `_` for `-`."""
SCRIPTS = ("peers", "speedrun", "bench-worker")
"""Modules like a command's, which a file in `experiments` or another command runs."""

HELP = """\
usage: jaxmlp COMMAND ... [flags]

Multilayer perceptrons in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

commands:
{commands}

flags of every command:
  --help        what the command does, and all its flags
  --json        one JSON document on stdout; what people read goes to stderr
  --no-color    no colours; so does the environment variable NO_COLOR
  --version     (without a command) the version

An EXPERIMENT.py is a file of yours, or the name of one that ships. A RUN is the folder of a run, or `last`.
Start with: jaxmlp train quickstart
"""

CLOSED_PIPE = 128 + 13
"""As shells count a program that SIGPIPE ended."""
INTERRUPTED = 128 + 2
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""What a disk says that takes no more; of a file, or of the output where that is one."""


class Answer(NamedTuple):
    """What a command came to."""

    document: Mapping[str, Any]
    """For `--json`."""
    exit_code: int = 0
    message: str = ""
    """For stderr."""


@contextlib.contextmanager
def writing_to(out: object) -> Iterator[None]:
    """Say of a place that cannot be written that another can be named, if nobody has named one by `--out`.

    A run may be another user's, or lie on a disk that is only read.

    Raises:
        DiskError: As the block.
    """
    try:
        yield
    except DiskError as error:
        if out is None:
            raise DiskError(f"{error} Name another place with --out.") from error
        raise


def say(text: object) -> None:
    """Print what people read, in which a name or a stranger's file can move no terminal."""
    print(printable(text))


def program(run: Callable[[list[str]], int] | None = None) -> None:
    """The process: `main`, or `run`, and an end that does not take JAX and Python apart, a third of a second's work."""
    code = 1

    def leave() -> None:
        with contextlib.suppress(OSError, ValueError):  # Of a stream that is closed.
            sys.stdout.flush()
        os._exit(code)

    atexit.register(leave)  # First, so that it runs last.
    code = (run or main)(sys.argv[1:])
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        argv: The command and its arguments; by default the process's own.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _open_closed_streams()
    _escape_what_the_streams_cannot_say()
    if "--no-color" in argv or os.environ.get("NO_COLOR"):
        os.environ |= {"NO_COLOR": "1", "PYTHON_TYRO_ANSI_CODES": "False"}
    stdout, code = sys.stdout, 0
    try:
        try:
            code = _run(argv)
        except SystemExit as end:  # tyro's, after it has printed the help
            code = int(end.code or 0)
        # Here, where a closed pipe is caught.
        stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
    except OSError as error:
        if code != DiskError.exit_code:
            _tell(_refusal(error))
        code = DiskError.exit_code
    for stream in filter(_is_full, (stdout, sys.stderr)):
        # Python flushes it once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _open_closed_streams() -> None:
    """Let a stream that the caller closed lead nowhere: the next file opened would take its place, and its words."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _escape_what_the_streams_cannot_say() -> None:
    r"""Let a character that the terminal's encoding lacks come out as an escape such as `\xe9`, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _tell(message: str) -> None:
    """On stderr; the exit code alone where that takes nothing."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:12} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    if argv[0] == "--version":
        print(f"jaxmlp {jaxmlp.__version__}")
        return 0
    as_json = "--json" in argv
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        answer = _answer(argv[0], argv[1:])
        if answer.message:
            _tell(printable(answer.message))
    if as_json:
        from jaxmlp.run.jsonl import finite

        print(json.dumps(finite(answer.document), allow_nan=False))
    return answer.exit_code


def _is_full(stream: TextIO) -> bool:
    """Whether it takes no more of what was printed: the disk is full, or nobody reads it any more."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _refusal(error: OSError) -> str:
    return f"could not write {error.filename or 'the output'}: {error.strerror}."


def _answer(command: str, argv: list[str]) -> Answer:
    try:
        if command not in (*COMMANDS, *SCRIPTS):
            known = f"The commands: {', '.join(COMMANDS)}"
            raise UsageError(f"{command} is not a command of jaxmlp.{did_you_mean(command, COMMANDS)} {known}")
        with kept_interrupts():
            answer: Answer = importlib.import_module(f"jaxmlp.cli.{command.replace('-', '_')}").run(argv)
        return answer
    except JaxmlpError as error:
        message = error.as_flag() if isinstance(error, ConfigError) else str(error)
        if isinstance(error, CodeError) and error.flags:
            message += f"\nType: jaxmlp {shlex.join([command, *argv])}{error.flags}"
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        return Answer({"status": status, "error": message}, error.exit_code, message)
    except KeyboardInterrupt:
        return Answer({"status": "interrupted", "error": "interrupted"}, INTERRUPTED, "interrupted")
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            message = _refusal(error)
            return Answer({"status": "failed", "error": message}, DiskError.exit_code, message)
        with contextlib.suppress(OSError):
            traceback.print_exc()
        message = f"This is a bug in jaxmlp {jaxmlp.__version__}: please report it with the lines above."
        return Answer({"status": "failed", "error": f"{type(error).__name__}: {error}"}, 1, message)
