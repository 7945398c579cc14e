"""Which experiments ship with the package, and which of them does a word of a command line, or a run, mean?"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from jaxmlp.errors import UsageError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = (PACKAGE / "experiments", PACKAGE.parent / "experiments")
"""Folders of the experiments: inside the package in a wheel, beside it in a checkout or editable install."""


def shipped() -> dict[str, Path]:
    """The files of the shipped experiments, by name."""
    folder = next(filter(Path.is_dir, FOLDERS), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def experiment_path(word: str) -> Path:
    """The file that a word means.

    A word with a `/`, or that ends in `.py`, is a path; any other word is a shipped name.

    Raises:
        UsageError: No experiment of this name ships.
    """
    if "/" in word or word.endswith(".py"):
        return Path(word)
    files = shipped()
    if word in files:
        return files[word]
    known = [*files, *(path.name for path in sorted(Path().glob("*.py")))]
    near = dict.fromkeys([*filter(lambda name: name.startswith(word), known), *difflib.get_close_matches(word, known)])
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"{word} is not an experiment that ships with jaxmlp.{meant} "
        f"These ship: {', '.join(files)}. To name your own file, write a path that has a / or ends in .py"
    )


def unchanged(sums: Mapping[str, str | None]) -> list[Path]:
    """The shipped files whose name and SHA-256 are among `sums`. A run made with them need not be given its code."""
    return [path for path in shipped().values() if hashlib.sha256(path.read_bytes()).hexdigest() == sums.get(path.name)]
