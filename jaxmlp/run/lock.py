"""How does only one process at a time write in a run directory?"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from jaxmlp.errors import RunError, printable
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import files

_TRIES, _PAUSE_S = 5, 0.02


class Lock:
    """An flock on a file that names its holder. The kernel drops the lock when the process ends, however it ends.

    If the file system has no locks, the process named in the file holds the lock while it runs on this machine.
    Processes of other machines are not seen; stderr says so.

    Args:
        path: File of the lock. It stays after the lock is released, so that nobody locks a deleted file.

    Raises:
        RunError: Another process holds the lock. The message names the process.
        DiskError: The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        with files.trying_to(f"lock {path.parent}"):
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            try:
                held = _held(self._descriptor, fcntl.LOCK_EX, _TRIES)
                text = os.pread(self._descriptor, 1000, 0)
                if held or (held is None and _is_running(text)):
                    in_use = f"{path.parent} is in use by {_holder(text)}. Wait for its end, or use another --out."
                    unsure = f" If that process is another program by now, remove {path}."
                    raise RunError(in_use if held else in_use + unsure)
                if held is None:
                    unseen = "has no locks, so processes of other machines that write there are not noticed"
                    print(printable(f"{path.parent}: its file system {unseen}."), file=sys.stderr, flush=True)
                since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode() + b"\n", 0)
            except BaseException:
                os.close(self._descriptor)
                raise

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._descriptor is not None:
            try:
                # A name that stays in the file does no harm: the lock itself ends with the descriptor.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            finally:
                os.close(self._descriptor)
                self._descriptor = None


def lock_folder(path: Path, name: str) -> Lock:
    """Make the folder `path`, unless it exists, and lock it by its file `name`.

    Raises:
        RunError: It is a file, or another process holds its lock.
        DiskError: It cannot be made or locked.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise RunError(f"{path} is a file. Name another folder with --out.")
    with files.trying_to(f"make the folder {path}"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Lock(path / name)


def _held(descriptor: int, how: int, tries: int = 1) -> bool | None:
    """Whether another process holds the lock. If not, this process has it. None if the file system has no locks."""
    # Several tries, because `is_held` holds the lock for an instant.
    for _ in range(tries):
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in files.LACKING:
                raise
            return None
    return True


def _is_running(text: bytes) -> bool:
    """Whether the process named in a lock's file runs on this machine."""
    try:
        os.kill(int(parse_json(text)["pid"]), 0)
    except PermissionError:
        return True
    except (KeyError, OSError, OverflowError, TypeError, ValueError):
        return False
    return True


def _holder(text: bytes) -> str:
    try:
        holder = parse_json(text)
        return f"process {int(holder['pid'])} (since {datetime.fromisoformat(holder['since']):%Y-%m-%d %H:%M:%S} UTC)"
    except (KeyError, OverflowError, TypeError, ValueError):
        return "another process"


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        # Non-blocking, so that a pipe does not make it wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        held = _held(descriptor, fcntl.LOCK_SH)
        return _is_running(os.pread(descriptor, 1000, 0)) if held is None else held
    except OSError:
        return False
    finally:
        os.close(descriptor)
