"""How are the hashes of a run's files kept? SHA256SUMS is read by `sha256sum -c`; its last line is its own hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from jaxmlp.errors import RunError
from jaxmlp.run import files

_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_LAST = "# {}  the lines above\n"


def write(path: Path, covered: Iterable[Path], coming: Mapping[str, bytes]) -> None:
    """Write the hashes of files beside or below `path`, with names relative to its folder.

    Args:
        path: The file of hashes.
        covered: Files that exist.
        coming: Contents of files that will be written later, by name.

    Raises:
        DiskError: The file could not be written, or a covered file could not be read.
    """
    with files.trying_to(f"write {path}"):
        found = {str(each.relative_to(path.parent)): sha256(each) for each in covered}
    found |= {name: hashlib.sha256(content).hexdigest() for name, content in coming.items()}
    text = "".join(f"{sha256}  {name}\n" for name, sha256 in found.items())
    files.write(path, (text + _LAST.format(hashlib.sha256(text.encode()).hexdigest())).encode())


def read(path: Path) -> dict[str, str]:
    """The hashes by file name, after checking the file's own hash.

    Raises:
        RunError: The file cannot be read or is damaged.
    """
    try:
        *lines, last = files.read(path).decode().splitlines(keepends=True)
        if last == _LAST.format(hashlib.sha256("".join(lines).encode()).hexdigest()):
            return {found[2]: found[1] for found in map(_LINE.match, lines) if found}
    except (UnicodeDecodeError, ValueError):
        pass
    raise RunError(f"{path} is damaged: its last line is not the SHA-256 of the lines above.")


def sha256(path: Path) -> str:
    """SHA-256 of the bytes of a regular file.

    Raises:
        OSError: It is not a regular file, or cannot be read.
    """
    with files.open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
