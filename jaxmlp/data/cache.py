"""Where do decoded copies lie, and how do several processes share the folder?

A decoded copy is the concatenation of a data set's four uncompressed IDX files: the bytes that `dataset.digest` hashes.
Its hash is checked at every read, so a damaged copy is never used.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from jaxmlp.data.dataset import Split, digest, serialized
from jaxmlp.data.official import Source, contents_digest
from jaxmlp.errors import DataError, DiskError
from jaxmlp.folders import chosen_folder, user_cache

MAKING = ".making-"
"""Prefix of a folder whose content is not complete yet."""


def data_folder(given: str | os.PathLike[str] | None) -> Path:
    """Folder of prepared and decoded data: `given`, JAXMLP_DATA_DIR, or `jaxmlp/data` in the user's cache folder."""
    if folder := chosen_folder(given, "JAXMLP_DATA_DIR"):
        return folder
    if cache := user_cache():
        return cache / "data"
    raise DataError("data: there is no home folder for the data. Name a folder with JAXMLP_DATA_DIR")


def read_copy(path: Path, source: Source) -> tuple[Split, Split, str] | None:
    """Train, test and their digest from a decoded copy; None if there is no copy.

    The images are read-only.

    Raises:
        DataError: The copy is damaged, or belongs to another data set.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"data: {path} cannot be read: {error.strerror}") from None
    wanted_bytes = sum(4 + 4 * len(file.shape) + math.prod(file.shape) for file in source.files)
    if len(content) != wanted_bytes:
        raise DataError(f"data: {path} is damaged: {len(content):,} bytes, wanted {wanted_bytes:,}")
    arrays, start = [], 0
    for file in source.files:
        start += 4 + 4 * len(file.shape)
        arrays.append(np.frombuffer(content, np.uint8, math.prod(file.shape), start).reshape(file.shape))
        start += math.prod(file.shape)
    train = Split(arrays[0][..., np.newaxis], arrays[1].astype(np.int32))
    test = Split(arrays[2][..., np.newaxis], arrays[3].astype(np.int32))
    return train, test, checked_digest(path, source, train, test)


def checked_digest(origin: Path, source: Source, train: Split, test: Split) -> str:
    """The digest of train and test. It differs from the source's digest only if their order differs.

    Raises:
        DataError: They are not the source's examples in any order.
    """
    sha256 = digest(train, test)
    if sha256 != source.sha256 and contents_digest(train, test) != source.contents_sha256:
        raise DataError(f"data: {origin} holds other examples: SHA-256 {sha256}, wanted {source.sha256}")
    return sha256


def write_copy(path: Path, train: Split, test: Split) -> None:
    """Write the decoded copy, completely or not at all. Of several writers, the last wins.

    Raises:
        OSError: The copy cannot be written.
    """
    with making(path.parent) as folder:
        partial = folder / path.name
        with partial.open("wb") as file:
            file.writelines(serialized(train, test))
        partial.replace(path)


@contextlib.contextmanager
def making(data_dir: Path) -> Iterator[Path]:
    """A temporary folder in `data_dir`. What is made in it can be moved out; the rest is deleted."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=data_dir) as folder:
        yield Path(folder)


@contextlib.contextmanager
def only_one(data_dir: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Let only one process at a time prepare data in `data_dir`. The system frees the lock of a process that dies.

    On a file system without locks, several processes may prepare at once, and the last to finish wins.

    Raises:
        DiskError: The folder cannot be made or written.
    """
    import fcntl  # Windows lacks it, and cannot prepare data either.

    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / ".lock").open("w")
    except OSError as error:
        raise unwritable(data_dir, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"data: waiting for another process that prepares data in {data_dir}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        for left_by_a_dead_process in data_dir.glob(f"{MAKING}*"):
            shutil.rmtree(left_by_a_dead_process, ignore_errors=True)
        yield


def unwritable(data_dir: Path, error: OSError) -> DiskError:
    """The error for a data folder that cannot be written."""
    reason = error.strerror or str(error)
    return DiskError(f"data: {data_dir} cannot be written: {reason}. Name another folder with JAXMLP_DATA_DIR")
