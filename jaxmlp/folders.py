"""The folders that users name by flags and environment variables, and the one for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from jaxmlp.errors import UsageError


def chosen_folder(given: str | os.PathLike[str] | None, variable: str) -> Path | None:
    """The folder given, else the environment variable's, `~` expanded; an empty name counts as none.

    Raises:
        UsageError: Its `~` means no home folder that the system knows.
    """
    folder = os.fspath(given or "") or os.environ.get(variable)
    try:
        return Path(folder).expanduser() if folder else None
    except RuntimeError:
        known = "there is no home folder that `~` could mean"
        raise UsageError(f"{folder}: {known}. Write the path in full, in a flag or in {variable}") from None


def user_cache() -> Path | None:
    """`jaxmlp` in XDG_CACHE_HOME, else in `~/.cache`; None for a user without a home folder, as containers have."""
    cache = chosen_folder(None, "XDG_CACHE_HOME")
    try:
        # The XDG base directory specification has relative paths ignored.
        return (cache if cache and cache.is_absolute() else Path.home() / ".cache") / "jaxmlp"
    except RuntimeError:
        return None
