"""One process at a time writes in a run directory."""

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
from jaxmlp.fields import parse_json
from jaxmlp.run import files

_TRIES, _PAUSE_S = 5, 0.02


class Lock:
    """An flock on a file that names its holder. The kernel drops it with the process, however that ends.

    Where the file system has no locks, the process that the file names holds the lock as long as it runs on this
    machine; processes of other machines are not seen, which is said on stderr.

    Args:
        path: The lock's file; it stays when the lock is released, so that nobody locks a file that is gone.

    Raises:
        RunError: Another process holds it; names the process.
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
                    unseen = "has no locks, so processes of other machines that write there would not be seen"
                    print(printable(f"{path.parent}: its file system {unseen}."), file=sys.stderr, flush=True)
                since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "since": since}).encode() + b"\n", 0)
            except BaseException:
                os.close(self._descriptor)
                raise

    def release(self) -> None:
        """Let others have it. Idempotent."""
        if self._descriptor is not None:
            try:
                # A name that stays does no harm: the lock itself goes with the descriptor.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
            finally:
                os.close(self._descriptor)
                self._descriptor = None


def _held(descriptor: int, how: int, tries: int = 1) -> bool | None:
    """Whether another process holds the lock, and this one cannot take it; None where the file system has no locks."""
    # More than one try, because `is_held` holds the lock for an instant.
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
    """Whether the process that a lock's file names is there, on this machine."""
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
        # No waiting for whoever is at the other end of a pipe.
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
