"""Where compiled programs are kept for the next start, and how one that is not whole is told from one that is.

JAX's own cache writes a program in place, and never again: one that a kill or a full disk cut off is read with a
warning, and compiled anew, at every start. Where its compression has no checksum, a flipped bit is run.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from jax._src import compilation_cache  # JAX has no public way to keep programs otherwise.
from jax._src.compilation_cache_interface import CacheInterface

from jaxmlp.errors import DiskError
from jaxmlp.run import files

DAY_S = 86_400.0
"""After which no process is still writing a program."""


def keep_in(folder: Path) -> None:
    """Let JAX keep compiled programs in a folder; before its first use."""
    with contextlib.suppress(OSError):
        files.remove_temporaries(folder, older_than_s=DAY_S)
    compilation_cache.get_file_cache = lambda path: (CompiledPrograms(Path(path)), path)
    compilation_cache.set_cache_dir(str(folder))


class CompiledPrograms(CacheInterface):
    """A file a program, each replaced whole: its SHA-256, then its bytes. Several processes may share the folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.program"

    def get(self, key: str) -> bytes | None:
        """The program; none where there is none, or its bytes are not those that were kept."""
        try:
            kept = self._file(key).read_bytes()
        except OSError:
            return None
        sha256, program = kept[:32], kept[32:]
        return program if hashlib.sha256(program).digest() == sha256 else None

    def put(self, key: str, value: bytes) -> None:
        """Keep a program; a disk that takes none costs compile time, nothing else."""
        with contextlib.suppress(DiskError):
            files.write(self._file(key), hashlib.sha256(value).digest(), value)
