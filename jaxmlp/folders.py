"""Which folders do users name with flags and environment variables, and where is the cache?"""

from __future__ import annotations

import os
from pathlib import Path

from jaxmlp.errors import UsageError


def chosen_folder(given: str | os.PathLike[str] | None, variable: str) -> Path | None:
    """The given folder, else the environment variable's, with `~` expanded. An empty name counts as absent.

    Raises:
        UsageError: The folder starts with `~`, but the system knows no home folder.
    """
    folder = os.fspath(given or "") or os.environ.get(variable)
    try:
        return Path(folder).expanduser() if folder else None
    except RuntimeError:
        known = "`~` means no home folder that the system knows"
        raise UsageError(f"{folder}: {known}. Write the path in full, in a flag or in {variable}") from None


def user_cache() -> Path | None:
    """`jaxmlp` in XDG_CACHE_HOME, else in `~/.cache`. None for a user without a home folder, as in containers."""
    cache = chosen_folder(None, "XDG_CACHE_HOME")
    try:
        # The XDG base directory specification ignores relative paths.
        return (cache if cache and cache.is_absolute() else Path.home() / ".cache") / "jaxmlp"
    except RuntimeError:
        return None
