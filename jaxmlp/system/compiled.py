"""Where are compiled programs kept for the next start, and how are damaged programs detected?

JAX's own cache writes a program in place, and only once. A program that a kill or a full disk cut off is read with a
warning and compiled again at every start. If its compression has no checksum, a program with a flipped bit is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from pathlib import Path

import jax

from jaxmlp.errors import DiskError
from jaxmlp.run import files
from jaxmlp.system.private import CacheInterface, keep_programs

DAY_S = 86_400.0
"""Age in seconds from which no process is still writing a program."""
MAX_BYTES = 1 << 30
"""Largest size in bytes of the programs in a folder, unless JAX_COMPILATION_CACHE_MAX_SIZE says otherwise."""


def keep_in(folder: Path) -> None:
    """Let JAX keep compiled programs in a folder. Call it before JAX's first use."""
    with contextlib.suppress(OSError):
        files.remove_temporaries(folder, older_than_s=DAY_S)
    keep_programs(folder, lambda path: CompiledPrograms(path, _limit()))


def _limit() -> float:
    """JAX's setting: -1 means no limit, and 0 means that nothing is kept."""
    limit: int = jax.config.jax_compilation_cache_max_size
    if limit == -1 and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        return MAX_BYTES
    return math.inf if limit < 0 else limit


class CompiledPrograms(CacheInterface):
    """A cache with one file per program: its SHA-256, then its bytes. Several processes may share the folder.

    Each file is replaced whole.

    Args:
        folder: Folder of the programs.
        max_bytes: Largest size of all programs. The least recently used are removed first.
    """

    def __init__(self, folder: Path, max_bytes: float = MAX_BYTES) -> None:
        self._path = folder
        self._max_bytes = max_bytes
        self._bytes = math.inf
        """Lower bound on the size of all programs, as far as this process knows. Infinite until it has looked."""

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.program"

    def get(self, key: str) -> bytes | None:
        """The program; None if there is none, or its bytes have changed."""
        try:
            kept = self._file(key).read_bytes()
        except OSError:
            return None
        sha256, program = kept[:32], kept[32:]
        if hashlib.sha256(program).digest() != sha256:
            return None
        with contextlib.suppress(OSError):
            # The time of last use, which many systems do not record themselves.
            os.utime(self._file(key), ns=(time.time_ns(), self._file(key).stat().st_mtime_ns))
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keep a program. If the disk refuses it, the only cost is compile time."""
        size = 32 + len(value)
        if size > self._max_bytes:
            return
        with contextlib.suppress(DiskError):
            files.write(self._file(key), hashlib.sha256(value).digest(), value)
            self._bytes += size
            if self._bytes > self._max_bytes:
                self._bytes = self._make_room()

    def _make_room(self) -> int:
        """Remove programs until the rest fits or none can be removed. Returns the size of the rest in bytes."""
        found = []
        for path in self._path.glob("*.program"):
            with contextlib.suppress(OSError):  # Another process has removed it since, or it is not a file.
                about = path.lstat()
                found.append((about.st_atime_ns, about.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._max_bytes:
                break
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size
        return total
