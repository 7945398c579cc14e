"""The experiments that ship with the package, and the file that a word of a command line means."""

from __future__ import annotations

import difflib
from pathlib import Path

import jaxmlp
from jaxmlp.errors import UsageError

PACKAGE = Path(jaxmlp.__file__).resolve().parent
FOLDERS = (PACKAGE / "experiments", PACKAGE.parent / "experiments")
"""Where the experiments lie: a wheel has them inside the package, a checkout or an editable install beside it."""


def shipped() -> dict[str, Path]:
    """The files of the experiments that ship, by name."""
    folder = next(filter(Path.is_dir, FOLDERS), None)
    return {path.stem: path for path in sorted(folder.glob("*.py"))} if folder else {}


def experiment_path(word: str) -> Path:
    """The file that a word means: a word with a `/`, or that ends in `.py`, is a path; any other is a shipped name.

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
        f"These ship: {', '.join(files)}. A file of your own has a / in its name, or ends in .py"
    )
