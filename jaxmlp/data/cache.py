"""Where decoded copies lie, and how several processes share the folder.

A decoded copy is the four IDX files of a data set, uncompressed, one after the other: what `dataset.digest` is over.
It is checked against a known sum whenever it is read, so that a damaged one is never used.
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
"""Starts the name of a folder in which something is being made."""


def data_folder(given: str | os.PathLike[str] | None) -> Path:
    """Where prepared and decoded data lies: given, JAXMLP_DATA_DIR, or `jaxmlp/data` in the user's cache folder."""
    if folder := chosen_folder(given, "JAXMLP_DATA_DIR"):
        return folder
    if cache := user_cache():
        return cache / "data"
    raise DataError("data: there is no home folder to keep data in. Name a folder by JAXMLP_DATA_DIR")


def read_copy(path: Path, source: Source) -> tuple[Split, Split, str] | None:
    """Train, test and their digest from a decoded copy; None where there is none.

    The images are read-only.

    Raises:
        DataError: It is damaged, or not of this data set.
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
    """The digest of train and test; it differs from the source's where their order does.

    Raises:
        DataError: They are not the source's examples, in whatever order.
    """
    sha256 = digest(train, test)
    if sha256 != source.sha256 and contents_digest(train, test) != source.contents_sha256:
        raise DataError(f"data: {origin} holds other examples: SHA-256 {sha256}, wanted {source.sha256}")
    return sha256


def write_copy(path: Path, train: Split, test: Split) -> None:
    """Makes the decoded copy, whole or not at all; the last of several writers wins.

    Raises:
        OSError: It cannot be written.
    """
    with making(path.parent) as folder:
        partial = folder / path.name
        with partial.open("wb") as file:
            file.writelines(serialized(train, test))
        partial.replace(path)


@contextlib.contextmanager
def making(data_dir: Path) -> Iterator[Path]:
    """A folder beside the final ones, to make something in and move it out; gone afterwards."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=data_dir) as folder:
        yield Path(folder)


@contextlib.contextmanager
def only_one(data_dir: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Lets one process at a time prepare in `data_dir`; the system frees the lock of one that dies.

    Where the file system has no locks several may prepare at once, and the last to finish wins.

    Raises:
        DiskError: The folder cannot be made or written.
    """
    import fcntl  # Not on Windows, where nothing can be prepared either.

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
    """The error for a data folder that takes no files."""
    reason = error.strerror or str(error)
    return DiskError(f"data: {data_dir} cannot be written: {reason}. Name another folder by JAXMLP_DATA_DIR")
