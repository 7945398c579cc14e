"""How are the files of a run read and written? Only regular files, each replaced completely or not at all.

A file is written under a temporary name beside it, synced and renamed; then its folder is synced. So a crash at any
moment leaves the old file or the new one, and at most a temporary file that `remove_temporaries` deletes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Buffer, Iterator
from io import BufferedReader
from pathlib import Path

from jaxmlp.errors import DiskError, RunError

MAX_TEXT = 1 << 28
"""Largest text file that is read, in bytes."""

LACKING = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error codes with which a file system says that it does not support an operation."""

_PREFIX, _SUFFIX = ".jaxmlp-", ".tmp"


@contextlib.contextmanager
def trying_to(do: str) -> Iterator[None]:
    """Turn an OSError in the block into a DiskError: `could not DO: No space left on device`.

    Raises:
        DiskError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"could not {do}: {error.strerror or error}.") from error


def write(path: Path, *chunks: Buffer) -> None:
    """Replace the file `path` by `chunks`, one after the other. The umask decides who may read it.

    Raises:
        DiskError: The file could not be written. An existing file is unchanged.
    """
    with trying_to(f"write {path}"):
        temporary = path.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        # Not with `tempfile`: only the owner could read its files, whatever the umask allows.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(chunks)
                file.flush()
                _sync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # If the disk refuses this too, `remove_temporaries` deletes the file later.
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file or folder `path` itself is on the disk. A folder holds the names of its files.

    Raises:
        OSError: The disk failed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync, above all folders.
        if error.errno not in LACKING:
            raise


def remove_temporaries(folder: Path, older_than_s: float = 0) -> None:
    """Delete temporary files that killed processes left in `folder`.

    Args:
        folder: The folder. The caller must hold its lock, or choose an age at which nobody is still writing.
        older_than_s: Age in seconds from which a file is deleted; 0 deletes all.

    Raises:
        OSError: A file could not be removed.
    """
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if not older_than_s or time.time() - path.lstat().st_mtime > older_than_s:
            path.unlink(missing_ok=True)


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading. A link could lead out of the run; a pipe or device might never end.

    Raises:
        OSError: The file is a link, pipe or device, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, "a symbolic link") if error.errno == errno.ELOOP else error from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def read(path: Path, limit: int = MAX_TEXT) -> bytes:
    """Read a text file of a run.

    Raises:
        RunError: The file cannot be read, is not a regular file, or is longer than `limit` bytes.
    """
    try:
        with open_plain(path) as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) > limit:
        raise RunError(f"{path} is longer than {limit} bytes: it is not a file of a run.")
    return text
