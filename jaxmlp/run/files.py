"""How the files of a run are read and written: plain files only, each replaced whole, or not at all.

A file is written under a temporary name beside it, synced, renamed, and its folder synced. So a crash at any moment
leaves the old file or the new one, and at most a temporary one that `remove_temporaries` takes away.
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
"""Bytes of the longest text file that is read."""

LACKING = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""How a file system says that it does not offer what was asked of it."""

_PREFIX, _SUFFIX = ".jaxmlp-", ".tmp"


@contextlib.contextmanager
def trying_to(do: str) -> Iterator[None]:
    """Tell what the system refuses in the block as a DiskError: `could not DO: No space left on device`.

    Raises:
        DiskError: For an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"could not {do}: {error.strerror or error}.") from error


def write(path: Path, *chunks: Buffer) -> None:
    """Replace the file `path` by `chunks`, one after the other; who may read it, the umask says.

    Raises:
        DiskError: It could not be written; a former file of this name is as it was.
    """
    with trying_to(f"write {path}"):
        temporary = path.parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        # Not by `tempfile`, whose files are for their owner alone, whatever the umask allows others.
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(chunks)
                file.flush()
                _sync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # On a disk that refuses this too, it is left for `remove_temporaries`.
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk itself; a folder holds the names of its files.

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
        # Some file systems of networks and of user space cannot sync, folders above all.
        if error.errno not in LACKING:
            raise


def remove_temporaries(folder: Path, older_than_s: float = 0) -> None:
    """Remove what a killed process was writing in `folder`; for who holds its lock, or of an age that none is at.

    Raises:
        OSError: One could not be removed.
    """
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        if not older_than_s or time.time() - path.lstat().st_mtime > older_than_s:
            path.unlink(missing_ok=True)


def open_plain(path: Path) -> BufferedReader:
    """Open a file for reading that is no link, pipe or device, which could lead out of the run or never end.

    Raises:
        OSError: It is one of these, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, "a symbolic link") if error.errno == errno.ELOOP else error from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file")
    return open(descriptor, "rb")


def read(path: Path, limit: int = MAX_TEXT) -> bytes:
    """The bytes of a text file of a run.

    Raises:
        RunError: It cannot be read, is no plain file, or is longer than `limit` bytes.
    """
    try:
        with open_plain(path) as file:
            text = file.read(limit + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) > limit:
        raise RunError(f"{path} is longer than {limit} bytes: it is not a file of a run.")
    return text
