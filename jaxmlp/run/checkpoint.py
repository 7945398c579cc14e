"""What is a checkpoint? One safetensors file that proves its own bytes before any of them is used.

Any safetensors reader opens it. Its `__metadata__` holds:

    header_sha256   SHA-256 of the header (the JSON text with its padding), with these 64 digits set to zeros
    sha256:NAME     SHA-256 of the bytes of tensor NAME
    meta            the caller's own values, as JSON text

The header's hash covers names, dtypes, shapes, offsets, `meta` and the other hashes. The tensors must fill the rest of
the file without gaps. So every bit is covered, and equal arrays and meta make equal files.

Source: the format of safetensors 0.8, https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jaxmlp.errors import RunError
from jaxmlp.experiment.fields import parse_json
from jaxmlp.run import files
from jaxmlp.run.digest import little_endian_bytes
from jaxmlp.run.known import wrong_fields

MAX_HEADER = 1 << 22
"""Largest header that is read, in bytes."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}

_ZEROS = b"0" * 64
_HEADER_SHA256 = re.compile(rb'(?<="header_sha256":")[0-9a-f]{64}(?=")')


class _Damaged(Exception):
    """What is wrong with a file, for people."""


class _Tensor(NamedTuple):
    start: int
    end: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    sha256: str


def save(path: Path, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all, and wait until it is on the disk.

    Args:
        path: File to write. An existing file is replaced.
        arrays: Arrays by name. A name is printable parts joined by `/`, none of them empty, `.` or `..`.
        meta: Any JSON values.

    Raises:
        DiskError: The file could not be written. An existing file is unchanged.
        ValueError: A checkpoint cannot hold a name or dtype, or `meta` is not JSON.
    """
    metadata = {"header_sha256": _ZEROS.decode(), "meta": json.dumps(meta, allow_nan=False)}
    header: dict[str, Any] = {"__metadata__": metadata}
    chunks: list[NDArray[np.uint8]] = []
    end = 0
    # Wide elements first, as in the safetensors library: then each tensor starts at a multiple of its item size.
    for name in sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name)):
        array = arrays[name]
        if not _is_name(name) or array.dtype.name not in _CODES:
            raise ValueError(f"a checkpoint cannot hold {name!r} of dtype {array.dtype}")
        data = little_endian_bytes(array)
        start, end = end, end + data.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
        metadata[f"sha256:{name}"] = hashlib.sha256(data).hexdigest()
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"a checkpoint cannot hold {len(arrays)} arrays: its header would be {len(text)} bytes long")
    text = _HEADER_SHA256.sub(hashlib.sha256(text).hexdigest().encode(), text, count=1)
    files.write(path, len(text).to_bytes(8, "little"), text, *chunks)


def load(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays by name, and the meta, after checking every byte of the file.

    Raises:
        RunError: The file cannot be read or is damaged. The message names the file, and the tensor if one is damaged.
    """
    try:
        with files.open_plain(path) as file:
            tensors, meta = _read_header(file)
            return {tensor.name: _read_tensor(file, tensor) for tensor in tensors}, meta
    except (OSError, _Damaged) as error:
        raise _run_error(path, error) from error


def load_meta(path: Path) -> dict[str, Any]:
    """Read only the meta, after checking the header.

    Raises:
        RunError: The file cannot be read, or its header is damaged.
    """
    try:
        with files.open_plain(path) as file:
            return _read_header(file)[1]
    except (OSError, _Damaged) as error:
        raise _run_error(path, error) from error


def _run_error(path: Path, error: OSError | _Damaged) -> RunError:
    problem = f"it cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
    return RunError(f"checkpoint {path.name}: {problem}")


def _is_name(name: str) -> bool:
    return name.isprintable() and not {"", ".", ".."} & set(name.split("/")) and name != "__metadata__"


def _read_header(file: BufferedReader) -> tuple[list[_Tensor], dict[str, Any]]:
    """The tensors in the order of their bytes, which fill the rest of the file, and the meta."""
    rest = os.fstat(file.fileno()).st_size - 8
    length = int.from_bytes(file.read(8), "little")
    if length > min(rest, MAX_HEADER):
        raise _Damaged("its header is damaged or cut off (its stated length is too large)")
    text = file.read(length)
    found = _HEADER_SHA256.search(text)
    if not found:
        raise _Damaged("its header is damaged, or it is not a checkpoint (no header_sha256)")
    if hashlib.sha256(text[: found.start()] + _ZEROS + text[found.end() :]).hexdigest().encode() != found[0]:
        raise _Damaged("its header is damaged (SHA-256 differs)")
    tensors, meta = _parse(text)
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        if (tensor.start, tensor.end) != (start, end):
            raise _Damaged(
                f"tensor {tensor.name} does not start where the one before it ends, or its size does not fit its shape"
            )
    if length + end != rest:
        raise _Damaged(f"it has {rest + 8} bytes, but its header says {length + end + 8}: it was cut off or extended")
    return tensors, meta


def _parse(text: bytes) -> tuple[list[_Tensor], dict[str, Any]]:
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__")
        meta = parse_json(metadata["meta"])
        tensors = [_parse_tensor(name, entry, metadata[f"sha256:{name}"]) for name, entry in header.items()]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _Damaged("its header is not a checkpoint's header") from error
    if not isinstance(meta, dict):
        raise _Damaged("its meta is not a JSON object")
    if wrong := wrong_fields(meta):
        raise _Damaged(f"its meta has an invalid {', '.join(wrong)}")
    return sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)), meta


def _parse_tensor(name: str, entry: dict[str, Any], sha256: str) -> _Tensor:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    dimensions = all(type(size) is int and 0 <= size < 1 << 48 for size in (*shape, start, end))
    if not dimensions or len(shape) > 32 or not _is_name(name):
        raise ValueError(name)
    return _Tensor(start, end, name, _DTYPES[entry["dtype"]], tuple(shape), sha256)


def _read_tensor(file: BufferedReader, tensor: _Tensor) -> NDArray[Any]:
    try:
        data = np.empty(tensor.end - tensor.start, np.uint8)
    except MemoryError as error:
        raise _Damaged(f"tensor {tensor.name} does not fit into this machine's memory") from error
    if file.readinto(data) != data.nbytes or hashlib.sha256(data).hexdigest() != tensor.sha256:
        raise _Damaged(f"tensor {tensor.name} is damaged (SHA-256 differs)")
    try:
        return data.view(tensor.dtype).reshape(tensor.shape)
    except ValueError as error:
        raise _Damaged(f"tensor {tensor.name} has a shape that no array can have") from error
