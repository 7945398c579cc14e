"""Where do golden records lie, what do they hold, and how are they read and written?

The records of `tests/test_step.py` lie in `tests/golden_bits/test_step/`, one file per check and platform:

    test_update-8-3f2a91c0.x86_64-avx2-numpy-2.3.5-5d41402a.json    the record
    test_update-8-3f2a91c0.x86_64-avx2-numpy-2.3.5-5d41402a.npz     its arrays, if they are stored
    test_order.portable.json                                        one record for all machines

A file is replaced completely or not at all, and no two tests write the same file. So parallel workers need no lock.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxmlp.run import files
from jaxmlp.run.digest import digest

_FORMAT = 1
_LONGEST = 80
_PORTABLE = "portable"


class DamagedRecordError(ValueError):
    """A file that is not a golden record, such as a file with merge-conflict markers."""


class Record(NamedTuple):
    """The bits that one check saw on one platform."""

    test: str
    """Name of the test in its file, such as `TestStep::test_update[8]`."""
    name: str | None
    """Name of the check in the test."""
    portable: bool
    """Whether the record is for all machines. Then `platform` only says where it was made."""
    digest: str
    leaves: Mapping[str, Mapping[str, Any]]
    """`dtype`, `shape` and `sha256` of each leaf, by path. `sha256` is the digest of a tree with this leaf alone."""
    platform: Mapping[str, Mapping[str, Any]]
    """`binding`: facts that decide the bits. `not_binding`: facts that help to explain a difference."""

    @property
    def file_name(self) -> str:
        """Name of the file that `write` makes."""
        return f"{prefix(self.test, self.name)}.{self.platform_tag}.json"

    @property
    def platform_tag(self) -> str:
        """Short name of the platform, unique to its binding facts."""
        return _PORTABLE if self.portable else platform_tag(self.platform["binding"])


def prefix(test: str, name: str | None) -> str:
    """First part of a check's file names: readable, without dots, and unique on any file system."""
    whole = test if name is None else f"{test}--{name}"
    readable = re.sub(r"[^a-z0-9_]+", "-", whole.lower()).strip("-")[:_LONGEST]
    return readable if readable == whole else f"{readable}-{_short(repr((test, name)))}"


def platform_tag(binding: Mapping[str, Any]) -> str:
    """Name such as `cpu-x86_64-avx2-jax-0.12.0-5d41402a`. The last part distinguishes all binding facts."""
    machine = "-".join(str(binding.get("isa")).split("-")[:2])
    library = next((f"{name}-{binding[name]}" for name in ("jax", "numpy") if name in binding), "")
    said = " ".join(filter(None, (str(binding.get("device_kind", "")), machine, library)))
    return f"{re.sub(r'[^a-z0-9_.]+', '-', said.lower())[:_LONGEST]}-{_short(json.dumps(binding, sort_keys=True))}"


def find(folder: Path, check: str, *, portable: bool) -> dict[Path, Record]:
    """The records of a check: the record for all machines, or those by platform.

    Args:
        folder: As `tally.folder_of` names it.
        check: As `prefix` names it.
        portable: Whether to find the record for all machines.

    Raises:
        DamagedRecordError: A record cannot be read. The message names the file.
    """
    ours = f"{check}.{_PORTABLE}.json"
    if portable:
        paths = [folder / ours] if (folder / ours).is_file() else []
    else:
        paths = sorted(path for path in folder.glob(f"{check}.*.json") if path.name != ours)
    return {path: read(path) for path in paths}


def read(path: Path) -> Record:
    """Read the record in a file.

    Raises:
        DamagedRecordError: The file is not a record. The message names it.
    """
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format") != _FORMAT:
            raise ValueError("it comes from another version of jaxmlp")
        record = Record(**found)
        if any({"dtype", "shape", "sha256"} - leaf.keys() for leaf in record.leaves.values()):
            raise ValueError("a leaf lacks its dtype, shape or sha256")
        if not isinstance(record.test, str) or not isinstance(record.digest, str):
            raise TypeError("a field has another type")
        _ = {**record.platform["binding"]}, {**record.platform["not_binding"]}
        return record
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise DamagedRecordError(f"{path} is not a golden record ({error}).") from error


def write(folder: Path, record: Record, arrays: Mapping[str, NDArray[Any]] | None) -> Path:
    """Write a record, and optionally its arrays. Returns its path.

    Args:
        folder: As `tally.folder_of` names it. It is made if it does not exist.
        record: The record. It replaces a record of the same check and platform.
        arrays: Arrays by path. None stores no arrays.

    Raises:
        DiskError: It could not be written.
    """
    path = folder / record.file_name
    with files.trying_to(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    if arrays is not None:
        files.write(values_path(path), _packed(arrays))
    files.write(path, json.dumps({"format": _FORMAT, **record._asdict()}, indent=1).encode() + b"\n")
    return path


def values_path(path: Path) -> Path:
    """Path of the file with the arrays of the record at `path`."""
    return path.with_suffix(".npz")


def values(path: Path, record: Record) -> dict[str, NDArray[Any]] | None:
    """The arrays of a record by path. None if they are not stored, or do not belong to the record."""
    try:
        with np.load(values_path(path), allow_pickle=False) as packed:
            found = {
                leaf: packed[_member(leaf)].view(_dtype(about["dtype"])).reshape(about["shape"])
                for leaf, about in record.leaves.items()
            }
        return found if digest(found) == record.digest else None
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as an npz file.

    A type that NumPy lacks, such as bfloat16, is stored as integers with the same bits.
    """
    members = {
        _member(leaf): array if array.dtype.kind in "biufcmM" else array.view(f"u{array.dtype.itemsize}")
        for leaf, array in arrays.items()
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **members)  # type: ignore[arg-type]
    return packed.getvalue()


def _member(leaf: str) -> str:
    # Prefixed, so that no leaf has the name of an argument of `savez_compressed`.
    return f"tree/{leaf}"


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
