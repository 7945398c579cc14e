"""How does a run directory keep copies of the user's own code, to read and to compare? Nothing here runs it.

code/lion.py             what the run was made with
code/accepted-1/lion.py  changed code with which the run continued, after the change was accepted
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmlp.errors import RunError
from jaxmlp.run import files

if TYPE_CHECKING:
    from jaxmlp.source.code import Sources

CODE, ACCEPTED, DATA_CODE = "code", "accepted_code", "data_code"

_PLACE = re.compile(r"[^/:]+:[\w.<>]+")


def copy(folder: Path, sources: Sources) -> None:
    """Write the sources into `folder`, which belongs to a run.

    Raises:
        DiskError: They could not be written.
        RunError: A folder on the way is a symbolic link.
    """
    for name, source in sources.items():
        if source:
            path = folder / name
            for each in (folder.parent, *(folder / above for above in reversed(Path(name).parents))):
                if each.is_symlink():
                    raise RunError(f"{each} is a symbolic link: code must lie in the run directory. Remove it.")
            with files.trying_to(f"make the folder {path.parent}"):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write(path, source.content)


def wanted(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """Hashes of the code that the run must continue with: the last accepted code, else the original code."""
    accepted = manifest.get(ACCEPTED) or [manifest.get("binding") or {}]
    return dict(accepted[-1].get(CODE) or {})


def data_code(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """Hashes of the files that register the run's data set."""
    return dict((manifest.get("not_binding") or {}).get(DATA_CODE) or {})


def copies(manifest: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every copy, by its path in the run's folder."""
    folders = {CODE: {**data_code(manifest), **((manifest.get("binding") or {}).get(CODE) or {})}}
    for number, accepted in enumerate(manifest.get(ACCEPTED) or [], 1):
        folders[f"{CODE}/accepted-{number}"] = accepted.get(CODE) or {}
    return {f"{folder}/{name}": sha256 for folder, sums in folders.items() for name, sha256 in sums.items() if sha256}


def accept(path: Path, manifest: dict[str, Any], record: Mapping[str, Any], sources: Sources) -> None:
    """Copy changed code into the run or sweep at `path`, and add `record` to its manifest.

    Raises:
        DiskError, RunError: As `copy`.
    """
    accepted = [*(manifest.get(ACCEPTED) or []), dict(record)]
    copy(path / CODE / f"accepted-{len(accepted)}", sources)
    manifest[ACCEPTED] = accepted


def files_to_name(plain_config: Any, manifest: Mapping[str, Any]) -> list[str]:
    """Names of the files that later commands need: files that define parts of the config, or register the data."""
    named = [file for place in places(plain_config) if (file := place.partition(":")[0]) in wanted(manifest)]
    return list(dict.fromkeys([*named, *list(data_code(manifest))[:1]]))


def flags(names: Iterable[str | Path]) -> str:
    """Flags such as ` --experiment lion.py`, for a command line. Empty if there are no names."""
    return "".join(f" --experiment {shlex.quote(str(name))}" for name in names)


def places(plain: Any) -> Iterator[str]:
    """Places of the user's own code in a config or a sweep's settings, such as `lion.py:Lion`, at any depth."""
    if isinstance(plain, Mapping | list):
        for value in plain.values() if isinstance(plain, Mapping) else plain:
            yield from places(value)
    elif isinstance(plain, str) and _PLACE.fullmatch(plain):
        yield plain
