"""How does the program `jaxmlp` find a command and turn its answer or mistake into text, JSON and an exit code?

Every command is a module of this package with a function `run(argv) -> Answer`. It prints text for people to
`sys.stdout`. Under `--json` that text goes to stderr instead, and stdout gets only the answer's document.
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
import signal
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
from jaxmlp.system.signals import kept_interrupts

STARTED = time.perf_counter()
"""Time at which the program began, for `total_s`."""

COMMANDS = {
    "train": "EXPERIMENT.py   train; every config value is a flag (train --resume DIR continues)",
    "sweep": "EXPERIMENT.py   many seeds and values in few programs (sweep --resume DIR continues)",
    "new": "FILE.py         write a commented experiment with a part of each role",
    "evaluate": "RUN             loss, accuracy with its interval, per-class table, confusion matrix",
    "predict": "RUN FILE...     classes of images: photographs and scans, .npy, IDX, folders",
    "export": "RUN             write its model for other programs: safetensors, stablehlo, web, onnx, orbax",
    "import-keras": "FILE            make a run from a network that Keras trained: .h5, .weights.h5, .keras",
    "report": "RUN...          one HTML file: result, curves, mistakes, weights; several runs side by side",
    "runs": "[RUN]...        list runs and sweeps; for named runs also the values that differ",
    "summary": "EXPERIMENT.py   layers, parameters, FLOPs and bytes; also for a RUN",
    "compile": "EXPERIMENT.py   for an accelerator that is not here: memory, work, messages, findings",
    "reproduce": "RUN             train again and compare bit for bit; name the first difference",
    "verify": "RUN             hash every file and tensor again and name damaged ones; nothing is trained",
    "certify": "RUN             sign a run's contents, for `verify --certificate` and `reproduce --certificate`",
    "doctor": "                devices, versions, flags, data, disk; do the bits here equal the reference?",
    "bench": "                how fast is it on this device, and has it become slower?",
    "data": "status|prepare  where the data is; prepare it before a run",
    "completion": "bash|zsh        print a script with which the shell completes words",
}
"""One line of help for each command. Its module has the command's name, with `_` for `-`."""
SCRIPTS = ("peers", "speedrun", "throughput", "bench-worker")
"""Modules like commands' modules, run by files in `experiments` or by other commands."""

HELP = """\
usage: jaxmlp COMMAND ... [flags]

Multilayer perceptrons in JAX: faithful to Keras, compiled by the epoch, the same bits every time.

commands:
{commands}

flags of every command:
  --help        what the command does, and all its flags
  --json        one JSON document on stdout; text for people goes to stderr
  --no-color    no colours, like the environment variable NO_COLOR
  --version     (without a command) the version

An EXPERIMENT.py is a file of yours, or the name of an experiment that ships. A RUN is the folder of a run, or `last`.
Start with: jaxmlp train quickstart
"""

CLOSED_PIPE = 128 + 13
"""Exit code that shells report for a program ended by SIGPIPE."""
INTERRUPTED = 128 + 2
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Error codes of a disk that accepts no more data, for a file or for the output."""
CLOSED_PATHS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)
"""Error codes of a path that this user cannot read or write, or that no file system could have."""


class Answer(NamedTuple):
    """The result of a command."""

    document: Mapping[str, Any]
    """JSON document that `--json` prints."""
    exit_code: int = 0
    message: str = ""
    """Text for stderr."""


@contextlib.contextmanager
def writing_to(out: object) -> Iterator[None]:
    """If the block cannot write and no `--out` was given, add to the error that `--out` can name another place.

    The run may belong to another user or lie on a read-only disk.

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
    """Print text for people. Control characters in names and in strangers' files are escaped."""
    print(printable(text))


def program(run: Callable[[list[str]], int] | None = None) -> None:
    """Run `main`, or `run`, as the whole process.

    It ends without tearing down JAX and Python, which saves a third of a second.
    """
    code = 1

    def leave(*_: object) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # The stream may be closed, or be flushed already.
            sys.stdout.flush()
        os._exit(code)

    atexit.register(leave)  # Registered first, so that it runs last.
    code = (run or main)(sys.argv[1:])
    signal.signal(signal.SIGINT, leave)  # Others' callbacks at exit would end in a traceback.
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The command and its arguments. Default: the process's arguments.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    _open_closed_streams()
    _escape_what_the_streams_cannot_say()
    if "--no-color" in argv or os.environ.get("NO_COLOR"):
        os.environ |= {"NO_COLOR": "1", "PYTHON_TYRO_ANSI_CODES": "False"}
    for name in [name for name, value in os.environ.items() if name.startswith("JAX_") and not value]:
        del os.environ[name]  # An empty variable counts as unset, but JAX refuses some.
    stdout, code = sys.stdout, 0
    try:
        try:
            code = _run(argv)
        except SystemExit as end:  # tyro raises it after it has printed the help; code of the user's own may, too.
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                _tell(printable(end.code))
        # Flush here, where a closed pipe is caught.
        stdout.flush()
    except KeyboardInterrupt:  # While the answer is printed.
        code = INTERRUPTED
    except BrokenPipeError:
        code = CLOSED_PIPE
    except OSError as error:
        if code != DiskError.exit_code:
            _tell(_refusal(error))
        code = DiskError.exit_code
    for stream in filter(_is_full, (stdout, sys.stderr)):
        # Python flushes the stream again at exit and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _open_closed_streams() -> None:
    """Open closed standard streams on /dev/null. Else the next opened file would receive what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _escape_what_the_streams_cannot_say() -> None:
    r"""Escape characters that the terminal's encoding lacks, as in `\xe9`, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _tell(message: str) -> None:
    """Print to stderr. If stderr cannot be written, the exit code must do."""
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
    """Whether the stream rejects output: the disk is full, or the pipe is closed."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _refusal(error: OSError) -> str:
    if error.errno in CLOSED_PATHS:
        return f"could not use {error.filename or 'a path'}: {error.strerror}."
    return f"could not write {error.filename or 'the output'}: {error.strerror}."


def _answer(command: str, argv: list[str]) -> Answer:
    try:
        if command not in (*COMMANDS, *SCRIPTS):
            known = f"The commands are: {', '.join(COMMANDS)}"
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
        if isinstance(error, OSError) and error.errno in (*REFUSALS, *CLOSED_PATHS):
            message = _refusal(error)
            return Answer({"status": "failed", "error": message}, DiskError.exit_code, message)
        if isinstance(error, ValueError) and "jax._src" in sys.modules and "jax" not in sys.modules:
            message = f"JAX refuses an environment variable: {error}"
            return Answer({"status": "failed", "error": message}, UsageError.exit_code, message)
        with contextlib.suppress(OSError):
            traceback.print_exc()
        message = f"This is a bug in jaxmlp {jaxmlp.__version__}: please report it with the lines above."
        return Answer({"status": "failed", "error": f"{type(error).__name__}: {error}"}, 1, message)
