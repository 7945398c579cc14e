"""The files of golden records: where they lie, what they hold, how they are read and written.

The records of `tests/test_step.py` lie in `tests/golden_bits/test_step/`, one file for each check and platform:

    test_update-8-3f2a91c0.x86_64-avx2-numpy-2.3.5-5d41402a.json    what was recorded
    test_update-8-3f2a91c0.x86_64-avx2-numpy-2.3.5-5d41402a.npz     its arrays, where they are kept
    test_order.portable.json                                        one record for all machines

A file is replaced whole or not at all, and no two tests write the same one. So parallel workers need no lock.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
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
    """A file that is no golden record, such as one with the marks of a merge conflict."""


class Record(NamedTuple):
    """The bits that one check saw on one platform."""

    test: str
    """The name in its file, such as `TestStep::test_update[8]`."""
    name: str | None
    """The check's own name in the test."""
    portable: bool
    """Whether the record is for all machines; `platform` then tells only where it was made."""
    digest: str
    leaves: Mapping[str, Mapping[str, Any]]
    """`dtype`, `shape` and `sha256` of each leaf by its path; `sha256` is that of a tree of this leaf alone."""
    platform: Mapping[str, Mapping[str, Any]]
    """`binding`: facts that decide the bits. `not_binding`: facts that help to explain a difference."""

    @property
    def file_name(self) -> str:
        """The name of the file that `write` makes."""
        return f"{prefix(self.test, self.name)}.{self.platform_tag}.json"

    @property
    def platform_tag(self) -> str:
        """A short name of the platform; other binding facts have another one."""
        return _PORTABLE if self.portable else platform_tag(self.platform["binding"])


def prefix(test: str, name: str | None) -> str:
    """The first part of the file names of a check: readable, without dots, and its own on any file system."""
    whole = test if name is None else f"{test}--{name}"
    readable = re.sub(r"[^a-z0-9_]+", "-", whole.lower()).strip("-")[:_LONGEST]
    return readable if readable == whole else f"{readable}-{_short(repr((test, name)))}"


def platform_tag(binding: Mapping[str, Any]) -> str:
    """Such as `cpu-x86_64-avx2-jax-0.12.0-5d41402a`, where the last part tells all binding facts apart."""
    machine = "-".join(str(binding.get("isa")).split("-")[:2])
    library = next((f"{name}-{binding[name]}" for name in ("jax", "numpy") if name in binding), "")
    said = " ".join(filter(None, (str(binding.get("device_kind", "")), machine, library)))
    return f"{re.sub(r'[^a-z0-9_.]+', '-', said.lower())[:_LONGEST]}-{_short(json.dumps(binding, sort_keys=True))}"


def find(folder: Path, check: str, *, portable: bool) -> dict[Path, Record]:
    """The records of a check, those for all machines or those by platform.

    Args:
        folder: As `tally.folder_of` names it.
        check: As `prefix` names it.
        portable: Which of the two.

    Raises:
        DamagedRecordError: One cannot be read; names the file.
    """
    ours = f"{check}.{_PORTABLE}.json"
    if portable:
        paths = [folder / ours] if (folder / ours).is_file() else []
    else:
        paths = sorted(path for path in folder.glob(f"{check}.*.json") if path.name != ours)
    return {path: read(path) for path in paths}


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        DamagedRecordError: The file is none; names it.
    """
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format") != _FORMAT:
            raise ValueError("it is of another version of jaxmlp")
        record = Record(**found)
        if any({"dtype", "shape", "sha256"} - leaf.keys() for leaf in record.leaves.values()):
            raise ValueError("a leaf lacks its dtype, shape or sha256")
        if not isinstance(record.test, str) or not isinstance(record.digest, str):
            raise TypeError("a field of another type")
        _ = {**record.platform["binding"]}, {**record.platform["not_binding"]}
        return record
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise DamagedRecordError(f"{path} is no golden record ({error}).") from error


def write(folder: Path, record: Record, arrays: Mapping[str, NDArray[Any]] | None) -> Path:
    """Write a record, and its arrays where they are to be kept; returns its path.

    Args:
        folder: As `tally.folder_of` names it; made if need be.
        record: Replaces a record of the same check and platform.
        arrays: By path; none to keep no arrays.

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
    """The file with the arrays of the record at `path`."""
    return path.with_suffix(".npz")


def values(path: Path, record: Record) -> dict[str, NDArray[Any]] | None:
    """The arrays of a record by path, or none where they are not kept, or are not those of the record."""
    try:
        with np.load(values_path(path), allow_pickle=False) as packed:
            found = {
                leaf: packed[_member(leaf)].view(_dtype(about["dtype"])).reshape(about["shape"])
                for leaf, about in record.leaves.items()
            }
        return found if digest(found) == record.digest else None
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An npz file. It holds a type that NumPy does not know, such as bfloat16, as integers of the same bits."""
    members = {
        _member(leaf): array if array.dtype.kind in "biufcmM" else array.view(f"u{array.dtype.itemsize}")
        for leaf, array in arrays.items()
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **members)  # type: ignore[arg-type]
    return packed.getvalue()


def _member(leaf: str) -> str:
    # So that no leaf has the name of an argument of `savez_compressed`.
    return f"tree/{leaf}"


def _dtype(name: str) -> np.dtype[Any]:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name, name))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
