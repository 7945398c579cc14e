"""One process at a time writes in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from jaxmlp.errors import RunError
from jaxmlp.fields import parse_json
from jaxmlp.run import files

_TRIES, _PAUSE_S = 5, 0.02


class Lock:
    """An flock on a file that names its holder. The kernel drops it with the process, however that ends.

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
                if not _acquired(self._descriptor):
                    holder = _holder(os.pread(self._descriptor, 1000, 0))
                    raise RunError(f"{path.parent} is in use by {holder}. Wait for its end, or use another --out.")
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


def _acquired(descriptor: int) -> bool:
    # More than one try, because `is_held` holds the lock for an instant.
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE_S)
    return False


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
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
