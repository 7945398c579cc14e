"""Which experiments ship with the package, and which file does a word of a command line mean?"""

from __future__ import annotations

import difflib
from pathlib import Path

import jaxmlp
from jaxmlp.errors import UsageError

PACKAGE = Path(jaxmlp.__file__).resolve().parent
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
