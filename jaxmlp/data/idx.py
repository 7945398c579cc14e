"""What does an IDX file hold? MNIST's own format, gzipped or not.

Two zero bytes, the element type, the number of axes, the length of each axis as a big-endian 32-bit integer, then the
elements in row-major order, big-endian. Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxmlp.errors import DataError

ELEMENTS = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
LIMIT_BYTES = 1 << 31
"""Default limit on the bytes that `read_idx` decompresses."""
DEFLATE_RATIO = 1032
"""Largest expansion of a deflate stream."""
MAX_AXES = 32


@contextlib.contextmanager
def opened(path: Path, *, decompress: bool = True) -> Iterator[io.BufferedIOBase]:
    """Open a file for its bytes. With `decompress`, a gzipped file is decompressed, whatever its name.

    Raises:
        DataError: The file is missing, not a regular file, unreadable or empty, or its gzip stream is damaged or cut
            off. The error may come only while the caller reads.
    """
    try:
        if path.is_dir():
            raise DataError(f"data: {path} is a folder, wanted a file")
        if path.exists() and not path.is_file():
            raise DataError(f"data: {path} is not a regular file")
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            if not start:
                raise DataError(f"data: {path} is empty (0 bytes)")
            if decompress and start == b"\x1f\x8b":
                with gzip.open(file) as stream:
                    yield stream
            else:
                yield file
    except EOFError:
        found = f"the gzip stream ends early, after {path.stat().st_size:,} compressed bytes"
        raise DataError(f"data: {path} is cut off: {found}") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"data: {path} is damaged: its gzip stream does not decompress ({error})") from None
    except OSError as error:
        raise DataError(f"data: {path} cannot be read: {error.strerror or error}") from None


def read_idx(path: str | os.PathLike[str], *, limit_bytes: int = LIMIT_BYTES) -> np.ndarray:
    """Read the array in an IDX file.

    Args:
        path: The file, gzipped or not.
        limit_bytes: Largest size of the array in bytes. The header is checked against it before memory is allocated.

    Returns:
        The array in the file's shape and type and the machine's byte order. It may be read-only, which saves a copy.

    Raises:
        DataError: The file does not exist, is not an IDX file, or holds fewer or more bytes than its header says.
    """
    path = Path(path)
    with opened(path) as stream:
        element, shape = _header(path, stream)
        size = math.prod(shape) * element.itemsize
        on_disk = path.stat().st_size
        zipped = isinstance(stream, gzip.GzipFile)
        ceiling = min(limit_bytes, on_disk * DEFLATE_RATIO if zipped else on_disk - 4 * (1 + len(shape)))
        promised = f"its header says {_times(shape)}, which is {size:,} bytes"
        if size > ceiling:
            raise DataError(f"data: {path} contradicts itself: {promised}, but it can hold at most {ceiling:,}")
        content = stream.read(size + 1)
    if len(content) != size:
        found = f"more than {size:,}" if len(content) > size else f"{len(content):,}"
        raise DataError(f"data: {path} holds {found} bytes after its header, which says {_times(shape)}: {size:,}")
    try:
        array = np.frombuffer(content, element).reshape(shape)
    except ValueError:  # No elements, but a shape too large for NumPy.
        raise DataError(f"data: {path} contradicts itself: {promised}, but no array has that shape") from None
    return array.astype(element.newbyteorder("="), copy=False)


def _header(path: Path, stream: io.BufferedIOBase) -> tuple[np.dtype, tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in ELEMENTS or not 0 < magic[3] <= MAX_AXES:
        raise DataError(f"data: {path} is not an IDX file: it starts with 0x{magic.hex()}, wanted 0x0000, type, axes")
    lengths = stream.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise DataError(f"data: {path} is cut off in its header: {len(lengths)} of {4 * magic[3]} bytes of lengths")
    return np.dtype(ELEMENTS[magic[2]]), tuple(int(length) for length in np.frombuffer(lengths, ">u4"))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length}" for length in shape)


def idx_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """The header and the elements of `array` in IDX format. Elements that are bytes are not copied.

    Args:
        array: An array with at least one axis and one of IDX's six element types.
    """
    code = next(code for code, element in ELEMENTS.items() if np.dtype(element[1:]) == array.dtype)
    header = bytes((0, 0, code, array.ndim)) + np.asarray(array.shape, ">u4").tobytes()
    return header, np.ascontiguousarray(array, ELEMENTS[code]).reshape(-1).view(np.uint8).data
