"""Where compiled programs are kept for the next start, and how one that is not whole is told from one that is.

JAX's own cache writes a program in place, and never again: one that a kill or a full disk cut off is read with a
warning, and compiled anew, at every start. Where its compression has no checksum, a flipped bit is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from pathlib import Path

import jax
from jax._src import compilation_cache  # JAX has no public way to keep programs otherwise.
from jax._src.compilation_cache_interface import CacheInterface

from jaxmlp.errors import DiskError
from jaxmlp.run import files

DAY_S = 86_400.0
"""After which no process is still writing a program."""
MAX_BYTES = 1 << 30
"""Of the programs that are kept in a folder, where the user's JAX_COMPILATION_CACHE_MAX_SIZE says nothing."""


def keep_in(folder: Path) -> None:
    """Let JAX keep compiled programs in a folder; before its first use."""
    with contextlib.suppress(OSError):
        files.remove_temporaries(folder, older_than_s=DAY_S)
    compilation_cache.get_file_cache = lambda path: (CompiledPrograms(Path(path), _limit()), path)
    compilation_cache.set_cache_dir(str(folder))


def _limit() -> float:
    """JAX's setting; -1 means no limit, and 0 that nothing is kept."""
    limit: int = jax.config.jax_compilation_cache_max_size
    if limit == -1 and "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        return MAX_BYTES
    return math.inf if limit < 0 else limit


class CompiledPrograms(CacheInterface):
    """A file a program, each replaced whole: its SHA-256, then its bytes. Several processes may share the folder.

    Args:
        folder: Where they lie.
        max_bytes: What all of them may take; those go first that were not used for the longest time.
    """

    def __init__(self, folder: Path, max_bytes: float = MAX_BYTES) -> None:
        self._path = folder
        self._max_bytes = max_bytes
        self._bytes = math.inf
        """At least what all take, as far as this process knows; infinite before it has looked."""

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.program"

    def get(self, key: str) -> bytes | None:
        """The program; none where there is none, or its bytes are not those that were kept."""
        try:
            kept = self._file(key).read_bytes()
        except OSError:
            return None
        sha256, program = kept[:32], kept[32:]
        if hashlib.sha256(program).digest() != sha256:
            return None
        with contextlib.suppress(OSError):
            # When it was last used, which many systems do not note by themselves.
            os.utime(self._file(key), ns=(time.time_ns(), self._file(key).stat().st_mtime_ns))
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keep a program; a disk that takes none costs compile time, nothing else."""
        size = 32 + len(value)
        if size > self._max_bytes:
            return
        with contextlib.suppress(DiskError):
            files.write(self._file(key), hashlib.sha256(value).digest(), value)
            self._bytes += size
            if self._bytes > self._max_bytes:
                self._bytes = self._make_room()

    def _make_room(self) -> int:
        """Remove programs until the others fit, or none can be removed; returns the bytes of these."""
        found = []
        for path in self._path.glob("*.program"):
            with contextlib.suppress(OSError):  # Another process has removed it since, or it is no file.
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
